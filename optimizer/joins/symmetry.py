"""A self join whose question does not tell its sides apart asks about each unordered pair once: tested, not assumed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqluice.optimizer.cascade.learner import NULL, UNKNOWN
from sqluice.optimizer.joins.pairs import Pairs

FIRST_TESTED, TESTED = 20, 60
"""Pairs that are asked about both ways: of those drawn at random, and of the matches."""

ASSUMING = "symmetric question"


@dataclass(frozen=True, slots=True)
class Folded:
    """`pairs` has one of each two pairs that are each other turned round; `first` int64 is its number among the pairs
    `whole`, `place` int64 [whole] where each of those went."""

    whole: Pairs
    pairs: Pairs
    first: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, whole: Pairs) -> Folded:
        """Of pairs whose inputs have the same numbers on both sides; labels are kept."""
        low = np.minimum(whole.left, whole.right).astype(np.int64)
        keys = low * whole.rights + np.maximum(whole.left, whole.right)
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        labels = np.full(len(first), UNKNOWN, np.int8)
        known = np.flatnonzero(~whole.open)
        labels[place[known]] = whole.labels[known]
        first[place[known]] = known
        left, right = whole.left[first], whole.right[first]
        mass = np.bincount(place, whole.mass)
        pairs = Pairs(whole.lefts, whole.rights, left, right, mass, labels, whole.unlisted / 2)
        return cls(whole, pairs, first, place)


def turned(pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """The pairs turned round of some pairs, int64 [k]; -1 where that is no other pair of the list."""
    back = pairs.rows_of(pairs.right[rows], pairs.left[rows])
    return np.where(back == rows, -1, back)


def agree(pairs: Pairs, rows: np.ndarray) -> bool:
    """Whether some pairs have the label of their mirror image, as far as both have one."""
    back = turned(pairs, rows)
    there, here = pairs.labels[np.maximum(back, 0)], pairs.labels[rows]
    both = (back >= 0) & (there > NULL) & (here > NULL)
    return bool((there[both] == here[both]).all())
