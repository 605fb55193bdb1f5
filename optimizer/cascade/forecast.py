"""What a score would cost as the proxy of a cascade, from a sample of rows that have it and a label."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.allocate import Open, plan_of, split_of
from sqluice.optimizer.cascade.rates import bins_of, rates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.optimizer.cascade.constraints import Constraint

LABELS_PER_BIN = 12


def forecast(
    scores: np.ndarray, labels: np.ndarray, constraints: Sequence[Constraint], inputs: int, *, matches: bool = False
) -> float:
    """Labels that `inputs` more rows would take, when they are as the sample: `scores` float [m] in [0, 1], `labels`
    int [m], 1, 0, or -1 for NULL. With `matches` a label says whether the proxy's answer was the oracle's."""
    known = (labels >= 0) & ~np.isnan(scores)
    if known.sum() < 2 or not inputs:
        return float(inputs)
    scores, labels = scores[known], labels[known]
    bins, means = bins_of(scores, max(2, len(scores) // LABELS_PER_BIN))
    n = len(means)
    counts = np.bincount(bins, minlength=n).astype(float)
    rate = rates(means, np.bincount(bins, labels, minlength=n), counts)
    mass = counts * inputs / len(scores)
    rows = Open(mass, mass, rate, 0, float((labels == 1).sum()), float(inputs + len(labels)))
    if not matches:
        rows = replace(rows, split=split_of(rows, constraints))
    return plan_of(rows, constraints, [math.log(1 / one.delta) for one in constraints]).cost
