"""What planning asks of DuckDB: columns, types, whether a query stands alone. Nothing is executed."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import duckdb
from sqlglot import exp

from sqluice.optimizer.ast import is_filtering, pivots_answers, sources, sql, with_clause, with_from
from sqluice.optimizer.scope import CannotLift, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "__mark"
_AGGREGATES: WeakKeyDictionary[Any, tuple[int, frozenset[str]]] = WeakKeyDictionary()
_AI_CALL = r"(?i)\bai_\w+\s*\("
_MERGING = ("NATURAL", "ASOF", "POSITIONAL")


class DuckCatalog:
    """Answers about one session's database. `typed` turns AI expressions into calls that DuckDB can bind."""

    def __init__(self, con: Any, typed: Callable[[exp.Expr], exp.Expr]) -> None:
        self._con = con
        self._typed = typed

    @cached_property
    def aggregates(self) -> frozenset[str]:
        """Names of DuckDB's aggregate functions, lower case. Only an extension adds to them."""
        ((loaded,),) = self._con.execute("SELECT count(*) FROM duckdb_extensions() WHERE loaded").fetchall()
        known = _AGGREGATES.get(self._con)
        if known is None or known[0] != loaded:
            rows = self._con.execute(
                "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type = 'aggregate'"
            ).fetchall()
            known = _AGGREGATES[self._con] = (loaded, frozenset(name for (name,) in rows))
        return known[1]

    def describe(self, query: exp.Expr, ctes: list[exp.CTE]) -> list[tuple[str, str]]:
        """Names and types of what `query` returns; duckdb's errors reach the caller. `CannotLift` for a PIVOT of
        answers: to know its columns DuckDB would run it."""
        if any(map(pivots_answers, (query, *ctes))):
            raise CannotLift("over a PIVOT of answers")
        typed = [cast("exp.CTE", self._typed(cte)) for cte in ctes]
        return described(self._con, sql(_with(self._typed(query), typed)))

    def scope(self, select: exp.Select, ctes: list[exp.CTE]) -> Scope:
        """Columns of each FROM item. `CannotLift` where DuckDB cannot bind them on their own."""
        joins = select.args.get("joins") or ()
        items = [item.alias_or_name for item in sources(select)]
        apart = [join.this for join in joins if is_filtering(join)]
        if not items:
            return Scope({})
        names = [*items, *(item.alias_or_name for item in apart)]
        if not all(names) or len({name.lower() for name in names}) != len(names):
            raise CannotLift("FROM items without a name of their own")
        columns = self._columns(with_from(exp.Select(), select), items, ctes)
        hidden: dict[str, tuple[str, ...]] = {}
        for item in apart:
            hidden |= self._columns(exp.Select().from_(item.copy()), [item.alias_or_name], ctes)
        merged = any(join.args.get("using") or (join.method or "").upper() in _MERGING for join in joins)
        return Scope(columns, merged, hidden)

    def _columns(self, probe: exp.Select, items: list[str], ctes: list[exp.CTE]) -> dict[str, tuple[str, ...]]:
        """Columns of each of `items` in the FROM of `probe`."""
        columns: list[exp.Expr] = []
        for at, item in enumerate(items):
            columns.append(exp.alias_(exp.Literal.string(""), f"{_MARK}{at}", quoted=True))
            columns.append(exp.Column(this=exp.Star(), table=exp.to_identifier(item, quoted=True)))
        probe.set("expressions", columns)
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
        return {item: tuple(names) for item, names in zip(items, groups, strict=True)}

    def outputs(self, query: exp.Query, ctes: list[exp.CTE]) -> list[str]:
        """Names of the columns that `query` returns."""
        return [name for name, _ in self._outputs(query, ctes)]

    def types(self, query: exp.Expr, ctes: list[exp.CTE]) -> list[str]:
        """Types of the columns that `query` returns."""
        return [kind for _, kind in self._outputs(query, ctes)]

    def _outputs(self, query: exp.Expr, ctes: list[exp.CTE]) -> list[tuple[str, str]]:
        try:
            return self.describe(query, ctes)
        except duckdb.Error as error:
            raise CannotLift(f"DuckDB cannot describe it alone ({str(error).splitlines()[0]})") from error

    def stands_alone(self, query: exp.Expr, ctes: list[exp.CTE]) -> bool:
        """Whether `query` binds without anything around it but `ctes`; not known of one over a PIVOT of answers."""
        try:
            self.describe(query.this if isinstance(query, exp.Subquery) else query, ctes)
        except (CannotLift, duckdb.Error):
            return False
        return True

    def is_table(self, table: exp.Table, ctes: list[exp.CTE]) -> bool:
        """Whether a name means rows that are there: a table, not a view, a CTE or a function."""
        name = table.name.lower()
        if any(cte.alias.lower() == name for cte in ctes):
            return False
        ((found, views),) = self._con.execute(
            "SELECT (SELECT count(*) FROM duckdb_tables() WHERE lower(table_name) = $1), "
            "(SELECT count(*) FROM duckdb_views() WHERE lower(view_name) = $1)",
            [name],
        ).fetchall()
        return bool(found) and not views


def described(con: Any, text: str) -> list[tuple[str, str]]:
    """Names and types of the columns of a query, without running it. A query that DuckDB cannot bind raises its error
    and leaves an open transaction as it was; one that it cannot parse would end it, and is therefore parsed first."""
    text = f"DESCRIBE {text}"
    con.extract_statements(text)
    return [(str(row[0]), str(row[1])) for row in con.sql(text).fetchall()]


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
        f"SELECT lower(view_name), sql FROM duckdb_views() WHERE NOT internal AND regexp_matches(sql, '{_AI_CALL}')"
    ).fetchall()
    return {name: re.sub(r";\s*$", "", text) for name, text in rows}


def ai_macros(con: Any) -> dict[str, tuple[list[str], str]]:
    """Scalar macros whose text holds an AI call: lower-case name -> names of their parameters, their text."""
    rows = con.execute(
        "SELECT lower(function_name), parameters, macro_definition FROM duckdb_functions() WHERE NOT internal "
        f"AND function_type = 'macro' AND regexp_matches(macro_definition, '{_AI_CALL}')"
    ).fetchall()
    return {name: (list(parameters), text) for name, parameters, text in rows}
