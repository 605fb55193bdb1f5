"""Takes the source of a stage apart: the groups of tables that conditions leave to be paired, and what pairs them.

    SELECT a.x AS c0, b.y AS c1 FROM a, b WHERE a.k > 1 AND a.i < b.i        with the filter  __ai(1, c0, c1)
    ->  groups   SELECT a.x AS g0, a.i AS g1 FROM a WHERE a.k > 1            SELECT b.y AS g2, b.i AS g3 FROM b
        linking  g1 < g3            filters  __ai(1, g0, g2)                 outputs  c0 = g0, c1 = g2

Tables that an equality joins are one group: DuckDB pairs their rows. Where a question compares them, the equality is
one of the conditions between two groups instead, and a strategy finds the pairs among those that it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    args_of,
    bare,
    column,
    conditions,
    conjunction,
    conjuncts,
    has_site,
    is_pinned,
    is_site,
    is_volatile,
    named,
    nested_queries,
    own_sites,
    replaced,
)
from sqluice.optimizer.joins.detect import UNKNOWN, Detection, detect
from sqluice.optimizer.rules.join_predicates import is_inner
from sqluice.optimizer.scope import own_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqluice.optimizer.plan import Stage

_ALLOWED = {"expressions", "from_", "joins", "where", "with_"}


@dataclass(frozen=True, slots=True)
class Group:
    """Tables that are joined before any question: their rows, with the columns `columns`."""

    source: exp.Select
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sides:
    """A stage's source in parts, which name the groups' columns: `linking` conditions without questions over several
    groups, `filters` with questions, and `outputs`, the stage's columns. `names` are those of the groups' columns in
    the tables they come from. `keyed`: an equality is among the linking conditions."""

    groups: tuple[Group, ...]
    linking: tuple[exp.Expr, ...]
    filters: tuple[exp.Expr, ...]
    outputs: dict[str, exp.Expr]
    names: dict[str, str]
    keyed: bool


def split(stage: Stage) -> Sides | None:
    """The parts of a stage's source; None where it is not a plain join, or has one group only."""
    source = stage.source
    if not isinstance(source, exp.Select) or any(value for key, value in source.args.items() if key not in _ALLOWED):
        return None
    joins = source.args.get("joins") or []
    if not joins or source.args.get("from_") is None or len(source.expressions) != len(stage.columns):
        return None
    if any(not is_inner(join) or join.args.get("using") for join in joins):
        return None
    items = [source.args["from_"].this, *(join.this for join in joins)]
    if any(isinstance(item, exp.Lateral | exp.Unnest | exp.Values) for item in items):
        return None
    names = [item.alias_or_name for item in items]
    if any(not isinstance(item, exp.Table) and _tables(item, names) for item in items):
        return None  # a subquery that looks at the items before it
    values = [one.this if isinstance(one, exp.Alias) else one for one in source.expressions]
    parts = [*conditions(source), *(part for join in joins for part in conjuncts(join.args.get("on")))]
    parts = [bare(part) for part in parts]
    if not _is_plain(values, parts, names):
        return None
    apart = _compared(stage, dict(zip(stage.columns, values, strict=True)), names)
    groups = _grouped(names, parts, apart)
    if len(groups) < 2:
        return None
    renamed: dict[tuple[str, str], str] = {}

    def rename(node: exp.Expr) -> exp.Expr:
        def change(part: exp.Expr) -> exp.Expr | None:
            if not isinstance(part, exp.Column):
                return None
            key = (part.table, part.name)
            return column(renamed.setdefault(key, f"g{len(renamed)}"))

        return replaced(node, change)

    outputs = {name: rename(value) for name, value in zip(stage.columns, values, strict=True)}
    linking = tuple(rename(part) for part in parts if len(_owners(part, groups)) > 1)
    filters = tuple(_over(predicate, outputs) for predicate in stage.filters)
    made = tuple(_group(source, items, names, group, parts, groups, renamed) for group in groups)
    keyed = any(isinstance(part, exp.EQ) for part in linking)
    return Sides(made, linking, filters, outputs, {name: key[1] for key, name in renamed.items()}, keyed)


def pair_of(site: exp.Expr, groups: Iterable[frozenset[str]]) -> tuple[int, int] | None:
    """The numbers of the two groups of columns that the arguments of a question are about, each argument about one;
    None where that is not so."""
    if not is_site(site) or len(own_sites(site)) > 1:
        return None
    found: list[int] = []
    for arg in args_of(site):
        owners = [at for at, names in enumerate(groups) if columns_of(arg) & names]
        if len(owners) > 1:
            return None
        found += owners
    both = sorted(set(found))
    return (both[0], both[1]) if len(both) == 2 else None


def detected(predicate: exp.Expr, names: Mapping[str, str], template: str) -> Detection:
    """What the wording of a question about two columns tells; `names` are those of the groups' columns."""
    args = args_of(predicate)
    if len(args) != 2 or not all(columns_of(arg) for arg in args):
        return UNKNOWN
    left, right = (next(iter(sorted(names[name] for name in columns_of(arg)))) for arg in args)
    return detect(template, (left, right))


