"""Merge a plain subquery in FROM into the query around it.

    SELECT d.f FROM (SELECT id, __ai(1, s) AS f FROM t WHERE p) AS d WHERE d.id > 4
    ->  SELECT __ai(1, t.s) AS f FROM t WHERE p AND t.id > 4

Then the outer cheap predicates run before the questions, and answers that nobody reads are not asked for. A question
that is named twice stays one question, since equal expressions are evaluated once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    conditions,
    conjunction,
    conjuncts,
    has_site,
    is_comma,
    is_volatile,
    nested_queries,
    own,
    windows,
)
from sqluice.optimizer.rules.join_predicates import is_inner
from sqluice.optimizer.rules.qualify import expand_stars, given, is_qualified, keys, nodes, reference
from sqluice.optimizer.scope import Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = {"kind", "expressions", "from_", "joins", "where", "operation_modifiers", "hint"}


def apply(
    select: exp.Select, scope: Scope, inner_scope: Callable[[exp.Select], Scope | None], aggregates: frozenset[str]
) -> bool:
    """Merge the first subquery of `select` that allows it, in place; whether one was merged.

    `scope` is that of `select`, which is qualified; `inner_scope` qualifies a subquery's select and gives its scope,
    None where it has none.
    """
    start = select.args.get("from_")
    joins = select.args.get("joins") or []
    if start is None or any(not is_inner(join) for join in joins) or _reads_outside(select, scope):
        return False
    for item in [start.this, *(join.this for join in joins)]:
        if not isinstance(item, exp.Subquery) or not isinstance(item.this, exp.Select) or not item.alias:
            continue
        inner = item.this
        if (
            not (has_site(inner) or has_site(select))
            or not is_plain(inner, aggregates)
            or set(given(item)) - {"this", "alias"}
        ):
            continue
        below = inner_scope(inner)
        if below is not None and _merge(select, item, inner, scope, below):
            return True
    return False


def is_plain(inner: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether `inner` only filters rows and computes columns, each row by itself and the same each time."""
    if set(given(inner)) - _PLAIN or any(not is_inner(join) for join in inner.args.get("joins") or ()):
        return False
    for one in inner.expressions:
        if (
            aggregate_calls(one, aggregates)
            or windows(one)
            or is_volatile(one)
            or one.find(exp.Explode, exp.Unnest, exp.Columns)
        ):
            return False
        if (
            nested_queries(one)
            or (isinstance(one, exp.Star) and given(one))
            or (isinstance(one, exp.Column) and isinstance(one.this, exp.Star))
        ):
            return False
    where = inner.args.get("where")
    return not (where is not None and nested_queries(where)) and inner.args.get("from_") is not None


def _reads_outside(select: exp.Select, scope: Scope) -> bool:
    """Whether a nested query or a star form of `select` could not follow a change of its names."""
    for found in own(select):
        if isinstance(found, exp.Columns) or (isinstance(found, exp.Star) and given(found)):
            return True
    items = [item.this for item in [select.args.get("from_"), *(select.args.get("joins") or [])] if item is not None]
    below = [query for query in nested_queries(select) if query not in items]
    names = {name.lower() for columns in scope.columns.values() for name in columns} | {
        a.lower() for a in scope.columns
    }
    return any(
        column.parts[0].name.lower() in names
        for query in below
        for column in query.find_all(exp.Column)
        if column.parts
    )


def _merge(select: exp.Select, item: exp.Subquery, inner: exp.Select, scope: Scope, below: Scope) -> bool:
    alias = scope.alias(item.alias)
    renames = _renames(inner, item.alias)
    if scope.merged or below.merged or alias is None or renames is None:
        return False
    if not (is_qualified(inner, below) and is_qualified(select, scope)):
        return False
    values = _outputs(inner, scope.columns[alias], below, renames)
    if values is None or _sorts_by_constant(select, alias, values) or not expand_stars(select, scope):
        return False
    _substitute(select, alias, values)
    where = [_renamed(part, renames) for part in conditions(inner)]
    where += [part.copy() for part in conditions(select)]
    _splice(select, item, inner, renames)
    if where:
        select.set("where", exp.Where(this=conjunction(where)))
    return True


