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
    conjunction,
    conjuncts,
    has_site,
    is_volatile,
    nested_queries,
    own,
    windows,
)
from sqluice.optimizer.rules.join_predicates import is_inner
from sqluice.optimizer.scope import Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN = {"kind", "expressions", "from_", "joins", "where", "operation_modifiers", "hint"}


def apply(
    select: exp.Select, scope: Scope, inner_scope: Callable[[exp.Select], Scope], aggregates: frozenset[str]
) -> bool:
    """Merge the first subquery of `select` that allows it, in place; whether one was merged.

    `scope` is that of `select`; `inner_scope` gives the scope of a subquery's select.
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
            or set(_set(item)) - {"this", "alias"}
        ):
            continue
        if _merge(select, item, inner, scope, inner_scope(inner)):
            return True
    return False


def is_plain(inner: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether `inner` only filters rows and computes columns, each row by itself and the same each time."""
    if set(_set(inner)) - _PLAIN or any(not is_inner(join) for join in inner.args.get("joins") or ()):
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
            or (isinstance(one, exp.Star) and _set(one))
            or (isinstance(one, exp.Column) and isinstance(one.this, exp.Star))
        ):
            return False
    where = inner.args.get("where")
    return not (where is not None and nested_queries(where)) and inner.args.get("from_") is not None


def _set(node: exp.Expr) -> list[str]:
    """Names of the arguments of `node` that hold something."""
    return [name for name, value in node.args.items() if value not in (None, [], False)]


def _reads_outside(select: exp.Select, scope: Scope) -> bool:
    """Whether a nested query or a star form of `select` could not follow a change of its names."""
    for found in own(select):
        if isinstance(found, exp.Columns) or (isinstance(found, exp.Star) and _set(found)):
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
    if scope.merged or below.merged:
        return False
    alias = scope.alias(item.alias)
    outputs = None if alias is None else _outputs(inner, scope.columns[alias], below)
    renames = _renames(inner, item.alias)
    if alias is None or outputs is None or renames is None or not _qualify(inner, below):
        return False
    values = {name.lower(): _renamed(value, below, renames) for name, value in outputs.items()}
    if not _expand_stars(select, scope):
        return False
    if not all(_readable(column, scope) for column in _columns_of(select)):
        return False
    _name_outputs(select)
    _substitute(select, scope, alias, values)
    where = [
        *(_renamed(part, below, renames) for part in conjuncts(_condition(inner))),
        *(part.copy() for part in conjuncts(_condition(select))),
    ]
    _splice(select, item, inner, below, renames)
    if where:
        select.set("where", exp.Where(this=conjunction(where)))
    return True


def _condition(select: exp.Select) -> exp.Expr | None:
    where = select.args.get("where")
    return None if where is None else where.this


def _columns_of(select: exp.Select) -> list[exp.Column]:
    return list(own_columns(select))


def _readable(column: exp.Column, scope: Scope) -> bool:
    """Whether a reference is to one column of one item, or to something that merging does not touch."""
    return scope.split(column) is not None or not scope.resolves(column)


def _outputs(inner: exp.Select, names: tuple[str, ...], below: Scope) -> dict[str, exp.Expr] | None:
    """Column name -> the expression behind it."""
    values: list[exp.Expr] = []
    for one in inner.expressions:
        if isinstance(one, exp.Star):
            values += [
                exp.column(name, table=alias, quoted=True) for alias, own_ in below.columns.items() for name in own_
            ]
        else:
            values.append(one.this if isinstance(one, exp.Alias) else one)
    if len(values) != len(names) or len({name.lower() for name in names}) != len(names):
        return None
    return dict(zip(names, values, strict=True))


def _renames(inner: exp.Select, outer: str) -> dict[str, str] | None:
    """New aliases for the inner FROM items, unique in the merged query."""
    renames: dict[str, str] = {}
    for item in [inner.args["from_"].this, *(join.this for join in inner.args.get("joins") or ())]:
        if not isinstance(item, exp.Table | exp.Subquery) or not item.alias_or_name:
            return None
        renames[item.alias_or_name.lower()] = f"{outer}.{item.alias_or_name}"
    return renames


