"""Columns of a plain DuckDB call as arguments that `bind` understands, and as texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.udfs.prompts import prompt_value
from sqluice.udfs.spec import Const, PromptValue, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from sqluice.udfs.spec import Arg

PROMPT_TYPE = "STRUCT(template VARCHAR, args VARCHAR[])"


@dataclass(frozen=True, slots=True)
class ConstColumn(Const):
    """A column whose value is the same on every row of this batch."""

    column: Any


def argument(column: pa.Array) -> Arg:
    """What a column is to `bind`: what `prompt()` returned, a constant as far as this batch tells, or a row's."""
    if is_prompt(column.type):
        return _prompt(column)
    if _same(column) and _is_plain(column.type):
        return ConstColumn(column[0].as_py(), column)
    return Row(column)


def plain(column: Any) -> pa.Array:
    """One Array of a ChunkedArray; REAL as DOUBLE with the digits that DuckDB prints."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(pa.string()).cast(pa.float64()) if pa.types.is_float32(array.type) else array


def is_prompt(kind: pa.DataType) -> bool:
    """Whether `kind` is the type that `prompt()` returns; a text never is, whatever it says."""
    import pyarrow as pa

    if not pa.types.is_struct(kind) or [part.name for part in kind] != ["template", "args"]:
        return False
    template, args = (part.type for part in kind)
    return bool(pa.types.is_string(template) and pa.types.is_list(args) and pa.types.is_string(args.value_type))


def _is_plain(kind: pa.DataType) -> bool:
    import pyarrow as pa

    is_a = pa.types
    return any(
        test(kind)
        for test in (
            *(is_a.is_null, is_a.is_string, is_a.is_large_string, is_a.is_boolean, is_a.is_integer),
            *(is_a.is_floating, is_a.is_decimal, is_a.is_struct, is_a.is_list, is_a.is_fixed_size_list),
        )
    )


def _same(column: pa.Array) -> bool:
    return len(column) > 0 and bool(column[1:].equals(column[:-1]))


def _prompt(column: pa.Array) -> PromptValue:
    import pyarrow as pa
    import pyarrow.compute as pc

    templates, args = pc.struct_field(column, "template"), pc.struct_field(column, "args")
    known = pc.unique(templates.drop_null()).to_pylist()
    if not known:
        return PromptValue("{0}", (Row(pa.nulls(len(column), pa.string())),))
    counts = pc.unique(pc.list_value_length(args).drop_null()).to_pylist()
    if len(known) > 1 or len(counts) != 1:
        raise DataError("the template of PROMPT must be constant: it changes from row to row")
    found = prompt_value([Const(known[0]), *(Row(pc.list_element(args, at)) for at in range(counts[0]))])
    if templates.null_count and not found.args:
        raise DataError("a prompt that is NULL on some rows needs an argument: write PROMPT('..{0}', a)")
    return found


def texts(arg: Const | Row) -> list[str | None]:
    """The column behind an argument as strings, as DuckDB casts them; `DataError` for nested and other types."""
    import pyarrow as pa

    assert isinstance(arg, ConstColumn | Row), "every argument of a DuckDB function is a column"
    column: Any = arg.expr if isinstance(arg, Row) else arg.column
    kind = column.type
    if pa.types.is_floating(kind):
        return [None if one is None else repr(one) for one in column.to_pylist()]
    if pa.types.is_decimal(kind):
        return [None if one is None else f"{one:f}" for one in column.to_pylist()]
    if pa.types.is_time(kind) or (pa.types.is_timestamp(kind) and kind.tz is None):
        return [one and _without_zeros(one) for one in column.cast(pa.string()).to_pylist()]
    if pa.types.is_null(kind) or pa.types.is_dictionary(kind):
        return list(column.to_pylist())
    if any(test(kind) for test in (pa.types.is_boolean, pa.types.is_integer, pa.types.is_date)):
        return list(column.cast(pa.string()).to_pylist())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(column.to_pylist())
    raise DataError(f"a value of type {kind} is no text here: cast it with ::VARCHAR")


def _without_zeros(time: str) -> str:
    return time.rstrip("0").rstrip(".") if "." in time else time


def distinct(columns: Sequence[Sequence[str | None]], count: int) -> tuple[list[tuple[str, ...]], list[int | None]]:
    """The different rows without a NULL, in order, and for each of the `count` rows which it is (None: a NULL)."""
    seen: dict[tuple[Any, ...], int] = {}
    rows = zip(*columns, strict=True) if columns else [()] * count
    which = [None if None in row else seen.setdefault(row, len(seen)) for row in rows]
    return list(seen), which
