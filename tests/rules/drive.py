"""Applies one rule to the text of a query, with a real catalog behind it.

In the fixtures `__ai(n, ..)` is a question; a macro answers it, so that a query runs before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import sqlglot
from sqlglot import exp

from sqluice.engine.catalog import DuckCatalog
from sqluice.optimizer.ast import args_of, conjunction, conjuncts, nested_queries, own_sites, with_from
from sqluice.optimizer.rules import (
    expand_aliases,
    inline_ctes,
    inline_windows,
    inner_questions,
    join_predicates,
    merge_subqueries,
    order_conjuncts,
    outer_joins,
    push_down,
    qualify,
    semi_joins,
    split_blocks,
    write_by_rowid,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.optimizer.scope import Scope

DATA = """
CREATE TABLE t AS FROM (VALUES
    (1, 'red', 1, {'f': 'x', 'n': 1}), (2, 'plum', 1, {'f': 'y', 'n': 2}), (3, NULL, 2, NULL),
    (4, 'red', NULL, {'f': NULL, 'n': 3}), (5, 'pear', 2, {'f': 'x', 'n': NULL})
) v(id, s, k, u);
CREATE TABLE r AS FROM (VALUES (1, 'red', 1), (2, 'fig', 2), (3, NULL, 2), (4, 'plum', 7)) v(id, w, k);
CREATE TABLE e AS FROM r WHERE false;
CREATE MACRO __ai(n, a) AS CASE WHEN a IS NOT NULL THEN hash(n::VARCHAR || a::VARCHAR) % 2 = 0 END,
    (n, a, b) AS CASE WHEN a IS NOT NULL AND b IS NOT NULL THEN hash(n || a::VARCHAR || b::VARCHAR) % 2 = 0 END;
