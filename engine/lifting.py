"""From a bound statement to a plan: AI expressions are lifted out of SELECT blocks into stages.

A block `SELECT P FROM F WHERE cheap AND __ai(1, s) ..` becomes

    stage  s0:  SELECT columns, arguments FROM F WHERE cheap        (DuckDB)
                ask question 1, keep the rows where it is true      (model)
    above:      SELECT P' .. FROM s0 ..                             (DuckDB)

where P' names columns of the stage. Blocks are treated from the inside out, so that a stage may read earlier ones.
What has no such form keeps its AI expressions, which DuckDB then evaluates row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlglot import exp

from sqluice.engine.block import BlockLifter
from sqluice.errors import InternalError
from sqluice.optimizer.ast import (
    has_site,
    is_site,
    nested_queries,
    own,
    own_sites,
    pin,
    sources,
    spec_of,
    sql,
    star_of,
    with_from,
)
from sqluice.optimizer.plan import Plan, Stage
from sqluice.optimizer.rules import (
    expand_aliases,
    inline_ctes,
    inline_windows,
    inner_questions,
    join_predicates,
    merge_subqueries,
    push_down,
    qualify,
    semi_joins,
    split_blocks,
    write_by_rowid,
)
from sqluice.optimizer.scope import CannotLift, Scope, lambda_names, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sqluice.optimizer.scope import Catalog

T = TypeVar("T")

SCOPE = "scope"
CORRELATED = "correlated"
COLUMNS = "columns"


@dataclass(frozen=True, slots=True)
class Ctes:
    """The CTEs in sight: as written, for asking the catalog, and lifted, for the SQL of stages."""

    written: tuple[exp.CTE, ...] = ()
    lifted: tuple[exp.CTE, ...] = ()

    def plus(self, written: exp.CTE, lifted: exp.CTE) -> Ctes:
        """With one more."""
        return Ctes((*self.written, written), (*self.lifted, lifted))


@dataclass(slots=True)
class Lifter:
    """Lifts one statement. `prefix` makes the names of its stages unique in the session."""

    catalog: Catalog
    prefix: str
    plan: Plan = field(init=False)
    counter: int = 0
    verbose: bool = False

    def lift(self, statement: exp.Expr) -> Plan:
        """The plan of a statement; where a block cannot be lifted its AI expressions stay."""
        root = statement.copy()
        self.plan = Plan(root)
        if isinstance(root, exp.Query):
            self.plan.statement = self.query(root, Ctes(), root=True)
            return self.plan
        self._rule(write_by_rowid, root, lambda: write_by_rowid.apply(root, self._columns))
        self._pin(own_sites(root), f"in {root.key.upper()}")
        for nested in nested_queries(root):
            by_itself = isinstance(root, exp.Create | exp.Insert | exp.Copy)
            alone = not isinstance(nested, exp.Values) and (by_itself or self.catalog.stands_alone(nested, []))
            if alone:
                nested.replace(self.query(nested, Ctes(), root=True))
            else:
                self._pin_all(nested, "in a correlated query")
        return self.plan

    def name(self, kind: str = "s") -> str:
        """A fresh name."""
        self.counter += 1
        return f"{self.prefix}{kind}{self.counter}"

    def query(self, query: exp.Expr, ctes: Ctes, *, root: bool = False) -> exp.Expr:
        """A query with its blocks lifted."""
        if not has_site(query, deep=True):
            return query
        self._rule(inline_ctes, query, lambda: inline_ctes.apply(query))
        clause = query.args.get("with_")
        if clause is not None:
            ctes = self._with(clause, ctes)
        if isinstance(query, exp.Subquery):
            query.set("this", self.query(query.this, ctes, root=root))
            return query
        if isinstance(query, exp.SetOperation):
            if any(own_sites(node) for part in ("order", "limit") if (node := query.args.get(part))):
                return self.query(_around(query, self.name("q")), ctes, root=root)
            for side in ("this", "expression"):
                query.set(side, self.query(query.args[side], ctes))
            return query
        if isinstance(query, exp.Select):
            lifted = self.select(query, ctes, root=root)
            if clause is not None:
                lifted.set("with_", clause.copy())
            return lifted
        if isinstance(query, exp.Pivot):
            self._pin(own_sites(query), "in PIVOT")
            for nested in nested_queries(query):
                nested.replace(self.query(nested, ctes))
            return query
        self._pin_all(query, f"in {query.key.upper()}")
        return query

    def select(self, select: exp.Select, ctes: Ctes, *, root: bool = False) -> exp.Select:
        """A SELECT with its own level and everything below lifted."""
        written = select.copy()
        plan = self.plan
        stages, fired, rowwise, changes = len(plan.stages), len(plan.fired), len(plan.rowwise), len(plan.changes)
        try:
            return self._select(select, ctes, root=root)
        except CannotLift as reason:
            del plan.stages[stages:], plan.fired[fired:], plan.rowwise[rowwise:], plan.changes[changes:]
            self._pin(own_sites(written), str(reason))
            self._children(written, ctes)
            return written

    def _select(self, select: exp.Select, ctes: Ctes, *, root: bool) -> exp.Select:
        self._rule(inline_windows, select, lambda: inline_windows.apply(select))
        self._pin(_unliftable(select), "in a lambda or in FROM")
        scope: Scope | None = select.meta.get(SCOPE)
        mergeable = any(isinstance(item, exp.Subquery) for item in nested_queries(select))
        if scope is None and (nested_queries(select) or own_sites(select)):
            scope = self.catalog.scope(select, list(ctes.written))
        if scope is not None:
            self._qualify(select, scope)
        while mergeable and scope is not None and self._merge(select, scope, ctes):
            scope = self.catalog.scope(select, list(ctes.written))
            self._pin(_unliftable(select), "in a lambda or in FROM")  # those that the merged query brought
        if scope is not None and mergeable:
            self._push_down(select, scope, ctes)
        if scope is not None and semi_joins.wanted(select) and self._semi_joins(select, scope, ctes):
            scope = self.catalog.scope(select, list(ctes.written))
        if scope is None or not own_sites(select):
            self._children(select, ctes)
            return select
        self._name_stars(select, scope, ctes)
        self._rule(join_predicates, select, lambda: join_predicates.apply(select))
        if split_blocks.needs_split(select, self.catalog.aggregates):
            return self._split(select, scope, ctes, root=root)
        block = BlockLifter(self, select, scope, ctes)
        block.outer_joins()
        self._children(block.select, ctes)
        return block.lift(root=root)

    def _below(self, ctes: Ctes, inner: exp.Select) -> Scope | None:
        """Qualify a subquery's select; its scope."""
        scope = _if_bound(lambda: self.catalog.scope(inner, list(ctes.written)))
        if scope is not None:
            self._qualify(inner, scope)
        return scope

    def _qualify(self, select: exp.Select, scope: Scope) -> None:
        qualify.apply(select, scope, self.catalog.aggregates)
        expand_aliases.apply(select, scope)

    def _push_down(self, select: exp.Select, scope: Scope, ctes: Ctes) -> None:
        below, types = partial(self._below, ctes), partial(self._types, ctes)
        aggregates = self.catalog.aggregates
        self._rule(push_down, select, lambda: push_down.apply(select, scope, below, types, aggregates))

    def _semi_joins(self, select: exp.Select, scope: Scope, ctes: Ctes) -> bool:
        def below(inner: exp.Select) -> Scope | None:
            return _if_bound(lambda: self.catalog.scope(inner, list(ctes.written)))

        is_correlated, name = partial(self.is_correlated, ctes=ctes), partial(self.name, "e")
        aggregates = self.catalog.aggregates
        return self._rule(
            semi_joins, select, lambda: semi_joins.apply(select, scope, below, is_correlated, aggregates, name)
        )

    def _rule(self, rule: ModuleType, query: exp.Expr, apply: Callable[[], bool]) -> bool:
        """Let a rule change `query`; whether it did. A rule may not change what the query returns."""
        name = rule.__name__.rpartition(".")[2]
        before = query.copy() if self.verbose else None
        names = _outputs(query)
        changed = apply()
        if changed:
            self.plan.fired.append(name)
            now = _outputs(query)
            if names is not None and now is not None and names != now:
                raise InternalError(f"rule {name} changed the columns of a query from {names} to {now}")
            if before is not None:
                self.plan.changes.append((name, sql(before), sql(query)))
        return changed

    def _columns(self, query: exp.Select) -> list[str] | None:
        return _if_bound(lambda: self.catalog.outputs(query, []))

    def _types(self, ctes: Ctes, query: exp.Expr) -> list[str] | None:
        """Types of a query's columns; None where DuckDB cannot bind it on its own."""
        return _if_bound(lambda: self.catalog.types(query, list(ctes.written)))

    def _merge(self, select: exp.Select, scope: Scope, ctes: Ctes) -> bool:
        below, aggregates = partial(self._below, ctes), self.catalog.aggregates
        return self._rule(merge_subqueries, select, lambda: merge_subqueries.apply(select, scope, below, aggregates))

    def _name_stars(self, select: exp.Select, scope: Scope, ctes: Ctes) -> None:
        """Stars as columns; those that only DuckDB can take apart get the names it finds."""
        for one in select.expressions:
            star = star_of(one)
            others = [part for part in own(one) if isinstance(part, exp.Star) and part is not star]
            if any(not isinstance(part.parent, exp.Count | exp.Columns) for part in others):
                raise CannotLift("a question beside an expression of a star")
        if not scope.merged and qualify.expand_stars(select, scope):
            return
        hidden = qualify.names_in_stars(select)
        clauses = [node for part in ("order", "distinct") for node in qualify.nodes(select, part)]
        keys = [key for clause in clauses for key in qualify.keys(clause)]
        if any(isinstance(key, exp.Column) and key.name.lower() in hidden for key in keys):
            raise CannotLift("ORDER BY or DISTINCT ON a name that a star gives")
        for one in select.expressions:
            star = star_of(one)
            if isinstance(star, exp.Star | exp.Columns):
                probe = with_from(exp.Select(expressions=[one.copy()]), select)
                one.meta[COLUMNS] = self.catalog.outputs(probe, list(ctes.written))

    def _split(self, select: exp.Select, scope: Scope, ctes: Ctes, *, root: bool) -> exp.Select:
        items = [
            item.this for item in (select.args.get("from_"), *(select.args.get("joins") or ())) if item is not None
        ]
        nested = [query for query in nested_queries(select) if not any(query is item for item in items)]
        if any(self.is_correlated(query, ctes) for query in nested):
            raise CannotLift("a question about groups or windows beside a correlated query")
        name = self.name("q")
        outer, columns = split_blocks.apply(select, name, self.catalog.aggregates)
        self.plan.fired.append("split_blocks")
        if self.verbose:
            self.plan.changes.append(("split_blocks", sql(select), sql(outer)))
        inner = next(query for query in nested_queries(outer) if query.alias == name).this
        inner.meta[SCOPE] = scope
        outer.meta[SCOPE] = Scope({name: tuple(columns)})
        return self._select(outer, ctes, root=root)

    def _with(self, clause: exp.With, ctes: Ctes) -> Ctes:
        for cte in clause.expressions:
            written = cte.copy()
            if clause.args.get("recursive") and any(
                t.name.lower() == cte.alias.lower() for t in cte.find_all(exp.Table)
            ):
                self._pin_all(cte, "in a recursive CTE")
            elif isinstance(cte.this, exp.Query | exp.Pivot):
                cte.set("this", self.query(cte.this, ctes))
            ctes = ctes.plus(written, cte.copy())
        return ctes

    def _children(self, select: exp.Select, ctes: Ctes, *, correlated: bool = False) -> None:
        """Lift the queries one level below; of those that look at rows around them, what stands alone. Where `select`
        is `correlated` itself, the beginning of its FROM may be so too."""
        start = select.args.get("from_")
        for nested in nested_queries(select):
            first = not correlated and start is not None and nested is start.this
            nested.meta[CORRELATED] = not first and self.is_correlated(nested, ctes)
            if nested.meta[CORRELATED]:
                self._correlated(nested, select, ctes)
            elif isinstance(nested.this, exp.Pivot) and (select.args.get("where") or select.args.get("joins")):
                self._pin_all(nested, "below PIVOT or UNPIVOT with conditions above")
            else:
                nested.replace(self.query(nested, ctes))

    def _correlated(self, query: exp.Expr, outer: exp.Select, ctes: Ctes) -> None:
        """Lift what stands alone in a query that looks at the rows of `outer`; the rest stays row-wise."""
        if not has_site(query, deep=True):
            return
        if isinstance(query, exp.Subquery):
            self._correlated(query.this, outer, ctes)
        elif isinstance(query, exp.SetOperation) and not query.args.get("with_"):
            self._pin(own_sites(query), "in a correlated query")
            for side in ("this", "expression"):
                self._correlated(query.args[side], outer, ctes)
        elif isinstance(query, exp.Select) and not query.args.get("with_"):
            moved = self._inner_questions(query, outer, ctes)
            self._pin(own_sites(query), "in a correlated query")
            for item in () if moved else sources(query):
                self._pin_all(item, "in a correlated query")
            self._children(query, ctes, correlated=True)
        else:
            self._pin_all(query, "in a correlated query")

    def _inner_questions(self, inner: exp.Select, outer: exp.Select, ctes: Ctes) -> bool:
        scope = _if_bound(lambda: self.catalog.scope(inner, list(ctes.written))) if own_sites(inner) else None
        if scope is None or any(len(one.parts) > 1 and scope.has(one.parts[0].name) for one in own_columns(inner)):
            return False  # s.x may be a field of the column s here, or a column of an outer s
        self._qualify(inner, scope)

        def stands_alone(query: exp.Expr) -> bool:
            return self.catalog.stands_alone(query, list(ctes.written))

        def is_table(table: exp.Table) -> bool:
            return self.catalog.is_table(table, list(ctes.written))

        tests, name = inner_questions.Tests(stands_alone, is_table), partial(self.name, "q")
        return self._rule(inner_questions, inner, lambda: inner_questions.apply(inner, scope, outer, tests, name))

    def is_correlated(self, query: exp.Expr, ctes: Ctes) -> bool:
        """Whether a nested query looks at the rows around it. One that reads stages was made by a rule: it does not,
        unless it is known to."""
        if query.meta.get(CORRELATED):
            return True
        if any(table.name.startswith(self.prefix) for table in query.find_all(exp.Table)):
            return False
        return not self.catalog.stands_alone(query, list(ctes.written))

    def add(self, stage: Stage) -> None:
        """One more stage, after those before it."""
        self.plan.stages.append(stage)

    def _pin(self, sites: list[exp.Expr], reason: str) -> None:
        for site in sites:
            self.plan.rowwise.append((spec_of(site), reason))
            pin(site)

    def _pin_all(self, node: exp.Expr, reason: str) -> None:
        self._pin([found for found in node.walk() if is_site(found)], reason)


