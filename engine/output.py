"""Results as CSV, JSON, JSON lines and Parquet. (Tables for people are drawn in `table`.)

Everything streams: a writer holds one record batch at a time. Files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import math
import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from sqluice.errors import DataError, OperationalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa


class Sink(Protocol):
    """The part of a binary file that a writer needs."""

    def write(self, data: bytes, /) -> int:
        """Take `data`; the number of bytes taken."""
        ...


FORMATS = ("table", "csv", "json", "jsonl", "parquet")
_INFINITE = ("9223372036854775807", "2147483647", "5881580-07-11", "5877641-06-24", "5881580")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` only when the block ends well; otherwise nothing is left.

    `OperationalError` when the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise OperationalError(f"cannot write {path}: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode_of(path))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _mode_of(path: Path) -> int:
    """Permission bits a plain `open(path, 'w')` would leave."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write(reader: pa.RecordBatchReader, format: str, out: Sink) -> int:  # noqa: A002 - the option's name
    """Write every row of `reader` to `out` in one of the `FORMATS` but `table`; the number of rows."""
    writers = {"csv": write_csv, "json": write_json, "jsonl": write_jsonl, "parquet": write_parquet}
    return writers[format](reader, out)


def write_csv(reader: pa.RecordBatchReader, out: Sink) -> int:
    """RFC 4180 with a header line. NULL is an empty field, an empty text is `""`; nested values are JSON."""
    out.write((",".join(_field(name) for name in reader.schema.names) + "\n").encode())
    rows = 0
    for batch in reader:
        lines = [",".join(map(_field, row)) + "\n" for row in rows_of(batch)]
        out.write("".join(lines).encode("utf-8", "replace"))
        rows += len(lines)
    return rows


def _field(value: object) -> str:
    if value is None:
        return ""
    text = cell(value)
    if text == "" or any(mark in text for mark in ',"\n\r') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def write_jsonl(reader: pa.RecordBatchReader, out: Sink) -> int:
    """One JSON object a line. NaN and infinities, which JSON lacks, are null."""
    names = distinct_names(reader.schema.names)
    rows = 0
    for batch in reader:
        lines = [_object(names, row) + "\n" for row in rows_of(batch)]
        out.write("".join(lines).encode("utf-8", "replace"))
        rows += len(lines)
    return rows


def write_json(reader: pa.RecordBatchReader, out: Sink) -> int:
    """One JSON array of objects, an object a line."""
    names = distinct_names(reader.schema.names)
    rows = 0
    out.write(b"[")
    for batch in reader:
        for row in rows_of(batch):
            out.write(("," if rows else "").encode() + b"\n" + _object(names, row).encode("utf-8", "replace"))
            rows += 1
    out.write(b"\n]\n" if rows else b"]\n")
    return rows


def _object(names: list[str], row: tuple[object, ...]) -> str:
    return json.dumps(dict(zip(names, map(to_json, row), strict=True)), ensure_ascii=False)


def write_parquet(reader: pa.RecordBatchReader, out: Sink) -> int:
    """Parquet, a row group a batch, zstd. `DataError` names a column whose type Parquet has no place for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [field.with_name(name) for name, field in zip(distinct_names(reader.schema.names), reader.schema, strict=True)]
    )
    for field in schema:
        if pa.types.is_interval(field.type):
            raise DataError(f'column "{field.name}" is an INTERVAL, which Parquet cannot hold: cast it to VARCHAR')
    rows = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            rows += batch.num_rows
    return rows


def distinct_names(names: list[str]) -> list[str]:
    """`['a', 'b', 'a'] -> ['a', 'b', 'a_1']`: SQL allows two columns of one name, objects do not."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 0
        while candidate in taken or (number and candidate in names):
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        result.append(candidate)
    return result


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """The rows of a batch as Python values. FLOATs keep their shortest form (0.1, not 0.100000001)."""
    if not batch.num_columns:
        return iter([()] * batch.num_rows)
    return zip(*(_values(column) for column in batch.columns), strict=True)


def _values(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    wide = _with_floats(kind, pa.string())
    if wide != kind:
        with contextlib.suppress(pa.ArrowNotImplementedError, pa.ArrowInvalid):
            column = column.cast(wide).cast(_with_floats(kind, pa.float64()))
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError):  # dates beyond year 9999 and 'infinity'
        return [_far(text) for text in column.cast(pa.string()).to_pylist()]


def _far(text: str | None) -> str | None:
    """DuckDB keeps its infinite dates and times at the ends of the integer range."""
    if text is None or not any(end in text for end in _INFINITE):
        return text
    return "-infinity" if "-" in text else "infinity"


def _with_floats(kind: pa.DataType, to: pa.DataType) -> pa.DataType:
    """`kind` with every 32-bit float in it replaced by `to`."""
    import pyarrow as pa

    if pa.types.is_float32(kind):
        return to
    if pa.types.is_list(kind):
        return pa.list_(_with_floats(kind.value_type, to))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_floats(kind.value_type, to), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_floats(field.type, to)) for field in kind])
    return kind


def cell(value: object) -> str:
    """A value as text, the way DuckDB casts it to VARCHAR; nested values as JSON; NULL as `NULL`."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json.dumps(to_json(value), ensure_ascii=False)
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    scalar = _scalar(value)
    return str(value) if scalar is None else str(scalar)


def to_json(value: object) -> object:
    """`value` in JSON's own types. Exact numbers that a float cannot hold become text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return _number(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):  # how Arrow gives a MAP
            return {cell(key): to_json(item) for key, item in value}
        return [to_json(item) for item in value]
    scalar = _scalar(value)
    return str(value) if scalar is None else scalar


def _number(value: decimal.Decimal) -> int | float | str:
    if value == value.to_integral_value():
        return int(value)
    near = float(value)
    return near if decimal.Decimal(repr(near)) == value else f"{value:f}"


def _scalar(value: object) -> str | None:
    """Text of the scalar kinds whose `str` is not what DuckDB shows."""
    if isinstance(value, bytes):
        return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02X}" for b in value)
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.isoformat(" ").removesuffix(":00")
    if isinstance(value, datetime.timedelta):
        return interval(0, 0, round(value.total_seconds() * 1e9))
    if isinstance(value, tuple) and len(value) == 3:
        return interval(*value)
    return None


def interval(months: int, days: int, nanoseconds: int) -> str:
    """`(14, 3, 0) -> '1 year 2 months 3 days'`, as DuckDB prints it."""
    years, months = int(months / 12), int(math.fmod(months, 12))
    units = ((years, "year"), (months, "month"), (days, "day"))
    parts = [f"{n} {name}{'' if n == 1 else 's'}" for n, name in units if n]
    if nanoseconds or not parts:
        seconds, micro = divmod(abs(nanoseconds) // 1000, 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append(("-" if nanoseconds < 0 else "") + clock + (f".{micro:06}".rstrip("0") if micro else ""))
    return " ".join(parts)