def below_the_join(stage: Stage, sides: Sides) -> bool:
    """Whether all predicates with questions are about one side each, at most one about each side, so that they can be
    decided before the sides are multiplied: no condition between them leaves rows without a partner."""
    owners = [
        [at for at, group in enumerate(sides.groups) if columns_of(one) & set(group.columns)] for one in sides.filters
    ]
    one_each = all(len(own) == 1 for own in owners) and len({own[0] for own in owners}) == len(owners)
    return one_each and stage.limit is None and not stage.keeps and not sides.linking


def columns_of(node: exp.Expr) -> set[str]:
    """Names of the columns in an expression over groups."""
    return {col.name for col in own_columns(exp.Paren(this=node.copy()))}


def _is_plain(values: list[exp.Expr], parts: list[exp.Expr], names: list[str]) -> bool:
    """Whether every column names its table, and nothing looks out of a nested query."""
    if any(nested_queries(exp.Paren(this=value.copy())) for value in values):
        return False
    for node in [*values, *parts]:
        holder = exp.Paren(this=node.copy())
        if is_volatile(holder) or has_site(holder, deep=True) or any(map(is_pinned, holder.walk())):
            return False
        if holder.find(exp.Star, exp.Columns):
            return False
        if any(len(col.parts) != 2 or col.table not in names for col in own_columns(holder)):
            return False
    return True


def _tables(part: exp.Expr, names: Iterable[str]) -> set[str]:
    """The FROM items that a condition looks at, from nested queries too."""
    return {col.table for col in part.find_all(exp.Column)} & set(names)


def _compared(stage: Stage, values: dict[str, exp.Expr], names: list[str]) -> list[tuple[set[str], set[str]]]:
    """Of each plain question about two sets of FROM items both of them."""
    found = []
    for predicate in stage.filters:
        if not is_site(predicate) or len(own_sites(predicate)) > 1:
            continue
        sides: list[set[str]] = []
        for arg in args_of(predicate):
            tables = {table for name in columns_of(arg) for table in _tables(values[name], names)}
            if tables and tables not in sides:
                sides.append(tables)
        if len(sides) == 2 and not sides[0] & sides[1]:
            found.append((sides[0], sides[1]))
    return found


def _grouped(names: list[str], parts: list[exp.Expr], apart: list[tuple[set[str], set[str]]]) -> list[list[str]]:
    """FROM items in groups: an equality, or a condition with a nested query, makes one of those it looks at. No
    equality brings together what is to stay `apart`."""
    group = {name: [name] for name in names}
    nested = [part for part in parts if nested_queries(exp.Paren(this=part.copy()))]
    equal = [part for part in parts if part not in nested and isinstance(part, exp.EQ)]
    for part in [*nested, *equal]:
        joined = sorted(_tables(part, names), key=names.index)
        whole = sorted({one for name in joined for one in group[name]}, key=names.index)
        if len(joined) < 2 or (part in equal and any(a & set(whole) and b & set(whole) for a, b in apart)):
            continue
        for one in whole:
            group[one] = whole
    return [found for at, found in enumerate(group.values()) if names[at] == found[0]]


def _owners(part: exp.Expr, groups: list[list[str]]) -> list[int]:
    names = [name for group in groups for name in group]
    tables = _tables(part, names)
    return [at for at, group in enumerate(groups) if tables & set(group)]


def _group(
    source: exp.Select,
    items: list[exp.Expr],
    names: list[str],
    group: list[str],
    parts: list[exp.Expr],
    groups: list[list[str]],
    renamed: dict[tuple[str, str], str],
) -> Group:
    at = groups.index(group)
    columns = {name: column(key[1], key[0]) for key, name in renamed.items() if key[0] in group}
    expressions: list[exp.Expr] = [named(value, name) for name, value in columns.items()]
    select = exp.Select(expressions=expressions or [named(exp.Literal.number(1), f"g_{at}")])
    own_items = [item.copy() for item, name in zip(items, names, strict=True) if name in group]
    select.set("from_", exp.From(this=own_items[0]))
    select.set("joins", [exp.Join(this=item, kind="CROSS") for item in own_items[1:]])
    where = conjunction([part.copy() for part in parts if (_owners(part, groups) or [0]) == [at]])
    if where is not None:
        select.set("where", exp.Where(this=where))
    if source.args.get("with_") is not None:
        select.set("with_", source.args["with_"].copy())
    return Group(select, tuple(columns) or (f"g_{at}",))


def _over(predicate: exp.Expr, outputs: dict[str, exp.Expr]) -> exp.Expr:
    """A predicate over the stage's columns, over those of the groups."""

    def change(part: exp.Expr) -> exp.Expr | None:
        if isinstance(part, exp.Column) and not part.table and part.name in outputs:
            found = outputs[part.name].copy()
            return found if isinstance(found, exp.Column) else exp.Paren(this=found)
        return None

    return replaced(predicate, change)
