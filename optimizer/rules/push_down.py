"""Let what the outer query knows about a subquery's rows go before the subquery's questions.

    SELECT .. FROM (SELECT k, count(*) AS n FROM t WHERE __ai(1, s) GROUP BY k) AS w JOIN r ON r.k = w.k
    WHERE w.k > 4 AND r.name = 'x'
    ->  the subquery gets  AND k > 4 AND k IN (SELECT r.k FROM r WHERE r.name = 'x')

Conditions go through DISTINCT, set operations, grouping by what they name and windows partitioned by it; the second
one is a semi-join reduction (Bernstein and Chiu 1981). The outer query keeps its conditions, which cost nothing. A
subquery whose rows are counted (LIMIT, SAMPLE, QUALIFY) or null-extended stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    conditions,
    conjuncts,
    has_site,
    is_cheap,
    is_comma,
    is_pinned,
    sources,
    sql,
    windows,
)
from sqluice.optimizer.rules.qualify import is_qualified
from sqluice.optimizer.rules.split_blocks import group_keys, has_sets, is_aggregated
from sqluice.optimizer.scope import Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    Inner = Callable[[exp.Select], Scope | None]
    Types = Callable[[exp.Expr], list[str] | None]

_COUNTED = ("limit", "offset", "fetch", "sample", "qualify", "windows", "laterals", "into")


def apply(select: exp.Select, scope: Scope, inner_scope: Inner, types: Types, aggregates: frozenset[str]) -> bool:
    """Push conditions into the subqueries of FROM, in place; whether any went.

    `scope` is that of `select`, which is qualified; `inner_scope` qualifies a subquery's select and gives its scope;
    `types` are those of a query's columns, None where they are not known.
    """
    items = sources(select)
    firm = _firm(select)
    if scope.merged or not is_qualified(select, scope):
        return False
    pushed = False
    for item in items:
        if item.alias_or_name not in firm or not isinstance(item, exp.Subquery) or not has_site(item, deep=True):
            continue
        alias = item.args.get("alias")
        if alias is None or alias.args.get("columns") or any(item.args.get(name) for name in ("pivots", "sample")):
            continue
        known = _conditions(select)
        for condition in [*_local(known, item.alias), *_reductions(known, item, items, firm, types)]:
            pushed |= _into(item.this, item.alias, condition, (inner_scope, types, aggregates))
    return pushed


def _firm(select: exp.Select) -> set[str]:
    """FROM items whose rows no join adds NULLs to; none where a join goes by position or nearness."""
    start = select.args.get("from_")
    if start is None:
        return set()
    firm = {start.this.alias_or_name}
    for join in select.args.get("joins") or ():
        side = (join.side or "").upper()
        if join.method or str(join.args.get("kind") or "").upper() in ("SEMI", "ANTI") or join.args.get("using"):
            return set()
        if side in ("RIGHT", "FULL"):
            firm.clear()
        if side in ("", "RIGHT"):
            firm.add(join.this.alias_or_name)
    return firm - {""}


def _conditions(select: exp.Select) -> list[exp.Expr]:
    """Cheap conjuncts that every row of the result meets: of WHERE, and of inner joins' ON."""
    parts = conditions(select)
    joins = select.args.get("joins") or ()
    if not any(join.side for join in joins):
        for join in joins:
            if not is_comma(join):
                parts += conjuncts(join.args.get("on"))
    return [part for part in parts if is_cheap(part)]


def _local(parts: list[exp.Expr], alias: str) -> list[exp.Expr]:
    """The conditions on one FROM item alone."""
    return [part for part in parts if {column.table for column in own_columns(part)} == {alias}]


def _reductions(
    parts: list[exp.Expr], item: exp.Subquery, items: list[exp.Expr], firm: set[str], types: Types
) -> list[exp.Expr]:
    """`item.k IN (SELECT other.c FROM other WHERE ..)` for each equality with an item that has conditions. Both columns
    have one type: `=` casts where IN does not."""
    found: list[exp.Expr] = []
    for other in items:
        name = other.alias_or_name
        if other is item or name not in firm or not isinstance(other, exp.Table | exp.Subquery):
            continue
        if has_site(other, deep=True) or any(is_pinned(node) for node in other.walk()):
            continue
        local = _local(parts, name)
        keys = [pair for part in parts if (pair := _equal(part, item.alias, name)) is not None]
        if not keys or not (local or isinstance(other, exp.Subquery)):
            continue
        for mine, theirs in keys:
            inner = exp.Select(expressions=[theirs.copy()]).from_(other.copy())
            for part in local:
                inner.where(part.copy(), copy=False)
            kinds = types(inner)  # None too where it looks at the items beside it
            if kinds is None or kinds != _types_of(item, mine, types):
                continue
            found.append(exp.In(this=mine.copy(), query=exp.Subquery(this=inner)))
    return found


def _types_of(item: exp.Subquery, mine: exp.Column, types: Types) -> list[str] | None:
    """The type of one column of a subquery, alone in a list."""
    kinds, names = types(item.this), [name.lower() for name in item.this.named_selects]
    if kinds is None or len(kinds) != len(names) or names.count(mine.name.lower()) != 1:
        return None
    return [kinds[names.index(mine.name.lower())]]


