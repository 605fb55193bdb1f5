"""Parameters of a statement as SQL literals.

An AI statement runs as several SQL statements, so its parameters are put into the tree as values. They become literal
nodes, never text that is parsed.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlglot import exp

from sqluice.errors import NotSupportedError, ProgrammingError, programming_error

_NAME = "__param_"


class Given:
    """The parameters that came with a statement, handed out in the order of their places in the text."""

    def __init__(self, sql: str, params: Sequence[object] | Mapping[str, object] | None) -> None:
        self._sql = sql
        self._params = params
        self._next = 0
        self._used: set[object] = set()
        self.values: dict[str, object] = {}

    def next(self, place: int) -> str:
        """The stand-in for a `?`."""
        self._next += 1
        return self.named(str(self._next), place)

    def named(self, name: str, place: int) -> str:
        """The stand-in for `$1` or `$name`."""
        key: object = name
        if isinstance(self._params, Mapping):
            if name not in self._params:
                raise programming_error(self._sql, place, f"no value for parameter ${name}")
            value = self._params[name]
        elif self._params is not None and name.isdigit() and 1 <= int(name) <= len(self._params):
            key = int(name) - 1
            value = self._params[int(name) - 1]
        else:
            count = 0 if self._params is None else len(self._params)
            raise programming_error(self._sql, place, f"no value for parameter {name}: {count} were given")
        self._used.add(key)
        stand_in = f"{_NAME}{len(self.values)}"
        self.values[stand_in] = value
        return stand_in

    def check_all_used(self) -> None:
        """`ProgrammingError` when more values were given than the statement has places for."""
        if self._params is not None and len(self._used) != len(self._params):
            raise ProgrammingError(
                f"{len(self._params)} parameters were given, and the statement uses {len(self._used)}"
            )


def substituted(tree: exp.Expr, values: dict[str, object]) -> exp.Expr:
    """The tree with literals in the place of stand-ins."""

    def change(node: exp.Expr) -> exp.Expr:
        name = node.name if isinstance(node, exp.Column | exp.Identifier | exp.Var) else ""
        return literal(values[name]) if name in values and not isinstance(node.parent, exp.Column) else node

    return tree.transform(change)


def literal(value: Any) -> exp.Expr:
    """A Python value as SQL. `NotSupportedError` for a type that has no literal."""
    if value is None:
        return exp.null()
    if isinstance(value, bool):
        return exp.true() if value else exp.false()
    if isinstance(value, int):
        return exp.Literal.number(value) if value >= 0 else exp.Paren(this=exp.Neg(this=exp.Literal.number(-value)))
    if isinstance(value, str):
        return exp.Literal.string(value)
    simple = _simple(value)
    if simple is not None:
        return exp.cast(exp.Literal.string(simple[0]), simple[1], dialect="duckdb")
    if isinstance(value, Mapping):
        pairs = [
            exp.PropertyEQ(this=exp.to_identifier(str(k), quoted=True), expression=literal(v)) for k, v in value.items()
        ]
        return exp.Struct(expressions=pairs)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return exp.Array(expressions=[literal(one) for one in value])
    raise NotSupportedError(
        f"a parameter of type {type(value).__name__} beside an AI expression: cast it to text first"
    )


def _simple(value: Any) -> tuple[str, str] | None:
    """Text and type of a scalar."""
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # numpy scalars
        value = value.item()
    if isinstance(value, float):
        return (repr(value) if math.isfinite(value) else str(value)), "DOUBLE"
    if isinstance(value, bool | int):
        return str(value), "BOOLEAN" if isinstance(value, bool) else "HUGEINT"
    if isinstance(value, decimal.Decimal):
        text = f"{value:f}"
        whole, _, fraction = text.lstrip("-").partition(".")
        return text, f"DECIMAL({len(whole) + len(fraction)}, {len(fraction)})"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" "), "TIMESTAMPTZ" if value.tzinfo else "TIMESTAMP"
    if isinstance(value, datetime.date):
        return value.isoformat(), "DATE"
    if isinstance(value, datetime.time):
        return value.isoformat(), "TIME"
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds", "INTERVAL"
    if isinstance(value, uuid.UUID):
        return str(value), "UUID"
    if isinstance(value, bytes | bytearray | memoryview):
        return "".join(f"\\x{byte:02X}" for byte in bytes(value)), "BLOB"
    return None
