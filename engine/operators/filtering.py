"""Decides the predicates of a stage that hold questions, piece by piece, each time in the order that looks cheapest.

A first few rows are asked everything (the pilot), unless what earlier runs saw will do. Then pieces of growing size are
decided predicate by predicate; before each the order is found anew from the rows that are left and the answers so far.
Under a LIMIT pieces are as large as the rows still missing ask for, and there is no pilot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer import arrange, guards
from sqluice.optimizer.ast import (
    ERROR,
    args_of,
    column,
    has_site,
    is_pinned,
    is_site,
    is_volatile,
    own_sites,
    replaced,
    spec_of,
    sql,
)
from sqluice.optimizer.plan import ORDINAL, Keep, Limit, Stage
from sqluice.optimizer.rules import order_conjuncts
from sqluice.optimizer.rules.order_conjuncts import Leaf
from sqluice.optimizer.statistics import Share

if TYPE_CHECKING:
    from sqlglot import exp

    from sqluice.engine.execution import Executor
    from sqluice.engine.run import Run

FIRST_CHUNK = 16
FIRST_PIECE = 64
GROWTH = 4
FIRST_SPOOL = 4096
MOST_LOOKED_AT = 200_000
"""Rows on which orders are tried out; of a longer stage a sample of this size."""

PILOT_ROWS, PILOT_CALLS = 16, 48
SURE = 16.0
"""Inputs that must have been seen of a predicate to do without the pilot."""

DRAWN_ROWS = 4000
"""Answers of few rows are drawn several times, until this many rows are looked at."""


@dataclass(slots=True)
class _Look:
    """The rows of a stage as numbers: their ordinals, the leaves' facts on them and what was seen of each leaf."""

    ordinals: np.ndarray
    facts: dict[str, Leaf]
    seen: dict[str, Share]
    copies: int = 1

    def open_rows(self, done: int) -> np.ndarray:
        """Rows, bool, beyond the first `done`."""
        return np.tile(self.ordinals > done, self.copies)


