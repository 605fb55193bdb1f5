"""Say of every column which FROM item it comes from.

    SELECT s, u.f AS g FROM t JOIN r ON k = n WHERE id > 1
    ->  SELECT t.s AS s, r.u.f AS g FROM t JOIN r ON t.k = r.n WHERE t.id > 1

Later rules may then move expressions to places where more is in sight. What stays bare is the name of an output column,
a column that USING has merged, a whole row, or a name from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import aggregate_calls, is_comma, named, own, sql, star_of
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
    outputs = _output_names(select)
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
            every = scope.only(before, hidden=name)
            near = [col for col in own_columns(on) if len(col.parts) == 1 or every.alias(col.parts[0].name) is None]
            _qualify(near, scope.only(group, hidden=name))
            _qualify(own_columns(on), every)
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


def above_keys(select: exp.Select, clause: exp.Expr) -> list[exp.Expr]:
    """The keys of ORDER BY or DISTINCT ON that are more than the name of an output column."""
    outputs = _output_names(select)
    return [key for key in keys(clause) if not (_is_bare(key) and key.name.lower() in outputs)]


def _output_names(select: exp.Select) -> set[str]:
    """Names of output columns that are written down, lower case."""
    return {one.alias_or_name.lower() for one in select.expressions} | names_in_stars(select)


def names_in_stars(select: exp.Select) -> set[str]:
    """Names that REPLACE and RENAME give to columns of a star, lower case."""
    return {
        part.alias.lower()
        for star in map(star_of, select.expressions)
        if isinstance(star, exp.Star)
        for name in ("replace", "rename")
        for part in star.args.get(name) or ()
    }


def _is_bare(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and len(node.parts) == 1


def _methods(select: exp.Select, scope: Scope) -> None:
    """`s.lower()` names a column that the parser takes for something else."""
    for node in list(own(select)):
        if not isinstance(node, exp.Dot) or not isinstance(node.expression, exp.Func):
            continue
        column = exp.Column(this=node.this.copy()) if isinstance(node.this, exp.Identifier) else None
        if column is not None and scope.split(column) is not None:
            node.set("this", exp.Paren(this=column))


def is_qualified(select: exp.Select, scope: Scope) -> bool:
    """Whether every reference is to one column of one item, or is a key of ORDER BY or DISTINCT ON that names an
    output: other bare names might be taken for columns of a new FROM."""
    outputs = _output_names(select)
    named = {id(key) for clause in _OUTPUTS_FIRST for node in nodes(select, clause) for key in keys(node)}
    return all(
        column.table in scope.columns
        or column.table in scope.hidden
        or (id(column) in named and not column.table and column.name.lower() in outputs)
        for column in own_columns(select)
    )


def given(node: exp.Expr) -> list[str]:
    """Names of the arguments of `node` that hold something."""
    return [name for name, value in node.args.items() if value not in (None, [], False)]


def expand_stars(select: exp.Select, scope: Scope) -> bool:
    """Stars as columns with their names, in place; False when one has a form that only DuckDB can take apart."""
    found: list[exp.Expr] = []
    for one in select.expressions:
        star = star_of(one)
        if not isinstance(star, exp.Star):
            found.append(one)
            continue
        alias = scope.alias(one.parts[0].name) if isinstance(one, exp.Column) and len(one.parts) == 2 else None
        columns = _starred(star, scope, list(scope.columns) if one is star else [alias] if alias else [])
        if columns is None:
            return False
        found += columns
    if any(isinstance(part, exp.Columns) for one in found for part in own(one)):
        return False
    select.set("expressions", found)
    return True


def _starred(star: exp.Star, scope: Scope, aliases: list[str]) -> list[exp.Expr] | None:
    """The columns that one star stands for."""
    left_out = [column.name.lower() for column in star.args.get("except_") or () if not column.table]
    if len(left_out) != len(star.args.get("except_") or ()) or star.args.get("rename") or not aliases:
        return None
    replaced = {one.alias.lower(): one.this for one in star.args.get("replace") or ()}
    if len({*left_out, *replaced}) < len(left_out) + len(star.args.get("replace") or ()):
        return None  # a name twice: DuckDB will say so
    found: list[exp.Expr] = []
    for alias in aliases:
        for name in scope.columns[alias]:
            if name.lower() not in left_out:
                value = replaced.get(name.lower(), reference(alias, name)).copy()
                found.append(named(value, name))
            if name.lower() in replaced:
                left_out.append(name.lower())  # the first of several columns with this name takes the place of all
    return found
