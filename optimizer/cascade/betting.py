"""An upper bound on what is left in a finite population, from weighted samples without replacement, at any time.

The population is the rows without a label; each has an unknown value v_i >= 0 and the sum of all of them is T. A draw
takes row i with a probability q_i that may depend on everything seen before, and v_i / q_i is an unbiased estimate of
the sum of what is left. Against "T >= m" one bets that the estimates come out low:

    K_t(m) = prod_s (1 + lambda_s (m - found_s - v_s / q_s))

never has an expectation above 1 where T >= m, so it exceeds 1 / delta with probability delta at most (Ville), however
the draws, the bets and the time to stop were chosen. K_t grows with m, hence one process serves every m at once.
Sources: Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement" (2020), section 3, and
"Estimating means of bounded random variables by betting" (2024), section 5; Shekhar, Xu, Lipton, Liang and Ramdas,
"Risk-limiting financial audits via weighted sampling without replacement" (2023), section 3. Rows whose label is
bought without a draw just leave the population: which ones is decided by the past alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SPREAD = np.array([0.5, 1.0, 1.5])
"""Bets as multiples of the one that looks best; the process is the mean of theirs."""

MOST_LOST = 0.8
"""A bet never loses more than this share of its stake on one draw."""

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Guess:
    """What is expected of draws: the sum that is left, the variance of an estimate of it, and the sum to refute."""

    expected: float
    variance: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Bet:
    """Draws in their order, float [k]: the `chances` with which each was drawn from what was left then, and the `most`
    that value / chance could have been. The `guess` rests on what was known before them."""

    chances: np.ndarray
    most: np.ndarray
    guess: Guess

    def first(self, k: int) -> Bet:
        """Only the first k draws."""
        return Bet(self.chances[:k], self.most[:k], self.guess)


class Wealth:
    """One bettor against one constraint. `found` is the sum of values labelled so far."""

    def __init__(self, delta: float) -> None:
        self.delta = delta
        self.found = 0.0
        self._bets: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        self._least = -math.inf

    def learn(self, value: float) -> None:
        """Rows that were labelled without a draw had `value` in sum."""
        self.found += value

    def draw(self, bet: Bet, values: np.ndarray) -> None:
        """What the rows of some draws turned out to be worth, float [k]."""
        guess, most = bet.guess, bet.most
        before = self.found + np.concatenate([[0.0], np.cumsum(values)[:-1]])
        gap = max(guess.allowed - guess.expected, 0.02 * guess.allowed, _TINY)
        best = gap / (max(guess.variance, _TINY) + gap * gap)
        cap = MOST_LOST / np.maximum(most - 0.9 * guess.allowed, 1e-9)
        bets = np.minimum(best * SPREAD, cap[:, None])
        self._bets.append(bets)
        self._losses.append(before + values / bet.chances)
        self._least = max(self._least, float((most[:, None] + before[:, None] - 1 / bets).max()))
        self.found += float(values.sum())

    def log_wealth(self, total: float) -> float:
        """log K(m) at m = `total`; -inf where a bet was too high for that m to stay above zero."""
        if not self._bets:
            return 0.0
        if total < self._least:
            return -math.inf
        bets, losses = np.concatenate(self._bets), np.concatenate(self._losses)
        with np.errstate(divide="ignore"):
            logs = np.log1p(np.maximum(bets * (total - losses[:, None]), -1.0)).sum(axis=0)
        top = float(logs.max())
        return top + math.log(float(np.exp(logs - top).mean())) if math.isfinite(top) else -math.inf

    def missing(self, allowed: float) -> float:
        """How much log K has to grow until it is proven that at most `allowed` is left; 0 or less when it is."""
        return math.log(1 / self.delta) - self.log_wealth(self.found + allowed)

    def bound(self, most: float) -> float:
        """The least that is proven to be left at most, between 0 and `most`, to a thousandth of `most`."""
        low, high = 0.0, most
        if self.missing(most) > 0:
            return most
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (low, middle) if self.missing(middle) <= 0 else (middle, high)
        return high


def draw(weights: np.ndarray, k: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`k` of the rows, drawn one after the other with chances as `weights` among what is left: positions int [k] in
    the order of the draws, and the sum of weights float [k] before each.

    Exponential clocks with these rates ring in that order (Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006).
    """
    clocks = generator.exponential(size=len(weights)) / weights
    k = min(k, len(weights))
    rang = np.argpartition(clocks, k - 1)[:k] if k < len(weights) else np.arange(k)
    rang = rang[np.argsort(clocks[rang])]
    taken = weights[rang]
    left = weights.sum() - np.concatenate([[0.0], np.cumsum(taken)[:-1]])
    return rang, np.maximum(left, taken)
