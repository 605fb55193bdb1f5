"""Decides rows by score and buys oracle labels until the contract is proven: the state of one cascade.

    learner = Learner(contract, generator)
    learner.add(scores, n_rows)            # as often as rows come
    learner.close()                        # no more will
    while len(ask := learner.wanted()):
        learner.tell(ask, labels)          # the oracle's answers: 1 yes, 0 no, -1 NULL
    verdict = learner.verdict()

First a pilot. Its labels say from which score on rows are accepted, and that stays. Then, round by round, the plan of
`allocate` is found anew from all labels: part of the middle is labelled, from its core outward, and part of the draws
is made; the proof of `betting` grows with each draw, and it ends as soon as all constraints hold. Every label is an
answer. A learner knows scores, multiplicities and labels, and no models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from sqluice.optimizer.cascade.allocate import Open, chances, depths, guess_everywhere, plan_of, split_of
from sqluice.optimizer.cascade.betting import Bet, Wealth, draw
from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.rates import bins_of, rates
from sqluice.types import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.optimizer.cascade.allocate import Plan
    from sqluice.optimizer.cascade.constraints import Constraint

UNKNOWN, NULL, NO, YES = -2, -1, 0, 1

Side: TypeAlias = Literal["both", "accept", "reject"]
BOTH: Side = "both"
ACCEPT: Side = "accept"
REJECT: Side = "reject"

PILOT_SHARE, LEAST_PILOT = 0.005, 200
MIDDLE_STEP, DRAWS_STEP = 0.2, 0.1
LEAST_MIDDLE, LEAST_DRAWS = 64, 32
LEAD = 0.8
"""The middle is labelled while the share of it that is left is more than this times the share of draws left: draws made
before all of the middle is labelled prove less, draws made after it come too late to say how wide it has to be."""

BAND = 1e-4
"""Scores this near the split are not told apart."""

HOPELESS = 0.98
"""A plan that labels more than this share of the rows is given up: the oracle answers all of them."""

_EMPTY = np.zeros(0, np.int64)
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows to ask the oracle about, int [k]; with the `bets` of each constraint where they were drawn, none where they
    were chosen."""

    rows: np.ndarray
    bets: tuple[Bet, ...] = ()

    def first(self, k: int) -> Wanted:
        """Only the first k."""
        return Wanted(self.rows[:k], tuple(bet.first(k) for bet in self.bets))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the rows. `answers` int8 [n]: 1, 0 or -1 for NULL; `labelled` bool [n]: by the oracle. Rows at or
    below `tau_low` are rejected and rows at or above `tau_high` accepted, where they have no label; NaN where there is
    no such row. `reached` names what is proven of each target; `reason` says why not, where not certified."""

    answers: np.ndarray
    labelled: np.ndarray
    tau_low: float
    tau_high: float
    certified: bool
    reason: str
    labels: int
    nulls: int
    reached: dict[str, float]


class Learner:
    """One cascade. Deterministic in its `generator` and what it is told."""

    def __init__(
        self,
        contract: Contract | Sequence[Constraint],
        generator: np.random.Generator,
        *,
        most_labels: int | None = None,
        side: Side = BOTH,
    ) -> None:
        """`most_labels` is a hard cap. With side ACCEPT a label says whether the proxy's answer is the oracle's, and a
        row without one keeps the proxy's; with REJECT no row is accepted without a label."""
        self._constraints = constraints_of(contract) if isinstance(contract, Contract) else tuple(contract)
        self._generator = generator
        self._cap = most_labels
        self._side = side
        self._scores = np.zeros(0)
        self._mass = np.zeros(0)
        self._labels = np.zeros(0, np.int8)
        self._closed = False
        self._bins: np.ndarray | None = None
        self._means = np.zeros(0)
        self._split: int | None = None
        self._wealth = [Wealth(one.delta) for one in self._constraints]
        self._wanted: Wanted | None = None
        self._drawn = self._middle = 0
        self._certified = False
        """At the last look; labels may still come for rows near the split."""
        self.given_up = False
        """Whether all rows go to the oracle, since proving anything less would cost as much."""
        self.predicted = math.nan
        """Labels in all, as the last plan sees it."""

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def labels(self) -> np.ndarray:
        """Int8 [n]: what the oracle said, -2 where it was not asked."""
        return self._labels

    @property
    def open_to_scores(self) -> bool:
        """Whether scores may still change."""
        return self._split is None

    def add(self, scores: np.ndarray, n_rows: np.ndarray | None = None) -> None:
        """More inputs: `scores` float [n] in [0, 1], NaN where there is none (the oracle answers those), and how many
        rows each stands for (one, by default). `ValueError` for a score outside, and after `close`."""
        if self._closed:
            raise ValueError("this learner is closed: no more rows can be added")
        mass = np.ones(len(scores)) if n_rows is None else np.asarray(n_rows, float)
        self._scores = np.concatenate([self._scores, _checked(scores)])
        self._mass = np.concatenate([self._mass, mass])
        self._labels = np.concatenate([self._labels, np.full(len(scores), UNKNOWN, np.int8)])

    def close(self) -> None:
        """No more rows will come."""
        self._closed = True

    def rescore(self, scores: np.ndarray) -> None:
        """Other scores for all rows, float [n]. `ValueError` once the proof has begun."""
        if self._split is not None:
            raise ValueError("scores are final once the proof has begun")
        self._scores = _checked(scores)

    def know(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Labels that are there anyway, before the proof begins: those an earlier query bought, or those of a sample
        taken to train a score. `ValueError` later."""
        if self._split is not None:
            raise ValueError("labels from elsewhere come before the proof begins")
        self._labels[rows] = labels

    def wanted(self) -> np.ndarray:
        """Rows to label next, int [k]; none when it is done, or waits for more rows."""
        if self._wanted is None:
            wanted = self._next()
            room = len(self) if self._cap is None else max(self._cap - self._bought(), 0)
            self._wanted = wanted.first(room) if len(wanted.rows) else None
        return _EMPTY if self._wanted is None else self._wanted.rows

    def tell(self, labels: np.ndarray) -> None:
        """Labels of the rows last wanted, in their order, int [k]: 1, 0, or -1 for NULL. `ValueError` for another
        number of labels."""
        wanted, self._wanted = self._wanted, None
        if wanted is None or len(labels) != len(wanted.rows):
            raise ValueError("tell one label for each row that was wanted")
        labels = np.asarray(labels, np.int8)
        if self._split is not None:
            self._prove(wanted, labels)
        self._labels[wanted.rows] = labels

    def predict(self, scores: np.ndarray) -> float:
        """Labels in all that the contract would take with other scores, float [n], by the labels so far."""
        rows = self._open(*bins_of(np.where(np.isnan(scores), _HALF, scores)), None)
        rows = replace(rows, split=self._best_split(rows))
        missing = [math.log(1 / one.delta) for one in self._constraints]
        return self._bought() + plan_of(rows, self._constraints, missing).cost

    def verdict(self) -> Verdict:
        """The decisions as they stand."""
        labelled = self._labels != UNKNOWN
        accepted = self._accepted()
        low, high = (self._scores[~labelled & side & ~np.isnan(self._scores)] for side in (~accepted, accepted))
        exact = bool(labelled.all())
        done = all(one.allowed(self._output(), self._total()) >= 0 for one in self._constraints) if exact else None
        certified = self._certified if done is None else done
        return Verdict(
            answers=np.where(labelled, self._labels, accepted).astype(np.int8),
            labelled=labelled,
            tau_low=float(low.max()) if len(low) else math.nan,
            tau_high=float(high.min()) if len(high) else math.nan,
            certified=certified,
            reason="" if certified else self._why_not(),
            labels=self._bought(),
            nulls=int((self._labels == NULL).sum()),
            reached=self._reached(exact=exact),
        )

    def _why_not(self) -> str:
        if not self._constraints:
            return "budget without targets"
        if bool((self._labels != UNKNOWN).all()):
            return "composition"
        return "budget" if self._cap is not None else "unfinished"

    def _reached(self, *, exact: bool) -> dict[str, float]:
        """What is proven of each target, where the contract is."""
        if not self._certified and not exact:
            return {}
        output, total = self._output(), self._total()
        found = {}
        for one, wealth in zip(self._constraints, self._wealth, strict=True):
            left = 0.0 if exact else wealth.bound(one.allowed(output, total))
            found[one.name] = max(0.0, one.reached(left, output, total))
        return found

    def _next(self) -> Wanted:
        pilot = self._pilot()
        if len(pilot) or not self._closed:
            return Wanted(pilot)
        unknown = np.flatnonzero(self._labels == UNKNOWN)
        unscored = unknown[np.isnan(self._scores[unknown])]
        if len(unscored) or not len(unknown):
            return Wanted(unscored)
        if not self._constraints:
            return Wanted(self._by_doubt(unknown))
        if self.given_up:
            return Wanted(unknown)
        rows = self._started()
        missing = [
            wealth.missing(one.allowed(rows.output, rows.total))
            for one, wealth in zip(self._constraints, self._wealth, strict=True)
        ]
        self._certified = max(missing) <= 0
        if self._certified:
            return Wanted(self._near_split(unknown))
        return self._by_plan(rows, plan_of(rows, self._constraints, missing), unknown)

    def _near_split(self, unknown: np.ndarray) -> np.ndarray:
        """Rows so near the split that the last digits of their score decide: those differ from batch to batch."""
        accepted = self._accepted()
        below, above = self._scores[~accepted], self._scores[accepted]
        if not len(below) or not len(above) or self._side != BOTH:
            return _EMPTY
        edge = (below.max() + above.min()) / 2
        return np.asarray(unknown[np.abs(self._scores[unknown] - edge) <= BAND])

    def _by_plan(self, rows: Open, plan: Plan, unknown: np.ndarray) -> Wanted:
        """The next step of a plan, unless it costs too much."""
        self.predicted = self._bought() + plan.cost
        if self._cap is not None and self.predicted > self._cap:
            return Wanted(self._by_doubt(unknown))
        if self.predicted > HOPELESS * len(self):
            self.given_up = True
            return Wanted(unknown)
        middle_left = plan.middle / (plan.middle + self._middle) if plan.middle else 0.0
        draws_left = plan.draws / (plan.draws + self._drawn) if plan.draws else 0.0
        if plan.middle and middle_left > LEAD * draws_left:
            chosen = self._from_middle(rows, plan, unknown)
            self._middle += len(chosen)
            return Wanted(chosen)
        return self._draws(rows, plan, unknown)

    def _pilot(self) -> np.ndarray:
        """The rows of the pilot, once there are enough; rows near one half are likelier to be in it."""
        wish = max(LEAST_PILOT, int(PILOT_SHARE * len(self._scores)))
        if self._bought() or self._split is not None or (len(self._scores) < wish and not self._closed):
            return _EMPTY
        scored = np.flatnonzero(~np.isnan(self._scores))
        near = np.sqrt(np.clip(self._scores[scored] * (1 - self._scores[scored]), 0.02, 1))
        return scored[draw(near, wish, self._generator)[0]] if len(scored) else _EMPTY

    def _started(self) -> Open:
        """The open rows; where to split is settled the first time, and holds from then on."""
        if self._bins is None:
            self._bins, self._means = bins_of(np.where(np.isnan(self._scores), 0.5, self._scores))
        rows = self._open(self._bins, self._means, self._split)
        if self._split is None:
            rows = replace(rows, split=self._best_split(rows))
            self._split = rows.split
        return rows

    def _best_split(self, rows: Open) -> int:
        sides = {ACCEPT: 0, REJECT: len(rows.rate)}
        return sides[self._side] if self._side in sides else split_of(rows, self._constraints)

    def _open(self, bins: np.ndarray, means: np.ndarray, split: int | None) -> Open:
        """The rows without a label, summed up by bins."""
        known = self._labels >= 0
        n = len(means)
        yes = np.bincount(bins[known], self._labels[known], minlength=n)
        rate = rates(means, yes, np.bincount(bins[known], minlength=n).astype(float))
        unknown = self._labels == UNKNOWN
        mass = np.bincount(bins[unknown], self._mass[unknown], minlength=n)
        inputs = np.bincount(bins[unknown], minlength=n).astype(float)
        labelled_yes = float(self._mass[self._labels == YES].sum())
        return Open(inputs, mass, rate, split or 0, labelled_yes, self._total())

    def _from_middle(self, rows: Open, plan: Plan, unknown: np.ndarray) -> np.ndarray:
        """The core of the middle that has no label yet."""
        assert self._bins is not None
        depth = np.full(len(rows.rate), -1.0)
        depth[plan.low : plan.high] = depths(rows, plan.low, plan.high)
        inside = unknown[depth[self._bins[unknown]] >= 0]
        order = np.argsort(-depth[self._bins[inside]], kind="stable")
        return np.asarray(inside[order[: max(LEAST_MIDDLE, math.ceil(MIDDLE_STEP * plan.middle))]])

    def _draws(self, rows: Open, plan: Plan, unknown: np.ndarray) -> Wanted:
        """The next draws from all rows without a label."""
        assert self._bins is not None
        chance = chances(rows, self._constraints)
        weight = self._mass[unknown] * chance[self._bins[unknown]]
        taken, left = draw(weight, max(LEAST_DRAWS, math.ceil(DRAWS_STEP * plan.draws)), self._generator)
        there = rows.inputs > 0
        bets = []
        for one, guess in zip(self._constraints, plan.guesses, strict=True):
            most = float((one.most(rows.accepted)[there] / chance[there]).max())
            now = guess_everywhere(rows, one, chance, guess) if plan.middle else guess
            bets.append(Bet(weight[taken] / left, most * left, now))
        return Wanted(unknown[taken], tuple(bets))

    def _by_doubt(self, unknown: np.ndarray) -> np.ndarray:
        """Rows whose own label is worth most: the likeliest errors, by the rows they stand for."""
        if not len(unknown):
            return unknown
        rows = self._started()
        assert self._bins is not None
        worth = (self._mass * rows.errors[self._bins])[unknown]
        order = np.argsort(-worth, kind="stable")
        return np.asarray(unknown[order[: max(LEAST_MIDDLE, math.ceil(MIDDLE_STEP * len(unknown)))]])

    def _prove(self, wanted: Wanted, labels: np.ndarray) -> None:
        """Let the bettors see the labels."""
        accepted = self._accepted()[wanted.rows]
        for at, (one, wealth) in enumerate(zip(self._constraints, self._wealth, strict=True)):
            values = one.values(accepted, labels) * self._mass[wanted.rows]
            if wanted.bets:
                wealth.draw(wanted.bets[at], values)
            else:
                wealth.learn(float(values.sum()))
        self._drawn += len(labels) if wanted.bets else 0

    def _accepted(self) -> np.ndarray:
        """Bool [n]: what becomes of each row if it keeps no label."""
        if self._split is None or self._bins is None:
            return self._scores >= {ACCEPT: -math.inf, REJECT: math.inf}.get(self._side, _HALF)
        return np.asarray(self._bins >= self._split)

    def _bought(self) -> int:
        return int((self._labels != UNKNOWN).sum())

    def _output(self) -> float:
        """Rows in the output, as it stands."""
        labelled = self._labels != UNKNOWN
        return float(self._mass[np.where(labelled, self._labels == YES, self._accepted())].sum())

    def _total(self) -> float:
        return float(self._mass[self._labels != NULL].sum())


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    if bool(((scores < 0) | (scores > 1)).any()):
        raise ValueError("scores lie between 0 and 1")
    return scores
