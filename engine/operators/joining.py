"""A stage whose rows are pairs: joins groups of rows by their questions, instead of filtering the cross product.

Each group is spooled by itself, and loses the rows that the conditions between groups leave without a partner: at
first, and whenever a question has taken rows from another group. Questions about one group are asked there; then the
questions about two groups join them, one after the other; what is left (questions that are not a plain AI_FILTER about
two groups) is decided on the joined rows. Rows are numbered by the rows of the groups they come from, so that their
order depends on nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from sqlglot import exp

from sqluice.engine.operators.pair_asking import Inputs
from sqluice.engine.operators.pair_join import PairJoin, too_many
from sqluice.errors import NotSupportedError
from sqluice.optimizer import arrange
from sqluice.optimizer.ast import args_of, conjunction, spec_of, sql
from sqluice.optimizer.joins import choose, classify, reduction
from sqluice.optimizer.joins.pairs import Pairs
from sqluice.optimizer.joins.sides import below_the_join, columns_of, detected, pair_of, split
from sqluice.optimizer.plan import ORDINAL, Keep

if TYPE_CHECKING:
    from sqluice.engine.execution import Executor
    from sqluice.engine.run import Run
    from sqluice.optimizer.joins.detect import Detection
    from sqluice.optimizer.joins.sides import Sides
    from sqluice.optimizer.plan import Stage

MOST_LISTED = 8_000_000
"""Pairs of inputs that are listed; of more only the most similar ones are."""

FEW_ROWS = 100_000
"""Rows of a product of sides that may as well be spooled before questions about one side are asked."""

MOST_COUNTED = 2_000_000_000
"""Pairs of rows on which conditions are tried to see whether few are left."""

MAX_PAIR_ROWS = 100_000_000
TRUE = "true"


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows so far: a table with `__ord`, the ordinals `o<n>` of the groups it came from, and their columns."""

    table: str
    columns: frozenset[str]
    ordinals: tuple[str, ...]

    @property
    def shown(self) -> list[str]:
        """Its columns without its own numbering."""
        return [*self.ordinals, *sorted(self.columns)]


@dataclass(frozen=True, slots=True)
class _Link:
    """The conditions between two groups: SQL of a condition on rows `l` and `r`, and semi-joins with other groups.
    `has_key`: an equality is among them, by which DuckDB finds the pairs soon."""

    where: str
    partners: str
    has_key: bool

    @property
    def is_empty(self) -> bool:
        return self.where == TRUE and not self.partners


