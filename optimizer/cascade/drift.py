"""Whether a cascade meets the rows it was learnt on: profiles of runs, and alarms where they differ.

An alarm changes nothing by itself. Every run labels a sample of its own rows before it trusts a score, which is the
audit; an alarm tells a person that there was a reason for what the audit found. Where nothing has changed, each of the
four rings in about one of 1,000 comparisons.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

SLICES = 101
FALSE_ALARMS = 0.001
_LEAST_SCORE = 1e-3
_BRIDGES = 20_000
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Profile:
    """Of `count` inputs that have a score: log-odds of the `scores` and log(1 + length) of the texts, float [101] each,
    the means over equal slices of the sorted values; the share `delegated`, whose score lies between the `thresholds`,
    NaN where there is none. `positives` is the share of yes among `labels` answers of the oracle to a random sample."""

    count: int
    scores: tuple[float, ...]
    lengths: tuple[float, ...]
    thresholds: tuple[float, float]
    delegated: float
    positives: float
    labels: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values: two kilobytes, whatever `count` is."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Profile:
        """From plain values; `KeyError`, `TypeError` or `ValueError` where they are none of a profile."""
        scores, lengths = (tuple(map(float, found[name])) for name in ("scores", "lengths"))
        if {len(scores), len(lengths)} != {SLICES}:
            raise ValueError(f"a profile has {SLICES} slices")
        low, high = map(float, found["thresholds"])
        delegated, positives = float(found["delegated"]), float(found["positives"])
        return cls(int(found["count"]), scores, lengths, (low, high), delegated, positives, int(found["labels"]))


def profile(scores: np.ndarray, lengths: np.ndarray, thresholds: tuple[float, float], labels: np.ndarray) -> Profile:
    """Of `scores` float [n], NaN where there is none, and `lengths` of texts, number [n]; `labels` int [m] are the
    oracle's answers to a random sample: 1, 0, or -1 for NULL."""
    whole, known = ~np.isnan(scores), labels[labels >= 0]
    clipped = np.clip(scores[whole], _LEAST_SCORE, 1 - _LEAST_SCORE)
    low, high = thresholds
    asked = ~(scores[whole] <= low) & ~(scores[whole] >= high)
    return Profile(
        int(whole.sum()),
        _slices(np.log(clipped / (1 - clipped))),
        _slices(np.log1p(lengths[whole].astype(float))),
        thresholds,
        float(asked.mean()) if len(asked) else 0.0,
        float(known.mean()) if len(known) else 0.0,
        len(known),
    )


def compare(before: Profile, now: Profile) -> tuple[str, ...]:
    """What differs by more than chance does, in words."""
    found = []
    counts = before.count, now.count
    for name, old, new in (
        ("log-odds of the scores", before.scores, now.scores),
        ("log-lengths of the texts", before.lengths, now.lengths),
    ):
        distance, limit = moved(old, new, *counts)
        if distance > limit:
            found.append(f"{name} moved by {distance:.2f} (by chance at most {limit:.2f})")
    if changed(before.delegated, now.delegated, *counts):
        found.append(f"scores between the earlier thresholds went from {before.delegated:.2f} to {now.delegated:.2f}")
    if changed(before.positives, now.positives, before.labels, now.labels):
        found.append(f"positives went from {before.positives:.2f} to {now.positives:.2f}")
    return tuple(found)


def moved(old: tuple[float, ...], new: tuple[float, ...], n: int, m: int) -> tuple[float, float]:
    """The Wasserstein-1 distance of samples of n and m, by their slices, and what it is by chance at most (99.9 %).

    For samples of one distribution with quantile function Q, sqrt(nm / (n + m)) W1 tends to the integral of |B| dQ with
    a Brownian bridge B (del Barrio, Gine and Matran, "Central limit theorems for the Wasserstein distance between the
    empirical and the true distributions", 1999). Q is that of both together; B is drawn often, at the ends of slices.
    """
    if not n or not m:
        return 0.0, math.inf
    pooled = np.concatenate([old, new])
    order = np.argsort(pooled, kind="stable")
    below = np.cumsum(np.repeat([n, m], SLICES)[order])[:-1] / (n + m)
    ends = np.clip(np.rint(below).astype(int), 1, SLICES - 1) - 1
    gaps = np.bincount(ends, np.diff(pooled[order]), SLICES - 1).astype(np.float32)
    limit = float(np.quantile(_bridges() @ gaps, 1 - FALSE_ALARMS))
    return float(np.abs(np.subtract(old, new)).mean()), limit * math.sqrt(1 / n + 1 / m)


def changed(old: float, new: float, n: int, m: int) -> bool:
    """Whether shares of n and of m differ by more than chance: a normal test of arcsines of square roots, which holds
    for rare positives and few rows too (Anscombe, "The transformation of Poisson, binomial and negative-binomial
    data", 1948)."""
    if not n or not m:
        return False
    angles = [math.asin(math.sqrt((share * k + 0.375) / (k + 0.75))) for share, k in ((old, n), (new, m))]
    room = NormalDist().inv_cdf(1 - FALSE_ALARMS / 2) * math.sqrt(1 / (4 * n + 2) + 1 / (4 * m + 2))
    return abs(angles[1] - angles[0]) > room


def _slices(values: np.ndarray) -> tuple[float, ...]:
    """Means over equal slices of the sorted values. Single quantiles would jump where equal values abound, by a whole
    step however little their share has moved; these move as much as the share."""
    if not len(values):
        return (0.0,) * SLICES
    sums = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    ends = np.interp(np.linspace(0, len(values), SLICES + 1), np.arange(len(sums)), sums)
    return tuple(np.round(np.diff(ends) * (SLICES / len(values)), _DIGITS).tolist())


@functools.cache
def _bridges() -> np.ndarray:
    """|B| at the inner ends of slices, float32 [`_BRIDGES`, `SLICES` - 1]: 8 MB, always the same."""
    steps = np.random.default_rng(0).standard_normal((_BRIDGES, SLICES), np.float32)
    walks = np.cumsum(steps, axis=1) / np.float32(math.sqrt(SLICES))
    return np.abs(walks[:, :-1] - walks[:, -1:] * (np.arange(1, SLICES, dtype=np.float32) / SLICES))
