"""The files a job reads: what they are, how they are cut into partitions, and whether they are still the same."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from sqluice.engine.duckdb_errors import translate
from sqluice.errors import OperationalError, ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DRIVING = "input"
"""The name of an input that was given none."""

LEAST_ROWS, MOST_ROWS = 1_000, 100_000
"""Rows of a partition when nobody says how many partitions there are."""

_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)
_OPENS = re.compile(
    r"\s*(LOAD|INSTALL|ATTACH|SET\s+(?!ai_)|CREATE\s+(OR\s+REPLACE\s+)?(PERSISTENT\s+|TEMPORARY\s+|TEMP\s+)?SECRET)\b",
    re.IGNORECASE,
)
_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".tsv": "read_csv", ".json": "read_json"}
_MORE = {".jsonl": "read_json", ".ndjson": "read_json", ".gz": "read_csv"}


@dataclass(frozen=True, slots=True)
class Input:
    """One `--input`: a table's name, and the path or pattern of its files."""

    name: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> Input:
        """From `'name=pattern'` or `'pattern'`."""
        found = _NAMED.fullmatch(text)
        name, pattern = found.groups() if found and "://" not in found.group(1) else (DRIVING, text)
        if not pattern.strip():
            raise ProgrammingError(f"--input {text!r} names no file")
        return cls(name, pattern)

    @property
    def reader(self) -> str:
        """DuckDB's function for files of this kind."""
        suffix = "." + self.pattern.rsplit(".", 1)[-1].lower()
        reader = {**_READERS, **_MORE}.get(suffix)
        if reader is None:
            raise ProgrammingError(f"input {self.pattern}: the name of its files ends in .parquet, .csv or .json")
        return reader


@dataclass(frozen=True, slots=True)
class File:
    """One file as it was when the job began. `changed` is the time of its last change, as DuckDB tells it."""

    path: str
    size: int
    changed: str


@dataclass(frozen=True, slots=True)
class Partition:
    """Rows `first` to `last` (exclusive) of some Parquet files, in order: `(path, first, last)` each."""

    number: int
    rows: int
    pieces: tuple[tuple[str, int, int], ...]

    @property
    def name(self) -> str:
        """What its record and its rows are called."""
        return f"{self.number:05d}"


def opens(statement: str) -> bool:
    """Whether a statement may decide which files can be read: it runs before any is looked for."""
    return _OPENS.match(statement) is not None


def run(con: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Run a statement that `opens`; an error of `sqluice.errors` when it fails."""
    try:
        con.execute(statement)
    except duckdb.Error as error:
        raise translate(error) from error


def text(value: str) -> str:
    """A string as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


def listed(paths: Iterable[str]) -> str:
    """Paths as a list of SQL."""
    return f"[{', '.join(map(text, paths))}]"


def files(con: duckdb.DuckDBPyConnection, given: Input) -> list[File]:
    """The files of an input, in the order of their names. `OperationalError` when there is none."""
    rows = _asked(con, f"SELECT filename, size, last_modified FROM read_blob({text(given.pattern)})", given)
    if not rows:
        raise OperationalError(f"input {given.name}: no file is named {given.pattern}")
    return sorted((File(path, int(size), str(changed)) for path, size, changed in rows), key=lambda one: one.path)


def changes(before: Sequence[File], now: Sequence[File]) -> list[str]:
    """How files differ from what they were, one line each; none where they are the same."""
    old, new = ({one.path: one for one in many} for many in (before, now))
    found = [f"{path} is gone" for path in old if path not in new]
    found += [f"{path} is new" for path in new if path not in old]
    for path, was in old.items():
        if path in new and new[path] != was:
            kind = "size" if new[path].size != was.size else "time of change"
            a, b = (was.size, new[path].size) if kind == "size" else (was.changed, new[path].changed)
            found.append(f"{path} has another {kind}: {a} before, {b} now")
    return found


def partitions(
    con: duckdb.DuckDBPyConnection, given: Input, found: Sequence[File], many: int | None
) -> list[Partition]:
    """The rows of Parquet files cut into `many` partitions of about the same size, each a run of rows."""
    if given.reader != "read_parquet":
        raise ProgrammingError(
            f"input {given.name} is cut into partitions, and has to be Parquet; {given.pattern} is not"
        )
    paths = listed(one.path for one in found)
    counted = dict(_asked(con, f"SELECT file_name, num_rows FROM parquet_file_metadata({paths})", given))
    sizes = [(one.path, int(counted[one.path])) for one in found]
    total = sum(rows for _, rows in sizes)
    if many is None:
        many = -(-total // MOST_ROWS) if total > MOST_ROWS else max(1, min(8, total // LEAST_ROWS))
    many = max(1, min(many, total))
    edges = [total * at // many for at in range(many + 1)]
    return [_partition(number, edges[number], edges[number + 1], sizes) for number in range(many)]


def _partition(number: int, first: int, last: int, sizes: Sequence[tuple[str, int]]) -> Partition:
    """The rows from `first` to `last` (exclusive), counted over all files."""
    pieces, start = [], 0
    for path, rows in sizes:
        low, high = max(first, start), min(last, start + rows)
        if low < high:
            pieces.append((path, low - start, high - start))
        start += rows
    return Partition(number, last - first, tuple(pieces or [(sizes[0][0], 0, 0)]))


def relation(given: Input, found: Sequence[File]) -> str:
    """SQL of all rows of an input."""
    return f"SELECT * FROM {given.reader}({listed(one.path for one in found)})"


def rows_of(pieces: Sequence[Sequence[Any]]) -> str:
    """SQL of the rows of a partition."""
    return " UNION ALL ".join(
        _numbered(path, f"file_row_number >= {first} AND file_row_number < {last}") for path, first, last in pieces
    )


def sample(paths: Iterable[str], every: int, seed: int) -> str:
    """SQL of one in `every` rows of Parquet files, by a hash of their places."""
    return " UNION ALL ".join(_numbered(path, f"hash(file_row_number + {seed}) % {every} = 0") for path in paths)


def _numbered(path: str, where: str) -> str:
    source = f"read_parquet({text(path)}, file_row_number = true)"
    return f"SELECT * EXCLUDE (file_row_number) FROM {source} WHERE {where}"


def to_plain(found: Sequence[File]) -> list[dict[str, Any]]:
    """As JSON holds it."""
    return [asdict(one) for one in found]


def _asked(con: duckdb.DuckDBPyConnection, sql: str, given: Input) -> list[Any]:
    try:
        return list(con.execute(sql).fetchall())
    except duckdb.Error as error:
        said = str(translate(error)).splitlines()[0]
        scheme, remote, _ = given.pattern.partition("://")
        hint = (
            f"; DuckDB reads {scheme}:// with an extension: INSTALL httpfs, where there is a network" if remote else ""
        )
        raise OperationalError(f"input {given.name} ({given.pattern}) cannot be read: {said}{hint}") from error
