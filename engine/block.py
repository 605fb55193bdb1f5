"""One SELECT block: its stage below, and what remains of it above.

Names: `__c0, ..` are columns that the stage's source computes, `__f0, ..` answers, `__ord` the number of the row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer import guards
from sqluice.optimizer.ast import (
    ERROR,
    aggregate_calls,
    args_of,
    call,
    column,
    conditions,
    conjunction,
    has_site,
    is_pinned,
    is_site,
    is_volatile,
    nested_queries,
    own,
    own_sites,
    replaced,
    spec_of,
    sql,
    star_of,
    windows,
    with_clause,
    with_from,
)
from sqluice.optimizer.plan import ORDINAL, Ask, Limit, Stage
from sqluice.optimizer.rules import outer_joins, qualify, split_blocks
from sqluice.optimizer.scope import CannotLift, Scope, own_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.engine.lifting import Ctes, Lifter

_UPPER = ("expressions", "group", "having", "qualify", "order", "distinct", "windows")


@dataclass(frozen=True, slots=True)
class Spooler:
    """What the rewriting of joins needs from the planner."""

    lifter: Lifter
    ctes: Ctes

    def name(self, kind: str = "s") -> str:
        """A fresh name."""
        return self.lifter.name(kind)

    def is_correlated(self, query: exp.Expr) -> bool:
        """Whether a nested query looks at the rows around it."""
        return self.lifter.is_correlated(query, self.ctes)

    def spool(self, name: str, source: exp.Select, columns: tuple[str, ...]) -> None:
        """One more stage, which numbers the rows of `source`."""
        lifted = self.lifter.query(source, self.ctes)
        if self.ctes.lifted:
            lifted.set("with_", with_clause(self.ctes.lifted))
        self.lifter.add(Stage(name, lifted, columns))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a block ends. `order` are sort keys over FROM when ORDER BY and LIMIT go below, else None; `late`: nothing
    but the SELECT list asks; `plain`: each row of the result comes from one row of FROM."""

    order: list[exp.Expr] | None
    limit: Limit | None
    late: bool
    plain: bool


