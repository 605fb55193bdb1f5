"""Say of every column which FROM item it comes from.

    SELECT s, u.f AS g FROM t JOIN r ON k = n WHERE id > 1
    ->  SELECT t.s AS s, r.u.f AS g FROM t JOIN r ON t.k = r.n WHERE t.id > 1

Later rules may then move expressions to places where more is in sight. What stays bare is the name of an output column,
a column that USING has merged, a whole row, or a name from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import aggregate_calls, is_comma, own, sql
from sqluice.optimizer.scope import Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLUMNS_FIRST = ("where", "group", "qualify", "windows")
_OUTPUTS_FIRST = ("order", "distinct")


def apply(select: exp.Select, scope: Scope, aggregates: frozenset[str]) -> None:
    """Change `select` in place."""
    _methods(select, scope)
    _joins(select, scope)
    for name in _COLUMNS_FIRST:
        for node in nodes(select, name):
            _qualify(own_columns(node), scope)
    outputs = {one.alias_or_name.lower() for one in select.expressions}
    _outputs(select, scope)
    for name in _OUTPUTS_FIRST:
        for node in nodes(select, name):
            named = {id(key) for key in keys(node) if _is_bare(key) and key.name.lower() in outputs}
            _qualify((column for column in own_columns(node) if id(column) not in named), scope)
    _having(select, scope, outputs, aggregates)


def nodes(select: exp.Select, name: str) -> list[exp.Expr]:
    """What stands in one clause."""
    value = select.args.get(name)
    if not value or not isinstance(value, list | exp.Expr):
        return []
    return value if isinstance(value, list) else [value]


def reference(alias: str, name: str, fields: Iterable[str] = ()) -> exp.Expr:
    """A column of a FROM item, or a field of its struct."""
    found: exp.Expr = exp.column(name, table=alias, quoted=True)
    for field in fields:
        found = exp.Dot(this=found, expression=exp.to_identifier(field, quoted=True))
    return found


def _joins(select: exp.Select, scope: Scope) -> None:
    """ON and functions in FROM see the items before them; those after the last comma go first."""
    start = select.args.get("from_")
    if start is None:
        return
    before = [start.this.alias_or_name]
    group = list(before)
    for join in select.args.get("joins") or ():
        name = join.this.alias_or_name
        if not isinstance(join.this, exp.Query):
            _qualify(own_columns(join.this), scope.only(before))
        group = [name] if is_comma(join) else [*group, name]
        before.append(name)
        if join.args.get("on") is not None:
            on = exp.Paren(this=join.args["on"])
            _qualify(own_columns(on), scope.only(group, hidden=name))
            _qualify(own_columns(on), scope.only(before, hidden=name))
            join.set("on", on.this)
        if name in scope.hidden:
            before.remove(name)
            group.remove(name)


def _outputs(select: exp.Select, scope: Scope) -> None:
    for one in list(select.expressions):
        name = one.name if isinstance(one, exp.Column) and not isinstance(one.this, exp.Star) else ""
        holder = exp.Paren(this=one.copy())
        _qualify(own_columns(holder), scope)
        new = holder.this.pop()
        one.replace(exp.alias_(new, name, quoted=True, copy=False) if name else new)


def _having(select: exp.Select, scope: Scope, outputs: set[str], aggregates: frozenset[str]) -> None:
    """A name in HAVING is a grouping column, then an output, then any column; in an aggregate it is a column."""
    clause = select.args.get("having")
    if clause is None:
        return
    grouped = {sql(key) for key in nodes(select, "group") for key in key.expressions}
    inside = {id(column) for call in aggregate_calls(clause, aggregates) for column in own_columns(call)}
    for column in list(own_columns(clause)):
        found = scope.split(column)
        is_output = _is_bare(column) and column.name.lower() in outputs and id(column) not in inside
        if found is not None and not (is_output and sql(reference(*found)) not in grouped):
            column.replace(reference(*found))


def _qualify(columns: Iterable[exp.Column], scope: Scope) -> None:
    for column in list(columns):
        found = scope.split(column)
        if found is not None:
            column.replace(reference(*found))


def keys(clause: exp.Expr) -> list[exp.Expr]:
    """The keys of a GROUP BY, an ORDER BY or a DISTINCT ON."""
    if isinstance(clause, exp.Distinct):
        on = clause.args.get("on")
        return [] if on is None else on.expressions if isinstance(on, exp.Tuple) else [on.unnest()]
    return [one.this if isinstance(one, exp.Ordered) else one for one in clause.expressions]


def _is_bare(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and len(node.parts) == 1


def _methods(select: exp.Select, scope: Scope) -> None:
    """`s.lower()` names a column that the parser takes for something else."""
    for node in list(own(select)):
        if isinstance(node, exp.Dot) and isinstance(node.this, exp.Identifier) and isinstance(node.expression, exp.Func):
            column = exp.Column(this=node.this.copy())
            if scope.split(column) is not None:
                node.set("this", exp.Paren(this=column))
