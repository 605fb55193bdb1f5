"""Take AI predicates out of the ON of joins that add rows or only look at their right side.

    a LEFT JOIN b ON a.k = b.k AND __ai(1, a.x, b.y)
    ->  l LEFT JOIN (SELECT l.__ord AS lo, r.__ord AS ro FROM l JOIN r ON l.k = r.k WHERE __ai(1, l.x, r.y)) AS m
          ON l.__ord = m.lo
        LEFT JOIN r ON r.__ord = m.ro

where l and r are spooled copies of both sides with numbered rows, so that a pair can be named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sqlglot import exp

from sqluice.optimizer.ast import (
    column,
    conjunction,
    conjuncts,
    has_site,
    is_cheap,
    is_comma,
    is_filtering,
    nested_queries,
    own,
)
from sqluice.optimizer.plan import ORDINAL
from sqluice.optimizer.rules.qualify import is_qualified
from sqluice.optimizer.scope import CannotLift, Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS = {"": ("", ""), "LEFT": ("LEFT", "LEFT"), "RIGHT": ("", "RIGHT"), "FULL": ("LEFT", "FULL")}


class Lifting(Protocol):
    """What the rewriting needs from the planner."""

    def name(self, kind: str = "s") -> str:
        """A fresh name."""
        ...

    def is_correlated(self, query: exp.Expr) -> bool:
        """Whether a nested query looks at the rows around it."""
        ...

    def spool(self, name: str, source: exp.Select, columns: tuple[str, ...]) -> None:
        """One more stage, which numbers the rows of `source`."""
        ...


@dataclass(frozen=True, slots=True)
class _Side:
    """A spooled copy of one side: the name of its stage and that stage's columns by what they copy."""

    name: str
    columns: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the stage; there is always one."""
        return tuple(self.columns.values()) or ("__c0",)


def find(select: exp.Select) -> int | None:
    """The number of the first join whose ON holds an AI predicate that cannot move to WHERE."""
    joins = select.args.get("joins") or []
    return next((at for at, join in enumerate(joins) if join.args.get("on") and has_site(join.args["on"])), None)


def apply(select: exp.Select, scope: Scope, at: int, lifting: Lifting) -> Scope:
    """Rewrite join number `at` of a qualified `select` in place; the new scope. `CannotLift` where that cannot be."""
    joins = list(select.args["joins"])
    join = joins[at]
    _check(select, scope, join, lifting)
    comma = _comma(joins, at)
    start = select.args["from_"].this if comma < 0 else joins[comma].this
    source = exp.Select().from_(start.copy())
    source.set("joins", [one.copy() for one in joins[comma + 1 : at]])
    on = join.args["on"]
    aliases = [start.alias_or_name, *(one.this.alias_or_name for one in joins[comma + 1 : at])]
    inside = {id(col) for one in joins[comma + 1 : at] for col in own_columns(one)}
    used = [col for col in own_columns(select) if id(col) not in inside]
    other = exp.Select().from_(join.this.copy())
    _push(select, source if (join.side or "").upper() in ("", "LEFT") else None, aliases, at)
    _push(select, other if (join.side or "").upper() in ("", "RIGHT") else None, [join.this.alias_or_name], at)
    left = _spool(used, source, aliases, lifting)
    right = _spool(used, other, [join.this.alias_or_name], lifting)
    pairs = _pairs(left, right, on)
    matches = lifting.name("m")
    middle = exp.Subquery(this=pairs, alias=exp.TableAlias(this=exp.to_identifier(matches, quoted=True)))
    new = _joins(left, right, middle, join)
    start.replace(exp.to_table(left.name))
    select.set("joins", [*joins[: comma + 1], *new, *joins[at + 1 :]])
    _rename(own_columns(select), left, right)
    gone = {*aliases, join.this.alias_or_name}
    kept = {alias: names for alias, names in scope.columns.items() if alias not in gone}
    shown = {matches: ("lo",)} if is_filtering(join) else {matches: ("lo", "ro"), right.name: (*right.names, ORDINAL)}
    return Scope({left.name: (*left.names, ORDINAL), **shown, **kept}, hidden=scope.hidden)


def _comma(joins: list[exp.Join], at: int) -> int:
    """The number of the comma after which the left side of join `at` begins, -1 for the beginning of FROM. A join that
    looks beyond the comma may as well begin there, but for one that adds rows without its left side."""
    comma = max((number for number in range(at) if is_comma(joins[number])), default=-1)
    near = {join.this.alias_or_name for join in joins[max(comma, 0) : at + 1]}
    looks = [col for join in joins[comma + 1 : at + 1] for col in own_columns(join)]
    if comma < 0 or all(col.table in near for col in looks):
        return comma
    if any((join.side or "").upper() in ("RIGHT", "FULL") for join in joins[: at + 1]):
        raise CannotLift("a question in the ON of an outer join that looks beyond a comma")
    return -1


def _check(select: exp.Select, scope: Scope, join: exp.Join, lifting: Lifting) -> None:
    kind = (join.kind or "").upper()
    if join.method or kind not in ("", "INNER", "OUTER", "SEMI", "ANTI") or isinstance(join.this, exp.Lateral):
        raise CannotLift(f"a question in the ON of a {join.side or ''} {kind} JOIN".replace("  ", " "))
    items = [select.args["from_"].this, *(one.this for one in select.args["joins"])]
    nested = [query for query in nested_queries(select) if query is not items[0]]
    if scope.merged or any(map(lifting.is_correlated, nested)):
        raise CannotLift("a question in the ON of an outer join beside USING or a correlated query")
    if any(not isinstance(item, exp.Query) and next(own_columns(item), None) is not None for item in items):
        raise CannotLift("a question in the ON of an outer join beside a function of other columns in FROM")
    stars = [node for one in select.expressions for node in own(one) if isinstance(node, exp.Columns | exp.Star)]
    if any(not isinstance(star.parent, exp.Count) for star in stars):
        raise CannotLift("a star or COLUMNS() over a join with a question")
    if not is_qualified(select, scope):
        raise CannotLift("a whole row or an ambiguous column beside an outer join with a question")


def _push(select: exp.Select, source: exp.Select | None, aliases: list[str], at: int) -> None:
    """Let conditions of WHERE on one side go before the questions, where the join adds no rows without that side."""
    where = select.args.get("where")
    later = select.args["joins"][at + 1 :]
    if source is None or where is None or any((join.side or "").upper() in ("RIGHT", "FULL") for join in later):
        return
    for part in conjuncts(where.this):
        tables = {col.table for col in own_columns(part)}
        if tables and tables <= set(aliases) and is_cheap(part):
            source.where(part.copy(), copy=False)


def _spool(used: list[exp.Column], source: exp.Select, aliases: list[str], lifting: Lifting) -> _Side:
    """Number the rows of one side, with the columns that are read."""
    side = _Side(lifting.name("t"))
    for col in used:
        if col.table in aliases:
            side.columns.setdefault((col.table, col.name), f"__c{len(side.columns)}")
    columns: list[exp.Expr] = [column(name, alias) for alias, name in side.columns]
    source.set("expressions", columns or [exp.Literal.number(1)])
    lifting.spool(side.name, source, side.names)
    return side


def _pairs(left: _Side, right: _Side, on: exp.Expr) -> exp.Select:
    """The pairs that match, by their row numbers; lifted on its own."""
    holder = exp.Select(expressions=[part.copy() for part in conjuncts(on)])
    _rename(own_columns(holder), left, right)
    parts = holder.expressions
    cheap = conjunction([part.copy() for part in parts if not has_site(part)])
    asking = conjunction([part.copy() for part in parts if has_site(part)])
    numbers = [
        exp.alias_(column(ORDINAL, side.name), name, quoted=True) for side, name in ((left, "lo"), (right, "ro"))
    ]
    pairs = exp.Select(expressions=numbers).from_(exp.to_table(left.name))
    inner = exp.Join(this=exp.to_table(right.name), **({"kind": "CROSS"} if cheap is None else {"on": cheap}))
    pairs.set("joins", [inner])
    pairs.set("where", exp.Where(this=asking))
    pairs.meta["scope"] = Scope({side.name: (*side.names, ORDINAL) for side in (left, right)})
    return pairs


def _joins(left: _Side, right: _Side, middle: exp.Subquery, join: exp.Join) -> list[exp.Join]:
    first = exp.EQ(this=column(ORDINAL, left.name), expression=column("lo", middle.alias))
    if is_filtering(join):
        return [exp.Join(this=middle, kind=join.kind, on=first)]
    sides = _KINDS[(join.side or "").upper()]
    second = exp.EQ(this=column(ORDINAL, right.name), expression=column("ro", middle.alias))
    return [
        exp.Join(this=middle, on=first, side=sides[0] or None),
        exp.Join(this=exp.to_table(right.name), on=second, side=sides[1] or None),
    ]


def _rename(columns: Iterable[exp.Column], *sides: _Side) -> None:
    """Let references name the spooled copies."""
    for col in list(columns):
        for side in sides:
            name = side.columns.get((col.table, col.name))
            if name is not None:
                col.replace(column(name, side.name))
                break
