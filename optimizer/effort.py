"""What a model's answer takes, in seconds or joules, by its tokens:

    E(n_in, n_out) = e0 + a n_in + b n_in^2 + c n_out + d n_in n_out + f n_out^2,   no coefficient below 0

fitted by non-negative least squares (Lawson and Hanson 1974) on micro-batches of earlier runs. Errors count relative to
what was measured, so that short texts are not drowned by long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_BATCHES = 8
"""Fewer tell too little for six coefficients."""

_SCALE = 1000.0
"""Tokens are taken in thousands: powers of them then have about one size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A micro-batch that was run: `spent` seconds or joules on `rows` rows with these tokens altogether."""

    rows: int
    tokens_in: int
    tokens_out: int
    spent: float


@dataclass(frozen=True, slots=True)
class Effort:
    """e0, a, b, c, d, f for thousands of tokens, and the mean tokens of the rows it was fitted on."""

    coefficients: tuple[float, ...]
    tokens_in: float
    tokens_out: float

    def of(self, rows: float, tokens_in: float, tokens_out: float) -> float:
        """What `rows` rows with these tokens altogether are expected to take."""
        if not rows:
            return 0.0
        return float(_features(np.array([[rows, tokens_in, tokens_out]], np.float64))[0] @ np.array(self.coefficients))

    def usual(self) -> float:
        """What a row like those before is expected to take."""
        return self.of(1, self.tokens_in, self.tokens_out)


def fit(samples: Sequence[Sample]) -> Effort | None:
    """The model of some micro-batches; None where there are too few that took anything."""
    from scipy.optimize import nnls

    used = [one for one in samples if one.rows > 0 and one.spent > 0]
    if len(used) < LEAST_BATCHES:
        return None
    counts = np.array([[one.rows, one.tokens_in, one.tokens_out] for one in used], np.float64)
    spent = np.array([one.spent for one in used])
    found, _ = nnls(_features(counts) / spent[:, None], np.ones(len(used)))
    means = counts[:, 1:].sum(axis=0) / counts[:, 0].sum()
    return Effort(tuple(found.tolist()), float(means[0]), float(means[1]))


def _features(counts: np.ndarray) -> np.ndarray:
    """Float64 [n, 6] from rows and tokens [n, 3]; the rows of a micro-batch count as alike, which packing by length
    makes them."""
    rows = counts[:, :1]
    n_in, n_out = (counts[:, at : at + 1] / rows / _SCALE for at in (1, 2))
    found: np.ndarray = rows * np.hstack([np.ones_like(rows), n_in, n_in**2, n_out, n_in * n_out, n_out**2])
    return found
