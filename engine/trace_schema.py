"""The trace tables: their columns, the views that show them, the files that hold them.

- `TABLES` names every column once, by its SQL type; Parquet schemas and views both come from it.
- `redact` keeps secrets out of what is stored; `strings`, `hexes` and the like make Arrow columns.
- `Stream` writes one table of one run, under a temporary name until `publish`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from sqluice.config import Value

TABLES: dict[str, dict[str, str]] = {
    "runs": {
        **dict.fromkeys(("run_id", "sql", "status"), "VARCHAR"),
        **dict.fromkeys(("started", "ended"), "TIMESTAMP"),
        **dict.fromkeys(("seconds", "spent_usd"), "DOUBLE"),
        **dict.fromkeys(("contract", "label"), "VARCHAR"),
        "degraded": "BOOLEAN",
        **dict.fromkeys(("calls", "rows"), "BIGINT"),
        "warnings": "INTEGER",
        **dict.fromkeys(("error", "versions", "settings"), "VARCHAR"),
    },
    "ops": {
        "run_id": "VARCHAR",
        "op": "INTEGER",
        **dict.fromkeys(("function", "model", "revision", "template_digest"), "VARCHAR"),
        **dict.fromkeys(("rows_in", "rows_out", "distinct_inputs", "calls", "cached", "scored"), "BIGINT"),
        **dict.fromkeys(("rows_oracle", "rows_cache", "rows_proxy", "rows_head", "rows_rule"), "BIGINT"),
        **dict.fromkeys(("nulls", "failed", "retries"), "BIGINT"),
        **dict.fromkeys(("tokens_in", "tokens_out", "tokens_cached", "pad_tokens"), "BIGINT"),
        **dict.fromkeys(("padding", "seconds_busy", "seconds_queue", "seconds_load", "joules"), "DOUBLE"),
        "joules_source": "VARCHAR",
        **dict.fromkeys(("cost_usd", "flop", "bytes"), "DOUBLE"),
        "bound": "VARCHAR",
        **dict.fromkeys(("est_rows", "est_calls"), "DOUBLE"),
        **dict.fromkeys(("contract", "label", "scorer"), "VARCHAR"),
        "labels": "BIGINT",
    },
    "batches": {
        "run_id": "VARCHAR",
        **dict.fromkeys(("op", "batch", "attempt", "rows"), "INTEGER"),
        **dict.fromkeys(("started", "ended"), "TIMESTAMP"),
        **dict.fromkeys(("seconds", "joules"), "DOUBLE"),
        **dict.fromkeys(("tokens_in", "tokens_out", "tokens_cached", "pad_tokens", "max_tokens"), "BIGINT"),
        "cost_usd": "DOUBLE",
        **dict.fromkeys(("outcome", "worker", "error"), "VARCHAR"),
    },
    "decisions": {
        "run_id": "VARCHAR",
        "op": "INTEGER",
        "input_hash": "VARCHAR",
        "n_rows": "BIGINT",
        "tier": "VARCHAR",
        **dict.fromkeys(("score", "raw_score", "tau_low", "tau_high"), "DOUBLE"),
        **dict.fromkeys(("reason", "answer", "status", "error"), "VARCHAR"),
        **dict.fromkeys(("tokens_in", "tokens_out"), "INTEGER"),
        "text": "VARCHAR",
    },
}

EMPTY = "0.parquet"
"""The file of each table's folder that has no rows: a view must find at least one file."""

PARTIAL = ".partial"
GROUP_ROWS = 65_536
GROUP_BYTES = 16 << 20
ERROR_CHARS = 500
SMALLEST_PARQUET = 12
"""Bytes; a file of fewer is what a power cut leaves, and would break every SELECT."""

_COUNTER = itertools.count()

_SECRETS = r"(?:(?:api|access|secret|private)[_-]?key|secret|password|passwd|pwd|token|authorization|credentials?)"
_NAMED_SECRET = re.compile(
    rf"(?P<name>{_SECRETS}['\"]?(?:\s*(?:=>|:=|==|=|:)\s*|\s+(?=')))"
    r"(?P<value>'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"|\$\$.*?\$\$|(?:(?:bearer|basic)\s+)?[^\s,;&)}\]'\"]+)",
    re.IGNORECASE | re.DOTALL,
)
_BARE_SECRET = re.compile(r"\bbearer\s+[\w.~+/=-]{8,}|\bsk-[\w-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)", re.IGNORECASE)
_SECRET_NAME = re.compile(_SECRETS + "$", re.IGNORECASE)