"""


def connection() -> duckdb.DuckDBPyConnection:
    """A database with the tables of the fixtures."""
    con = duckdb.connect()
    con.execute(DATA)
    return con


@dataclass(slots=True)
class Spools:
    """What the rewriting of joins spools, as CTEs in front of the query."""

    catalog: DuckCatalog
    ctes: list[exp.CTE] = field(default_factory=list)
    names: int = 0

    def name(self, kind: str = "s") -> str:
        """A fresh name."""
        self.names += 1
        return f"{kind}{self.names}"

    def is_correlated(self, query: exp.Expr) -> bool:
        """Whether a nested query looks at the rows around it."""
        return not self.catalog.stands_alone(query, self.ctes)

    def spool(self, name: str, source: exp.Select, columns: tuple[str, ...]) -> None:
        """A CTE that numbers the rows of `source`."""
        text = f"SELECT row_number() OVER () AS __ord, q.* FROM ({source.sql('duckdb')}) AS q({', '.join(columns)})"
        alias = exp.TableAlias(this=exp.to_identifier(name))
        self.ctes.append(exp.CTE(this=sqlglot.parse_one(text, dialect="duckdb"), alias=alias, materialized=True))


@dataclass(slots=True)
class Driver:
    """Rules by their name, each from text to text."""

    con: duckdb.DuckDBPyConnection

    def apply(self, rule: str, text: str) -> str:
        """The query after `rule`."""
        rules: dict[str, Callable[[exp.Select, DuckCatalog], exp.Expr]] = {
            "expand_aliases": self._expand_aliases,
            "inline_ctes": self._inline_ctes,
            "inline_windows": self._inline_windows,
            "inner_questions": self._inner_questions,
            "join_predicates": self._join_predicates,
            "merge_subqueries": self._merge_subqueries,
            "order_conjuncts": self._order_conjuncts,
            "outer_joins": self._outer_joins,
            "push_down": self._push_down,
            "qualify": lambda select, catalog: self._qualified(select, catalog)[0],
            "semi_joins": self._semi_joins,
            "split_blocks": self._split_blocks,
        }
        tree = sqlglot.parse_one(text, dialect="duckdb")
        if rule == "write_by_rowid":
            write_by_rowid.apply(tree, self._columns)
            return tree.sql("duckdb")
        assert isinstance(tree, exp.Select)
        return rules[rule](tree, DuckCatalog(self.con, lambda node: node.copy())).sql("duckdb")

    def _columns(self, query: exp.Expr) -> list[str] | None:
        try:
            return list(self.con.sql(query.sql("duckdb")).columns)
        except duckdb.Error:
            return None

    def rows(self, text: str) -> tuple[list[str], list[tuple[object, ...]]]:
        """Columns and rows of a query, or those of t once a statement has changed it; it is rolled back."""
        relation = self.con.sql(text) if text.upper().startswith(("SELECT", "WITH", "FROM")) else None
        if relation is not None:
            return relation.columns, relation.fetchall()
        self.con.execute("BEGIN")
        changed = self.con.execute(text).fetchall()
        found = self.con.execute("SELECT * FROM t ORDER BY id").fetchall()
        self.con.execute("ROLLBACK")
        return ["t"], [*changed, *found]

    def _qualified(self, select: exp.Select, catalog: DuckCatalog) -> tuple[exp.Select, Scope]:
        scope = catalog.scope(select, [])
        qualify.apply(select, scope, catalog.aggregates)
        return select, scope

    def _expand_aliases(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        expand_aliases.apply(*self._qualified(select, catalog))
        return select

    def _inline_ctes(self, select: exp.Select, _: DuckCatalog) -> exp.Expr:
        inline_ctes.apply(select)
        return select

    def _inline_windows(self, select: exp.Select, _: DuckCatalog) -> exp.Expr:
        inline_windows.apply(select)
        return select

    def _inner_questions(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        """To the queries below that look at outer rows."""
        select, _ = self._qualified(select, catalog)
        names = Spools(catalog)

        def stands_alone(query: exp.Expr) -> bool:
            return not names.is_correlated(query)

        tests = inner_questions.Tests(stands_alone, lambda table: catalog.is_table(table, []))
        for nested in nested_queries(select):
            inner = nested.this if isinstance(nested, exp.Subquery) else nested
            if isinstance(inner, exp.Select) and names.is_correlated(inner):
                inner, scope = self._qualified(inner, catalog)
                inner_questions.apply(inner, scope, select, tests, lambda: names.name("q"))
        return select

    def _join_predicates(self, select: exp.Select, _: DuckCatalog) -> exp.Expr:
        join_predicates.apply(select)
        return select

    def _merge_subqueries(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        select, scope = self._qualified(select, catalog)

        def below(inner: exp.Select) -> Scope:
            return self._qualified(inner, catalog)[1]

        merge_subqueries.apply(select, scope, below, catalog.aggregates)
        return select

    def _order_conjuncts(self, select: exp.Select, _: DuckCatalog) -> exp.Expr:
        """With every answer foreseen: a call costs one, and inputs are those of the macro."""
        where = conjuncts(select.args["where"].this)
        facts = {}
        for name, leaf in order_conjuncts.leaves(where).items():
            sites = [arg for site in own_sites(leaf) for arg in args_of(site)]
            args = ", ".join(arg.sql("duckdb") for arg in sites)
            probe = with_from(
                exp.select(f"({leaf.sql('duckdb')})::BOOLEAN", f"hash({args or 0})", dialect="duckdb"), select
            )
            rows = self.con.execute(probe.sql("duckdb")).fetchall()
            values = [row[0] for row in rows]
            yes, no = np.array([v is True for v in values]), np.array([v is False for v in values])
            inputs, codes = np.unique([row[1] for row in rows], return_inverse=True)
            codes = np.where([value is None for value in values], -1, codes)
            asked = (codes, np.zeros(len(inputs), bool)) if sites else (None, None)
            facts[name] = order_conjuncts.Leaf(yes, no, *asked)
        rows_there = np.ones(len(next(iter(facts.values())).yes), bool)
        best = order_conjuncts.apply(where, rows_there, facts)
        select.set("where", exp.Where(this=conjunction([part.copy() for part in best.predicates])))
        return select

    def _outer_joins(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        select, scope = self._qualified(select, catalog)
        qualify.expand_stars(select, scope)
        spools = Spools(catalog)
        while (at := outer_joins.find(select)) is not None:
            scope = outer_joins.apply(select, scope, at, spools)
        if spools.ctes:
            select.set("with_", exp.With(expressions=spools.ctes))
        return select

    def _push_down(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        select, scope = self._qualified(select, catalog)

        def below(inner: exp.Select) -> Scope:
            return self._qualified(inner, catalog)[1]

        push_down.apply(select, scope, below, lambda query: catalog.types(query, []), catalog.aggregates)
        return select

    def _semi_joins(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        select, scope = self._qualified(select, catalog)

        def below(inner: exp.Select) -> Scope:
            return catalog.scope(inner, [])

        def is_correlated(query: exp.Expr) -> bool:
            return not catalog.stands_alone(query, [])

        semi_joins.apply(select, scope, below, is_correlated, catalog.aggregates, lambda: "e")
        return select

    def _split_blocks(self, select: exp.Select, catalog: DuckCatalog) -> exp.Expr:
        select, scope = self._qualified(select, catalog)
        expand_aliases.apply(select, scope)
        if not split_blocks.needs_split(select, catalog.aggregates):
            return select
        return split_blocks.apply(select, "q", catalog.aggregates)[0]
