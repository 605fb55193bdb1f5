"""Ask what a correlated query asks about the rows of one FROM item in that item, which stands alone and has a stage.

    SELECT (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, r.w)) FROM t
    ->  SELECT (SELECT count(*) FROM (SELECT * FROM r WHERE EXISTS (SELECT 1 FROM t WHERE r.k = t.k) AND __ai(1, r.w))
                AS r WHERE r.k = t.k) FROM t

The EXISTS keeps the rows that meet an outer row (a semi-join reduction: Bernstein and Chiu 1981). Questions that
compute something first stay: for rows that no outer row meets, that might fail.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    args_of,
    column,
    conditions,
    conjunction,
    has_site,
    is_volatile,
    named,
    nested_queries,
    own,
    own_sites,
    replaced,
    sql,
    with_from,
)
from sqluice.optimizer.rules.qualify import given
from sqluice.optimizer.scope import own_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqluice.optimizer.scope import Scope

_TABLE = {"this", "alias", "db", "catalog"}
_GUARDS = (exp.Case, exp.If, exp.Coalesce, exp.And, exp.Or, exp.Filter)


def apply(
    inner: exp.Select,
    scope: Scope,
    outer: exp.Select,
    stands_alone: Callable[[exp.Expr], bool],
    name: Callable[[], str],
) -> bool:
    """Change the FROM items of the correlated `inner`, whose columns are qualified, in place; whether one was. `outer`
    is the select around it, `name` makes fresh names."""
    joins = inner.args.get("joins") or []
    if scope.merged or inner.args.get("laterals") or inner.args.get("from_") is None:
        return False
    if any(join.side or join.method or (join.kind or "").upper() not in ("", "INNER", "CROSS") for join in joins):
        return False
    items = [inner.args["from_"].this, *(join.this for join in joins)]
    moved = [_moved(inner, item, scope, outer, stands_alone, name) for item in items]
    return any(moved)


def _moved(
    inner: exp.Select,
    item: exp.Expr,
    scope: Scope,
    outer: exp.Select,
    stands_alone: Callable[[exp.Expr], bool],
    name: Callable[[], str],
) -> bool:
    alias = item.alias_or_name
    if not isinstance(item, exp.Table | exp.Subquery) or not alias or has_site(item, deep=True):
        return False
    parts = [part for part in conditions(inner) if not nested_queries(part) and not is_volatile(part)]
    local = [part for part in parts if _only(part, alias, scope)]
    asking = [part for part in local if has_site(part) and all(map(_is_plain, own_sites(part)))]
    columns = _columns(inner, asking, alias, scope)
    if not asking and not columns:
        return False
    cheap = [part for part in local if not has_site(part)]
    names = {text: name() for text in columns}
    values = [named(site.copy(), names[text]) for text, site in columns.items()]
    source = exp.Select(expressions=[exp.Star(), *values]).from_(item.copy())
    for reduction in _reductions(parts, alias, scope, _rows_around(inner, outer)):
        found = source.copy()
        where = conjunction([part.copy() for part in (*cheap, *reduction, *asking)])
        found.set("where", None if where is None else exp.Where(this=where))
        if stands_alone(found):
            item.replace(exp.Subquery(this=found, alias=exp.TableAlias(this=exp.to_identifier(alias, quoted=True))))
            _without(inner, {id(part) for part in (*cheap, *asking)})
            _name(inner, {text: column(new, alias) for text, new in names.items()})
            return True
    return False


def _only(node: exp.Expr, alias: str, scope: Scope) -> bool:
    """Whether `node` looks at columns of one item and at nothing else."""
    found = list(own_columns(exp.Paren(this=node.copy())))
    return bool(found) and all(
        len(one.parts) == 2 and one.table == alias and scope.resolves(one) and one.name.lower() != "rowid"
        for one in found
    )


def _is_plain(site: exp.Expr) -> bool:
    return all(isinstance(arg, exp.Column | exp.Literal) for arg in args_of(site))


def _columns(inner: exp.Select, asking: list[exp.Expr], alias: str, scope: Scope) -> dict[str, exp.Expr]:
    """Questions about the item elsewhere, by their SQL; none where a star or a whole row would see their columns."""
    whole = [node for node in own(inner) if isinstance(node, exp.Star | exp.Columns)]
    if any(not isinstance(node.parent, exp.Count) for node in whole):
        return {}
    if any(scope.resolves(one) and not one.table for one in own_columns(inner)):
        return {}
    moved = {id(site) for part in asking for site in own_sites(part)}
    return {
        sql(site): site
        for site in own_sites(inner)
        if id(site) not in moved and _is_plain(site) and _only(site, alias, scope) and not _is_guarded(site)
    }


def _is_guarded(site: exp.Expr) -> bool:
    """Whether something else says for which rows it is asked."""
    guard = site.find_ancestor(*_GUARDS, exp.Query)
    return isinstance(guard, _GUARDS)


def _rows_around(inner: exp.Select, outer: exp.Select) -> exp.Select:
    """The rows that `inner` can look at: those of the FROM items before it, where it is one itself. WHERE says nothing
    of the rows that the ON of a join looks at: an outer join puts others in their place."""
    above = set()
    node: exp.Expr | None = inner
    in_on = False
    while node is not None and node is not outer:
        above.add(id(node))
        in_on = in_on or node.arg_key == "on"
        node = node.parent
    sources = [outer.args.get("from_"), *(outer.args.get("joins") or ())]
    before = list(itertools.takewhile(lambda one: id(one) not in above, sources))
    found = exp.Select(laterals=[one.copy() for one in outer.args.get("laterals") or ()])
    if before and before[0] is not None:
        found.set("from_", before[0].copy())
        found.set("joins", [join.copy() for join in before[1:] if join is not None])
    if outer.args.get("where") is not None and not in_on:
        found.set("where", outer.args["where"].copy())
    return found


def _reductions(parts: Iterable[exp.Expr], alias: str, scope: Scope, outer: exp.Select) -> list[list[exp.Expr]]:
    """Conditions that keep the rows which meet an outer row, the best first; nothing can be said of some."""
    tying = [part for part in parts if not has_site(part) and _ties(part, alias, scope)]
    if not tying:
        return [[]]
    sources = [outer.args.get("from_"), *(outer.args.get("joins") or ())]
    items = [source.this for source in sources if source is not None]
    hidden = {item.alias_or_name.lower() for item in items}
    plain = all(isinstance(item, exp.Table) and set(given(item)) <= _TABLE for item in items)
    if not items or not plain or outer.args.get("laterals") or alias.lower() in hidden:
        return []
    if any(has_site(source, deep=True) or is_volatile(source) for source in sources if source is not None):
        return []
    cheap = [
        part
        for part in conditions(outer)
        if not has_site(part, deep=True)
        and not nested_queries(part)
        and not is_volatile(part)
        # Another name might be found in the item, beside which the condition will stand.
        and all(one.table.lower() in hidden for one in own_columns(exp.Paren(this=part.copy())))
    ]
    return [[_exists(outer, [*tying, *cheap])], [_exists(outer, tying)]]


def _ties(part: exp.Expr, alias: str, scope: Scope) -> bool:
    """Whether `part` compares columns of the item with outer ones."""
    found = list(own_columns(exp.Paren(this=part.copy())))
    inside = [one for one in found if scope.resolves(one)]
    return 0 < len(inside) < len(found) and all(one.table == alias for one in inside)


def _exists(outer: exp.Select, parts: list[exp.Expr]) -> exp.Expr:
    query = with_from(exp.Select(expressions=[exp.Literal.number(1)]), outer)
    query.set("where", exp.Where(this=conjunction([part.copy() for part in parts])))
    return exp.Exists(this=query)


def _without(inner: exp.Select, gone: set[int]) -> None:
    rest = conjunction([part.copy() for part in conditions(inner) if id(part) not in gone])
    inner.set("where", None if rest is None else exp.Where(this=rest))


def _name(inner: exp.Select, names: dict[str, exp.Expr]) -> None:
    """Read answers where the item now has them."""

    def change(part: exp.Expr) -> exp.Expr | None:
        found = None if isinstance(part, exp.Identifier) else names.get(sql(part))
        return None if found is None else found.copy()

    if not names:
        return
    for key, value in list(inner.args.items()):
        if key in ("from_", "joins") or not value:
            continue
        if isinstance(value, list):
            inner.set(key, [_kept(one, change) for one in value])
        elif isinstance(value, exp.Expr):
            inner.set(key, replaced(value, change))


def _kept(one: exp.Expr, change: Callable[[exp.Expr], exp.Expr | None]) -> exp.Expr:
    new = replaced(one, change)
    return named(new, one.alias_or_name) if isinstance(new, exp.Column) and one.alias_or_name else new
