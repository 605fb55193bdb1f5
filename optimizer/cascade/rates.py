"""How often the oracle says yes at each score, from the labels so far. A guess: no proof rests on it.

Scores are put into bins of about equal size; equal scores share a bin. A cubic logistic curve through all labels is
the prior of each bin, and the bins' own labels bend it as far as they are many; then the rates are made to rise with
the score (pool adjacent violators: Ayer et al. 1955).
"""

from __future__ import annotations

import numpy as np

from sqluice.optimizer.cascade.logistic import logistic, sigmoid

MOST_BINS = 256
PRIOR_LABELS = 4.0
_LEAST = 1e-4
_RIDGE = 1e-2


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
    features = np.stack([np.ones_like(logit), logit, logit**2, logit**3], axis=1)
    curve = sigmoid(features @ logistic(features, yes, labels, np.array([_LEAST, _RIDGE, _RIDGE, _RIDGE])))
    rising = _rising(yes + PRIOR_LABELS * curve, labels + PRIOR_LABELS)
    return np.asarray(np.clip(rising, _LEAST, 1 - _LEAST))


def _rising(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to sums / counts in weighted squares."""
    pools: list[tuple[float, float, int]] = []
    for total, count in zip(sums.tolist(), counts.tolist(), strict=True):
        pools.append((total, count, 1))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = (pools[-1][0] + last[0], pools[-1][1] + last[1], pools[-1][2] + last[2])
    return np.repeat([total / count for total, count, _ in pools], [length for *_, length in pools])
