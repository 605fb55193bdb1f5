"""Strategy *classify*: the values of the side with few of them are labels, and each input of the other side is asked
once how well every label fits (Liskowski et al., "Cortex AISQL", 2025, section 5.3: the join as classification).

What that paper lacks is a repair of recall. Here the scores of the labels only order the pairs: a learner accepts and
rejects by them and asks the question itself about the pairs in between, until recall and precision are proven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.cascade.learner import YES
from sqluice.optimizer.joins.pairs import AskPairs, Outcome, ScoreLabels, decided

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqluice.optimizer.joins.pairs import Pairs, Request, Strategy
    from sqluice.types import Contract

MOST_LABELS = 500
LABELS_AT_ONCE = 32
"""Labels in one call; more are asked about in several."""

LONGEST_LABEL = 120
"""Characters of a label, in the mean."""

TRIED, VERIFIED = 48, 16
WINDOW = 4096


def calls(lefts: int, rights: int) -> float:
    """Calls that it takes, when few pairs have to be verified."""
    return lefts * chunks(rights) + 0.1 * lefts + TRIED + VERIFIED


def chunks(labels: int) -> int:
    """Calls a row."""
    return -(-labels // LABELS_AT_ONCE)


def search(pairs: Pairs, contract: Contract, generator: np.random.Generator, most_calls: float) -> Strategy:
    """Find the matches; None when some tries show that it would take more than `most_calls`."""
    scores = np.full(len(pairs), np.nan)
    tried = _tried(pairs, generator)
    yield from _score(pairs, scores, tried)
    if np.isnan(scores[np.isin(pairs.left, tried)]).all():
        return None
    rows = _verified(pairs, scores, tried, generator)
    if (yield AskPairs(rows, "sample")) < len(rows):
        return Outcome.unfinished(pairs, scores)
    known = np.flatnonzero(~pairs.open & ~np.isnan(scores))
    promises = constraints_of(contract)
    labels = pairs.labels[known]
    left = len(pairs) - len(known)
    foreseen = forecast(scores[known], labels, promises, left)
    if not (labels == YES).any() or foreseen + (pairs.lefts - len(tried)) * chunks(pairs.rights) > most_calls:
        return None
    yield from _score(pairs, scores, np.setdiff1d(np.unique(pairs.left), tried))
    return (yield from decided(pairs, scores, promises, generator))


def _tried(pairs: Pairs, generator: np.random.Generator) -> np.ndarray:
    """Left inputs to begin with: those of pairs that were asked about, and others."""
    seen = np.unique(pairs.left[~pairs.open])
    others = generator.permutation(np.setdiff1d(np.unique(pairs.left), seen))
    return np.concatenate([generator.permutation(seen), others])[:TRIED]


def _score(pairs: Pairs, scores: np.ndarray, lefts: np.ndarray) -> Generator[Request, np.ndarray, None]:
    """Put the scores of all pairs of some left inputs into `scores`. A label's chance is taken beside that of the best
    one: where three labels fit, each has but a third."""
    for start in range(0, len(lefts), WINDOW):
        window = lefts[start : start + WINDOW]
        chances = yield ScoreLabels(window)
        best = np.max(np.nan_to_num(chances), axis=1, keepdims=True)
        place = np.full(pairs.lefts, -1)
        place[window] = np.arange(len(window))
        rows = np.flatnonzero(place[pairs.left] >= 0)
        found = chances / np.sqrt(np.where(best > 0, best, 1.0))
        scores[rows] = np.clip(found[place[pairs.left[rows]], pairs.right[rows]], 0, 1)


def _verified(pairs: Pairs, scores: np.ndarray, lefts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The best pair of some of the left inputs, and as many at random: what fits, and what does not."""
    ready = np.flatnonzero(np.isin(pairs.left, lefts) & pairs.open & ~np.isnan(scores))
    found = list(generator.permutation(ready)[:VERIFIED])
    for left in lefts[:VERIFIED].tolist():
        rows = ready[pairs.left[ready] == left]
        if len(rows):
            found.append(rows[np.argmax(scores[rows])])
    return np.unique(np.array(found, np.int64))
