"""Whether a cascade meets the rows it was learnt on: profiles of runs, and alarms where they differ.

An alarm changes nothing by itself. Every run labels a sample of its own rows before it trusts a score, which is the
audit; an alarm tells a person that there was a reason for what the audit found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = 101
RESAMPLES = 200
SIGMAS = 3.29
"""A normal deviate beyond this happens once in a thousand times, on either side."""

_LEAST_LABELS = 30
_LEAST_SCORE = 1e-4


@dataclass(frozen=True, slots=True)
class Profile:
    """Log-odds of the scores of `count` inputs as `quantiles`, float [101]; `positives` is the share of yes among
    `labels` answers of the oracle to a random sample."""

    count: int
    quantiles: tuple[float, ...]
    positives: float
    labels: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "count": self.count,
            "quantiles": [round(one, 6) for one in self.quantiles],
            "positives": self.positives,
            "labels": self.labels,
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Profile:
        """From plain values; `KeyError`, `TypeError` or `ValueError` where they are none of a profile."""
        quantiles = tuple(map(float, found["quantiles"]))
        if len(quantiles) != POINTS:
            raise ValueError(f"a profile has {POINTS} quantiles")
        return cls(int(found["count"]), quantiles, float(found["positives"]), int(found["labels"]))


def profile(scores: np.ndarray, labels: np.ndarray) -> Profile:
    """Of `scores` float [n] and the oracle's `labels` to a random sample, int [m], 1, 0, or -1 for NULL."""
    scores, known = scores[~np.isnan(scores)], labels[labels >= 0]
    scores = np.clip(scores, _LEAST_SCORE, 1 - _LEAST_SCORE)
    quantiles = (
        np.quantile(np.log(scores / (1 - scores)), np.linspace(0, 1, POINTS)) if len(scores) else np.zeros(POINTS)
    )
    return Profile(len(scores), tuple(quantiles.tolist()), float(known.mean()) if len(known) else 0.0, len(known))


def compare(before: Profile, now: Profile) -> tuple[str, ...]:
    """What differs by more than chance does once in a thousand times, in words."""
    alarms = []
    distance, limit = moved(before, now)
    if distance > limit:
        alarms.append(f"log-odds of the scores moved by {distance:.2f} (by chance at most {limit:.2f})")
    if min(before.labels, now.labels) >= _LEAST_LABELS:
        pooled = (before.positives * before.labels + now.positives * now.labels) / (before.labels + now.labels)
        spread = np.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / before.labels + 1 / now.labels))
        if abs(before.positives - now.positives) > SIGMAS * spread:
            alarms.append(f"positives went from {before.positives:.2f} to {now.positives:.2f}")
    return tuple(alarms)


def moved(before: Profile, now: Profile) -> tuple[float, float]:
    """Wasserstein-1 distance of the log-odds, and what it is by chance at most where nothing has changed (99.9 %), from
    resampling the earlier ones with a fixed seed."""
    distance = float(np.abs(np.subtract(before.quantiles, now.quantiles)).mean())
    generator = np.random.default_rng(0)
    places = np.linspace(0, 1, POINTS)
    size = max(1, min(before.count, now.count, 2000))
    found = []
    for _ in range(RESAMPLES):
        one, other = (np.interp(generator.random(size), places, before.quantiles) for _ in range(2))
        found.append(np.abs(np.quantile(one, places) - np.quantile(other, places)).mean())
    rate = np.sqrt(size / 2 * (1 / max(before.count, 1) + 1 / max(now.count, 1)))
    return distance, float((np.mean(found) + SIGMAS * np.std(found)) * rate)
