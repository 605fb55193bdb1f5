"""Random FROM clauses: tables, derived tables, CTEs, functions, and joins of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from property.data import BOOL, INT, TEXT, Column, quoted
from property.expressions import Expressions, Item, Sight

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from property.data import Table

Derived: TypeAlias = "Callable[[int, Sight], tuple[str, list[Column], int | None]]"
JOINS = ("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN", "CROSS JOIN", ",")
VALUES = "(VALUES (1, 'red'), (2, 'plum pear'), (3, NULL))"


class Froms:
    """Writes FROM clauses. `derived` writes a query and tells its columns."""

    def __init__(self, rng: Random, expressions: Expressions, derived: Derived) -> None:
        self.rng = rng
        self.expressions = expressions
        self.derived = derived
        self.tables: list[Table] = []
        self.count = 0

    def clause(self, depth: int, around: Sight) -> tuple[str, Sight]:
        """What stands after FROM, and what can be named beside it."""
        text, first = self._item(depth, around, taken=_names(around))
        items = [first]
        merged = False
        for _ in range(self.rng.choice((0, 0, 0, 0, 1, 1, 1, 2))):
            join, right, using = self._join(depth, around, items)
            text += join
            merged |= using
            if right is not None:
                items.append(right)
        return text, Sight(tuple(items), around.around, merged)

    def _join(self, depth: int, around: Sight, items: list[Item]) -> tuple[str, Item | None, bool]:
        kind = self.rng.choice(JOINS)
        if kind == ",":
            return self._comma(depth, around, items)
        text, right = self._item(depth - 1, around, taken={item.alias for item in items} | _names(around))
        kept = None if kind in ("SEMI JOIN", "ANTI JOIN") else right
        if kind == "CROSS JOIN":
            return f" {kind} {text}", kept, False
        shared = self._shared(items, right)
        if shared and self.expressions.flag(5):
            columns = tuple(column for column in right.columns if column.name != shared)
            return f" {kind} {text} USING ({shared})", kept and Item(right.alias, columns), True
        return f" {kind} {text} ON {self._on(Sight((*items, right), around.around))}", kept, False

    def _comma(self, depth: int, around: Sight, items: list[Item]) -> tuple[str, Item | None, bool]:
        if not self.expressions.flag(3):
            text, right = self._item(depth - 1, around, taken={item.alias for item in items} | _names(around))
            return f", {text}", right, False
        alias = self._alias({item.alias for item in items} | _names(around))
        sight = Sight(tuple(items), around.around)
        if self.expressions.flag(2):
            item = Item(alias, (Column("v", TEXT),))
            return f", unnest([{self.expressions.one(TEXT, sight, 0)}, 'red']) AS {alias}(v)", item, False
        text, columns, _ = self.derived(depth - 1, sight.plus_around())
        return f", LATERAL ({text}) AS {alias}", Item(alias, tuple(columns)), False

    def _shared(self, items: list[Item], right: Item) -> str | None:
        """A column that exactly one item on the left and the right one have."""
        for name in ("k", "id"):
            left = [column.type for item in items for column in item.columns if column.name == name]
            if left == [INT] and Column(name, INT) in right.columns:
                return name
        return None

    def _on(self, sight: Sight) -> str:
        write = self.expressions
        asking = write.call(BOOL, sight, 1) or "true"
        cheap = f"{write.column(INT, sight) or '1'} = {write.column(INT, sight) or '1'}"
        return self.rng.choice(
            (
                *(cheap, asking, f"{cheap} AND {asking}", f"{asking} AND {cheap}", f"{cheap} OR {asking}"),
                *(f"{cheap} AND NOT {asking} AND {write.one(BOOL, sight, 1)}", write.one(BOOL, sight, 2)),
            )
        )

    def _item(self, depth: int, around: Sight, taken: set[str]) -> tuple[str, Item]:
        alias = self._alias(taken)
        if depth > 0 and self.expressions.flag(3):
            text, columns, width = self.derived(depth - 1, Sight(()))
            if columns and len(columns) == width and self.expressions.flag(5):
                renamed = tuple(Column(f"n{at}", column.type) for at, column in enumerate(columns))
                return f"({text}) AS {alias}({', '.join(one.name for one in renamed)})", Item(alias, renamed)
            return f"({text}) AS {alias}", Item(alias, tuple(columns))
        if self.expressions.flag(12):
            return f"{VALUES} AS {alias}(n, s)", Item(alias, (Column("n", INT), Column("s", TEXT)))
        if self.expressions.flag(14):
            return f"range(3) AS {alias}(i)", Item(alias, (Column("i", "BIGINT"),))
        table = self.rng.choice(self.tables)
        name = quoted(table.name)
        if table.name not in taken and self.expressions.flag(2):
            return name, Item(table.name, table.columns)
        return f"{name} AS {alias}" if self.expressions.flag(2) else f"{name} {alias}", Item(alias, table.columns)

    def _alias(self, taken: set[str]) -> str:
        while True:
            self.count += 1
            alias = self.rng.choice(("a", "d", "s", "w")) if self.expressions.flag(3) else f"a{self.count}"
            if alias not in taken:
                return alias


def _names(around: Sight) -> set[str]:
    """Aliases that an inner one should not hide."""
    return {item.alias for item in around.around}