def _equal(part: exp.Expr, mine: str, theirs: str) -> tuple[exp.Column, exp.Column] | None:
    """The two columns of `mine.k = theirs.c`."""
    if not isinstance(part, exp.EQ):
        return None
    for one, other in ((part.this, part.expression), (part.expression, part.this)):
        if isinstance(one, exp.Column) and isinstance(other, exp.Column) and (one.table, other.table) == (mine, theirs):
            return one, other
    return None


def _into(query: exp.Expr, alias: str, condition: exp.Expr, facts: tuple[Inner, Types, frozenset[str]]) -> bool:
    """Add a condition on columns of `alias`, which names `query`, to `query`."""
    if isinstance(query, exp.Subquery) and not any(query.args.get(name) for name in (*_COUNTED, "with_", "order")):
        return _into(query.this, alias, condition, facts)
    if isinstance(query, exp.SetOperation):
        return _into_sides(query, alias, condition, facts)
    if not isinstance(query, exp.Select) or any(query.args.get(name) for name in _COUNTED):
        return False
    if query.args.get("with_") is not None and condition.find(exp.Table):
        return False  # its own CTEs may hide the tables that are meant
    inner_scope, _, aggregates = facts
    scope = inner_scope(query)
    if scope is None or scope.merged or not is_qualified(query, scope) or query.args.get("from_") is None:
        return False
    values = _outputs(query)
    new = None if values is None else _replaced(condition, alias, values)
    if new is None or not _goes_through(query, condition, alias, values or {}, aggregates):
        return False
    if any(sql(part) == sql(new) for part in conditions(query)):
        return False
    query.where(new, copy=False)
    return True


def _into_sides(
    query: exp.SetOperation, alias: str, condition: exp.Expr, facts: tuple[Inner, Types, frozenset[str]]
) -> bool:
    """A condition goes into every branch of a set operation whose columns have one type in all of them."""
    _, types, _ = facts
    if any(query.args.get(name) for name in (*_COUNTED, "by_name", "with_", "order")):
        return False
    sides = [query.this, query.expression]
    unnested = [side.unnest() if isinstance(side, exp.Subquery) else side for side in sides]
    selects = [side for side in unnested if isinstance(side, exp.Query)]
    if len(selects) < len(sides):
        return False
    names = [name.lower() for name in query.named_selects]
    found = [types(query), *(types(side) for side in selects)]
    read = {column.name.lower() for column in own_columns(condition)}
    if any(kinds is None or len(kinds) != len(names) for kinds in found) or not read <= set(names):
        return False
    for name in read:
        if names.count(name) > 1 or len({kinds[names.index(name)] for kinds in found if kinds}) > 1:
            return False
    pushed = False
    for side in selects:
        theirs = list(side.named_selects)
        if len(theirs) != len(names) or "*" in theirs or not all(theirs):
            continue
        renamed = condition.copy()
        for column in [one for one in own_columns(exp.Paren(this=renamed)) if one.table == alias]:
            column.set("this", exp.to_identifier(theirs[names.index(column.name.lower())], quoted=True))
        pushed |= _into(side, alias, renamed, facts)
    return pushed


def _outputs(query: exp.Select) -> dict[str, exp.Expr] | None:
    """Lower-case output name -> its expression; None for stars and names that come twice."""
    found: dict[str, exp.Expr] = {}
    for one in query.expressions:
        name = one.alias_or_name.lower()
        star = one.this if isinstance(one, exp.Column) else one
        if isinstance(star, exp.Star | exp.Columns) or name in found:
            return None
        found[name] = one.this if isinstance(one, exp.Alias) else one
    return found


def _replaced(condition: exp.Expr, alias: str, values: dict[str, exp.Expr]) -> exp.Expr | None:
    """`condition` over the expressions behind the columns of `alias`; None where one of them is not cheap."""
    root = exp.Paren(this=condition.copy())
    for column in list(own_columns(root)):
        if column.table != alias:
            return None
        value = values.get(column.name.lower())
        if value is None or len(column.parts) != 2 or not is_cheap(value) or value.find(exp.Explode, exp.Unnest):
            return None
        if value.find(exp.Column) is None:
            return None  # a constant takes its type from what is around it, a column does not
        column.replace(
            exp.Paren(this=value.copy()) if not isinstance(value, exp.Column | exp.Literal) else value.copy()
        )
    new: exp.Expr = root.this
    return new


def _goes_through(
    query: exp.Select, condition: exp.Expr, alias: str, values: dict[str, exp.Expr], aggregates: frozenset[str]
) -> bool:
    """Whether filtering the rows below gives the rows above that meet the condition, and those as they were."""
    read = {sql(values[column.name.lower()]) for column in own_columns(condition) if column.table == alias}
    distinct = query.args.get("distinct")
    if distinct is not None and distinct.args.get("on") is not None:
        return False
    upper = [*query.expressions, *(node for name in ("order", "having") if (node := query.args.get(name)))]
    calls = [call for node in upper for call in windows(node)]
    for call in calls:
        if not read <= {sql(key) for key in call.args.get("partition_by") or ()}:
            return False
    if not is_aggregated(query, aggregates):
        return not any(aggregate_calls(node, aggregates) for node in upper)
    keys = {sql(key) for key in group_keys(query, aggregates)}
    return bool(keys) and read <= keys and not has_sets(query)