def _if_bound(look: Callable[[], T]) -> T | None:
    """What the catalog tells; None where DuckDB cannot bind what it is asked about on its own."""
    try:
        return look()
    except CannotLift:
        return None


def _around(query: exp.SetOperation, name: str) -> exp.Select:
    """A set operation with a question in its ORDER BY as a query over it."""
    select = exp.Select(expressions=[exp.Star()])
    for part in ("order", "limit", "offset", "with_"):
        if query.args.get(part) is not None:
            select.set(part, query.args[part].pop())
    alias = exp.TableAlias(this=exp.to_identifier(name, quoted=True))
    return select.from_(exp.Subquery(this=query, alias=alias), copy=False)


def _outputs(query: exp.Expr) -> list[str] | None:
    """Names of a query's columns as far as they can be read off it; None where they cannot."""
    names = query.named_selects if isinstance(query, exp.Select) else []
    return None if not all(names) or "*" in names else list(names)


def _unliftable(select: exp.Select) -> list[exp.Expr]:
    """AI expressions whose argument is a lambda's parameter, and those in FROM items."""
    found: list[exp.Expr] = []
    places: list[exp.Expr] = [join.this for join in select.args.get("joins") or ()]
    places += [node for node in own(select) if isinstance(node, exp.Comprehension)]
    if select.args.get("from_") is not None:
        places.append(select.args["from_"].this)
    for place in places:
        if not isinstance(place, exp.Query):
            found += own_sites(place)
    for node in own(select):
        if isinstance(node, exp.Lambda):
            names = lambda_names(node)
            found += [
                site
                for site in own_sites(node.this)
                if any(isinstance(part, exp.Identifier) and part.name.lower() in names for part in own(site))
            ]
    return list({id(site): site for site in found}.values())
