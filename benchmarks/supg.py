"""A baseline: thresholds learnt in one pass by importance sampling, with bounds of the normal approximation.

Written after SUPG (Kang et al., "Approximate selection with guarantees using proxies", VLDB 2020, algorithms 4 and 5),
with the choices that LOTUS makes: one sample for both targets, a tenth of the rows, weights by the root of the score
mixed with a tenth of uniform ones. Rows between the thresholds go to the oracle. Its bounds hold as samples grow.
"""

from __future__ import annotations

import math

import numpy as np

SAMPLE_SHARE = 0.1
UNIFORM_SHARE = 0.1
MOST_CANDIDATES = 200


def decide(
    scores: np.ndarray,
    truth: np.ndarray,
    recall: float,
    precision: float,
    delta: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Answers, bool [n], and which rows the oracle saw, bool [n]."""
    n = len(scores)
    roots = np.sqrt(np.clip(scores, 0, 1))
    chances = (1 - UNIFORM_SHARE) * roots / max(roots.sum(), 1e-12) + UNIFORM_SHARE / n
    sample = generator.choice(n, int(SAMPLE_SHARE * n), p=chances)
    weights = 1 / (n * chances[sample])
    s, y = scores[sample], truth[sample].astype(float)
    low = _low(s, y, weights, recall, delta / 2)
    high = max(_high(s, y, weights, precision, delta / 2), low)
    seen = (scores >= low) & (scores < high)
    seen[sample] = True
    return np.where(seen, truth, scores >= high), seen


def _low(s: np.ndarray, y: np.ndarray, weights: np.ndarray, target: float, delta: float) -> float:
    """The highest threshold that keeps the recall, with a margin for chance."""
    order = np.argsort(-s, kind="stable")
    mass = np.cumsum((weights * y)[order])
    if not mass[-1]:
        return -math.inf
    first = _threshold(s[order], mass, target)
    above = weights * y * (s >= first)
    below = weights * y * (s < first)
    kept, lost = _bound(above, delta / 2, 1), _bound(below, delta / 2, -1)
    return _threshold(s[order], mass, min(kept / max(kept + max(lost, 0.0), 1e-12), 1.0))


def _threshold(s: np.ndarray, mass: np.ndarray, target: float) -> float:
    at = int(np.searchsorted(mass, target * mass[-1] - 1e-12))
    return float(s[min(at, len(s) - 1)])


def _high(s: np.ndarray, y: np.ndarray, weights: np.ndarray, target: float, delta: float) -> float:
    """The lowest threshold that has the precision, with a margin for chance and for all that are tried."""
    candidates = np.unique(np.quantile(s, np.linspace(0, 1, MOST_CANDIDATES)))
    for threshold in candidates:
        here = s >= threshold
        if here.sum() < 2:
            break
        share = np.average(y[here], weights=weights[here])
        spread = weights[here] * (y[here] - share) / weights[here].mean()
        if share - _margin(spread, delta / len(candidates)) >= target:
            return float(threshold)
    return math.inf


def _bound(values: np.ndarray, delta: float, sign: int) -> float:
    return float(values.mean() + sign * _margin(values, delta))


def _margin(values: np.ndarray, delta: float) -> float:
    return float(values.std() / math.sqrt(len(values)) * math.sqrt(2 * math.log(1 / delta)))
