"""Strategy *several*: one prompt puts the question about one left input and several right ones, and a model that writes
texts names those that match (Trummer, "Adaptive semantic join", 2025, has blocks of both sides; here the left text
stands once, so that a list of numbers is the answer).

Answers about many pairs at once are worse than those about one, and not what the query asks for. They only order the
pairs: a learner asks the question itself until recall and precision are proven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.joins.pairs import JudgeTogether, decided

if TYPE_CHECKING:
    from sqluice.optimizer.joins.pairs import Pairs, Strategy
    from sqluice.types import Contract

AT_ONCE = 20
"""Right inputs in one prompt, where they are short enough."""

TRIED = 32
"""Prompts about pairs that have a label already: they tell whether this will do."""

WINDOW = 16_384


def calls(pairs: int) -> float:
    """Calls that it takes."""
    return pairs / AT_ONCE + 400


def search(pairs: Pairs, contract: Contract, generator: np.random.Generator, most_calls: float) -> Strategy:
    """Find the matches; None when some tries show that it would take more than `most_calls`."""
    scores = np.full(len(pairs), np.nan)
    known = np.flatnonzero(pairs.labels >= 0)[:TRIED]
    tried = [known]
    for row in known.tolist():
        beside = np.flatnonzero((pairs.left == pairs.left[row]) & np.isnan(scores))
        tried.append(generator.permutation(beside)[: AT_ONCE - 1])
    rows = np.unique(np.concatenate(tried))
    scores[rows] = yield JudgeTogether(rows)
    told = known[~np.isnan(scores[known])]
    promises = constraints_of(contract)
    foreseen = forecast(scores[told], pairs.labels[told], promises, int(pairs.open.sum()))
    if foreseen + calls(len(pairs)) > most_calls:
        return None
    rest = np.flatnonzero(np.isnan(scores) & pairs.open)
    rest = rest[np.argsort(pairs.left[rest], kind="stable")]
    for start in range(0, len(rest), WINDOW):
        rows = rest[start : start + WINDOW]
        scores[rows] = yield JudgeTogether(rows)
    return (yield from decided(pairs, scores, promises, generator))
