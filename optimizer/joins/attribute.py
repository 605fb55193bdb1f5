"""Strategy *factor by attribute*: the question compares one attribute of both sides ("the same country", "opposite
sentiment"), so the attribute is asked for once per input, and SQL compares.

Which attribute, and whether it is to be the same, comes from the wording of the prompt (`detect.py`). That is a
proposal: pairs that were asked about tell how well it foretells the answers, and a learner proves the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.joins.detect import labels_of
from sqluice.optimizer.joins.pairs import NameAttribute, decided

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqluice.optimizer.joins.detect import Detection
    from sqluice.optimizer.joins.pairs import Pairs, Request, Strategy
    from sqluice.types import Contract

UNSURE = 0.02
"""What is left for values that were named otherwise."""

_CHUNK = 1_000_000


def calls(lefts: int, rights: int, *, same: bool) -> float:
    """Calls that it takes; `same` where both sides hold the same texts."""
    return lefts + (0 if same else rights) + 400


def search(
    pairs: Pairs,
    contract: Contract,
    generator: np.random.Generator,
    most_calls: float,
    detection: Detection,
    *,
    same: bool,
) -> Strategy:
    """Find the matches; None when the pairs that have a label already, drawn at random, are not foretold well enough
    to ask about at most `most_calls` others. With `same` input k is the same text on both sides."""
    assert detection.attribute is not None
    known = np.flatnonzero(pairs.labels >= 0)
    inputs = [np.unique(pairs.left), np.unique(pairs.right)]
    inputs = [np.union1d(*inputs)] if same else inputs
    seen = [np.unique(pairs.left[known]), np.unique(pairs.right[known])]
    seen = [np.union1d(*seen)] if same else seen
    sizes = (pairs.lefts,) if same else (pairs.lefts, pairs.rights)
    width = max(len(labels_of(detection.attribute)), 1)
    found = [np.full((n, width), np.nan) for n in sizes]
    for tried in (True, False):
        for side, values in enumerate(found):
            wanted = seen[side] if tried else np.setdiff1d(inputs[side], seen[side])
            yield from _name(values, side, wanted, detection.attribute)
        scores = _scores(pairs, found[0], found[-1], detection)
        if tried:
            promises = constraints_of(contract)
            foreseen = forecast(scores[known], pairs.labels[known], promises, int(pairs.open.sum()))
            if foreseen + sum(map(len, inputs)) > most_calls:
                return None
    return (yield from decided(pairs, scores, promises, generator))


def _name(values: np.ndarray, side: int, inputs: np.ndarray, attribute: str) -> Generator[Request, np.ndarray, None]:
    """Put the attribute of some inputs into `values`."""
    if len(inputs):
        values[inputs] = yield NameAttribute(side, inputs, attribute)


def _scores(pairs: Pairs, left: np.ndarray, right: np.ndarray, detection: Detection) -> np.ndarray:
    """How likely each pair is a match; one half where the attribute of one of its inputs is not known."""
    scores = np.full(len(pairs), 0.5)
    for start in range(0, len(pairs), _CHUNK):
        part = slice(start, start + _CHUNK)
        a, b = left[pairs.left[part]], right[pairs.right[part]]
        together = (a * b).sum(axis=1) if left.shape[1] > 1 else (a == b)[:, 0].astype(float)
        alike = np.clip(together, UNSURE, 1 - UNSURE)
        alike[np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1)] = 0.5
        scores[part] = alike if detection.relation == "same" else 1 - alike
    return scores
