"""Random tables: NULLs, duplicates, empty tables, texts that are hard on quoting and hashing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

INT, TEXT, BOOL, DOUBLE = "INTEGER", "VARCHAR", "BOOLEAN", "DOUBLE"
LABELS, OUTCOME, RECORD, VECTOR = "VARCHAR[]", "outcome", "STRUCT(f VARCHAR, n INTEGER)", "FLOAT[]"
"""Types of generated expressions, by their SQL name; `outcome` is what {'errors': true} gives."""

WORDS = ("red", "Pear", "plum", "naïve", "日本", "🙂", "", " ", "it's", 'a"b', "{0}", "%", "nan", "\\", "a,b")
NUMBERS = (0, 1, 2, 3, -1, 7)


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table (or a view) with columns; `rows` are SQL literals, for a table."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    is_view: bool = False

    def statements(self) -> Iterator[str]:
        """SQL that makes it."""
        columns = ", ".join(f"{quoted(column.name)} {column.type}" for column in self.columns)
        yield f"CREATE OR REPLACE TABLE {quoted(self.name)} ({columns})"
        if self.rows:
            rows = ", ".join(f"({', '.join(row)})" for row in self.rows)
            yield f"INSERT INTO {quoted(self.name)} VALUES {rows}"


def quoted(name: str) -> str:
    """A name as SQL, quoted where it must be."""
    return name if name.isidentifier() and name.isascii() and name.islower() else f'"{name}"'


def literal(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


FEW, MANY = (0, 1, 4, 6, 8), (0, 8, 8, 30, 60, 150)
"""Numbers of rows; only over the larger ones does an order of questions pay."""


def tables(rng: Random, sizes: tuple[int, ...] = FEW) -> list[Table]:
    """Three tables that share some names of columns; one of them may be empty, and one has an odd name."""
    shared = [Column("id", INT), Column("s", TEXT), Column("k", INT)]
    more = [
        Column("x", TEXT),
        Column("b", BOOL),
        Column("u", RECORD),
        Column("Odd Name", TEXT),
        Column("t", TEXT),
        Column("D", DOUBLE),
    ]
    found = []
    for name in ("t", "r", "Big Words"):
        columns = (*shared, *rng.sample(more, rng.randint(1, 3)))
        count = rng.choice(sizes)
        rows = [_row(rng, columns, at) for at in range(count)]
        found.append(Table(name, columns, tuple(rows)))
    return found


def _row(rng: Random, columns: tuple[Column, ...], at: int) -> tuple[str, ...]:
    return (str(at + 1), *(_value(rng, column.type) for column in columns[1:]))


def _value(rng: Random, kind: str) -> str:
    if rng.randint(0, 5) == 0:
        return "NULL"
    if kind == TEXT:
        return literal(" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 2))))
    if kind == BOOL:
        return rng.choice(("true", "false"))
    if kind == RECORD:
        return f"{{'f': {_value(rng, TEXT)}, 'n': {_value(rng, INT)}}}"
    number = rng.choice(NUMBERS)
    return f"{number}.5" if kind == DOUBLE else str(number)
