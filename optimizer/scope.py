"""What the names in a SELECT can refer to: the columns of its FROM items, as the catalog reports them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sqlglot import exp

from sqluice.optimizer.ast import own

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class CannotLift(Exception):  # noqa: N818 - not an error: the row-wise path takes over
    """A construct that stages do not cover; the text says which, for EXPLAIN."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Columns of each FROM item by its alias, in order. `merged` tells that USING or NATURAL joined two columns into
    one, so that the items' columns are not simply those of the star. `hidden` are the right sides of semi and anti
    joins, which only their ON can see."""

    columns: dict[str, tuple[str, ...]]
    merged: bool = False
    hidden: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def only(self, aliases: Iterable[str], hidden: str = "") -> Scope:
        """What a part of FROM sees: some of the items, and one of the hidden ones."""
        found = {alias: self.columns[alias] for alias in aliases if alias in self.columns}
        if hidden in self.hidden:
            found[hidden] = self.hidden[hidden]
        return Scope(found, self.merged)

    def owner(self, name: str) -> str | None:
        """The alias of the only FROM item with a column `name`; None for none or several."""
        low = name.lower()
        found = [alias for alias, names in self.columns.items() if low in map(str.lower, names)]
        return found[0] if len(found) == 1 else None

    def has(self, name: str) -> bool:
        """Whether some FROM item has a column `name`."""
        low = name.lower()
        return any(low in map(str.lower, names) for names in self.columns.values())

    def alias(self, name: str) -> str | None:
        """The FROM item called `name`, as written."""
        low = name.lower()
        return next((alias for alias in self.columns if alias.lower() == low), None)

    def resolves(self, column: exp.Expr) -> bool:
        """Whether a column reference finds its value in FROM (itself, a whole row, or a field of a struct)."""
        parts = [part.name for part in column.parts if isinstance(part, exp.Identifier)]  # type: ignore[attr-defined]
        if not parts:
            return False
        first = parts[0]
        if len(parts) == 1:
            return self.has(first) or self.alias(first) is not None or first.lower() == "rowid"
        if self.alias(first) is not None or self.has(first):
            return True
        return any(self.alias(part) is not None for part in parts[1:-1])

    def split(self, column: exp.Expr) -> tuple[str, str, list[str]] | None:
        """A reference as (alias, column, fields of it); None where it is a whole row, ambiguous or unknown."""
        parts = [part.name for part in column.parts if isinstance(part, exp.Identifier)]  # type: ignore[attr-defined]
        for at, part in enumerate(parts[:-1]):
            alias = self.alias(part)
            if alias is not None and parts[at + 1].lower() in map(str.lower, self.columns[alias]):
                return alias, self._written(alias, parts[at + 1]), parts[at + 2 :]
        alias = self.owner(parts[0]) if parts else None
        return None if alias is None else (alias, self._written(alias, parts[0]), parts[1:])

    def _written(self, alias: str, name: str) -> str:
        return next(own for own in self.columns[alias] if own.lower() == name.lower())


class Catalog(Protocol):
    """What planning asks of the database; the engine answers."""

    @property
    def aggregates(self) -> frozenset[str]:
        """Names of the database's aggregate functions, lower case."""
        ...

    def scope(self, select: exp.Select, ctes: list[exp.CTE]) -> Scope:
        """Columns of each FROM item of `select`."""
        ...

    def outputs(self, query: exp.Query, ctes: list[exp.CTE]) -> list[str]:
        """Names of the columns that `query` returns."""
        ...

    def types(self, query: exp.Expr, ctes: list[exp.CTE]) -> list[str]:
        """Types of the columns that `query` returns. `CannotLift` where it cannot be bound on its own."""
        ...

    def is_table(self, table: exp.Table, ctes: list[exp.CTE]) -> bool:
        """Whether a name means rows that are there, and the same each time: those of a table."""
        ...

    def stands_alone(self, query: exp.Expr, ctes: list[exp.CTE]) -> bool:
        """Whether `query` refers to nothing outside it but `ctes`: it is not correlated."""
        ...


def own_columns(node: exp.Expr) -> Iterator[exp.Column]:
    """Column references of this level, without the names that list comprehensions bind and those that a star leaves
    out or renames."""
    bound = {str(found.args["expression"].name).lower() for found in own(node) if isinstance(found, exp.Comprehension)}
    for found in own(node):
        if (
            isinstance(found, exp.Column)
            and not isinstance(found.this, exp.Star)
            and found.parts[0].name.lower() not in bound
            and not isinstance(found.parent, exp.Star)
            and (found.parent is None or found.parent.arg_key != "rename")
        ):
            yield found


def lambda_names(node: exp.Expr) -> set[str]:
    """Names that lambdas in `node` bind, lower case."""
    return {
        name.name.lower()
        for found in own(node)
        if isinstance(found, exp.Lambda)
        for name in found.expressions
        if isinstance(name, exp.Identifier)
    }