def _qualify(inner: exp.Select, below: Scope) -> bool:
    """Whether every reference inside is to one column of one item."""
    aliases = {one.alias.lower() for one in inner.expressions if isinstance(one, exp.Alias)}
    for column in own_columns(inner):
        if below.split(column) is None and not (
            len(column.parts) == 1 and column.name.lower() in aliases and not below.has(column.name)
        ):
            return False
        if below.split(column) is None:
            return False  # a lateral alias: left to DuckDB
    return True


def _renamed(value: exp.Expr, below: Scope, renames: dict[str, str]) -> exp.Expr:
    """A copy of an inner expression under the new aliases."""
    root = exp.Paren(this=value.copy())
    for column in list(own_columns(root)):
        found = below.split(column)
        assert found is not None
        alias, name, fields = found
        column.replace(_reference(exp.column(name, table=renames[alias.lower()], quoted=True), fields))
    return root if isinstance(root.this, exp.Binary | exp.Unary | exp.Case | exp.Predicate) else root.this


def _reference(base: exp.Expr, fields: list[str]) -> exp.Expr:
    for field in fields:
        base = exp.Dot(this=base, expression=exp.to_identifier(field, quoted=True))
    return base


def _expand_stars(select: exp.Select, scope: Scope) -> bool:
    """`*` and `t.*` as columns with their names."""
    found: list[exp.Expr] = []
    for one in select.expressions:
        if isinstance(one, exp.Star):
            aliases = list(scope.columns)
        elif isinstance(one, exp.Column) and isinstance(one.this, exp.Star):
            alias = scope.alias(one.parts[0].name) if len(one.parts) == 2 else None
            if alias is None:
                return False
            aliases = [alias]
        else:
            found.append(one)
            continue
        found += [exp.column(name, table=alias, quoted=True) for alias in aliases for name in scope.columns[alias]]
    select.set("expressions", found)
    return True


def _name_outputs(select: exp.Select) -> None:
    """Bare columns keep their names when something else takes their place."""
    named = [
        exp.alias_(one.copy(), one.name, quoted=True) if isinstance(one, exp.Column) and one.name else one
        for one in select.expressions
    ]
    select.set("expressions", named)


def _substitute(select: exp.Select, scope: Scope, alias: str, values: dict[str, exp.Expr]) -> None:
    aliases = {one.alias.lower() for one in select.expressions if isinstance(one, exp.Alias)}
    ordered = {id(c) for o in [select.args.get("order")] if o is not None for c in own_columns(o)}
    for column in _columns_of(select):
        found = scope.split(column)
        if found is None or found[0] != alias:
            continue
        if id(column) in ordered and len(column.parts) == 1 and column.name.lower() in aliases:
            continue  # ORDER BY looks at the output columns first
        column.replace(_reference(values[found[1].lower()].copy(), found[2]))


def _splice(select: exp.Select, item: exp.Subquery, inner: exp.Select, below: Scope, renames: dict[str, str]) -> None:
    """Put the inner FROM in the place of the subquery."""
    start = inner.args["from_"].this
    rest = list(inner.args.get("joins") or [])
    for join in rest:
        if join.args.get("on") is not None:
            join.set("on", _renamed(join.args["on"], below, renames))
    for one in [start, *(join.this for join in rest)]:
        one.set("alias", _alias(one, renames[one.alias_or_name.lower()]))
    joins = list(select.args.get("joins") or [])
    at = next((number for number, join in enumerate(joins) if join.this is item), -1)
    item.replace(start)
    select.set("joins", [*joins[: at + 1], *rest, *joins[at + 1 :]])


def _alias(item: exp.Expr, name: str) -> exp.TableAlias:
    columns = item.args["alias"].args.get("columns") if item.args.get("alias") else None
    return exp.TableAlias(this=exp.to_identifier(name, quoted=True), columns=columns)
