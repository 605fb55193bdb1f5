"""Ask what a correlated query asks about the rows of its FROM item in that item, which stands alone and has a stage.

    SELECT (SELECT count(*) FROM r WHERE r.k = t.k AND __ai(1, r.w)) FROM t
    ->  SELECT (SELECT count(*) FROM (SELECT * FROM r WHERE EXISTS (SELECT 1 FROM t WHERE r.k = t.k) AND __ai(1, r.w))
                AS r WHERE r.k = t.k) FROM t

The EXISTS keeps the rows that meet an outer row (a semi-join reduction: Bernstein and Chiu 1981), so that no more are
asked than row by row. Where it cannot be made, because the outer rows are grouped or not those of tables, the question
stays; so does one that computes something first: for rows that no outer row meets, that might fail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
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
    from collections.abc import Callable

    from sqluice.optimizer.scope import Scope

_TABLE = {"this", "alias", "db", "catalog"}
_GROUPED = ("group", "having", "qualify")
_GUARDS = (exp.Case, exp.If, exp.Coalesce, exp.And, exp.Or, exp.Filter)


@dataclass(frozen=True, slots=True)
class Tests:
    """What the catalog tells: whether a query sees nothing around it, and whether a name means a table."""

    stands_alone: Callable[[exp.Expr], bool]
    is_table: Callable[[exp.Table], bool]


def apply(inner: exp.Select, scope: Scope, outer: exp.Select, tests: Tests, name: Callable[[], str]) -> bool:
    """Change the FROM item of the correlated `inner`, whose columns are qualified, in place; whether it was. `outer` is
    the select around it, `name` makes fresh names."""
    if inner.args.get("from_") is None or inner.args.get("joins") or inner.args.get("laterals"):
        return False
    item = inner.args["from_"].this
    alias = item.alias_or_name
    if not isinstance(item, exp.Table | exp.Subquery) or not alias or has_site(item, deep=True):
        return False
    if any(found.name.lower() == "rowid" for found in inner.find_all(exp.Column)):
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
    tying = [part for part in parts if not has_site(part) and _ties(part, scope)]
    for reduction in _reductions(tying, alias, _rows_around(inner, outer), tests) if tying else [[]]:
        where = conjunction([part.copy() for part in (*cheap, *reduction, *asking)])
        found = source.copy()
        found.set("where", None if where is None else exp.Where(this=where))
        if tests.stands_alone(found):
            item.replace(exp.Subquery(this=found, alias=exp.TableAlias(this=exp.to_identifier(alias, quoted=True))))
            _without(inner, {id(part) for part in (*cheap, *asking)})
            _name(inner, {text: column(new, alias) for text, new in names.items()})
            return True
    return False


def _only(node: exp.Expr, alias: str, scope: Scope) -> bool:
    """Whether `node` looks at columns of one item and at nothing else."""
    found = list(own_columns(exp.Paren(this=node.copy())))
    return bool(found) and all(len(one.parts) == 2 and one.table == alias and scope.resolves(one) for one in found)


def _is_plain(site: exp.Expr) -> bool:
    return all(isinstance(arg, exp.Column | exp.Literal) for arg in args_of(site))


def _columns(inner: exp.Select, asking: list[exp.Expr], alias: str, scope: Scope) -> dict[str, exp.Expr]:
    """Questions about the item elsewhere, by their SQL; none where groups, a star, a whole row or a query below would
    see their columns."""
    whole = [node for node in own(inner) if isinstance(node, exp.Star | exp.Columns)]
    if any(not isinstance(node.parent, exp.Count) for node in whole) or any(map(inner.args.get, _GROUPED)):
        return {}
    if any(scope.resolves(one) and not one.table for one in own_columns(inner)):
        return {}
    if any(query is not inner.args["from_"].this for query in nested_queries(inner)):
        return {}
    moved = {id(site) for part in asking for site in own_sites(part)}
    return {
        sql(site): site
        for site in own_sites(inner)
        if id(site) not in moved and _is_plain(site) and _only(site, alias, scope) and not _is_guarded(site)
    }


def _is_guarded(site: exp.Expr) -> bool:
    """Whether something else says for which rows it is asked."""
    return isinstance(site.find_ancestor(*_GUARDS, exp.Query), _GUARDS)


def _rows_around(inner: exp.Select, outer: exp.Select) -> exp.Select | None:
    """The rows that `inner` looks at: those of the FROM items before it, where it is one itself. In FROM, WHERE says
    nothing of them where an outer join may put other rows in their place. None for groups."""
    if any(map(outer.args.get, (*_GROUPED, "laterals"))):
        return None
    above = set()
    node: exp.Expr | None = inner
    in_on = False
    while node is not None and node is not outer:
        above.add(id(node))
        in_on = in_on or node.arg_key == "on"
        node = node.parent
    joins = outer.args.get("joins") or ()
    before = list(itertools.takewhile(lambda one: id(one) not in above, (outer.args.get("from_"), *joins)))
    if not before or before[0] is None:
        return None
    found = exp.Select(from_=before[0].copy(), joins=[join.copy() for join in before[1:] if join is not None])
    replacing = len(before) <= len(joins) and any((join.side or "").upper() in ("RIGHT", "FULL") for join in joins)
    if outer.args.get("where") is not None and not in_on and not replacing:
        found.set("where", outer.args["where"].copy())
    return found


def _reductions(tying: list[exp.Expr], alias: str, outer: exp.Select | None, tests: Tests) -> list[list[exp.Expr]]:
    """Conditions that keep the rows which meet an outer row, the best first; none where there is no way to say so."""
    if outer is None:
        return []
    sources = [outer.args["from_"], *outer.args["joins"]]
    items = [source.this for source in sources]
    hidden = {item.alias_or_name.lower() for item in items}
    plain = all(isinstance(item, exp.Table) and set(given(item)) <= _TABLE and tests.is_table(item) for item in items)
    if not plain or alias.lower() in hidden:
        return []
    if any(has_site(source, deep=True) or is_volatile(source) for source in sources):
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


def _ties(part: exp.Expr, scope: Scope) -> bool:
    """Whether `part` compares columns of the item with outer ones."""
    found = list(own_columns(exp.Paren(this=part.copy())))
    return 0 < sum(map(scope.resolves, found)) < len(found)


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
        if key == "from_" or not value:
            continue
        if isinstance(value, list):
            inner.set(key, [_kept(one, change) for one in value])
        elif isinstance(value, exp.Expr):
            inner.set(key, replaced(value, change))


def _kept(one: exp.Expr, change: Callable[[exp.Expr], exp.Expr | None]) -> exp.Expr:
    new = replaced(one, change)
    return named(new, one.alias_or_name) if isinstance(new, exp.Column) and one.alias_or_name else new