class Joining:
    """One stage."""

    def __init__(self, executor: Executor, stage: Stage, sides: Sides, run: Run) -> None:
        self._executor = executor
        self._stage = stage
        self._sides = sides
        self._run = run
        self._linking = list(sides.linking)
        self._filters = list(sides.filters)
        self._made: list[str] = []

    @classmethod
    def of(cls, executor: Executor, stage: Stage, run: Run) -> Joining | None:
        """The operator, where it is one for this stage: where a question about two groups may be a cascade, or where
        several groups would be multiplied."""
        sides = split(stage) if stage.filters else None
        if sides is None:
            return None
        names = [frozenset(group.columns) for group in sides.groups]
        if not stage.pairs:
            return cls(executor, stage, sides, run) if below_the_join(stage, sides) else None
        pairs = [(one, both) for one in sides.filters if (both := pair_of(one, names)) is not None]
        if any(executor.is_asked_elsewhere(spec_of(one)) for one, _ in pairs):
            return None
        cascading = any(executor.cascade(spec_of(one)) is not None for one, _ in pairs)
        limited = stage.limit is not None
        if limited and (len(sides.groups) > 2 or len(stage.filters) > 1 or stage.keeps):
            return None
        multiplied = len(names) > 2
        return cls(executor, stage, sides, run) if pairs and (cascading or limited or multiplied) else None

    def relation(self) -> str | None:
        """SQL of the rows that meet all conditions; None where the stage is to be spooled and filtered after all."""
        groups = self._reduced([self._spooled(at) for at in range(len(self._sides.groups))])
        if self._is_small(groups):
            self._forget()
            return None
        groups = self._filtered(groups)
        while len(groups) > 1:
            found = self._next(groups)
            if found is None:
                a, b = self._nearest(groups)
                joined: _Group | None = None
            else:
                predicate, a, b = found
                joined = self._joined(predicate, groups, a, b)
                if joined is None and self._stage.limit is not None:
                    self._forget()
                    return None
                if joined is not None:
                    self._filters.remove(predicate)
            rest = [group for at, group in enumerate(groups) if at not in (a, b)]
            groups = self._filtered(self._reduced([joined or self._crossed(groups, a, b), *rest]))
        return self._finished(groups[0])

    def _is_small(self, groups: list[_Group]) -> bool:
        """Whether the joined rows may as well be spooled and filtered: few of them bear questions about one side alone,
        or are left by equalities between the sides of a question."""
        if not self._stage.pairs:
            return math.prod(self._executor.count(group.table) for group in groups) < FEW_ROWS
        if not self._sides.keyed or self._stage.limit is not None or len(groups) > 2:
            return False
        return self._n_pairs(groups, 0, 1, choose.LEAST_PAIRS) < choose.LEAST_PAIRS

    def _forget(self) -> None:
        for name in reversed(self._made):
            self._executor.drop_table(name)

    def _table(self, name: str, select: str) -> str:
        name = f"{self._stage.name}_{name}"
        self._executor.create_table(name, select)
        self._made.append(name)
        return name

    def _spooled(self, at: int) -> _Group:
        group = self._sides.groups[at]
        columns = ", ".join(f'"{name}"' for name in group.columns)
        source = self._sql(group.source)
        select = f"SELECT row_number() OVER () AS {ORDINAL}, q.* FROM ({source}) AS q({columns})"
        table = self._table(f"g{at}", f"SELECT *, {ORDINAL} AS o{at} FROM ({select}) AS r")
        return _Group(table, frozenset(group.columns), (f"o{at}",))

    def _reduced(self, groups: list[_Group]) -> list[_Group]:
        """The groups without the rows that can be in no joined row, by the conditions between groups."""
        groups = list(groups)
        empty = not all(self._executor.count(group.table) for group in groups)
        if len(groups) > 1 and empty:
            return [self._kept(group, "WHERE false") for group in groups]
        for at, by in reduction.semi_joins(self._owners(groups)):
            others = [groups[one] for one in by]
            n_pairs = math.prod(self._executor.count(one.table) for one in [groups[at], *others])
            if len(by) == 1 or n_pairs <= MOST_COUNTED:
                groups[at] = self._kept(groups[at], self._partners([groups[at]], others))
        return groups

    def _kept(self, group: _Group, which: str) -> _Group:
        return replace(group, table=self._table(f"s{len(self._made)}", f'SELECT l.* FROM "{group.table}" AS l {which}'))

    def _owners(self, groups: list[_Group]) -> list[frozenset[int]]:
        """Of each condition that is left the groups that it looks at."""
        needed = map(columns_of, self._linking)
        return [frozenset(at for at, group in enumerate(groups) if columns & group.columns) for columns in needed]

    def _partners(self, groups: list[_Group], others: list[_Group]) -> str:
        """A semi-join that keeps rows of some groups with a partner in others, which conditions join."""
        there = frozenset[str]().union(*(group.columns for group in others))
        whole = there.union(*(group.columns for group in groups))
        ours = [part for part in self._linking if columns_of(part) <= whole and columns_of(part) & there]
        on = [part for part in ours if not columns_of(part) <= there]
        columns = ", ".join(f'"{name}"' for name in sorted(there))
        tables = " CROSS JOIN ".join(f'"{group.table}"' for group in others)
        inner = f"SELECT {columns} FROM {tables} WHERE {self._links(there)}"
        return f"SEMI JOIN ({inner}) AS p{others[0].ordinals[0]} ON {self._all(on)}"

    def _filtered(self, groups: list[_Group]) -> list[_Group]:
        """Decide the predicates that are about one group alone, in the order written; each time other groups may lose
        rows too."""
        while True:
            places = ((at, group) for one in self._filters for at, group in enumerate(groups) if _is_about(one, group))
            at, group = next(places, (None, None))
            if at is None or group is None:
                return groups
            n_rows = self._executor.count(group.table)
            groups[at] = self._decided(group)
            if self._executor.count(groups[at].table) < n_rows:
                groups = self._reduced(groups)

    def _decided(self, group: _Group) -> _Group:
        """The rows of a group that the predicates about it alone leave."""
        own = [one for one in self._filters if _is_about(one, group)]
        self._filters = [one for one in self._filters if one not in own]
        stage = replace(self._stage, pairs=len(group.ordinals) > 1)
        kept = self._executor.steps(stage, arrange.steps(tuple(own)), f'SELECT * FROM "{group.table}"')
        columns = ", ".join(f'"{name}"' for name in (ORDINAL, *group.shown))
        table = self._table(f"f{len(self._made)}", f"SELECT {columns} FROM ({kept}) AS r")
        return replace(group, table=table)

    def _next(self, groups: list[_Group]) -> tuple[exp.Expr, int, int] | None:
        """The question about two groups that is to be asked next: that with the fewest pairs."""
        names = [group.columns for group in groups]
        found = [(one, both) for one in self._filters if (both := pair_of(one, names)) is not None]
        if len(found) < 2:
            return (found[0][0], *found[0][1]) if found else None
        predicate, (a, b) = min(found, key=lambda one: self._n_pairs(groups, *one[1]))
        return predicate, a, b

    def _nearest(self, groups: list[_Group]) -> tuple[int, int]:
        """The two groups that are to be joined next where no question is about two: those with the fewest pairs."""
        return min(combinations(range(len(groups)), 2), key=lambda both: self._n_pairs(groups, *both))

    def _n_pairs(self, groups: list[_Group], a: int, b: int, most: int = MAX_PAIR_ROWS) -> int:
        """How many pairs of rows of two groups meet the conditions, counted up to `most` where that is soon done."""
        rows = self._executor.count(groups[a].table) * self._executor.count(groups[b].table)
        link = self._link(groups, a, b)
        if link.is_empty or (rows > MOST_COUNTED and not link.has_key):
            return rows
        source = f'"{groups[a].table}" AS l CROSS JOIN "{groups[b].table}" AS r{link.partners}'
        pairs = f"SELECT 1 FROM {source} WHERE {link.where} LIMIT {most}"
        return self._executor.row(f"SELECT count(*) FROM ({pairs}) AS q")[0]

    def _link(self, groups: list[_Group], a: int, b: int) -> _Link:
        """What a pair of rows of two groups has to meet before a question is asked about it."""
        both = groups[a].columns | groups[b].columns
        sides = [groups[a], groups[b]]
        chains = reduction.between(self._owners(groups), a, b)
        partners = (self._partners(sides, [groups[one] for one in chain]) for chain in chains)
        here = [part for part in self._linking if columns_of(part) <= both]
        sides_of = [(columns_of(part.this), columns_of(part.expression)) for part in here if isinstance(part, exp.EQ)]
        has_key = any(
            (x <= groups[a].columns and y <= groups[b].columns) or (y <= groups[a].columns and x <= groups[b].columns)
            for x, y in sides_of
        )
        return _Link(self._all(here), "".join(f" {one}" for one in partners), has_key=has_key)

    def _links(self, columns: frozenset[str]) -> str:
        """The conditions that can be decided on these columns, as SQL."""
        return self._all([part for part in self._linking if columns_of(part) <= columns])

    def _all(self, parts: list[exp.Expr]) -> str:
        found = conjunction([part.copy() for part in parts])
        return TRUE if found is None else self._sql(found)

    def _crossed(self, groups: list[_Group], a: int, b: int) -> _Group:
        """All pairs of two groups that meet the conditions between them."""
        link = self._link(groups, a, b)
        rows = self._executor.count(groups[a].table) * self._executor.count(groups[b].table)
        if link.is_empty and rows > MAX_PAIR_ROWS:
            raise NotSupportedError(too_many(f"{rows:,} pairs of rows"))
        source = f'"{groups[a].table}" AS l CROSS JOIN "{groups[b].table}" AS r'
        return self._paired(groups[a], groups[b], source, link)

    def _paired(self, a: _Group, b: _Group, source: str, link: _Link) -> _Group:
        """The rows of both groups in `source`, where the conditions between them hold: they are not needed again."""
        both = a.columns | b.columns
        self._linking = [part for part in self._linking if not columns_of(part) <= both]
        sides = ((a, "l"), (b, "r"))
        columns = ", ".join(f'{side}."{name}"' for group, side in sides for name in group.shown)
        ordinals = (*a.ordinals, *b.ordinals)
        order = ", ".join(ordinals)
        select = f"SELECT {columns} FROM {source}{link.partners} WHERE {link.where} LIMIT {MAX_PAIR_ROWS + 1}"
        table = self._table(
            f"p{len(self._made)}", f"SELECT row_number() OVER (ORDER BY {order}) AS {ORDINAL}, q.* FROM ({select}) AS q"
        )
        if self._executor.count(table) > MAX_PAIR_ROWS:
            raise NotSupportedError(too_many(f"more than {MAX_PAIR_ROWS:,} pairs of rows"))
        return _Group(table, both, ordinals)

    def _joined(self, predicate: exp.Expr, groups: list[_Group], at: int, to: int) -> _Group | None:
        """The pairs of two groups for which a question is true."""
        a, b = groups[at], groups[to]
        number = spec_of(predicate)
        args = args_of(predicate)
        texts = self._executor.texts(args)
        places = [[at for at, arg in enumerate(args) if columns_of(arg) & group.columns] for group in (a, b)]
        constant = [at for at, arg in enumerate(args) if not columns_of(arg)]
        places[0] += constant
        keyed = [
            self._keyed(group, [texts[at] for at in sorted(here)]) for group, here in zip((a, b), places, strict=True)
        ]
        inputs = [self._inputs(table, tuple(sorted(here))) for table, here in zip(keyed, places, strict=True)]
        link = self._link(groups, at, to)
        detection = detected(predicate, self._sides.names, self._run.specs[number].template)
        swapped = _labels_first(detection, len(inputs[0]), len(inputs[1]), places)
        left, right = (inputs[1], inputs[0]) if swapped else (inputs[0], inputs[1])
        limit = self._stage.limit
        need = None if limit is None else limit.count + limit.offset
        operator = PairJoin(self._run, number, self._executor.cascade(number), left, right, need, detection)
        pairs = self._pairs(operator, keyed, left, right, link, swapped=swapped)
        if pairs is None:
            return None
        outcome = operator.decide(pairs, int(self._run.settings["ai_max_cross_calls"] or 0))
        if outcome is None:
            for asked, given in operator.asking.asked():
                self._executor.remember(number, asked, given)
            return None
        if need is None:
            self._count_nulls(number, keyed, link)
        rows = np.flatnonzero(outcome.accepted)
        found = (pairs.right[rows], pairs.left[rows]) if swapped else (pairs.left[rows], pairs.right[rows])
        matches = self._matches(*found)
        source = f'"{matches}" AS m JOIN "{keyed[0]}" AS l ON l.__id = m.l JOIN "{keyed[1]}" AS r ON r.__id = m.r'
        return self._paired(a, b, source, replace(link, partners=""))

    def _keyed(self, group: _Group, texts: list[str]) -> str:
        """The group with the number of each row's input, from 0 in the order of a hash; NULL where it has none."""
        key = self._executor.key(texts)
        columns = "".join(f", {text} AS a{at}" for at, text in enumerate(texts))
        return self._table(
            f"k{len(self._made)}",
            f"SELECT *, CASE WHEN __k IS NOT NULL THEN dense_rank() OVER (ORDER BY __k NULLS LAST) - 1 END AS __id "
            f'FROM (SELECT *, {key} AS __k{columns} FROM "{group.table}") AS r',
        )

    def _inputs(self, table: str, places: tuple[int, ...]) -> Inputs:
        columns = "".join(f", any_value(a{at})" for at in range(len(places)))
        rows = self._executor.fetched(
            f'SELECT count(*), any_value(__k)::VARCHAR{columns} FROM "{table}" WHERE __id IS NOT NULL '
            "GROUP BY __id ORDER BY __id"
        )
        texts = [rows.column(at + 2).to_pylist() for at in range(len(places))]
        return Inputs(places, texts, rows.column(0).to_numpy().astype(np.int64), rows.column(1).to_pylist())

    def _pairs(
        self, operator: PairJoin, keyed: list[str], left: Inputs, right: Inputs, link: _Link, *, swapped: bool
    ) -> Pairs | None:
        """The pairs that meet the conditions between the sides; of too many the most similar ones, and none where an
        equality leaves too many: those are not the most similar ones of all."""
        n, m = len(left), len(right)
        if link.is_empty and n * m <= MOST_LISTED:
            return Pairs.all_of(left.n_rows, right.n_rows)
        if not link.is_empty and (n * m <= MOST_LISTED or self._are_few(keyed, link)):
            return Pairs.of(n, m, *self._linked(keyed, link, swapped=swapped))
        if link.has_key:
            return None
        a, b = operator.nearest()
        if not link.is_empty:
            a, b, mass = self._linked(keyed, link, swapped=swapped, among=(a, b))
        else:
            mass = (left.n_rows[a] * right.n_rows[b]).astype(float)
        return Pairs.of(n, m, a, b, mass, float(n * m - len(a)))

    def _are_few(self, keyed: list[str], link: _Link) -> bool:
        """Whether conditions leave no more pairs of rows than are listed; not looked at where that would take long."""
        if not link.has_key and math.prod(map(self._executor.count, keyed)) > MOST_COUNTED:
            return False
        source = f'"{keyed[0]}" AS l CROSS JOIN "{keyed[1]}" AS r{link.partners}'
        pairs = f"SELECT 1 FROM {source} WHERE {link.where} LIMIT {MOST_LISTED + 1}"
        return self._executor.row(f"SELECT count(*) FROM ({pairs}) AS q")[0] <= MOST_LISTED

    def _linked(
        self, keyed: list[str], link: _Link, *, swapped: bool, among: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left and right inputs of the pairs of rows that meet the conditions between the sides, and how many pairs of
        rows each has."""
        import pyarrow as pa

        ids = ("r.__id", "l.__id") if swapped else ("l.__id", "r.__id")
        select = f"SELECT {ids[0]}::INTEGER AS a, {ids[1]}::INTEGER AS b, count(*) AS n FROM "
        left_rows, right_rows = (f'"{table}" AS {side}' for table, side in zip(keyed, "lr", strict=True))
        end = f"({link.where}) GROUP BY ALL ORDER BY a, b"
        if among is None:
            there = f"{link.partners} WHERE l.__id IS NOT NULL AND r.__id IS NOT NULL AND"
            rows = self._executor.fetched(f"{select} {left_rows} CROSS JOIN {right_rows} {there} {end}")
        else:
            with self._executor.holding(pa.table({"a": among[0], "b": among[1]})) as name:
                joined = f'"{name}" AS w JOIN {left_rows} ON l.__id = w.{"b" if swapped else "a"}'
                joined = f"{joined} JOIN {right_rows} ON r.__id = w.{'a' if swapped else 'b'}{link.partners}"
                rows = self._executor.fetched(f"{select} {joined} WHERE {end}")
        a, b, mass = (rows.column(at).to_numpy() for at in range(3))
        return a.astype(np.int32), b.astype(np.int32), mass.astype(float)

    def _count_nulls(self, number: int, keyed: list[str], link: _Link) -> None:
        """Pairs of rows of which one argument is NULL have no answer and bring no input."""
        rows = [self._executor.row(f'SELECT count(*), count(__id) FROM "{table}"') for table in keyed]
        (n, a), (m, b) = rows
        if n == a and m == b:
            return
        nulls = n * m - a * b
        if not link.is_empty:
            (nulls,) = self._executor.row(
                f'SELECT count(*) FROM "{keyed[0]}" AS l CROSS JOIN "{keyed[1]}" AS r{link.partners} '
                f"WHERE (l.__id IS NULL OR r.__id IS NULL) AND ({link.where})"
            )
        op = self._run.op(number)
        op.rows_in += nulls
        op.rows_out += nulls
        op.nulls += nulls

    def _matches(self, left: np.ndarray, right: np.ndarray) -> str:
        import pyarrow as pa

        with self._executor.holding(pa.table({"l": left, "r": right})) as name:
            return self._table(f"m{len(self._made)}", f'SELECT l, r FROM "{name}"')

    def _finished(self, group: _Group) -> str:
        """The stage's columns of the joined rows."""
        outputs = ", ".join(f'{self._sql(value)} AS "{name}"' for name, value in self._sides.outputs.items())
        shown = f", {outputs}" if outputs else ""
        relation = f'SELECT {ORDINAL}{shown} FROM "{group.table}"'
        relation = self._executor.steps(self._stage, list(map(Keep, self._stage.keeps)), relation)
        limit = self._stage.limit
        if limit is not None:
            relation = f"{relation} ORDER BY {ORDINAL} LIMIT {limit.count} OFFSET {limit.offset}"
        return f'SELECT * FROM "{self._table("kept", relation)}"'

    def _sql(self, node: exp.Expr) -> str:
        return sql(self._executor.typed(node))


def _is_about(predicate: exp.Expr, group: _Group) -> bool:
    """Whether a predicate looks at no other group."""
    return columns_of(predicate) <= group.columns


def _labels_first(detection: Detection, first: int, second: int, places: list[list[int]]) -> bool:
    """Whether the labels, those that the question names or else the side with fewer inputs, come first."""
    if detection.kind == "label" and detection.sure:
        named = 0 if detection.label_side in places[0] else 1
        if (first, second)[named] <= classify.MOST_LABELS:
            return named == 0
    return first < second
