"""What planning asks of DuckDB: columns, types, whether a query stands alone. Nothing is executed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from sqluice.optimizer.ast import sources, sql, with_clause
from sqluice.optimizer.scope import CannotLift, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "__mark"
_MERGING = ("NATURAL", "ASOF", "POSITIONAL")


class DuckCatalog:
    """Answers about one session's database. `typed` turns AI expressions into calls that DuckDB can bind."""

    def __init__(self, con: Any, typed: Callable[[exp.Expr], exp.Expr]) -> None:
        self._con = con
        self._typed = typed
        self._aggregates: frozenset[str] | None = None

    @property
    def aggregates(self) -> frozenset[str]:
        """Names of DuckDB's aggregate functions, lower case."""
        if self._aggregates is None:
            rows = self._con.execute(
                "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type = 'aggregate'"
            ).fetchall()
            self._aggregates = frozenset(name for (name,) in rows)
        return self._aggregates

    def describe(self, query: exp.Expr, ctes: list[exp.CTE]) -> list[tuple[str, str]]:
        """Names and types of what `query` returns; duckdb's errors reach the caller."""
        return described(self._con, sql(_with(self._typed(query), [self._typed(cte) for cte in ctes])))

    def scope(self, select: exp.Select, ctes: list[exp.CTE]) -> Scope:
        """Columns of each FROM item. `CannotLift` where DuckDB cannot bind them on their own."""
        items = [item.alias_or_name for item in sources(select)]
        if not items:
            return Scope({})
        if not all(items) or len({item.lower() for item in items}) != len(items):
            raise CannotLift("FROM items without a name of their own")
        columns: list[exp.Expr] = []
        for at, item in enumerate(items):
            columns.append(exp.alias_(exp.Literal.string(""), f"{_MARK}{at}", quoted=True))
            columns.append(exp.Column(this=exp.Star(), table=exp.to_identifier(item, quoted=True)))
        probe = exp.Select(expressions=columns)
        for name in ("from_", "joins", "laterals"):
            value = select.args.get(name)
            if value:
                probe.set(name, [one.copy() for one in value] if isinstance(value, list) else value.copy())
        try:
            found = self.describe(probe, ctes)
        except duckdb.Error as error:
            raise CannotLift(f"DuckDB cannot describe FROM alone ({str(error).splitlines()[0]})") from error
        groups: list[list[str]] = []
        for name, _ in found:
            if name == f"{_MARK}{len(groups)}":
                groups.append([])
            else:
                groups[-1].append(name)
        merged = any(
            join.args.get("using") or (join.method or "").upper() in _MERGING for join in select.args.get("joins") or ()
        )
        return Scope({item: tuple(names) for item, names in zip(items, groups, strict=True)}, merged)

    def outputs(self, query: exp.Query, ctes: list[exp.CTE]) -> list[str]:
        """Names of the columns that `query` returns."""
        try:
            return [name for name, _ in self.describe(query, ctes)]
        except duckdb.Error as error:
            raise CannotLift(f"DuckDB cannot describe it alone ({str(error).splitlines()[0]})") from error

    def stands_alone(self, query: exp.Query, ctes: list[exp.CTE]) -> bool:
        """Whether `query` binds without anything around it but `ctes`."""
        try:
            self.describe(query.this if isinstance(query, exp.Subquery) and not query.alias else query, ctes)
        except duckdb.Error:
            return False
        return True


def described(con: Any, text: str) -> list[tuple[str, str]]:
    """Names and types of the columns of a query, without running it. A query that DuckDB cannot bind raises its error
    and leaves an open transaction as it was."""
    return [(str(row[0]), str(row[1])) for row in con.sql(f"DESCRIBE {text}").fetchall()]


def _with(query: exp.Expr, ctes: list[exp.CTE]) -> exp.Expr:
    """`query` with `ctes` in front of its own."""
    if not ctes:
        return query
    inner = (
        query if isinstance(query, exp.Select | exp.SetOperation) else exp.Select(expressions=[exp.Star()]).from_(query)
    )
    own = inner.args.get("with_")
    clause = with_clause([*ctes, *(own.expressions if own else [])])
    clause.set("recursive", clause.args["recursive"] or bool(own and own.args.get("recursive")))
    inner.set("with_", clause)
    return inner


def ai_views(con: Any) -> dict[str, str]:
    """Views whose text holds an AI call: lower-case name -> the view's SQL."""
    rows = con.execute(
        "SELECT lower(view_name), sql FROM duckdb_views() WHERE NOT internal AND regexp_matches(sql, '(?i)\\bai_\\w+\\s*\\(')"
    ).fetchall()
    return {name: re.sub(r";\s*$", "", text) for name, text in rows}


def ai_macros(con: Any) -> dict[str, tuple[list[str], str]]:
    """Scalar macros whose text holds an AI call: lower-case name -> names of their parameters, their text."""
    rows = con.execute(
        "SELECT lower(function_name), parameters, macro_definition FROM duckdb_functions() WHERE NOT internal "
        "AND function_type = 'macro' AND regexp_matches(macro_definition, '(?i)\\bai_\\w+\\s*\\(')"
    ).fetchall()
    return {name: (list(parameters), text) for name, parameters, text in rows}
