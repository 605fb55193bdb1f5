"""Split a SELECT whose questions are about aggregates or window results into two levels.

    SELECT g, __ai(1, max(s)) FROM t GROUP BY g HAVING count(*) > 1
    ->  SELECT q.k0 AS g, __ai(1, q.a0) FROM (SELECT g AS k0, max(s) AS a0 FROM t GROUP BY g HAVING count(*) > 1) AS q

Afterwards every question is about columns of FROM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    column,
    conjunction,
    conjuncts,
    has_site,
    is_site,
    named,
    own,
    replaced,
    sql,
    windows,
    with_from,
)
from sqluice.optimizer.rules.qualify import above_keys, nodes
from sqluice.optimizer.scope import CannotLift, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SETS = (exp.Rollup, exp.Cube, exp.GroupingSets)


def needs_split(select: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether a question of this level is asked after grouping, after window functions, or after a QUALIFY."""
    if not is_aggregated(select, aggregates):
        asking = [node for node in _upper(select, []) if _asks_outside_windows(node)]
        return any(bool(select.args.get("qualify")) or windows(node) for node in asking)
    below = {sql(key) for key in group_keys(select, aggregates)}
    return any(_asks_above(node, below, aggregates) for node in _upper(select, []))


def _asks_outside_windows(node: exp.Expr) -> bool:
    if isinstance(node, exp.Window | exp.Query):
        return False
    return is_site(node) or any(map(_asks_outside_windows, node.iter_expressions()))


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


def is_aggregated(select: exp.Select, aggregates: frozenset[str]) -> bool:
    """Whether `select` returns a row a group."""
    if select.args.get("group") is not None or select.args.get("having") is not None:
        return True
    upper = [*select.expressions, *(node for name in ("order", "qualify") if (node := select.args.get(name)))]
    return any(aggregate_calls(node, aggregates) for node in upper)


def apply(select: exp.Select, name: str, aggregates: frozenset[str]) -> tuple[exp.Select, list[str]]:
    """The outer select, over its inner part as FROM item `name`; and the inner part's columns.

    `CannotLift` for what has no such form (columns outside the keys, GROUPING of keys by position or alias).
    """
    levels = _grouped(select, aggregates) if is_aggregated(select, aggregates) else _windowed(select)
    return _split(select, name, levels)


@dataclass(frozen=True, slots=True)
class _Below:
    """The inner level: its select, the names of what it computes by their SQL; and of the outer level, which conditions
    it checks first and which clauses it keeps."""

    select: exp.Select
    known: dict[str, str]
    conditions: list[exp.Expr]
    clauses: tuple[str, ...]


def _grouped(select: exp.Select, aggregates: frozenset[str]) -> _Below:
    keys = list({sql(key): key for key in group_keys(select, aggregates)}.values())
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
    if group is not None and has_sets(select):
        resolve = _resolver(select)
        given = [key for one in group.expressions for key in _keys_in(one)]
        if select.find(exp.Grouping, exp.GroupingId) and any(resolve(key) is not key for key in given):
            raise CannotLift("GROUPING beside keys by position or alias")  # which of the equal keys does it mean?
        if any(next(own_columns(exp.Paren(this=key.copy())), None) is None for key in keys):
            raise CannotLift("a constant in grouping sets")  # it is NULL in some groups
        inner.set("group", exp.Group(expressions=[_in_sets(key, resolve) for key in group.expressions]))
    elif group is not None:
        places = [exp.Literal.number(at + 1) for at in range(len(keys))]
        inner.set("group", exp.Group(expressions=places) if keys else None)
    condition = conjunction([part.copy() for part in kept])
    if condition is not None:
        inner.set("having", exp.Having(this=condition))
    rest = [part for part in conjuncts(having.this if having else None) if not any(part is one for one in kept)]
    return _Below(inner, known, rest, ("distinct", "qualify", "order"))


def _windowed(select: exp.Select) -> _Below:
    found: dict[str, exp.Expr] = {}
    known: dict[str, str] = {}

    def add(node: exp.Expr, prefix: str) -> None:
        if sql(node) not in known:
            known[sql(node)] = f"{prefix}{len(found)}"
            found[known[sql(node)]] = node

    qualify = select.args.get("qualify")
    parts = conjuncts(qualify.this if qualify is not None else None)
    late = [part for part in parts if _asks_outside_windows(part)]
    upper = [*_upper(select, [], ()), *late]
    for node in upper:
        for call in windows(node):
            add(call, "w")
    for node in upper:
        rest = replaced(node, lambda part: exp.Null() if _name(part, known) else None)
        for col in own_columns(exp.Paren(this=rest)):
            add(col, "c")
    inner = _inner(select, found or {"one": exp.Literal.number(1)})
    early = [part.copy() for part in parts if not any(part is one for one in late)]
    if early and (windows(inner) or any(map(windows, early))):
        inner.set("qualify", exp.Qualify(this=conjunction(early)))
    elif early:
        late += early
    return _Below(inner, known, late, ("distinct", "order"))


def group_keys(select: exp.Select, aggregates: frozenset[str]) -> list[exp.Expr]:
    """The grouping expressions, those of grouping sets too, positions and aliases resolved."""
    group = select.args.get("group")
    if group is None:
        return []
    if group.args.get("all") or any(
        isinstance(key, exp.Var) and key.name.upper() == "ALL" for key in group.expressions
    ):
        return [value for value in _values(select) if not aggregate_calls(value, aggregates)]
    resolve = _resolver(select)
    return [resolve(key) for one in group.expressions for key in _keys_in(one)]