@functools.cache
def schema(table: str) -> pa.Schema:
    """The Arrow schema of trace table `table`."""
    import pyarrow as pa

    types = {
        "VARCHAR": pa.string(),
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP": pa.timestamp("us"),
    }
    return pa.schema([(name, types[kind]) for name, kind in TABLES[table].items()])


def view(table: str, folder: Path) -> str:
    """The statement that makes view `ai.<table>` over the Parquet files in `folder`.

    Where there is nothing DuckDB can read, the view has the right columns and no rows.
    """
    pattern = folder.as_posix()
    if "\\" in pattern or not (folder / EMPTY).is_file():  # DuckDB's patterns have no way to spell a backslash
        columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in TABLES[table].items())
        return f"CREATE OR REPLACE VIEW ai.main.{table} AS SELECT {columns} WHERE false"
    pattern = re.sub(r"[*?\[]", r"[\g<0>]", pattern).replace("'", "''")
    # Without hive_partitioning = false a parent folder called 'year=2026' would become a column.
    return (
        f"CREATE OR REPLACE VIEW ai.main.{table} AS SELECT * FROM "
        f"read_parquet('{pattern}/*.parquet', union_by_name = true, hive_partitioning = false)"
    )


def redact(text: str) -> str:
    """`text` with the values of api_key=..., PASSWORD '...', bearer tokens and the like replaced by ***."""
    return _BARE_SECRET.sub("***", _NAMED_SECRET.sub(_hide, text))


def _hide(match: re.Match[str]) -> str:
    value = match["value"]
    mark = value[0] if value[0] in "'\"" else ""
    return f"{match['name']}{mark}***{mark}"


def redact_settings(settings: Mapping[str, Value]) -> dict[str, Value]:
    """`settings` without secrets."""
    return {
        name: ("***" if _SECRET_NAME.search(name) else redact(value)) if isinstance(value, str) else value
        for name, value in settings.items()
    }


def tidy(error: str | None) -> str | None:
    """An error message fit to be stored: no secrets, not endless; None for an empty one."""
    return redact(error)[:ERROR_CHARS] if error else None


def strings(values: Sequence[str | None]) -> pa.Array:
    """A VARCHAR column. Half surrogate pairs, which UTF-8 lacks, become '?'."""
    import pyarrow as pa

    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if value is None else clean(value) for value in values], pa.string())


def clean(text: str) -> str:
    """`text` as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sparse(values: Mapping[int, str], n: int) -> pa.Array:
    """A VARCHAR column of `n` rows, NULL where `values` has no entry."""
    return strings([values.get(row) for row in range(n)] if values else [None] * n)


def doubles(values: np.ndarray | None, n: int) -> pa.Array:
    """A DOUBLE column of `n` rows; NaN and None become NULL."""
    import pyarrow as pa

    if values is None:
        return pa.nulls(n, pa.float64())
    return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)


def timestamps(seconds: Sequence[float]) -> pa.Array:
    """A TIMESTAMP column (UTC, microseconds) of seconds since the epoch."""
    import pyarrow as pa

    return pa.array(np.rint(np.asarray(seconds, dtype=np.float64) * 1e6).astype(np.int64), pa.timestamp("us"))


def hexes(hashes: Sequence[bytes] | pa.Array) -> pa.Array:
    """A VARCHAR column of the hashes in hexadecimal; one call of `hex` where they have one length."""
    import pyarrow as pa

    rows: list[bytes] = hashes.to_pylist() if isinstance(hashes, (pa.Array, pa.ChunkedArray)) else list(hashes)
    if not rows:
        return pa.array([], pa.string())
    width = len(rows[0])
    if not width or set(map(len, rows)) != {width}:
        return pa.array([row.hex() for row in rows], pa.string())
    text = b"".join(rows).hex().encode("ascii")
    offsets = np.arange(0, 2 * width * (len(rows) + 1), 2 * width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few distinct texts: row i holds `names[codes[i]]`."""

    names: list[str]
    codes: np.ndarray

    @classmethod
    def of(cls, values: Sequence[str] | str, n: int) -> Labels:
        """`n` labels; a single text stands for all of them."""
        import pyarrow as pa

        if isinstance(values, str):
            return cls([values], np.zeros(n, dtype=np.int32))
        encoded = pa.array(values, pa.string()).dictionary_encode()
        return cls(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())

    def are(self, name: str) -> np.ndarray:
        """Bool [n]: which rows hold `name`."""
        held: np.ndarray = self.codes == (self.names.index(name) if name in self.names else -1)
        return held

    def column(self) -> pa.Array:
        """The labels as VARCHAR."""
        import pyarrow as pa

        if len(self.names) == 1:
            return pa.repeat(pa.scalar(self.names[0], pa.string()), len(self.codes))
        return pa.array(self.names, pa.string()).take(pa.array(self.codes))


