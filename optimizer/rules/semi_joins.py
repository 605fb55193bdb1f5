"""Turn conditions about the existence of other rows, with questions in them, into semi and anti joins.

    SELECT .. FROM t WHERE EXISTS (SELECT 1 FROM r WHERE r.k = t.k AND __ai(1, r.w, t.s))
    ->  SELECT .. FROM t SEMI JOIN r AS e ON e.k = t.k AND __ai(1, e.w, t.s)

`x IN (SELECT c ..)` is the same with e.c = x; NOT EXISTS becomes an anti join (Kim 1982, for the idea). NOT IN, which
is NULL where c is, stays. Queries that do not look at outer rows stay too: they have a stage of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    column,
    conditions,
    conjunction,
    has_site,
    is_comma,
    nested_queries,
    windows,
)
from sqluice.optimizer.rules.qualify import given
from sqluice.optimizer.scope import Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = {"kind", "expressions", "from_", "where", "operation_modifiers", "hint"}


def wanted(select: exp.Select) -> bool:
    """Whether a conjunct of WHERE is an EXISTS or IN with a question below it."""
    return any(_inner(part) is not None for part in conditions(select))


def apply(
    select: exp.Select,
    scope: Scope,
    inner_scope: Callable[[exp.Select], Scope | None],
    is_correlated: Callable[[exp.Expr], bool],
    aggregates: frozenset[str],
    name: Callable[[], str],
) -> bool:
    """Rewrite the conjuncts of WHERE that allow it, in place; whether one did. `name` makes fresh names."""
    joins = select.args.get("joins") or []
    adds_rows = any((join.side or "").upper() in ("RIGHT", "FULL") or join.method for join in joins)
    if scope.merged or (adds_rows and any(map(is_comma, joins))) or select.args.get("laterals"):
        return False
    kept: list[exp.Expr] = []
    new: list[exp.Expr] = []
    for part in conditions(select):
        inner = _inner(part)
        found = None
        if inner is not None and is_correlated(inner) and _is_plain(inner, aggregates):
            below = inner_scope(inner)
            found = None if below is None else _join(part, inner, scope, below, name())
        (kept if found is None else new).append(part if found is None else found)
    if not new:
        return False
    for join in joins:
        if is_comma(join):
            join.set("kind", "CROSS")
    select.set("joins", [*joins, *new])
    rest = conjunction([part.copy() for part in kept])
    select.set("where", None if rest is None else exp.Where(this=rest))
    return True


def _inner(part: exp.Expr) -> exp.Select | None:
    """The query of an EXISTS, NOT EXISTS or IN that holds a question."""
    while isinstance(part, exp.Paren):
        part = part.this
    if isinstance(part, exp.Not) and isinstance(part.this, exp.Exists):
        part = part.this
    query = part.args.get("query") if isinstance(part, exp.In) else part.this if isinstance(part, exp.Exists) else None
    while isinstance(query, exp.Subquery) and set(given(query)) <= {"this"}:
        query = query.this
    return query if isinstance(query, exp.Select) and has_site(query, deep=True) else None


def _is_plain(inner: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether `inner` only filters the rows of one FROM item."""
    if set(given(inner)) - _PLAIN or inner.args.get("from_") is None:
        return False
    item = inner.args["from_"].this
    if not isinstance(item, exp.Table | exp.Subquery) or not item.alias_or_name or has_site(item, deep=True):
        return False
    nodes = [*inner.expressions, *conditions(inner)]
    return not any(nested_queries(node) or aggregate_calls(node, aggregates) or windows(node) for node in nodes)


def _join(part: exp.Expr, inner: exp.Select, scope: Scope, below: Scope, name: str) -> exp.Join | None:
    """The join in the place of `part`; None where a name cannot be told."""
    condition = part.unnest()
    parts = [one.copy() for one in conditions(inner)]
    outer: list[exp.Expr] = []
    if isinstance(condition, exp.In):
        value = inner.expressions[0].unalias() if len(inner.expressions) == 1 else None
        if value is None or value.find(exp.Star, exp.Columns) or nested_queries(condition.this):
            return None
        outer = [condition.this.copy()]
        parts.insert(0, value.copy())
    holder = exp.Tuple(expressions=parts)
    item = inner.args["from_"].this
    for found in list(own_columns(holder)):
        mine = _renamed(found, item.alias_or_name, below, name) or _outer(found, scope)
        if mine is None:
            return None
        found.replace(mine)
    for one in outer:
        if not all(column.table and scope.resolves(column) for column in own_columns(exp.Paren(this=one))):
            return None
    parts = list(holder.expressions)
    if outer:
        parts[0] = exp.EQ(this=exp.Paren(this=parts[0]), expression=exp.Paren(this=outer[0]))
    source = item.copy()
    columns = source.args["alias"].args.get("columns") if source.args.get("alias") else None
    source.set("alias", exp.TableAlias(this=exp.to_identifier(name, quoted=True), columns=columns))
    kind = "ANTI" if isinstance(condition, exp.Not) else "SEMI"
    return exp.Join(this=source, kind=kind, on=conjunction(parts) or exp.true())


def _renamed(found: exp.Column, alias: str, below: Scope, name: str) -> exp.Expr | None:
    """A reference to the inner item under its new name; None for others."""
    parts = [part.name for part in found.parts]
    if parts[0].lower() == alias.lower() and len(parts) == 2:
        return column(parts[1], name)
    return column(parts[0], name) if len(parts) == 1 and below.has(parts[0]) else None


def _outer(found: exp.Column, scope: Scope) -> exp.Expr | None:
    """A reference to an outer item, with its name."""
    told = scope.split(found)
    return None if told is None or told[2] else column(told[1], told[0])
