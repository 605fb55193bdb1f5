"""Take AI predicates out of the ON of outer, semi and anti joins.

    a LEFT JOIN b ON a.k = b.k AND __ai(1, a.x, b.y)
    ->  l LEFT JOIN (SELECT l.__ord AS lo, r.__ord AS ro FROM l JOIN r ON l.k = r.k WHERE __ai(1, l.x, r.y)) AS m
          ON l.__ord = m.lo
        LEFT JOIN r ON r.__ord = m.ro

where l and r are spooled copies of both sides with numbered rows, so that a pair can be named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import exp

from sqluice.optimizer.ast import column, conjunction, conjuncts, has_site, nested_queries, own, with_clause
from sqluice.optimizer.plan import ORDINAL, Stage
from sqluice.optimizer.rules.join_predicates import is_inner
from sqluice.optimizer.scope import CannotLift, Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS = {"LEFT": ("LEFT", "LEFT"), "RIGHT": ("", "RIGHT"), "FULL": ("LEFT", "FULL")}


def find(select: exp.Select) -> int | None:
    """The number of the first join whose ON holds an AI predicate that cannot move to WHERE."""
    joins = select.args.get("joins") or []
    return next(
        (at for at, join in enumerate(joins) if join.args.get("on") is not None and has_site(join.args["on"])), None
    )


class Rewrite:
    """The rewriting of one join of one select."""

    def __init__(self, lifter: Any, select: exp.Select, scope: Scope, ctes: Any) -> None:
        self.lifter = lifter
        self.select = select
        self.scope = scope
        self.ctes = ctes
        self.places: dict[tuple[str, str], tuple[str, str]] = {}

    def apply(self, at: int) -> tuple[exp.Select, Scope]:
        """The select and its scope after join number `at` was rewritten. `CannotLift` where that is not possible."""
        joins = list(self.select.args["joins"])
        join = joins[at]
        kind = (join.kind or "").upper()
        if (
            is_inner(join)
            or join.method
            or kind not in ("", "OUTER", "SEMI", "ANTI")
            or isinstance(join.this, exp.Lateral)
        ):
            raise CannotLift(f"a question in the ON of a {join.side or ''} {kind} JOIN".replace("  ", " "))
        if self.scope.merged or any(self._outside(query) for query in nested_queries(self.select)):
            raise CannotLift("a question in the ON of an outer join beside USING or a correlated query")
        self._expand()
        left_names = [item.alias_or_name for item in [self.select.args["from_"].this, *(j.this for j in joins[:at])]]
        right = join.this.alias_or_name
        on = join.args["on"]
        right_scope = self._right(join, kind)
        used = list(own_columns(self.select))
        left = self._spool(
            [alias for alias in self.scope.columns if alias in left_names], self._left(at), used, self.scope
        )
        right_stage = self._spool([right], exp.Select(expressions=[]).from_(join.this.copy()), used, right_scope)
        pairs = self._pairs(left, right_stage, on)
        matches = self.lifter.name("m")
        middle = exp.Subquery(this=pairs, alias=exp.TableAlias(this=exp.to_identifier(matches, quoted=True)))
        new = self._joins(left, right_stage, middle, matches, join, kind)
        self.select.set("from_", exp.From(this=exp.to_table(left[0])))
        self.select.set("joins", [*new, *joins[at + 1 :]])
        self._rewrite(self.select)
        return self.select, self._scope(left, right_stage, matches, [j.this.alias_or_name for j in joins[at + 1 :]])

    def _outside(self, query: exp.Expr) -> bool:
        start = self.select.args["from_"].this
        if query is start or any(query is join.this for join in self.select.args["joins"]):
            return False
        return not self.lifter.catalog.stands_alone(query, list(self.ctes.written))

    def _right(self, join: exp.Join, kind: str) -> Scope:
        """The scope with the right side in it: that of a semi join is out of sight elsewhere."""
        if kind not in ("SEMI", "ANTI"):
            return self.scope
        alone = exp.Select(expressions=[exp.Star()]).from_(join.this.copy())
        return self.lifter.catalog.scope(alone, list(self.ctes.written))

    def _expand(self) -> None:
        """Stars as columns with names."""
        found: list[exp.Expr] = []
        for one in self.select.expressions:
            star = one.this if isinstance(one, exp.Column) and isinstance(one.this, exp.Star) else one
            if not isinstance(star, exp.Star):
                found.append(exp.alias_(one.copy(), one.name, quoted=True) if isinstance(one, exp.Column) else one)
                continue
            if any(value for value in star.args.values()):
                raise CannotLift("a star with EXCLUDE or REPLACE over an outer join with a question")
            alias = self.scope.alias(one.parts[0].name) if isinstance(one, exp.Column) else None
            for name in [alias] if alias is not None else list(self.scope.columns):
                found += [
                    exp.alias_(exp.column(col, table=name, quoted=True), col, quoted=True)
                    for col in self.scope.columns[name]
                ]
        if any(isinstance(node, exp.Columns) for one in found for node in own(one)):
            raise CannotLift("COLUMNS() over an outer join with a question")
        self.select.set("expressions", found)

    def _left(self, at: int) -> exp.Select:
        left = exp.Select(expressions=[])
        left.set("from_", self.select.args["from_"].copy())
        left.set("joins", [join.copy() for join in self.select.args["joins"][:at]])
        return left

    def _spool(
        self, aliases: list[str], source: exp.Select, used: Iterable[exp.Column], scope: Scope
    ) -> tuple[str, tuple[str, ...]]:
        """A stage that numbers the rows of one side; its name and columns."""
        name = self.lifter.name("t")
        wanted: dict[tuple[str, str], str] = {}
        for col in used:
            found = scope.split(col)
            if found is None:
                known = self._is_output(col) or not scope.resolves(col)
                if not known:
                    raise CannotLift("a whole row or an ambiguous column beside an outer join with a question")
            elif found[0] in aliases:
                wanted.setdefault(found[:2], f"__c{len(wanted)}")
        columns = [exp.column(col, table=alias, quoted=True) for alias, col in wanted] or [exp.Literal.number(1)]
        source.set("expressions", columns)
        lifted = self.lifter.query(source, self.ctes)
        if self.ctes.lifted:
            lifted.set("with_", with_clause(self.ctes.lifted))
        names = tuple(wanted.values()) or ("__c0",)
        self.lifter.add(Stage(name, lifted, names))
        self.places.update({key: (name, own_name) for key, own_name in wanted.items()})
        return name, names

    def _is_output(self, col: exp.Column) -> bool:
        return len(col.parts) == 1 and col.name.lower() in {
            one.alias.lower() for one in self.select.expressions if one.alias
        }

    def _pairs(self, left: tuple[str, tuple[str, ...]], right: tuple[str, tuple[str, ...]], on: exp.Expr) -> exp.Select:
        """The pairs that match, by their row numbers; lifted on its own."""
        parts = [part.copy() for part in conjuncts(on)]
        holder = exp.Select(expressions=parts)
        self._rewrite(holder)
        parts = list(holder.expressions)
        cheap = conjunction([part.copy() for part in parts if not has_site(part)])
        asking = conjunction([part.copy() for part in parts if has_site(part)])
        pairs = exp.Select(
            expressions=[
                exp.alias_(column(ORDINAL, left[0]), "lo", quoted=True),
                exp.alias_(column(ORDINAL, right[0]), "ro", quoted=True),
            ]
        )
        pairs.set("from_", exp.From(this=exp.to_table(left[0])))
        inner = exp.Join(this=exp.to_table(right[0]), **({"on": cheap} if cheap is not None else {"kind": "CROSS"}))
        pairs.set("joins", [inner])
        pairs.set("where", exp.Where(this=asking))
        pairs.meta["scope"] = Scope({left[0]: (*left[1], ORDINAL), right[0]: (*right[1], ORDINAL)})
        return pairs

    def _joins(
        self,
        left: tuple[str, Any],
        right: tuple[str, Any],
        middle: exp.Subquery,
        matches: str,
        join: exp.Join,
        kind: str,
    ) -> list[exp.Join]:
        first = exp.EQ(this=column(ORDINAL, left[0]), expression=column("lo", matches))
        if kind in ("SEMI", "ANTI"):
            return [exp.Join(this=middle, kind=kind, on=first)]
        sides = _KINDS[(join.side or "LEFT").upper()]
        second = exp.EQ(this=column(ORDINAL, right[0]), expression=column("ro", matches))
        return [
            exp.Join(this=middle, on=first, **({"side": sides[0]} if sides[0] else {})),
            exp.Join(this=exp.to_table(right[0]), on=second, side=sides[1]),
        ]

    def _rewrite(self, node: exp.Expr) -> None:
        """Let references name the spooled copies, in place."""
        for col in list(own_columns(node)):
            found = self.scope.split(col) or self._semi(col)
            place = self.places.get(found[:2]) if found is not None else None
            if place is None or found is None:
                continue
            new: exp.Expr = column(place[1], place[0])
            for field in found[2]:
                new = exp.Dot(this=new, expression=exp.to_identifier(field, quoted=True))
            if not (self._is_output(col) and col.find_ancestor(exp.Order)):
                col.replace(new)

    def _semi(self, col: exp.Column) -> tuple[str, str, list[str]] | None:
        """A reference to the right side of a semi join."""
        for alias, name in self.places:
            if col.name.lower() == name.lower() and (not col.table or col.table.lower() == alias.lower()):
                return alias, name, []
        return None

    def _scope(self, left: tuple[str, Any], right: tuple[str, Any], matches: str, rest: list[str]) -> Scope:
        columns = {
            left[0]: (*left[1], ORDINAL),
            matches: ("lo", "ro"),
            right[0]: (*right[1], ORDINAL),
        }
        later = {alias: names for alias, names in self.scope.columns.items() if alias in rest}
        return Scope({**columns, **later})