def batch_of(table: str, columns: Mapping[str, object], n: int) -> pa.RecordBatch:
    """`n` rows of a trace table. A single value fills its column; a column that is not named is NULL."""
    import pyarrow as pa

    arrays = []
    for field in schema(table):
        value = columns.get(field.name)
        if value is None:
            value = pa.nulls(n, field.type)
        elif isinstance(value, (str, int)):
            value = pa.repeat(pa.scalar(value, field.type), n)
        elif not isinstance(value, (pa.Array, pa.ChunkedArray)):
            value = pa.array(value, field.type)
        value = value if value.type == field.type else value.cast(field.type)
        arrays.append(value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value)
    return pa.RecordBatch.from_arrays(arrays, schema=schema(table))


class Stream:
    """The rows of one table of one run. Rows wait in memory until they make a row group; a run that stays
    below that opens its file only at `close`."""

    def __init__(self, folder: Path, table: str, run_id: str, version: str = "") -> None:
        self._final = folder / f"{run_id}.parquet"
        self._partial = folder / f"{run_id}{version}.parquet{PARTIAL}"
        self._table = table
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._writer: Any = None
        self._lock: int | None = None
        self._closed = False

    def append(self, rows: pa.RecordBatch) -> None:
        """Take `rows`; write when enough have come together."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def read(self) -> Iterator[pa.RecordBatch]:
        """Everything appended; afterwards the stream takes no more."""
        if self._writer is not None:
            self._writer.close()
            self._closed = True
            with _parquet().ParquetFile(self._partial) as file:
                yield from file.iter_batches()
        yield from self._waiting

    def close(self) -> None:
        """Write what waits and complete the file, if there were any rows."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._closed = True

    def publish(self) -> None:
        """Give the completed file its name."""
        if self._closed:
            self._unlock()  # first: some systems do not rename an open file
            self._partial.replace(self._final)

    def discard(self) -> None:
        """Remove whatever was written, published or not."""
        opened = self._closed or self._writer is not None or self._lock is not None
        self._waiting = []
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()
            self._writer = None
        self._unlock()
        for path in (self._partial, self._final) if opened else ():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        # Emptied first: an interruption between the lines may lose rows, and must not write them twice.
        waiting, self._waiting = self._waiting, []
        rows, self._rows, self._bytes = self._rows, 0, 0
        if rows:
            self._open().write_table(pa.Table.from_batches(waiting), row_group_size=rows)

    def _open(self) -> Any:
        if self._writer is None:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            _try_lock(self._lock)
            self._writer = _parquet().ParquetWriter(str(self._partial), schema(self._table), **_encoding(self._table))
        return self._writer

    def _unlock(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)


def _encoding(table: str) -> dict[str, object]:
    """zstd at its fastest; a dictionary only where values repeat."""
    unique = {"input_hash", "score", "raw_score", "text"}
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [c for c in TABLES[table] if c not in unique],
    }


def _parquet() -> Any:
    import pyarrow.parquet

    return pyarrow.parquet


def write_empty(folder: Path, table: str) -> None:
    """Make the file without rows, unless one with at least our columns is there."""
    path = folder / EMPTY
    with contextlib.suppress(OSError, ValueError):
        if set(schema(table).names) <= set(_parquet().read_schema(path).names):
            return
    partial = folder / f"0-{os.getpid()}-{next(_COUNTER)}.parquet{PARTIAL}"
    _parquet().write_table(schema(table).empty_table(), partial)
    partial.replace(path)


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left unfinished."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_left_over(entry):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108 - scandir has no Path


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.name.endswith(PARTIAL):
            return not _is_alive(int(entry.name.split("-")[1])) and _is_free(entry.path)
        return entry.name.endswith(".parquet") and entry.stat().st_size < SMALLEST_PARQUET
    except (OSError, ValueError, IndexError):
        return False


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _is_free(path: str) -> bool:
    """Whether nobody holds the file: a process in another container has it locked, and no pid here."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Lock an open file for as long as it is open; False when another has it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
