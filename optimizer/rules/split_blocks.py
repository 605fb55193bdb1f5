"""Split a SELECT whose questions are about aggregates or window results into two levels.

    SELECT g, __ai(1, max(s)) FROM t GROUP BY g HAVING count(*) > 1
    ->  SELECT q.k0 AS g, __ai(1, q.a0) FROM (SELECT g AS k0, max(s) AS a0 FROM t GROUP BY g HAVING count(*) > 1) AS q

Afterwards every question is about columns of FROM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    args_of,
    column,
    conjunction,
    conjuncts,
    has_site,
    is_site,
    own_sites,
    replaced,
    sql,
    windows,
    with_from,
)
from sqluice.optimizer.scope import CannotLift, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def needs_split(select: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether a question of this level is asked after grouping, or about a window function."""
    if any(windows(arg) for site in own_sites(select) for arg in args_of(site)):
        return True
    if not is_aggregated(select, aggregates):
        return False
    below = {sql(key) for key in _every_key(select, aggregates)}
    return any(_asks_above(node, below, aggregates) for node in _upper(select, []))


def _asks_above(node: exp.Expr, below: set[str], aggregates: frozenset[str]) -> bool:
    """Whether `node` holds a question outside grouping keys and aggregates."""
    calls = {id(call) for call in aggregate_calls(node, aggregates)}

    def look(part: exp.Expr) -> bool:
        if id(part) in calls or sql(part) in below:
            return False
        if is_site(part):
            return True
        return not isinstance(part, exp.Query) and any(map(look, part.iter_expressions()))

    return has_site(node) and look(node)


def _every_key(select: exp.Select, aggregates: frozenset[str]) -> list[exp.Expr]:
    """The grouping expressions, those of grouping sets too."""
    try:
        return _keys(select, aggregates)
    except CannotLift:
        aliases = _aliases(select)
        found = [node for node in select.args["group"].walk() if not isinstance(node, exp.Group)]
        named = [aliases[node.name.lower()] for node in found if _is_bare(node) and node.name.lower() in aliases]
        return [*found, *named]


