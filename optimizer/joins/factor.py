"""Strategy *factor*: the question about a pair is a plain relation between a class of each side, as in "express
opposite sentiment" or "are about the same topic": one or two calls a row find its class, and SQL does the rest.

No name of the attribute is needed. A small block of pairs shows whether rows fall into few kinds by how they answer
to the same partners, and which kinds match; each further row is asked about beside *anchors*, one row of each kind
that tells kinds apart. (Its matrix of answers has few different rows: the block model of Holland, Laskey and
Leinhardt, "Stochastic blockmodels", 1983.) The kinds only propose: a learner draws pairs and proves recall and
precision, or asks about all that they leave open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.cascade.learner import YES
from sqluice.optimizer.joins.pairs import AskPairs, Outcome, decided

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqluice.optimizer.joins.pairs import Pairs, Request, Strategy
    from sqluice.types import Contract

BLOCK = 12
"""Rows of each side in the block."""

AGREEMENTS = (0.87, 0.75)
"""Share of their common answers that two rows of a kind share: the second is tried where answers are noisy."""

LEAST_EXPLAINED = 0.92
"""Share of the block that kinds have to explain."""

MOST_KINDS = 6
UNSURE = 0.02
"""What is left for errors of a kind that has shown none."""

ROUNDS = 3
"""Anchors of a kind that a row is asked about beside, where one leaves too many pairs in doubt."""

FEW = 0.1
"""A share of the pairs: where the proof is expected to ask about more, rows are placed once more."""


@dataclass(slots=True)
class _Side:
    """One side's kinds: log-likelihoods `votes` float [inputs, kinds], 0 while nothing was asked; `members` are rows of
    the block by kind."""

    votes: np.ndarray
    members: list[list[int]]

    @property
    def kind(self) -> np.ndarray:
        """The likeliest kind of each input, int [inputs], -1 where nothing is known."""
        return np.asarray(np.where(self.votes.any(axis=1), self.votes.argmax(axis=1), -1))


def calls(lefts: int, rights: int, *, same: bool) -> float:
    """Calls that it takes with two kinds a side; `same` where both sides hold the same texts, in a question that does
    not tell its sides apart."""
    return BLOCK * BLOCK + lefts + (0 if same else rights) + 150


def search(
    pairs: Pairs, contract: Contract, generator: np.random.Generator, most_calls: float, *, same: bool
) -> Strategy:
    """Find the matches; None when the block shows no kinds, or too many. With `same` input k is the same text on both
    sides. Pairs that have a label already, drawn at random, tell how well the kinds do."""
    checked = np.flatnonzero(~pairs.open)
    lefts = generator.permutation(np.unique(pairs.left))[:BLOCK]
    rights = lefts if same else generator.permutation(np.unique(pairs.right))[:BLOCK]
    whole = np.stack(np.meshgrid(lefts, rights, indexing="ij"), axis=-1).reshape(-1, 2)
    rows = pairs.rows_of(whole[:, 0], whole[:, 1])
    rows = np.unique(rows[rows >= 0])
    if (yield from _ask(pairs, rows, "sample")):
        return Outcome.unfinished(pairs, np.full(len(pairs), np.nan))
    shared = same and _symmetric(pairs, lefts)
    answers = _answers(pairs, lefts, rights, shared=shared)
    found = next(filter(None, (_told(answers, least, shared=shared) for least in AGREEMENTS)), None)
    if found is None:
        return None
    row_kinds, column_kinds = found
    relation = _relation(answers, row_kinds, column_kinds)
    left = _side(pairs.lefts, lefts, row_kinds)
    right = left if shared else _side(pairs.rights, rights, column_kinds)
    needed = _calls_a_row(relation) * pairs.lefts + (0 if shared else _calls_a_row(relation.T) * pairs.rights)
    if needed > most_calls:
        return None
    promises = constraints_of(contract)
    for at in range(ROUNDS):
        spent = yield from _place(pairs, left, right, relation, at, swapped=False, shared=shared)
        if not spent and not shared:
            spent = yield from _place(pairs, right, left, relation.T, at, swapped=True, shared=False)
        scores = _scores(pairs, left, right, relation)
        if spent:
            return Outcome.unfinished(pairs, scores)
        left_open = int(pairs.open.sum())
        foreseen = forecast(scores[checked], pairs.labels[checked], promises, left_open)
        if foreseen <= FEW * len(pairs):
            break
    return (yield from decided(pairs, scores, promises, generator)) if foreseen <= most_calls else None


def _ask(pairs: Pairs, rows: np.ndarray, reason: str) -> Generator[Request, int, bool]:
    """Ask about pairs that have no label; whether the budget ended it."""
    rows = rows[pairs.open[rows]]
    return bool(len(rows)) and (yield AskPairs(rows, reason)) < len(rows)


def _symmetric(pairs: Pairs, inputs: np.ndarray) -> bool:
    """Whether all pairs of the block that were asked both ways had the same answer."""
    a, b = np.meshgrid(inputs, inputs, indexing="ij")
    there, back = pairs.rows_of(a.ravel(), b.ravel()), pairs.rows_of(b.ravel(), a.ravel())
    both = (there >= 0) & (back >= 0)
    return bool((pairs.labels[there[both]] == pairs.labels[back[both]]).all())


def _answers(pairs: Pairs, lefts: np.ndarray, rights: np.ndarray, *, shared: bool) -> np.ndarray:
    """The oracle's answers, float [lefts, rights], NaN where there is none; of a shared side those of the pair turned
    round do as well."""
    a, b = (part.ravel() for part in np.meshgrid(lefts, rights, indexing="ij"))
    rows = pairs.rows_of(a, b)
    if shared:
        rows = np.where(rows >= 0, rows, pairs.rows_of(b, a))
    found = np.where(rows >= 0, pairs.labels[rows], -1).astype(float)
    found[found < 0] = np.nan
    return found.reshape(len(lefts), len(rights))


def _told(answers: np.ndarray, least: float, *, shared: bool) -> tuple[list[int], list[int]] | None:
    """Kinds of rows and columns; None where they are too many, or do not explain the answers."""
    rows = _kinds(answers, least)
    columns = rows if shared else _kinds(answers.T, least)
    most = max(*rows, *columns) + 1
    good = 2 <= most <= MOST_KINDS and _explained(answers, rows, columns) >= LEAST_EXPLAINED
    return (rows, columns) if good else None


def _kinds(answers: np.ndarray, least: float) -> list[int]:
    """Kind of each row: rows that agree with the first of a kind on all but a few columns are of that kind."""
    leaders: list[int] = []
    kinds = []
    for at, row in enumerate(answers):
        for kind, leader in enumerate(leaders):
            both = ~np.isnan(row) & ~np.isnan(answers[leader])
            if both.any() and (row[both] == answers[leader][both]).mean() >= least:
                kinds.append(kind)
                break
        else:
            kinds.append(len(leaders))
            leaders.append(at)
    return kinds


def _relation(answers: np.ndarray, rows: list[int], columns: list[int]) -> np.ndarray:
    """Share of yes between kinds, float [row kinds, column kinds]; one half where nothing was seen."""
    found = np.full((max(rows) + 1, max(columns) + 1), 0.5)
    for a in range(found.shape[0]):
        for b in range(found.shape[1]):
            cells = answers[np.ix_(np.equal(rows, a), np.equal(columns, b))]
            if (~np.isnan(cells)).any():
                found[a, b] = np.clip(np.nanmean(cells), UNSURE, 1 - UNSURE)
    return found


def _explained(answers: np.ndarray, rows: list[int], columns: list[int]) -> float:
    """Share of the answers that are those of their kinds."""
    said = _relation(answers, rows, columns)[np.ix_(rows, columns)] > 0.5
    known = ~np.isnan(answers)
    return float((said[known] == (answers[known] > 0.5)).mean()) if known.any() else 0.0


def _side(n: int, inputs: np.ndarray, kinds: list[int]) -> _Side:
    votes = np.zeros((n, max(kinds) + 1))
    votes[inputs] = math.log(UNSURE) * ROUNDS
    votes[inputs, kinds] = math.log(1 - UNSURE)
    members: list[list[int]] = [[] for _ in range(max(kinds) + 1)]
    for one, its in zip(inputs.tolist(), kinds, strict=True):
        members[its].append(one)
    return _Side(votes, members)


def _anchors(relation: np.ndarray) -> list[int]:
    """Column kinds that tell all row kinds apart, the fewest that a greedy choice finds."""
    said = relation > 0.5
    chosen: list[int] = []
    while len(np.unique(said[:, chosen], axis=0)) < len(np.unique(said, axis=0)):
        rest = [at for at in range(said.shape[1]) if at not in chosen]
        chosen.append(max(rest, key=lambda at: len(np.unique(said[:, [*chosen, at]], axis=0))))
    return chosen


def _calls_a_row(relation: np.ndarray) -> int:
    return max(len(_anchors(relation)), 1)


def _place(
    pairs: Pairs, side: _Side, other: _Side, relation: np.ndarray, number: int, *, swapped: bool, shared: bool
) -> Generator[Request, int, bool]:
    """Find the kind of every input of `side` by asking about it beside anchors, from `number` on among those of their
    kind; whether the budget ended it."""
    inputs = np.unique(pairs.right if swapped else pairs.left)
    if shared:
        inputs = np.union1d(inputs, pairs.right)
    todo = np.setdiff1d(inputs, np.concatenate([np.array(its, int) for its in side.members]))
    anchors = _anchors(relation)
    if not anchors:  # kinds that match alike are one
        side.votes[todo, int(np.argmax(list(map(len, side.members))))] = 1.0
    for kind in anchors:
        rows = _beside(pairs, todo, other.members[kind][number:], swapped=swapped, shared=shared)
        if (yield from _ask(pairs, np.unique(rows[rows >= 0]), "uncertain")):
            return True
        labels = np.where(rows >= 0, pairs.labels[rows], -1)[:, None]
        votes = np.log(np.where(labels == YES, relation[:, kind], 1 - relation[:, kind]))
        side.votes[todo] += np.where(labels < 0, 0.0, votes)
    return False


def _beside(pairs: Pairs, inputs: np.ndarray, anchors: list[int], *, swapped: bool, shared: bool) -> np.ndarray:
    """The pair of each input with the first anchor that it has a pair with, -1 where there is none."""
    found = np.full(len(inputs), -1)
    for anchor in anchors:
        fixed = np.full(len(inputs), anchor)
        ways = [(fixed, inputs) if swapped else (inputs, fixed)]
        if shared:
            ways.append((fixed, inputs))
        for left, right in ways:
            missing = found < 0
            found[missing] = pairs.rows_of(left[missing], right[missing])
    return found


def _scores(pairs: Pairs, left: _Side, right: _Side, relation: np.ndarray) -> np.ndarray:
    """How likely each pair is a match by the kinds of its inputs; one half where one of them is not known."""
    a, b = left.kind[pairs.left], right.kind[pairs.right]
    return np.asarray(np.where((a >= 0) & (b >= 0), relation[a, b], 0.5))
