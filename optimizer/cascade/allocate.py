"""Where the next labels go: how wide the middle is, and how many draws the tails need.

Bins are in the order of scores; those below `split` are rejected where they keep no label, the others accepted. A plan
labels the bins from `low` to `high` fully and proves the tails on both sides by draws. A wider middle leaves fewer
errors in the tails, so that fewer draws prove them: the plan is the pair (low, high) with the least sum. For one
constraint that leaves a gap g between what is allowed and what is expected, and whose estimates have variance s2, a
draw is worth about g^2 / 2 (s2 + g^2) of log wealth (the growth rate of the best bet: Waudby-Smith and Ramdas 2024,
section 5.2). What draws find is repaired, which widens the gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.betting import Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.optimizer.cascade.constraints import Constraint

CANDIDATES = 48
"""Places tried for each end of the middle."""

_SMOOTH = 1e-3
"""Keeps a chance of being drawn for rows that look certain."""

_REFINED = 4


@dataclass(frozen=True, slots=True)
class Open:
    """The rows without a label, per bin float [bins]: how many inputs, how many rows they stand for (`mass`), the rate
    of yes. `labelled_yes` and `total` are rows; `split` is the first accepted bin."""

    inputs: np.ndarray
    mass: np.ndarray
    rate: np.ndarray
    split: int
    labelled_yes: float
    total: float

    @property
    def accepted(self) -> np.ndarray:
        """Bool [bins]: what becomes of a row there without a label."""
        return np.arange(len(self.rate)) >= self.split

    @property
    def errors(self) -> np.ndarray:
        """How likely that is wrong, float [bins]."""
        return np.where(self.accepted, 1 - self.rate, self.rate)

    @property
    def output(self) -> float:
        """Rows in the output, as it stands."""
        return self.labelled_yes + float(self.mass[self.split :].sum())


@dataclass(frozen=True, slots=True)
class Plan:
    """Label bins `low` .. `high` - 1, then make `draws` from the tails; `cost` is labels in all. `guesses` are of the
    draws from the tails, one a constraint."""

    low: int
    high: int
    middle: float
    draws: float
    cost: float
    guesses: tuple[Guess, ...]


def chances(rows: Open, constraints: Sequence[Constraint]) -> np.ndarray:
    """Relative chance of a row to be drawn, float [bins], largest 1: as the root of its part in the variance (Neyman
    1934), over the constraints by how tight they are."""
    squares = np.zeros(len(rows.rate))
    for one in constraints:
        allowed = max(one.allowed(rows.output, rows.total), 1.0)
        squares += (one.weights(rows.accepted) / allowed) ** 2
    root = np.sqrt((rows.errors + _SMOOTH) * squares)
    return np.asarray(np.maximum(root / root.max(), _SMOOTH))


def split_of(rows: Open, constraints: Sequence[Constraint], slack: float = 0.75) -> int:
    """The bin from which rows are accepted: half way through the smallest middle that leaves errors within `slack` of
    what is allowed."""
    inputs, mass = _sums(rows.inputs), _sums(rows.mass)
    yes, no = _sums(rows.mass * rows.rate), _sums(rows.mass * (1 - rows.rate))
    low, high = np.arange(len(inputs))[:, None], np.arange(len(inputs))[None, :]
    missed, wrong = yes[low], no[-1] - no[high]
    output = rows.labelled_yes + yes[high] - yes[low] + mass[-1] - mass[high]
    fits = low <= high
    for one in constraints:
        fits &= one.missed * missed + one.wrong * wrong <= slack * one.allowed(output, rows.total)
    cost = np.where(fits, inputs[high] - inputs[low], np.inf)
    if not np.isfinite(cost).any():
        return int(np.searchsorted(rows.rate, 0.5))
    first, last = np.unravel_index(int(np.argmin(cost)), cost.shape)
    half = (inputs[first] + inputs[last]) / 2
    return int(np.clip(np.searchsorted(inputs, half), first, last))


def plan_of(rows: Open, constraints: Sequence[Constraint], missing: Sequence[float]) -> Plan:
    """The cheapest plan. `missing` is the log wealth that each constraint still has to gain."""
    weight = chances(rows, constraints)
    lows, highs = _candidates(0, rows.split), _candidates(rows.split, len(rows.rate))
    low, high = lows[:, None], highs[None, :]
    inputs, mass, yes = _sums(rows.inputs), _sums(rows.mass), _sums(rows.mass * rows.rate)
    weights = _Ends(rows.mass * weight, low, high).both(1, 1)
    errors = _Ends(rows.mass * rows.errors, low, high)
    spread = _Ends(rows.mass * rows.errors / weight, low, high)
    caught = _Ends(rows.mass * rows.errors * weight, low, high)
    middle = inputs[high] - inputs[low]
    tails = inputs[-1] - middle
    output = rows.labelled_yes + yes[high] - yes[low] + mass[-1] - mass[high]
    draws = np.zeros(middle.shape)
    facts = []
    for one, need in zip(constraints, missing, strict=True):
        expected = errors.both(one.missed, one.wrong)
        variance = np.maximum(spread.both(one.missed**2, one.wrong**2) * weights - expected**2, 1e-9)
        allowed = one.allowed(output, rows.total)
        per_draw = caught.both(one.missed, one.wrong) / np.maximum(weights, 1e-9)
        needed = _draws(allowed - expected, variance, per_draw, max(need, 0.0), tails)
        draws = np.maximum(draws, needed)
        facts.append((expected, variance, allowed, per_draw))
    cost = np.where(draws > tails, inputs[-1], middle + np.minimum(draws, tails))
    row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
    at = int(row), int(column)
    count = float(min(draws[at], tails[at]))
    guesses = tuple(
        Guess(float(expected[at]), float(variance[at]), float(allowed[at] + 0.5 * per_draw[at] * count))
        for expected, variance, allowed, per_draw in facts
    )
    return Plan(int(lows[at[0]]), int(highs[at[1]]), float(middle[at]), count, float(cost[at]), guesses)


def guess_everywhere(rows: Open, constraint: Constraint, chance: np.ndarray, tails: Guess) -> Guess:
    """Of draws from all rows while the middle is open too; `tails` is the guess for when it is not."""
    weight = constraint.weights(rows.accepted)
    expected = float((rows.mass * rows.errors * weight).sum())
    square = float((rows.mass * rows.errors / chance * weight**2).sum() * (rows.mass * chance).sum())
    return Guess(expected, square - expected**2, tails.allowed + expected - tails.expected)


def depths(rows: Open, low: int, high: int) -> np.ndarray:
    """How far inside the middle each of its bins lies, float [high - low]: 1 at the split, 0 at the ends."""
    bins = np.arange(low, high)
    below = (bins - low + 1) / max(rows.split - low, 1)
    above = (high - bins) / max(high - rows.split, 1)
    return np.where(bins < rows.split, below, above)


class _Ends:
    """Sums over the bins below `low` and over those from `high` on, for all pairs of them."""

    def __init__(self, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        sums = _sums(values)
        self.below = sums[low]
        self.above = sums[-1] - sums[high]

    def both(self, below: float, above: float) -> np.ndarray:
        """The two with these weights, float [lows, highs]."""
        return np.asarray(below * self.below + above * self.above)


def _draws(gap: np.ndarray, variance: np.ndarray, per_draw: np.ndarray, need: float, most: np.ndarray) -> np.ndarray:
    """Draws that gain `need` of log wealth; infinite where nothing is allowed."""
    there = gap > 0
    start = np.where(there, gap, 1.0)
    draws = need * 2 * (variance + start**2) / start**2
    for _ in range(_REFINED):
        wider = start + 0.6 * per_draw * np.minimum(draws, most)
        draws = need * 2 * (variance + wider**2) / wider**2
    return np.where(there, draws, np.inf)


def _candidates(first: int, last: int) -> np.ndarray:
    return np.unique(np.linspace(first, last, CANDIDATES).astype(int))


def _sums(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])
