"""Results drawn as tables for people: types under the names, NULL distinct, cut to the terminal's width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqluice.engine.output import cell, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MIN_COLUMN = 6  # cells; narrower columns say nothing, so whole columns are left out instead

_NAMES = {
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "uint8": "utinyint",
    "uint16": "usmallint",
    "uint32": "uinteger",
    "uint64": "ubigint",
    "float": "float",
    "double": "double",
    "bool": "boolean",
    "null": "null",
    "date32[day]": "date",
    "string": "varchar",
    "large_string": "varchar",
    "string_view": "varchar",
    "binary": "blob",
    "large_binary": "blob",
    "binary_view": "blob",
    "month_day_nano_interval": "interval",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What `draw` saw: rows of the result, rows shown, columns and columns shown."""

    rows: int
    shown: int
    columns: int
    columns_shown: int

    def __str__(self) -> str:
        text = f"{self.rows:,} row{'' if self.rows == 1 else 's'}"
        if self.shown < self.rows:
            text += f" ({self.shown:,} shown)"
        if self.columns_shown < self.columns:
            text += f", {self.columns} columns ({self.columns_shown} shown)"
        return text


def draw(reader: pa.RecordBatchReader, console: Console, *, max_rows: int | None = None) -> Drawn:
    """Print the first `max_rows` rows of `reader` (all when None) and read it to its end."""
    kept: list[tuple[object, ...]] = []
    total = 0
    for batch in reader:
        room = batch.num_rows if max_rows is None else max(0, max_rows - len(kept))
        kept.extend(rows_of(batch.slice(0, room)))
        total += batch.num_rows
    names = list(reader.schema.names)
    places = _columns_that_fit(len(names), console.width)
    console.print(_table(reader.schema, places, kept, console.width))
    return Drawn(total, len(kept), len(names), sum(place is not None for place in places))


def _columns_that_fit(columns: int, width: int) -> list[int | None]:
    """Indices of the columns to show; one None stands for those left out of the middle."""
    room = max(2, (width - 1) // (MIN_COLUMN + 3))
    if columns <= room:
        return list(range(columns))
    left = room // 2
    right = room - 1 - left
    return [*range(left), None, *range(columns - right, columns)]


def _table(schema: pa.Schema, places: Sequence[int | None], rows: Sequence[tuple[object, ...]], width: int) -> Table:
    from rich import box
    from rich.table import Table

    columns = [_column(schema, place, rows, width) for place in places]
    widths = share([max(text.cell_len for text in column) for column in columns], width - 1)
    table = Table(box=box.ROUNDED, show_header=False)
    for place, cells in zip(places, widths, strict=True):
        number = place is not None and _is_number(schema.field(place).type)
        side: Literal["right", "left"] = "right" if number else "left"
        table.add_column(width=cells, justify=side, no_wrap=True, overflow="ellipsis")
    names, kinds, *body = zip(*columns, strict=True)
    table.add_row(*names)
    table.add_row(*kinds, end_section=True)
    for row in body:
        table.add_row(*row)
    return table


def _column(schema: pa.Schema, place: int | None, rows: Sequence[tuple[object, ...]], width: int) -> list[Text]:
    """Name, type and cells of one column; `place` None is the column that stands for those left out."""
    from rich.text import Text

    if place is None:
        return [Text("…"), Text(" "), *(Text("…") for _ in rows)]
    field = schema.field(place)
    name = Text(_one_line(field.name, width), style="bold")
    kind = Text(type_name(field.type), style="dim")
    return [name, kind, *(_text(row[place], width) for row in rows)]


def share(needs: Sequence[int], width: int) -> list[int]:
    """Widths of columns that need `needs` cells in a table of `width` cells (three more a column for lines).

    Narrow columns get what they need; the wide ones share the rest equally.
    """
    room = max(width - 3 * len(needs), len(needs))
    given = [0] * len(needs)
    waiting = sorted(range(len(needs)), key=lambda i: needs[i])
    for left, i in zip(range(len(needs), 0, -1), waiting, strict=True):
        given[i] = max(1, min(needs[i], room // left))
        room -= given[i]
    return given


def _text(value: object, width: int) -> Text:
    from rich.text import Text

    if value is None:
        return Text("NULL", style="dim italic")
    return Text(_one_line(cell(value), width))


def _one_line(text: str, width: int) -> str:
    """`text` without control characters (row text must not steer the terminal), and not endless."""
    head = text[: 2 * width]
    shown = "".join(ch if ch.isprintable() or ch == " " else _escape(ch) for ch in head)
    return shown + "…" if len(text) > len(head) else shown


def _escape(ch: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return named.get(ch) or ("\u00b7" if ord(ch) > 255 else f"\\x{ord(ch):02x}")


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def type_name(kind: pa.DataType) -> str:
    """The SQL name of an Arrow type: `list<item: int32>` is `integer[]`."""
    import pyarrow as pa

    if pa.types.is_decimal(kind):
        whole = (kind.precision, kind.scale) == (38, 0)  # how DuckDB hands a HUGEINT to Arrow
        return "hugeint" if whole else f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_fixed_size_list(kind):
        return f"{type_name(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{type_name(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return "struct(" + ", ".join(f"{field.name} {type_name(field.type)}" for field in kind) + ")"
    if pa.types.is_map(kind):
        return f"map({type_name(kind.key_type)}, {type_name(kind.item_type)})"
    if pa.types.is_dictionary(kind):
        return "enum"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if pa.types.is_time(kind):
        return "time"
    return _NAMES.get(str(kind), str(kind))