def is_aggregated(select: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether `select` returns a row a group."""
    if select.args.get("group") is not None or select.args.get("having") is not None:
        return True
    upper = [*select.expressions, *(node for name in ("order", "qualify") if (node := select.args.get(name)))]
    return any(aggregate_calls(node, aggregates) for node in upper)


def apply(select: exp.Select, name: str, aggregates: frozenset[str]) -> tuple[exp.Select, list[str]]:
    """The outer select, over its inner part as FROM item `name`; and the inner part's columns.

    `CannotLift` for what has no such form (grouping sets, columns outside the keys).
    """
    if is_aggregated(select, aggregates):
        return _split(select, name, *_grouped(select, aggregates))
    return _split(select, name, *_windowed(select))


def _grouped(
    select: exp.Select, aggregates: frozenset[str]
) -> tuple[exp.Select, dict[str, str], Callable[..., list[exp.Expr]]]:
    keys = _keys(select, aggregates)
    having = select.args.get("having")
    below = {sql(key) for key in keys}
    kept = [part for part in conjuncts(having.this if having else None) if not _asks_above(part, below, aggregates)]
    upper = _upper(select, kept)
    found: dict[str, exp.Expr] = {f"k{at}": key for at, key in enumerate(keys)}
    known = {sql(key): name for name, key in found.items() if not isinstance(key, exp.Literal)}
    for node in upper:
        for call in aggregate_calls(node, aggregates):
            if sql(call) not in known:
                known[sql(call)] = f"a{len(found)}"
                found[known[sql(call)]] = call
    inner = _inner(select, found or {"one": exp.Count(this=exp.Star())})
    group = select.args.get("group")
    if group is not None:
        places = [exp.Literal.number(at + 1) for at in range(len(keys))]
        inner.set("group", exp.Group(expressions=places) if keys else None)
    condition = conjunction([part.copy() for part in kept])
    if condition is not None:
        inner.set("having", exp.Having(this=condition))
    kept_sql = {sql(part) for part in kept}

    def conditions() -> list[exp.Expr]:
        return [part for part in conjuncts(having.this if having else None) if sql(part) not in kept_sql]

    return inner, known, conditions


def _windowed(select: exp.Select) -> tuple[exp.Select, dict[str, str], Callable[..., list[exp.Expr]]]:
    found: dict[str, exp.Expr] = {}
    known: dict[str, str] = {}

    def add(node: exp.Expr, prefix: str) -> None:
        if sql(node) not in known:
            known[sql(node)] = f"{prefix}{len(found)}"
            found[known[sql(node)]] = node

    for node in _upper(select, []):
        for call in windows(node):
            add(call, "w")
    aliases = {one.alias.lower() for one in select.expressions if isinstance(one, exp.Alias)}
    for node in _upper(select, []):
        rest = replaced(node, lambda part: column(known[sql(part)]) if sql(part) in known else None)
        for col in own_columns(rest):
            if not (len(col.parts) == 1 and (col.name in known.values() or col.name.lower() in aliases)):
                add(col, "c")
    return _inner(select, found or {"one": exp.Literal.number(1)}), known, list


def _keys(select: exp.Select, aggregates: frozenset[str]) -> list[exp.Expr]:
    """The grouping expressions, positions and aliases resolved."""
    group = select.args.get("group")
    if group is None:
        return []
    if any(group.args.get(kind) for kind in ("rollup", "cube", "grouping_sets", "totals")):
        raise CannotLift("a question about the groups of grouping sets")
    values = [one.this if isinstance(one, exp.Alias) else one for one in select.expressions]
    if group.args.get("all") or any(
        isinstance(key, exp.Var) and key.name.upper() == "ALL" for key in group.expressions
    ):
        return [value for value in values if not aggregate_calls(value, aggregates)]
    aliases = _aliases(select)
    keys = []
    for key in group.expressions:
        if isinstance(key, exp.Rollup | exp.Cube | exp.GroupingSets):
            raise CannotLift("a question about the groups of grouping sets")
        if isinstance(key, exp.Literal) and key.is_int:
            keys.append(values[int(key.this) - 1])
        elif _is_bare(key) and key.name.lower() in aliases:
            keys.append(aliases[key.name.lower()])
        else:
            keys.append(key)
    return keys


def _aliases(select: exp.Select) -> dict[str, exp.Expr]:
    return {one.alias.lower(): one.this for one in select.expressions if isinstance(one, exp.Alias)}


def _is_bare(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and len(node.parts) == 1


def _upper(select: exp.Select, without: Iterable[exp.Expr]) -> list[exp.Expr]:
    """What is computed after grouping."""
    left_out = {id(part) for part in without}
    having = select.args.get("having")
    parts = [part for part in conjuncts(having.this if having else None) if id(part) not in left_out]
    others = [node for name in ("qualify", "order") if (node := select.args.get(name)) is not None]
    distinct = select.args.get("distinct")
    return [*select.expressions, *parts, *others, *([distinct] if distinct is not None else [])]


def _inner(select: exp.Select, found: dict[str, exp.Expr]) -> exp.Select:
    columns = [exp.alias_(node.copy(), name, quoted=True) for name, node in found.items()]
    inner = with_from(exp.Select(expressions=columns), select)
    for name in ("where", "sample"):
        if select.args.get(name) is not None:
            inner.set(name, select.args[name].copy())
    return inner


def _split(
    select: exp.Select, name: str, inner: exp.Select, known: dict[str, str], conditions: Callable[..., list[exp.Expr]]
) -> tuple[exp.Select, list[str]]:
    aliases = {one.alias.lower() for one in select.expressions if isinstance(one, exp.Alias)}

    def outer(node: exp.Expr) -> exp.Expr:
        new = replaced(node, lambda part: column(known[sql(part)], name) if sql(part) in known else None)
        for col in own_columns(new):
            if col.table != name and not (len(col.parts) == 1 and col.name.lower() in aliases):
                raise CannotLift(f"{sql(col)} beside a question about groups")
        return new

    found = exp.Select(expressions=[_named(one, outer(one)) for one in select.expressions])
    found.set(
        "from_",
        exp.From(this=exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier(name, quoted=True)))),
    )
    where = [outer(part) for part in conditions()]
    if where:
        found.set("where", exp.Where(this=conjunction(where)))
    for part in ("distinct", "qualify", "order"):
        if select.args.get(part) is not None:
            found.set(part, outer(select.args[part]))
    for part in ("limit", "offset", "with_"):
        if select.args.get(part) is not None:
            found.set(part, select.args[part].copy())
    columns = [one.alias for one in inner.expressions]
    return found, columns


def _named(before: exp.Expr, after: exp.Expr) -> exp.Expr:
    if isinstance(before, exp.Column) and before.name and not isinstance(before.this, exp.Star):
        return exp.alias_(after, before.name, quoted=True)
    return after