def _sorts_by_constant(select: exp.Select, alias: str, values: dict[str, exp.Expr]) -> bool:
    """Whether a key of a clause would become a constant, which would be taken for a position."""
    found = [key for name in ("group", "order", "distinct") for node in nodes(select, name) for key in keys(node)]
    return any(
        isinstance(key, exp.Column)
        and key.table.lower() == alias.lower()
        and values[key.name.lower()].find(exp.Column) is None
        for key in found
    )


def _outputs(
    inner: exp.Select, names: tuple[str, ...], below: Scope, renames: dict[str, str]
) -> dict[str, exp.Expr] | None:
    """Lower-case column name -> the expression behind it, under the new aliases."""
    values: list[exp.Expr] = []
    for one in inner.expressions:
        if isinstance(one, exp.Star):
            values += [reference(alias, name) for alias, columns in below.columns.items() for name in columns]
        else:
            values.append(one.this if isinstance(one, exp.Alias) else one)
    if any(not column.table for value in values for column in own_columns(value)):
        return None  # the alias of an earlier output
    values = [_typed(value) for value in values]
    if any(isinstance(value, exp.Literal | exp.Neg) for value in values):
        return None
    lower = [name.lower() for name in names]
    if len(values) != len(names) or len(set(lower)) != len(names):
        return None
    return {name: _renamed(value, renames) for name, value in zip(lower, values, strict=True)}


def _typed(value: exp.Expr) -> exp.Expr:
    """A constant with the type that a column of it has: alone it would take that of what is around it."""
    if isinstance(value, exp.Literal) and value.is_string:
        return exp.cast(value.copy(), "varchar", dialect="duckdb")
    literal = value.this if isinstance(value, exp.Neg) else value
    if isinstance(literal, exp.Literal) and literal.is_int and int(literal.this) < 1 << 31:
        return exp.cast(value.copy(), "integer", dialect="duckdb")
    return value


def _renames(inner: exp.Select, outer: str) -> dict[str, str] | None:
    """New aliases for the inner FROM items, unique in the merged query."""
    renames: dict[str, str] = {}
    for item in [inner.args["from_"].this, *(join.this for join in inner.args.get("joins") or ())]:
        if not isinstance(item, exp.Table | exp.Subquery) or not item.alias_or_name:
            return None
        renames[item.alias_or_name.lower()] = f"{outer}.{item.alias_or_name}"
    return renames


def _renamed(value: exp.Expr, renames: dict[str, str]) -> exp.Expr:
    """A copy of an inner expression under the new aliases, in parentheses where its neighbours could take it apart."""
    root = exp.Paren(this=value.copy())
    for column in list(own_columns(root)):
        column.set("table", exp.to_identifier(renames[column.table.lower()], quoted=True))
    return root.this if isinstance(root.this, exp.Column | exp.Func | exp.Literal) else root


def _substitute(select: exp.Select, alias: str, values: dict[str, exp.Expr]) -> None:
    for column in list(own_columns(select)):
        if column.table.lower() == alias.lower():
            column.replace(values[column.name.lower()].copy())


def _splice(select: exp.Select, item: exp.Subquery, inner: exp.Select, renames: dict[str, str]) -> None:
    """Put the inner FROM in the place of the subquery."""
    start = inner.args["from_"].this
    rest = list(inner.args.get("joins") or [])
    for join in rest:
        if join.args.get("on") is not None:
            join.set("on", _renamed(join.args["on"], renames))
        if is_comma(join):
            join.set("kind", "CROSS")
    for one in [start, *(join.this for join in rest)]:
        one.set("alias", _alias(one, renames[one.alias_or_name.lower()]))
    joins = list(select.args.get("joins") or [])
    at = next((number for number, join in enumerate(joins) if join.this is item), -1)
    item.replace(start)
    if at >= 0 and rest and joins[at].args.get("on") is not None:  # it may look at all of the inner items
        moved = joins[at].args["on"].pop()
        joins[at].set("kind", "CROSS")
        rest[-1].set("on", conjunction([*conjuncts(rest[-1].args.get("on")), *conjuncts(moved)]))
        rest[-1].set("kind", None)
    select.set("joins", [*joins[: at + 1], *rest, *joins[at + 1 :]])


def _alias(item: exp.Expr, name: str) -> exp.TableAlias:
    columns = item.args["alias"].args.get("columns") if item.args.get("alias") else None
    return exp.TableAlias(this=exp.to_identifier(name, quoted=True), columns=columns)