def has_sets(select: exp.Select) -> bool:
    """Whether rows are grouped in several ways: by ROLLUP, CUBE or GROUPING SETS."""
    group = select.args.get("group")
    return group is not None and any(isinstance(key, _SETS) for key in group.expressions)


def _keys_in(key: exp.Expr, *, inside: bool = False) -> list[exp.Expr]:
    """A grouping expression, or all of a ROLLUP, CUBE or GROUPING SETS."""
    if isinstance(key, exp.Tuple) and not inside and not key.expressions:
        raise CannotLift("GROUP BY ()")
    if isinstance(key, _SETS) or (inside and isinstance(key, exp.Tuple)):
        return [found for one in key.expressions for found in _keys_in(one, inside=True)]
    return [key.this if inside and isinstance(key, exp.Paren) else key]


def _in_sets(key: exp.Expr, resolve: Callable[[exp.Expr], exp.Expr], *, inside: bool = False) -> exp.Expr:
    """The same expression with positions and aliases resolved."""
    if isinstance(key, _SETS) or (inside and isinstance(key, exp.Tuple)):
        return type(key)(expressions=[_in_sets(one, resolve, inside=True) for one in key.expressions])
    if inside and isinstance(key, exp.Paren):
        return exp.Paren(this=resolve(key.this).copy())
    return resolve(key).copy()


def _resolver(select: exp.Select) -> Callable[[exp.Expr], exp.Expr]:
    values = _values(select)
    aliases = {one.alias.lower(): one.this for one in select.expressions if isinstance(one, exp.Alias)}

    def resolve(key: exp.Expr) -> exp.Expr:
        if isinstance(key, exp.Literal) and key.is_int:
            if any(value.find(exp.Star, exp.Columns) and not isinstance(value, exp.Count) for value in values):
                raise CannotLift("a position in GROUP BY beside a star")
            if not 0 < int(key.this) <= len(values):
                raise CannotLift("a position in GROUP BY that is not there")
            return values[int(key.this) - 1]
        return aliases.get(key.name.lower(), key) if _is_bare(key) else key

    return resolve


def _values(select: exp.Select) -> list[exp.Expr]:
    return [one.this if isinstance(one, exp.Alias) else one for one in select.expressions]


def _is_bare(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and len(node.parts) == 1


def _upper(select: exp.Select, without: Iterable[exp.Expr], clauses: tuple[str, ...] = ("qualify",)) -> list[exp.Expr]:
    """What is computed after grouping."""
    left_out = {id(part) for part in without}
    having = select.args.get("having")
    parts = [part for part in conjuncts(having.this if having else None) if id(part) not in left_out]
    others = [node.this for name in clauses if name == "qualify" and (node := select.args.get(name)) is not None]
    for name in ("order", "distinct"):
        others += [key for node in nodes(select, name) for key in above_keys(select, node)]
    return [*select.expressions, *parts, *others]


def _inner(select: exp.Select, found: dict[str, exp.Expr]) -> exp.Select:
    if select.args.get("windows"):
        raise CannotLift("a question about groups or windows beside a named window")
    if any(isinstance(part, exp.Columns) for node in found.values() for part in own(node)):
        raise CannotLift("a question beside an aggregate of COLUMNS()")
    columns = [named(node.copy(), name) for name, node in found.items()]
    inner = with_from(exp.Select(expressions=columns), select)
    for name in ("where", "sample"):
        if select.args.get(name) is not None:
            inner.set(name, select.args[name].copy())
    return inner


def _split(select: exp.Select, name: str, below: _Below) -> tuple[exp.Select, list[str]]:
    known = below.known

    def outer(node: exp.Expr) -> exp.Expr:
        new = replaced(node, lambda part: column(found, name) if (found := _name(part, known)) else None)
        for col in own_columns(exp.Paren(this=new)):
            if col.table != name:
                raise CannotLift(f"{sql(col)} beside a question about groups")
        return new

    found = exp.Select(expressions=[_named(one, outer(one)) for one in select.expressions])
    found.set(
        "from_",
        exp.From(this=exp.Subquery(this=below.select, alias=exp.TableAlias(this=exp.to_identifier(name, quoted=True)))),
    )
    where = [outer(part) for part in below.conditions]
    if where:
        found.set("where", exp.Where(this=conjunction(where)))
    for part in below.clauses:
        if select.args.get(part) is not None:
            clause = select.args[part].copy()
            for key in above_keys(select, clause) if part in ("distinct", "order") else [clause.this]:
                key.replace(outer(key))
            found.set(part, clause)
    for part in ("limit", "offset", "with_"):
        if select.args.get(part) is not None:
            found.set(part, select.args[part].copy())
    columns = [one.alias for one in below.select.expressions]
    return found, columns


def _name(part: exp.Expr, known: dict[str, str]) -> str | None:
    """The name under which the inner level computes `part`."""
    return None if isinstance(part, exp.Identifier) else known.get(sql(part))


def _named(before: exp.Expr, after: exp.Expr) -> exp.Expr:
    if isinstance(before, exp.Column) and before.name and not isinstance(before.this, exp.Star):
        return named(after, before.name)
    return after
