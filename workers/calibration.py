"""Where yes begins: thresholds from a fixed set of reference texts, without labels and without the batch.

A small model prefers some words whatever the text says. Contextual calibration (Zhao et al. 2021, "Calibrate
Before Use") measures that preference on texts that say nothing and takes it off. One content-free text is a
noisy measure, so this uses the 28 short texts below: praise, complaints, news and notices of many topics.

Two cases differ. Between opposites (positive / negative) the reference texts are balanced, and their mean is
the threshold. Where the question is whether something is there at all (`is about crude oil`), nearly all of
them are a "no": yes begins where a text stands out from them, `OUTLIER` standard deviations above their mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "1"

OUTLIER = 2.5
"""Standard deviations above the reference texts at which something counts as present. Best of 1 to 3 on eight
news topics; between 2 and 3 the accuracy moves by .03."""

PRAISE = (
    "What a lovely stay! The staff were kind and our room was spotless.",
    "Her new album is a joy from the first song to the last.",
    "Fast delivery, great price, works exactly as described.",
    "The best pizza in town, we will be back soon.",
    "A gripping story with wonderful characters; I could not put it down.",
    "My daughter adores her new teacher and learns so much.",
    "Support answered within minutes and solved everything.",
    "The garden looks beautiful this spring.",
)
COMPLAINTS = (
    "The parcel arrived two weeks late and the box was crushed. I want my money back.",
    "The battery died after a day and the screen flickers. Avoid this phone.",
    "Cold food, rude waiters, never again.",
    "A dull plot, flat jokes and two hours of my life wasted.",
    "The app crashes whenever I open it.",
    "Our flight was cancelled and nobody told us anything.",
    "The hotel was dirty and the noise kept us awake.",
    "He lost his keys and missed the last bus.",
)
PLAIN = (
    "Heavy snow closed three mountain roads on Monday, officials said.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "The central bank raised its main rate by a quarter point.",
    "How do I reset my password? The link you sent has expired.",
    "The meeting starts at nine in room four.",
    "Scientists found a new species of frog in the rain forest.",
    "The team won the match by two goals to one.",
    "Please send the signed contract before Friday.",
    "N/A",
    "The museum is open from ten to five.",
    "Parliament will vote on the new school law next week.",
    "Water boils at one hundred degrees.",
)
REFERENCES = (*PRAISE, *COMPLAINTS, *PLAIN)


def reference_args(count: int) -> list[tuple[str, ...]]:
    """Arguments for a template with `count` placeholders: reference texts, unlike each other within a row."""
    n = len(REFERENCES)
    return [tuple(REFERENCES[(at + 11 * slot) % n] for slot in range(count)) for at in range(n)]


def scales(scores: np.ndarray) -> np.ndarray:
    """Float32 [k]: factors that give every choice the same spread over the reference texts.

    `scores` float [m, k] are raw log-probabilities of the reference texts. A long label's log-probability
    varies more than a short one's and would win and lose by that alone. The mean spread is kept.
    """
    spread = np.asarray(scores, dtype=np.float64).std(axis=0)
    if not np.isfinite(spread).all() or (spread <= 1e-6).any():
        return np.ones(scores.shape[1], dtype=np.float32)
    return np.asarray(spread.mean() / spread, dtype=np.float32)


def bias(scores: np.ndarray) -> np.ndarray:
    """Float32 [k]: the mean score of each choice over the reference texts `scores` [m, k]."""
    mean: np.ndarray = np.asarray(scores, dtype=np.float64).mean(axis=0)
    return mean.astype(np.float32)


def presence_bias(scores: np.ndarray, yes: int = 0) -> np.ndarray:
    """As `bias`, with the threshold of column `yes` over the other moved to where a text stands out."""
    found = bias(scores)
    margin = scores[:, yes].astype(np.float64) - np.delete(scores, yes, axis=1).max(axis=1)
    found[yes] += np.float32(OUTLIER * margin.std())
    return found


def expected(log_scores: np.ndarray, grades: Sequence[float]) -> np.ndarray:
    """Float64 [n]: mean grade under the softmax of calibrated scores [n, k]."""
    shifted = np.exp(log_scores - log_scores.max(axis=1, keepdims=True))
    weights = shifted / shifted.sum(axis=1, keepdims=True)
    grade: np.ndarray = weights @ np.asarray(grades, dtype=np.float64)
    return grade