class BlockLifter:
    """Lifts the AI expressions of one level of one SELECT."""

    def __init__(self, lifter: Lifter, select: exp.Select, scope: Scope, ctes: Ctes) -> None:
        self.lifter = lifter
        self.select = select
        self.scope = scope
        self.ctes = ctes
        self.stage = lifter.name()
        self.columns: dict[str, str] = {}
        self.exprs: list[exp.Expr] = []
        self.names: list[str] = []
        self.asks: list[Ask] = []
        self.filtered: set[str] = set()
        self.asked: dict[str, tuple[str, bool]] = {}
        self.questions: dict[str, str] = {}
        self.errors: set[str] = set()

    def outer_joins(self) -> None:
        """Take AI predicates out of the ON of outer, semi and anti joins, one join after the other."""
        while (at := outer_joins.find(self.select)) is not None:
            self.scope = outer_joins.apply(self.select, self.scope, at, Spooler(self.lifter, self.ctes))

    def lift(self, *, root: bool) -> exp.Select:
        """Add the stage to the plan; returns the block above it."""
        select = self.select
        if not own_sites(select):
            return select
        cheap, asking = self._conjuncts()
        upper = [node for name in _UPPER for node in _nodes(select, name)]
        ending = self._ending(asking)
        filters = tuple(self._over_stage(part) for part in asking if has_site(part))
        keeps = tuple(self._pull(part) for part in asking if not has_site(part))
        above = self._above(upper)
        self._end(above, ending, root=root)
        source = self._source(cheap, ending)
        asks = tuple(self._finished(ask) for ask in self.asks)
        limit = None if ending.late or ending.order is None else ending.limit
        pairs = self._is_pairs(asking)
        self.lifter.add(Stage(self.stage, source, tuple(self.names), filters, keeps, asks, limit, pairs))
        return above

    def _ending(self, asking: list[exp.Expr]) -> Ending:
        """ORDER BY and LIMIT go below when each row of the result is one of FROM and the keys need no answer."""
        select = self.select
        plain = self._is_plain()
        order, limit = self._order(), _limit(select)
        late = not asking and not any(has_site(node) for name in _UPPER[1:] for node in _nodes(select, name))
        below = plain and limit is not None and (late or bool(asking))
        return Ending(order if below else None, limit, late, plain)

    def _end(self, above: exp.Select, ending: Ending, *, root: bool) -> None:
        """ORDER BY and LIMIT of the block above."""
        sorted_below = ending.order is not None
        if sorted_below or (root and ending.plain and not self.select.args.get("order")):
            above.set("order", exp.Order(expressions=[exp.Ordered(this=column(ORDINAL), nulls_first=False)]))
        for name in ("limit", "offset"):
            if self.select.args.get(name) is not None and not sorted_below:
                above.set(name, self.select.args[name].copy())

    def _conjuncts(self) -> tuple[list[exp.Expr], list[exp.Expr]]:
        """Conjuncts of WHERE that DuckDB decides, and those that need answers, row-wise ones last."""
        parts = conditions(self.select)
        asking = [part for part in parts if has_site(part)]
        slow = [part for part in parts if not has_site(part) and any(map(is_pinned, part.walk()))]
        left = {id(part) for part in [*asking, *slow]}
        return [part for part in parts if id(part) not in left], [*asking, *slow]

    def _is_plain(self) -> bool:
        """Whether each row of the result comes from one row of FROM, by itself."""
        select = self.select
        if any(select.args.get(name) for name in ("group", "having", "qualify", "distinct")):
            return False
        aggregates = self.lifter.catalog.aggregates
        upper = [*select.expressions, *_nodes(select, "order")]
        if any(aggregate_calls(node, aggregates) or windows(node) for node in upper):
            return False
        return not any(isinstance(node, exp.Explode | exp.Unnest | exp.Columns) for one in upper for node in own(one))

    def _order(self) -> list[exp.Expr] | None:
        """Sort keys as expressions over FROM, `[]` without ORDER BY; None when they need answers or are not plain."""
        select = self.select
        clause = select.args.get("order")
        if clause is None:
            return []
        values = [one.this if isinstance(one, exp.Alias) else one for one in select.expressions]
        named = {one.alias_or_name.lower(): value for one, value in zip(select.expressions, values, strict=True)}
        keys = []
        for ordered in clause.expressions:
            key = ordered.this
            if isinstance(key, exp.Var) or (isinstance(key, exp.Column) and isinstance(key.this, exp.Star)):
                return None
            if isinstance(key, exp.Literal):
                if not key.is_int or any(value.find(exp.Star) for value in values) or int(key.this) > len(values):
                    return None
                key = values[int(key.this) - 1]
            elif isinstance(key, exp.Column) and len(key.parts) == 1:
                key = named.get(key.name.lower(), key)
            if has_site(key) or any(map(is_pinned, key.walk())) or is_volatile(key):
                return None
            if key.find(exp.Column) is None:
                continue  # a constant orders nothing, and would be taken for a position
            if not all(self.scope.resolves(found) for found in own_columns(key)):
                return None
            new = ordered.copy()
            new.set("this", key.copy())
            keys.append(new)
        return keys

    def _ask_all(self, nodes: list[exp.Expr]) -> None:
        """Steps for every question in `nodes`, each after those that its arguments and guard need."""
        for node in nodes:
            self.errors |= {guards.key(site) for site in own_sites(node) if site.this == ERROR}
        wanted = guards.collect(nodes, self.lifter.catalog.aggregates)
        asked = {name for name, (_, everywhere) in self.asked.items() if everywhere}
        for name, site, guard in guards.in_order(wanted, asked):
            self._ask(name, site, guard)

    def _over_stage(self, part: exp.Expr) -> exp.Expr:
        """A predicate over the stage's columns; its questions stay in it."""
        needs = guards.collect([part])
        self.filtered |= {name for name, need in needs.items() if need.guard() is None}

        def change(node: exp.Expr) -> exp.Expr | None:
            if not is_site(node):
                return None
            guard = needs[guards.key(node)].guard()
            args = [self._pull(arg, change) if has_site(arg) else self._argument(arg, guard) for arg in args_of(node)]
            return call(spec_of(node), args, node.this)

        return self._pull(part, change)

    def _ask(self, name: str, site: exp.Expr, guard: exp.Expr | None) -> None:
        args = tuple(self._argument(arg, guard) for arg in args_of(site))
        pulled = None if guard is None else self._pull(guard)
        answer = f"__f{len(self.questions)}"
        self.questions[answer] = name
        self.asks.append(Ask(answer, spec_of(site), args, pulled, counts=name not in self.filtered))
        self.asked[name] = (answer, guard is None)

    def _argument(self, arg: exp.Expr, guard: exp.Expr | None) -> exp.Expr:
        """An argument over the stage's columns. What DuckDB can compute is computed below, once."""
        if has_site(arg) or isinstance(arg, exp.Literal | exp.Null) or (guard is not None and has_site(guard)):
            return self._pull(arg)
        if isinstance(arg, exp.Column):
            return self._pull(arg)
        if guard is not None:
            arg = exp.Case(ifs=[exp.If(this=guard.copy(), true=arg.copy())])
        return self._below(arg)

    def _below(self, node: exp.Expr) -> exp.Expr:
        """`node`, computed by the source; a column that stands for it."""
        for found in own_columns(node):
            if not self.scope.resolves(found):
                raise CannotLift(f"{sql(found)} is not a column of FROM")
        key = sql(node)
        if key not in self.columns or is_volatile(node):
            self.columns[key] = f"__c{len(self.names)}"
            self.names.append(self.columns[key])
            self.exprs.append(node.copy())
        return column(self.columns[key])

    def _pull(self, node: exp.Expr, asked: Callable[[exp.Expr], exp.Expr | None] | None = None) -> exp.Expr:
        """`node` over the stage's columns: references become columns, questions their answers, or what `asked` makes of
        them."""
        bound = {
            str(found.args["expression"].name).lower() for found in own(node) if isinstance(found, exp.Comprehension)
        }

        def change(part: exp.Expr) -> exp.Expr | None:
            if is_site(part) and asked is not None:
                return asked(part)
            if is_site(part):
                answer = self.asked[guards.key(part)][0]
                return column(f"{answer}_error" if part.this == ERROR else answer)
            if isinstance(part, exp.Column) and not isinstance(part.this, exp.Star):
                local = part.parts[0].name.lower() in bound
                return self._below(part) if not local and self.scope.resolves(part) else part.copy()
            if _holds_query(part):
                return self._query(part, asked)
            if isinstance(part, exp.Columns):
                raise CannotLift("COLUMNS() in an expression")
            return None

        return replaced(node, change)

    def _query(self, part: exp.Expr, asked: Callable[[exp.Expr], exp.Expr | None] | None = None) -> exp.Expr | None:
        """A nested query in an expression: computed below where it looks at this block's rows."""
        queries = [part] if isinstance(part, exp.Query) else nested_queries(part)
        originals = [query.meta.get("correlated", False) for query in queries]
        if not any(originals):
            if isinstance(part, exp.In | exp.Binary):
                new = part.copy()
                new.set("this", self._pull(part.this, asked))
                return new
            return part.copy()
        if has_site(part) or split_blocks.is_aggregated(self.select, self.lifter.catalog.aggregates):
            raise CannotLift("a correlated query beside a question")
        return self._below(part)

    def _above(self, upper: list[exp.Expr]) -> exp.Select:
        """The block over the stage, without ORDER BY's and LIMIT's placement."""
        self._ask_all(upper)
        select = self.select
        above = exp.Select(expressions=[new for one in select.expressions for new in self._output(one)])
        above.set("from_", exp.From(this=exp.to_table(self.stage)))
        for name in ("group", "having", "qualify", "windows"):
            value = select.args.get(name)
            if value:
                pulled = [self._pull(one) for one in value] if isinstance(value, list) else self._pull(value)
                above.set(name, pulled)
        for name in ("distinct", "order"):
            if select.args.get(name) is not None:
                above.set(name, self._keyed(select.args[name]))
        return above

    def _keyed(self, clause: exp.Expr) -> exp.Expr:
        """ORDER BY or DISTINCT ON, in which a bare name is an output column first."""
        new = clause.copy()
        for key in qualify.above_keys(self.select, new):
            key.replace(self._pull(key))
        return new

    def _output(self, one: exp.Expr) -> list[exp.Expr]:
        """An output column over the stage; a star becomes the columns it stands for."""
        star = star_of(one)
        if isinstance(star, exp.Star | exp.Columns):
            return self._star(one, star)
        if isinstance(one, exp.Column) and one.name:
            return [exp.alias_(self._pull(one), one.name, quoted=True)]
        return [self._pull(one)]

    def _star(self, one: exp.Expr, star: exp.Expr) -> list[exp.Expr]:
        changed: dict[str, exp.Expr] = {}
        native = one.copy()
        holder = native.this if isinstance(one, exp.Column) else native
        if isinstance(star, exp.Star) and star.args.get("replace"):
            if self.scope.merged and has_site(star):
                raise CannotLift("a question in a star over columns that USING or NATURAL has merged")
            kept = [part for part in star.args["replace"] if not has_site(part)]
            changed = {part.alias.lower(): part.this for part in star.args["replace"] if has_site(part)}
            holder.set("replace", [part.copy() for part in kept] or None)
        elif has_site(star):
            raise CannotLift("a question inside a star")
        if "columns" not in one.meta:
            raise CannotLift("a star whose columns are not known")
        names = one.meta["columns"]
        first = len(self.names)
        columns = [f"__c{first + at}" for at in range(len(names))]
        self.names += columns
        self.exprs.append(native)
        return [
            exp.alias_(
                self._pull(changed[name.lower()]) if name.lower() in changed else column(own_name), name, quoted=True
            )
            for own_name, name in zip(columns, names, strict=True)
        ]

    def _source(self, cheap: list[exp.Expr], ending: Ending) -> exp.Select:
        exprs = self.exprs
        if not self.names:
            self.names.append("__c0")
            exprs = [exp.Literal.number(1)]
        source = with_from(exp.Select(expressions=[one.copy() for one in exprs]), self.select)
        condition = conjunction([part.copy() for part in cheap])
        if condition is not None:
            source.set("where", exp.Where(this=condition))
        if self.select.args.get("sample") is not None:
            source.set("sample", self.select.args["sample"].copy())
        if ending.order:
            source.set("order", exp.Order(expressions=ending.order))
        if ending.order is not None and ending.late:
            for name in ("limit", "offset"):
                if self.select.args.get(name) is not None:
                    source.set(name, self.select.args[name].copy())
        if self.ctes.lifted:
            source.set("with_", with_clause(self.ctes.lifted))
        return source

    def _finished(self, ask: Ask) -> Ask:
        return replace(ask, wants_error=self.questions[ask.name] in self.errors)

    def _is_pairs(self, asking: list[exp.Expr]) -> bool:
        """Whether a predicate asks about columns of several FROM items at once."""
        for part in asking:
            for site in own_sites(part):
                owners = {found[0] for col in own_columns(site) if (found := self.scope.split(col)) is not None}
                if len(owners) > 1:
                    return True
        return False


def _holds_query(part: exp.Expr) -> bool:
    """Whether `part` is the smallest expression around a nested query that has a value."""
    if isinstance(part, exp.Binary):
        return isinstance(part.expression, exp.Any | exp.All) and bool(nested_queries(part.expression))
    return isinstance(part, exp.Subquery) or (isinstance(part, exp.In | exp.Exists) and bool(nested_queries(part)))


def _nodes(select: exp.Select, name: str) -> list[exp.Expr]:
    value = select.args.get(name)
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list) else [value]


def _limit(select: exp.Select) -> Limit | None:
    """LIMIT and OFFSET as plain numbers; None when there is no LIMIT or it is an expression."""
    limit, offset = select.args.get("limit"), select.args.get("offset")
    if not isinstance(limit, exp.Limit) or limit.args.get("limit_options"):
        return None
    count = limit.expression
    skip = offset.expression if offset is not None else exp.Literal.number(0)
    if not (isinstance(count, exp.Literal) and count.is_int and isinstance(skip, exp.Literal) and skip.is_int):
        return None
    return Limit(int(count.this), int(skip.this))
