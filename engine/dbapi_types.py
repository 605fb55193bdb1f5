"""PEP 249's type objects and constructors, and Python values for what DuckDB hands out as Arrow.

Rows and Arrow results come from one Arrow reader, so a query runs once and streams either way. Arrow has no place
for some DuckDB types: `exportable` casts those to text, and `row_reader` makes of every value what DuckDB's own
`fetchall` would return (HUGEINT an int, UUID a `uuid.UUID`, INTERVAL a `timedelta`, MAP a dict, ...).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from sqluice.errors import ProgrammingError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Fix: TypeAlias = Callable[[Any], Any]
Row: TypeAlias = tuple[Any, ...]

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = bytes


def DateFromTicks(ticks: float) -> datetime.date:  # noqa: N802 - the name PEP 249 fixes
    """The local date `ticks` seconds after the epoch."""
    return datetime.date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:  # noqa: N802 - the name PEP 249 fixes
    """The local time of day `ticks` seconds after the epoch."""
    return datetime.time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:  # noqa: N802 - the name PEP 249 fixes
    """The local date and time `ticks` seconds after the epoch."""
    return datetime.datetime(*time.localtime(ticks)[:6])


class TypeObject:
    """Equal to every `description` type code of its family: `cursor.description[0][1] == NUMBER`."""

    def __init__(self, name: str, *types: str) -> None:
        self._name = name
        self._types = frozenset(types)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TypeObject):
            return self is other
        return isinstance(other, str) and other.partition("(")[0].strip().upper() in self._types

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"sqluice.{self._name}"


STRING = TypeObject("STRING", "VARCHAR", "ENUM", "UUID", "JSON", "BIT")
BINARY = TypeObject("BINARY", "BLOB")
NUMBER = TypeObject(
    "NUMBER",
    *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "BIGNUM", "FLOAT", "DOUBLE", "DECIMAL"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
)
DATETIME = TypeObject(
    "DATETIME",
    *("DATE", "TIME", "TIME_NS", "TIME WITH TIME ZONE", "INTERVAL", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"),
    *("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP_US"),
)
ROWID = TypeObject("ROWID")  # DuckDB's rowid is a BIGINT

Params: TypeAlias = Sequence[object] | Mapping[str, object]
Description: TypeAlias = list[tuple[str, str, None, None, int | None, int | None, None]]


def describe(columns: Sequence[tuple[str, object]]) -> Description:
    """PEP 249's `description`; type codes are DuckDB's type names, precision and scale are given for decimals."""
    found: Description = []
    for name, kind in columns:
        code, precision, scale = str(kind), None, None
        if code.upper().startswith("DECIMAL(") and code.endswith(")"):
            precision, scale = (int(part) for part in code[8:-1].split(","))
        found.append((name, code, None, None, precision, scale, None))
    return found


def checked_params(params: Any) -> Params | None:
    """`params` as a sequence or mapping; a lone string is most likely a forgotten comma."""
    if params is None or isinstance(params, Mapping):
        return params
    if isinstance(params, str | bytes | bytearray):
        raise ProgrammingError(f"parameters are a sequence or a mapping: write ({params!r},)")
    try:
        return params if isinstance(params, Sequence) else list(params)
    except TypeError:
        raise ProgrammingError(f"parameters are a sequence or a mapping, not {type(params).__name__}") from None


# ---- what Arrow cannot carry

_AS_TEXT: dict[str, Fix] = {
    "uhugeint": int,
    "bit": str,
    "bignum": str,
    "varint": str,
    "time with time zone": datetime.time.fromisoformat,
    "variant": json.loads,
}


def exportable(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """`relation` with columns that Arrow would lose or garble as text; itself when there are none.

    UHUGEINT overflows Arrow's decimals, TIMETZ drops its offset, BIT, BIGNUM and VARIANT are DuckDB's own bytes.
    """
    kinds = [_text_type(kind) for kind in relation.types]
    if not any(kinds):
        return relation
    names = [_quoted(name) for name in relation.columns]
    if len({name.lower() for name in names}) < len(names):
        return relation  # columns of one name cannot be told apart in a projection
    pieces = [f"CAST({name} AS {kind}) AS {name}" if kind else name for name, kind in zip(names, kinds, strict=True)]
    return relation.project(", ".join(pieces))


def _text_type(kind: Any) -> str | None:
    """The type to cast to: `kind` with the types Arrow loses replaced by text; None when it has none."""
    if kind.id in _AS_TEXT:
        return "JSON" if kind.id == "variant" else "VARCHAR"
    if kind.id not in ("list", "array", "struct", "map"):
        return None
    parts = kind.children
    inner = [_text_type(part) if not isinstance(part, int) else None for _, part in parts]
    if not any(inner):
        return None
    full = [(name, new or str(part)) for (name, part), new in zip(parts, inner, strict=True)]
    if kind.id == "struct":
        return "STRUCT(" + ", ".join(f"{_quoted(name)} {part}" for name, part in full) + ")"
    if kind.id == "map":
        return f"MAP({full[0][1]}, {full[1][1]})"
    return full[0][1] + (f"[{full[1][1]}]" if kind.id == "array" else "[]")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- Arrow values as Python values


def row_reader(columns: Sequence[tuple[str, object]]) -> Callable[[pa.RecordBatch], list[Row]]:
    """A function from record batches of these columns to rows of Python values."""
    fixes = [_fix_of(_duckdb_type(kind)) for _, kind in columns]

    def rows(batch: pa.RecordBatch) -> list[Row]:
        return list(zip(*map(_values, batch.columns, fixes), strict=True))

    return rows


def _values(column: pa.Array, fix: Fix | None) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # a year before 1 or after 9999, or nanoseconds
        values = _through_duckdb(column)
    if fix is None:
        return values
    return [None if value is None else fix(value) for value in values]


def _through_duckdb(column: pa.Array) -> list[Any]:
    """DuckDB's own Python values for dates Python has no object for: text, or the nearest for infinity."""
    import duckdb
    import pyarrow as pa

    with duckdb.connect(config={"threads": 1}) as con:
        zone = getattr(column.type, "tz", None)
        if zone:
            with contextlib.suppress(duckdb.Error):  # needs DuckDB's icu extension; UTC without
                con.execute(f"SET TimeZone = '{zone}'")
        return [row[0] for row in con.from_arrow(pa.table({"v": column})).fetchall()]


