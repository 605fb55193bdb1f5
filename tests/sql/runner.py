"""Reads and runs .test files: SQL with the answers it must give.

A file is a list of records, each a block of lines; docs/testing.md has the format. Every file runs twice, on
a fresh connection each time: optimized, then with `SET ai_plan = 'rowwise'`, and both must give what the file
says. Rewrite the answers of files after a change that is meant::

    PYTHONPATH=tests python -m sql.runner --complete tests/sql/filter.test
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
import sys
import tempfile
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import sqluice
from support.scripted import ScriptedModel, scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqluice import Connection, Cursor

Mode: TypeAlias = Literal["optimized", "rowwise"]
MODES: tuple[Mode, ...] = ("optimized", "rowwise")
SEPARATOR = "----"
HASH_FROM_ROWS = 60
_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TYPES: dict[str, tuple[type, ...]] = {
    "I": (int,),
    "R": (float, Decimal),
    "B": (bool,),
    "T": (object,),
}


class RecordError(AssertionError):
    """A record did not do what the file says."""


@dataclass(frozen=True, slots=True)
class Record:
    """One block of a file. `words` is its first line, `body` the lines below it up to the separator,
    `expected` those after it; `line` is 1-based. `guards` holds `onlyoptimized` and `onlyrowwise`."""

    line: int
    words: tuple[str, ...]
    body: tuple[str, ...]
    expected: tuple[str, ...] | None
    guards: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        """The statement."""
        return "\n".join(self.body)

    @property
    def label(self) -> str:
        """A short name for reports."""
        return f"{self.line}-{'_'.join(self.words[:2])}"


def read(path: Path) -> list[Record]:
    """The records of a file, in order; `RecordError` names the line that makes no sense."""
    records: list[Record] = []
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if line.strip():
            block.append((number, line))
        elif block:
            records += _record(block)
            block = []
    return records


def _record(block: list[tuple[int, str]]) -> list[Record]:
    while block and block[0][1].startswith("#"):
        block = block[1:]
    guards: list[str] = []
    while block and block[0][1].split()[0] in ("onlyoptimized", "onlyrowwise", "skip"):
        guards.append(block[0][1])
        block = block[1:]
    if not block:
        return []
    number, first = block[0]
    words = tuple(first.split())
    if words[0] in ("model", "calls", "batches", "warnings"):
        own = Record(number, words, (), None, tuple(guards))
        return [own, *_record(block[1:])] if block[1:] else [own]
    if words[0] not in ("statement", "query"):
        raise RecordError(f"line {number}: {words[0]!r} is not a kind of record")
    lines = [line for _, line in block[1:]]
    at = lines.index(SEPARATOR) if SEPARATOR in lines else None
    expected = None if at is None else tuple(lines[at + 1 :])
    return [Record(number, words, tuple(lines[:at]), expected, tuple(guards))]


@dataclass(slots=True)
class Session:
    """A connection, the models registered on it, and what the last statement left."""

    con: Connection
    mode: Mode
    folder: tempfile.TemporaryDirectory[str]
    models: dict[str, ScriptedModel] = field(default_factory=dict)
    cursor: Cursor | None = None

    @classmethod
    def open(cls, mode: Mode) -> Session:
        """A fresh database in memory: exact answers, no answer cache."""
        con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_plan=mode)
        return cls(con, mode, tempfile.TemporaryDirectory())

    def close(self) -> None:
        """Close the connection and remove what the file wrote."""
        self.con.close()
        self.folder.cleanup()

    def skips(self, record: Record) -> str:
        """Why this record is left out in this mode; empty when it is not."""
        for guard in record.guards:
            word, _, reason = guard.partition(" ")
            if word == "skip" or word != f"only{self.mode}":
                return reason or word
        counting = record.words[0] in ("calls", "batches")
        return "calls are counted in the optimized run" if counting and self.mode == "rowwise" else ""

    def run(self, record: Record) -> list[str] | None:
        """Do one record; returns the lines a query gave. `RecordError` when it is not as written."""
        kind = record.words[0]
        if kind == "model":
            self._register(record.words[1], " ".join(record.words[2:]))
        elif kind in ("calls", "batches"):
            self._count(record)
        elif kind == "warnings":
            self._warnings(record)
        elif record.words[:2] == ("statement", "error"):
            self._fails(record)
        else:
            self._execute(record.sql)
            if kind == "query":
                return self._compare(record)
        return None

    def _register(self, name: str, behaviour: str) -> None:
        model = scripted(name, behaviour)
        self.models[name] = model
        self.con.register_model(name, model)
        if name in ("oracle", "embedder"):
            self.con.cursor().execute(f"SET ai_{name} = '{name}'")

    def _execute(self, sql: str) -> None:
        for model in self.models.values():
            model.counts.reset()
        self.cursor = self.con.cursor()
        self.cursor.execute(sql.replace("__DIR__", self.folder.name))

    def _fails(self, record: Record) -> None:
        try:
            self._execute(record.sql)
            if self.cursor is not None and self.cursor.description:
                self.cursor.fetchall()
        except sqluice.Error as error:
            _check_error(record, error)
        else:
            raise RecordError("the statement went through; an error was expected")

    def _compare(self, record: Record) -> list[str]:
        assert self.cursor is not None
        order = record.words[2] if len(record.words) > 2 else "nosort"
        lines = render(self.cursor.fetchall(), record.words[1], order)
        if record.expected is not None and lines != list(record.expected):
            raise RecordError(difference(record.sql, record.expected, lines))
        return lines

    def _count(self, record: Record) -> None:
        what, name, sign, bound = record.words
        counts = self.models[name].counts
        found = len(counts.distinct) if what == "calls" else counts.batches
        if not _OPERATORS[sign](found, int(bound)):
            raise RecordError(f"{what} of {name}: {found}, not {sign} {bound} (prompts sent: {counts.prompts})")

    def _warnings(self, record: Record) -> None:
        messages = [str(text) for _, text in getattr(self.cursor, "messages", [])]
        bound, pattern = int(record.words[2]), " ".join(record.words[3:])
        if not _OPERATORS[record.words[1]](len(messages), bound):
            raise RecordError(f"{len(messages)} warnings: {messages}")
        if pattern and not any(re.search(pattern, text) for text in messages):
            raise RecordError(f"no warning matches {pattern!r}: {messages}")


def _check_error(record: Record, error: sqluice.Error) -> None:
    """`statement error [ClassName] [line:column]`, then patterns, each to be found in the message."""
    for word in record.words[2:]:
        if ":" in word:
            if (error.line, error.column) != tuple(map(int, word.split(":"))):
                raise RecordError(f"position {error.line}:{error.column}, not {word}: {error}")
        elif word not in {cls.__name__ for cls in type(error).__mro__}:
            raise RecordError(f"{type(error).__name__}, not {word}: {error}")
    for pattern in record.expected or ():
        if not re.search(pattern, str(error), re.IGNORECASE):
            raise RecordError(f"{pattern!r} is not in the message: {error}")


def render(rows: Sequence[Sequence[Any]], types: str, order: str) -> list[str]:
    """Rows as lines, values parted by tabs; long results as their count and a hash."""
    lines = ["\t".join(_row(row, types)) for row in rows]
    if order == "rowsort":
        lines.sort()
    elif order != "nosort":
        raise RecordError(f"{order!r} is neither nosort nor rowsort")
    if len(lines) <= HASH_FROM_ROWS:
        return lines
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return [f"{len(lines)} rows hashing to {digest}"]


def _row(row: Sequence[Any], types: str) -> Iterable[str]:
    if len(row) != len(types):
        raise RecordError(f"{len(row)} columns, not {len(types)} ({types})")
    for value, code in zip(row, types, strict=True):
        wrong = code == "I" and isinstance(value, bool)
        if value is not None and (wrong or not isinstance(value, _TYPES[code])):
            raise RecordError(f"{value!r} is a {type(value).__name__}, not of type {code}")
        yield _value(value)


def _value(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        return f"{value:.6g}"
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") if text else "(empty)"


def difference(sql: str, expected: Sequence[str], found: Sequence[str]) -> str:
    """A message that shows both results."""
    shown = "\n".join(f"    {line}" for line in expected[:40]) or "    (no rows)"
    got = "\n".join(f"    {line}" for line in found[:40]) or "    (no rows)"
    return f"{sql}\n  expected:\n{shown}\n  found:\n{got}"


def complete(path: Path) -> int:
    """Write what an optimized run answers into the file; returns how many records changed."""
    lines = path.read_text(encoding="utf-8").splitlines()
    session = Session.open("optimized")
    changes: list[tuple[Record, list[str]]] = []
    try:
        for record in read(path):
            if session.skips(record):
                continue
            unchecked = Record(record.line, record.words, record.body, None, record.guards)
            found = session.run(unchecked if record.words[0] == "query" else record)
            if found is not None and (record.expected is None or found != list(record.expected)):
                changes.append((record, found))
    finally:
        session.close()
    for record, found in reversed(changes):
        start = record.line + len(record.body)
        end = start if record.expected is None else start + 1 + len(record.expected)
        lines[start:end] = [SEPARATOR, *found]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(changes)


def main(arguments: Sequence[str]) -> int:
    """The command line: `--complete FILE ...`."""
    if len(arguments) < 2 or arguments[0] != "--complete":
        print(__doc__)
        return 2
    for name in arguments[1:]:
        print(f"{name}: {complete(Path(name))} answers written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