@dataclass(frozen=True, slots=True)
class _Told:
    """Where a leaf is true and where it is false, bool [rows], as far as its answers are there."""

    yes: np.ndarray
    no: np.ndarray


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The distinct inputs of a leaf: `codes` int [rows], -1 where none is asked; `known` and `yes` bool [inputs]."""

    codes: np.ndarray
    known: np.ndarray
    yes: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray, is_null: np.ndarray, known_rows: np.ndarray, told: _Told) -> _Inputs:
        """From a hash of the input on each row."""
        inputs, codes = np.unique(hashes, return_inverse=True)
        codes = np.where(is_null, -1, codes)  # NULLs came as 0, so that there is an input wherever there is a row
        known, yes = np.zeros(len(inputs), bool), np.zeros(len(inputs), bool)
        known[codes[~is_null & known_rows]] = True
        yes[codes[~is_null & known_rows & told.yes]] = True
        return cls(codes, known, yes)

    def seen(self) -> Share:
        """Yes answers among those that are there."""
        return Share(float(self.yes.sum()), float(self.known.sum()))

    def leaf(self, told: _Told, mean: float, cost: float, copies: int, generator: np.random.Generator) -> Leaf:
        """The leaf on `copies` of the rows, with answers drawn where there are none yet."""
        n = len(self.known)
        known = np.tile(self.known, copies)
        drawn = generator.permutation(n * copies) < mean * n * copies  # the very share: fewer ties are broken by luck
        yes = np.where(known, np.tile(self.yes, copies), drawn)
        codes = np.concatenate([np.where(self.codes >= 0, self.codes + n * copy, -1) for copy in range(copies)])
        if not n:
            return Leaf(told.yes, told.no, codes, known, cost)
        unknown = (codes >= 0) & ~known[codes]
        guess = yes[codes]
        all_yes, all_no = np.tile(told.yes, copies), np.tile(told.no, copies)
        return Leaf(np.where(unknown, guess, all_yes), np.where(unknown, ~guess, all_no), codes, known, cost)


class Filtering:
    """One stage's filters."""

    def __init__(self, executor: Executor, stage: Stage, run: Run) -> None:
        self._executor = executor
        self._stage = stage
        self._run = run
        self._leaves = order_conjuncts.leaves(stage.filters)
        self._asked = order_conjuncts.asking(stage.filters)
        parts = [part for leaf in self._leaves.values() for part in leaf.walk()]
        fixed = any(is_pinned(part) for part in parts) or any(map(is_volatile, self._leaves.values()))
        self._can_look = not fixed and bool(self._asked)
        self._has_choice = self._can_look and len(self._asked) > 1
        self._numbers = {spec_of(site) for leaf in self._asked.values() for site in own_sites(leaf)}
        self._before: dict[str, Share] = {}
        self._total = 0
        self._looked: _Look | None = None
        """The last look, while no question was asked since."""

    def relation(self) -> str:
        """Spool the stage and decide its predicates; SQL of the rows that go on."""
        if self._stage.limit is not None:
            return self._limited(self._stage.limit)
        self._total = self._executor.spool(self._stage)
        name = f"{self._stage.name}_kept"
        if self._has_choice:
            self._pilot()
            self._run.kept(self._pieces(name, None))
            self._learn()
        else:
            kept = self._decided(self._stage.filters, self._rows())
            self._learn()
            if not self._stage.asks:
                return kept
            self._executor.keep(self._stage, name, kept, new=True)
        return f'SELECT * FROM "{name}"'

    def _rows(self, start: int = 0, end: int | None = None) -> str:
        last = "" if end is None else f" AND {ORDINAL} <= {end}"
        where = f" WHERE {ORDINAL} > {start}{last}" if start or last else ""
        return f'SELECT * FROM "{self._stage.name}"{where}'

    def _decided(self, predicates: tuple[exp.Expr, ...], rows: str) -> str:
        """The rows for which predicates, and what is evaluated row by row, are true."""
        self._looked = None
        steps = [*arrange.steps(predicates), *map(Keep, self._stage.keeps)]
        return self._executor.steps(self._stage, steps, rows)

    def _limited(self, limit: Limit) -> str:
        """Decide growing pieces until the LIMIT is met.

        First only the beginning of the source is spooled. When that does not do, all of it is, from the start, since
        its order may be another: nothing is asked again, and the rows of the first try do not count.
        """
        need = limit.count + limit.offset
        name = f"{self._stage.name}_kept"
        first = max(FIRST_SPOOL, FIRST_SPOOL // 64 * need)
        for most in (first, None):
            with self._executor.trying() as forget:
                self._total = self._executor.spool(self._stage, most)
                if self._pieces(name, need) >= need or most is None or self._total < most:
                    break
                forget()
            self._executor.drop_table(name)
            self._executor.drop_table(self._stage.name)
        return f'SELECT * FROM "{name}" ORDER BY {ORDINAL} LIMIT {limit.count} OFFSET {limit.offset}'

    def _pieces(self, name: str, need: int | None) -> int:
        """Fill table `name` with the rows that go on, until there are `need` (None: all); how many there are."""
        total = self._total
        start = found = 0
        first = FIRST_PIECE if need is None else max(FIRST_CHUNK, need) if need else 0
        end = min(total, first)
        while True:
            if need is None and self._executor.may_cascade(self._numbers, total - start):
                end = total  # a proof is about all rows that it decides
            predicates = self._order(start) if self._has_choice else self._stage.filters
            relation = self._decided(predicates, self._rows(start, end))
            found = self._executor.keep(self._stage, name, relation, new=not start)
            if end >= total or (need is not None and found >= need):
                return found
            size = (end - start) * GROWTH if need is None else _next_chunk(need - found, found, end)
            start, end = end, min(total, end + size)

    def _order(self, start: int) -> tuple[exp.Expr, ...]:
        """The order for the rows beyond the first `start`."""
        if start >= self._total:
            return self._stage.filters
        look = self._look()
        ordered = order_conjuncts.apply(self._stage.filters, look.open_rows(start), look.facts)
        if self._stage.name not in self._run.expected:
            scale = self._total / max(len(look.ordinals), 1) / look.copies
            rows, calls = (
                {name: round(n * scale) for name, n in found.items()} for found in (ordered.rows, ordered.calls)
            )
            self._run.expect(self._stage, rows, calls, ordered.written / max(ordered.cost, 1e-30))
        return ordered.predicates

    def _pilot(self) -> None:
        """Ask everything about a few rows, drawn by hash, where what is known of the predicates will not do."""
        look = self._look()
        unsure = [name for name in self._asked if look.seen[name].plus(self._before[name]).inputs < SURE]
        rows = min(PILOT_ROWS, PILOT_CALLS // (len(self._asked) - 1), self._total // 12)
        if not unsure or rows < 1:
            return
        seed = int(self._run.settings["ai_seed"] or 0)
        relation = (
            f'SELECT * FROM "{self._stage.name}" WHERE {ORDINAL} IN (SELECT {ORDINAL} FROM "{self._stage.name}" '
            f"ORDER BY hash({ORDINAL} + {seed}), {ORDINAL} LIMIT {rows})"
        )
        self._looked = None
        for at, name in enumerate(unsure):
            asks, _ = arrange.questions([self._asked[name]], f"__x{at}_")
            for ask in asks:
                relation = self._executor.ask(self._stage, replace(ask, counts=False), relation)

    def _look(self) -> _Look:
        """The stage's rows as they stand, with the answers so far."""
        if self._looked is not None:
            return self._looked
        for leaf in self._asked.values():
            for site in own_sites(leaf):
                self._run.asker(spec_of(site))  # loads its model, whose revision tells what is remembered of it
        step = -(-self._total // MOST_LOOKED_AT)
        sample = self._rows() if step < 2 else f"{self._rows()} WHERE hash({ORDINAL}) % {step} = 0"
        joins: list[str] = []
        columns = [ORDINAL]
        for at, leaf in enumerate(self._leaves.values()):
            if not has_site(leaf):
                columns.append(f"({self._sql(leaf)})::BOOLEAN AS v{at}")
                continue
            columns += self._columns(at, leaf, joins)
        tables = "".join(f" LEFT JOIN {join}" for join in joins)
        found = self._executor.columns(f"SELECT {', '.join(columns)} FROM ({sample}) AS r{tables}")
        self._looked = self._facts(found)
        return self._looked

    def _columns(self, at: int, leaf: exp.Expr, joins: list[str]) -> list[str]:
        """Of a leaf: a hash of its inputs, NULL where it needs none; whether all its answers are there; its value."""
        names: dict[str, str] = {}
        inputs, there, nulls = [], [], []
        nested = False
        for key, need in guards.collect([leaf]).items():
            site = need.site
            raw = [arg for arg in args_of(site) if not has_site(arg)]
            nested |= len(raw) < len(args_of(site))
            casts = self._executor.texts(raw)
            texts = casts or ["''"]
            guard = need.guard()
            asked = "true" if guard is None or has_site(guard) else self._sql(guard)
            whole = " AND ".join([asked, *(f"({text}) IS NOT NULL" for text in texts)])
            nulls.append(whole)
            inputs += texts
            if nested:
                continue
            alias = f"j{len(joins)}"
            table = self._executor.answers(spec_of(site))
            joins.append(f'"{table}" AS {alias} ON {alias}.k = {self._executor.key(casts)}')
            names[key] = alias
            there.append(f"({alias}.k IS NOT NULL OR NOT coalesce({whole}, false))")

        def answered(part: exp.Expr) -> exp.Expr | None:
            if not is_site(part):
                return None
            return column("e" if part.this == ERROR else "v", names[guards.key(part)])

        value = "NULL::BOOLEAN" if nested else f"({self._sql(replaced(leaf, answered))})::BOOLEAN"
        known = "false" if nested else " AND ".join(there)
        wanted = " OR ".join(f"({one})" for one in nulls)
        return [
            f"CASE WHEN {wanted} THEN hash({', '.join(inputs)}) END AS h{at}",
            f"{known} AS n{at}",
            f"{value} AS v{at}",
        ]

    def _facts(self, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> _Look:
        ordinals, _ = found[ORDINAL]
        look = _Look(ordinals, {}, {}, int(np.clip(DRAWN_ROWS // max(len(ordinals), 1), 1, 16)))
        self._before = self._before or self._run.shares(self._stage, self._total)
        generator = np.random.default_rng(int(self._run.settings["ai_seed"] or 0))
        for at, (name, leaf) in enumerate(self._leaves.items()):
            values, is_null = found[f"v{at}"]
            told = _Told(values.astype(bool) & ~is_null, ~values.astype(bool) & ~is_null)
            if has_site(leaf):
                cost = self._run.unit_cost([spec_of(site) for site in own_sites(leaf)])
                inputs = _Inputs.of(*found[f"h{at}"], found[f"n{at}"][0].astype(bool), told)
                look.seen[name] = inputs.seen()
                mean = look.seen[name].plus(self._before[name]).mean
                if is_site(leaf):
                    self._run.yes_shares[spec_of(leaf)] = mean
                look.facts[name] = inputs.leaf(told, mean, cost, look.copies, generator)
            else:
                look.facts[name] = Leaf(np.tile(told.yes, look.copies), np.tile(told.no, look.copies))
        return look

    def _learn(self) -> None:
        """Keep what this run saw for later ones."""
        if not self._can_look:
            return
        for name, seen in self._look().seen.items():
            self._run.learn(self._stage, self._asked[name], seen, self._total)

    def _sql(self, node: exp.Expr) -> str:
        return sql(self._executor.typed(node))


def _next_chunk(missing: int, found: int, seen: int) -> int:
    """How many rows to look at next: as many as the share that came through so far asks for, at least one more."""
    share = (found + 0.5) / (seen + 1)
    return max(1, min(round(1.15 * missing / share + 1), 2 * seen + FIRST_CHUNK))