def _duckdb_type(kind: object) -> Any:
    """A DuckDB type object, from its name where need be; None for names DuckDB cannot resolve alone."""
    if not isinstance(kind, str):
        return kind
    import duckdb

    try:
        return duckdb.sqltype(kind)
    except duckdb.Error:  # a user-defined type
        return None


def _fix_of(kind: Any) -> Fix | None:
    """What turns pyarrow's value of this type into DuckDB's; None where they are the same."""
    if kind is None:
        return None
    if kind.id in _FIXES:
        return _FIXES[kind.id]
    if kind.id not in ("list", "array", "struct", "tuple", "map"):
        return None
    parts = [(name, _fix_of(part)) for name, part in kind.children if not isinstance(part, int)]
    if kind.id == "map":
        return _map_fix(parts[0][1] or _same, parts[1][1] or _same)
    if kind.id in ("struct", "tuple"):
        return _struct_fix(parts)
    return _list_fix(parts[0][1], tuple if kind.id == "array" else list)


def _same(value: Any) -> Any:
    return value


def _or_none(fix: Fix) -> Fix:
    return lambda value: None if value is None else fix(value)


def _list_fix(item: Fix | None, make: type) -> Fix | None:
    if item is None:
        return None if make is list else make
    fix = _or_none(item)
    return lambda values: make(map(fix, values))


def _struct_fix(parts: list[tuple[str, Fix | None]]) -> Fix | None:
    unnamed = all(not name for name, _ in parts)
    if not unnamed and all(fix is None for _, fix in parts):
        return None
    fixes = [_or_none(fix or _same) for _, fix in parts]

    def fixed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        made = [fix(item) for fix, item in zip(fixes, value.values(), strict=True)]
        return tuple(made) if unnamed else dict(zip(value, made, strict=True))

    return fixed


def _map_fix(key: Fix, value: Fix) -> Fix:
    fix = _or_none(value)

    def fixed(pairs: Any) -> Any:
        if isinstance(pairs, dict):
            return pairs
        keys, values = [key(k) for k, _ in pairs], [fix(v) for _, v in pairs]
        try:
            return dict(zip(keys, values, strict=True))
        except TypeError:  # keys that are lists or dicts: as DuckDB shows them
            return {"key": keys, "value": values}

    return fixed


def _interval(value: Any) -> datetime.timedelta:
    """DuckDB counts a month as 30 days here."""
    if isinstance(value, datetime.timedelta):
        return value
    days = 30 * value.months + value.days
    return datetime.timedelta(days=days, microseconds=value.nanoseconds // 1000)


def _uuid(value: Any) -> uuid.UUID:
    if isinstance(value, bytes):
        return uuid.UUID(bytes=value)
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def _from_text(fix: Fix) -> Fix:
    """`fix` for text; a value that Arrow carried after all stays."""
    return lambda value: fix(value) if isinstance(value, str) else value


_FIXES: dict[str, Fix] = {
    "hugeint": int,
    "uuid": _uuid,
    "interval": _interval,
    "timestamp_ns": lambda value: value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value,
    **{name: _from_text(fix) for name, fix in _AS_TEXT.items()},
    "uhugeint": lambda value: int(value) % 2**128 if isinstance(value, Decimal) else int(value),
}


# ---- tables for pandas and polars


def for_frames(table: pa.Table, columns: Sequence[tuple[str, object]]) -> pa.Table:
    """`table` with HUGEINT (any sum of integers) as int64 where it fits, INTERVAL as duration, names distinct."""
    import pyarrow as pa

    from sqluice.engine.output import distinct_names

    made = []
    for (_, kind), column in zip(columns, table.columns, strict=True):
        if str(kind) == "HUGEINT" and pa.types.is_decimal(column.type):
            made.append(_integers(column))
        elif str(kind) == "INTERVAL":
            values = [None if value is None else _interval(value) for value in column.to_pylist()]
            made.append(pa.array(values, pa.duration("us")))
        else:
            made.append(column)
    return pa.table(made, names=distinct_names(table.column_names))


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """64-bit integers, or doubles as DuckDB's own `df()` gives when one does not fit."""
    import pyarrow as pa

    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.float64())
