"""How often the oracle says yes at each score, from the labels so far. A guess: no proof rests on it.

Scores are put into bins of about equal size; equal scores share a bin. A cubic logistic curve through all labels is
the prior of each bin, and the bins' own labels bend it as far as they are many; then the rates are made to rise with
the score (pool adjacent violators: Ayer et al. 1955).
"""

from __future__ import annotations

import numpy as np

MOST_BINS = 256
PRIOR_LABELS = 4.0
_LEAST = 1e-4
_RIDGE = 1e-2
_STEPS = 30


def bins_of(scores: np.ndarray, most: int = MOST_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Bin of each score, int [n], in the order of scores; and the mean score of each bin, float [bins]."""
    distinct, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    cuts = np.unique(np.searchsorted(ends, np.linspace(0, len(scores), most + 1)[1:-1]))
    bins = np.searchsorted(cuts, np.arange(len(distinct)))
    _, bins = np.unique(bins, return_inverse=True)
    bins = bins[place]
    return bins, np.bincount(bins, scores) / np.bincount(bins)


def rates(scores: np.ndarray, yes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rate of yes per bin, float [bins], rising; from `yes` out of `labels`, float [bins], at mean `scores`."""
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    logit = np.log(clipped / (1 - clipped))
    logit = (logit - logit.mean()) / (logit.std() + 1e-9)
    curve = _logistic(np.stack([np.ones_like(logit), logit, logit**2, logit**3], axis=1), yes, labels)
    rising = _rising(yes + PRIOR_LABELS * curve, labels + PRIOR_LABELS)
    return np.asarray(np.clip(rising, _LEAST, 1 - _LEAST))


def _logistic(features: np.ndarray, yes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities by ridge logistic regression, Newton's steps kept short."""
    weights = np.zeros(features.shape[1])
    ridge = np.full(features.shape[1], _RIDGE)
    ridge[0] = _LEAST
    for _ in range(_STEPS):
        chance = _sigmoid(features @ weights)
        slope = features.T @ (yes - labels * chance) - ridge * weights
        curvature = (features * (labels * chance * (1 - chance))[:, None]).T @ features + np.diag(ridge)
        step = np.clip(np.linalg.solve(curvature, slope), -2, 2)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return _sigmoid(features @ weights)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _rising(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to sums / counts in weighted squares."""
    pools: list[tuple[float, float, int]] = []
    for total, count in zip(sums.tolist(), counts.tolist(), strict=True):
        pools.append((total, count, 1))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = (pools[-1][0] + last[0], pools[-1][1] + last[1], pools[-1][2] + last[2])
    return np.repeat([total / count for total, count, _ in pools], [length for *_, length in pools])
