"""Asks the oracle about pairs of inputs, and keeps what the trace and the report need of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine.operators.ask import HEAD, PROXY, RULE, Routing, marked
from sqluice.engine.run import Given
from sqluice.optimizer.cascade.learner import NULL, YES
from sqluice.optimizer.joins.equivalence import Equivalence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice.engine.run import Run
    from sqluice.optimizer.joins.pairs import Outcome, Pairs

MOST_TRACED = 100_000
"""Pairs decided without a question of their own that get a row in the trace, the likeliest first; others are
counted."""

_WINDOW = 4096
_FEW = 128
"""Pairs asked about at once where later answers may follow from theirs."""


@dataclass(frozen=True)
class Inputs:
    """The distinct inputs of one side: a column of texts for each placeholder in `places`, and how many rows each input
    stands for, int64 [n]. `keys` tell equal inputs of two sides."""

    places: tuple[int, ...]
    texts: list[list[str]]
    n_rows: np.ndarray
    keys: list[Any]

    def __len__(self) -> int:
        return len(self.n_rows)

    @cached_property
    def lines(self) -> list[str]:
        """Each input as one text."""
        return [" ".join(row) for row in zip(*self.texts, strict=True)]

    def taken(self, rows: np.ndarray) -> dict[int, list[str]]:
        """The texts of some inputs by placeholder."""
        return {place: [column[row] for row in rows] for place, column in zip(self.places, self.texts, strict=True)}


class PairAsking:
    """One question about listed pairs of `left` and `right` inputs. Rows are counted once, at the end: until then it
    may turn out that a filter of the pairs has to do it."""

    def __init__(self, run: Run, number: int, left: Inputs, right: Inputs, pairs: Pairs) -> None:
        self._run = run
        self._number = number
        self._left, self._right = left, right
        self.pairs = pairs
        self.asker = run.asker(number)
        self._places = np.full(len(pairs), -1, np.int64)
        self._tiers = np.zeros(len(pairs), np.uint8)
        self._errors: dict[int, str] = {}
        self._equivalence: Equivalence | None = None
        self._shift = 0
        self.contradictions = 0
        """Answers that cannot be those of an equivalence, where the query says that it is one."""

    def infer(self, *, same: bool) -> None:
        """From now on answers may follow from others, since the question is an equivalence; `same` where input k is the
        same on both sides."""
        self._shift = 0 if same else self.pairs.lefts
        self._equivalence = Equivalence(self.pairs.lefts + self.pairs.rights)

    def ask(self, rows: np.ndarray, reason: str, *, whole: bool = False) -> int:
        """Ask the oracle about pairs whose answers do not follow from others; how many have one before a budget is
        spent. With `whole` the others are NULL then, as rows are that a budget leaves out."""
        if self._equivalence is None:
            return self._ask(rows, reason, whole=whole)
        done = 0
        for start in range(0, len(rows), _FEW):
            window = rows[start : start + _FEW]
            told = np.array([self._follows(row) for row in window.tolist()], np.int8)
            self.pairs.labels[window[told >= 0]] = told[told >= 0]
            asked = window[told < 0]
            answered = self._ask(asked, reason, whole=whole)
            for row in asked[:answered].tolist():
                self._learn(row)
            done += len(window) - len(asked) + answered
            if answered < len(asked):
                break
        return done

    def _follows(self, row: int) -> int:
        """The answer to a pair as far as it follows from others, else -1."""
        assert self._equivalence is not None
        equal = self._equivalence.follows(int(self.pairs.left[row]), int(self.pairs.right[row]) + self._shift)
        return -1 if equal is None else int(equal)

    def _learn(self, row: int) -> None:
        assert self._equivalence is not None
        label = int(self.pairs.labels[row])
        if label != NULL:
            left, right = int(self.pairs.left[row]), int(self.pairs.right[row]) + self._shift
            self.contradictions += self._equivalence.learn(left, right, equal=label == YES)

    def audit(self, most: int, generator: np.random.Generator) -> None:
        """Ask about some pairs whose answers follow from others, at most `most`: what the oracle says of them holds."""
        labels = self.pairs.labels
        inferred = np.flatnonzero((self._places < 0) & (labels > NULL))
        parts = [inferred[labels[inferred] == YES], inferred[labels[inferred] != YES]]
        rows = np.sort(np.concatenate([generator.permutation(part)[: most // 2] for part in parts]))
        told = labels[rows].copy()
        done = self._ask(rows, "sample", whole=False)
        self.contradictions += int(((labels[rows] != told) & (labels[rows] > NULL))[:done].sum())

    def _ask(self, rows: np.ndarray, reason: str, *, whole: bool) -> int:
        done = 0
        for start in range(0, len(rows), _WINDOW):
            self._run.runner.stop()
            window = rows[start : start + _WINDOW]
            room = None if whole else self.asker.room()
            wanted = len(window)
            window = window if room is None else window[:room]
            if len(window):
                none = np.zeros(len(window), np.int64)
                self._keep(window, self._run.answers(self._number, self.texts(window), none, reason))
            done += len(window)
            if len(window) < wanted:
                break
        return done

    def _keep(self, rows: np.ndarray, given: Given) -> None:
        values = given.values.cast("int8").fill_null(NULL).to_numpy(zero_copy_only=False)
        self.pairs.labels[rows] = values
        self._places[rows] = given.places
        self._tiers[rows] = given.tiers
        self._errors.update({int(rows[at]): said for at, said in given.errors.items()})

    def texts(self, rows: np.ndarray) -> list[list[str]]:
        """The arguments of pairs, one list a placeholder."""
        both = self._left.taken(self.pairs.left[rows]) | self._right.taken(self.pairs.right[rows])
        return [both[place] for place in sorted(both)]

    @property
    def labels(self) -> int:
        """How many pairs the oracle was asked about."""
        return int((self._places >= 0).sum())

    def asked(self) -> Iterator[tuple[list[list[str]], Given]]:
        """The texts of what the oracle was asked, one list a placeholder, with its answers."""
        import pyarrow as pa

        rows = np.flatnonzero(self._places >= 0)
        for start in range(0, len(rows), _WINDOW):
            window = rows[start : start + _WINDOW]
            labels = self.pairs.labels[window]
            values = pa.array(labels == YES, mask=labels < 0)
            errors = {at: self._errors[row] for at, row in enumerate(window.tolist()) if row in self._errors}
            yield self.texts(window), Given(values, errors, self._places[window], self._tiers[window])

    def count(self) -> None:
        """Count the rows of the pairs that were asked about."""
        asked = np.flatnonzero(self._places >= 0)
        n_rows = self.pairs.mass[asked].astype(np.int64)
        failed = marked(self._errors, len(self.pairs))
        self._run.again(self._number, self._places[asked], n_rows, self._tiers[asked], failed[asked])
        self._add(int(n_rows.sum()))

    def _add(self, rows: int) -> None:
        self.asker.op.rows_in += rows
        self.asker.op.rows_out += rows

    def trace(self, name: str, outcome: Outcome) -> None:
        """Put the pairs that a strategy has decided into the trace, the likeliest of them where they are very many."""
        pairs = self.pairs
        asked = self._places >= 0
        inferred = np.flatnonzero(~asked & ~pairs.open)
        self._decided(
            inferred, pairs.labels[inferred] == YES, np.full(len(inferred), np.nan), Routing(RULE, name, *_NO)
        )
        rows = np.flatnonzero(pairs.open & ~np.isnan(outcome.scores))
        if len(rows) > MOST_TRACED:
            order = np.lexsort((rows, -outcome.scores[rows], ~outcome.accepted[rows]))
            rows = rows[order[:MOST_TRACED]]
        by = Routing(PROXY if name == "classify" else HEAD, name, outcome.tau_low, outcome.tau_high)
        self._decided(rows, outcome.accepted[rows], outcome.scores[rows], by)

    def _decided(self, rows: np.ndarray, accepted: np.ndarray, scores: np.ndarray, by: Routing) -> None:
        import pyarrow as pa

        for start in range(0, len(rows), _WINDOW):
            self._run.runner.stop()
            part = slice(start, start + _WINDOW)
            n_rows = self.pairs.mass[rows[part]].astype(np.int64)
            self._run.decided(self._number, self.texts(rows[part]), n_rows, pa.array(accepted[part]), scores[part], by)
            self._add(int(n_rows.sum()))


_NO = (float("nan"), float("nan"))
