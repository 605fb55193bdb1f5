"""The best k rows by AI_SCORE without a score for every row.

    ORDER BY AI_SCORE(x) DESC LIMIT k

A head learns from a sample which rows score high, and the oracle is asked about the likeliest ones until a batch brings
nothing new into the best k. The k-th best score is then a mark that can only rise; rows above it that were not asked
are what is missing. A learner bounds their number, as it bounds the rows that a filter misses: at most (1 - recall) k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice.engine.operators.ask import HEAD, Routing
from sqluice.engine.operators.cascade import Cascading
from sqluice.optimizer.cascade import head
from sqluice.optimizer.cascade.constraints import Constraint
from sqluice.optimizer.cascade.learner import REJECT, UNKNOWN, Learner

if TYPE_CHECKING:
    import pyarrow as pa

    from sqluice.engine.operators.inputs import Inputs
    from sqluice.engine.report import CascadeReport
    from sqluice.engine.run import Run
    from sqluice.optimizer.plan import Cascade

SAMPLE = 400
HIGH = 0.85
"""What a head learns to find in a sample: rows above this quantile."""

LEAST_BATCH = 64
CHEAP = 0.3
"""A head that costs more than this share of the oracle is not tried."""


class TopK(Cascading):
    """One scoring question of which the best k rows are wanted."""

    def __init__(self, run: Run, number: int, cascade: Cascade, inputs: Inputs) -> None:
        super().__init__(run, number, cascade, inputs)
        self._scored = np.full(len(inputs), np.nan)
        """The oracle's scores, NaN where there is none."""

    def decide(self) -> CascadeReport:
        """Answer what may be among the best k, leave the rest NULL; what it came to."""
        k = self._cascade.top
        self._look_up(self._everything)
        self._ask(self._open(self._everything)[: self._affordable(SAMPLE)], "sample")
        sample = np.flatnonzero(~np.isnan(self._scored))
        if k * 4 > len(self._inputs):
            return self._exact("k is a large part of the rows")
        if not self._cascade.forced and self._embedding_usd(sample[:LEAST_BATCH]) > CHEAP * self._oracle_usd():
            return self._exact("no score would save enough")
        chances = self._trained(sample)
        self._climb(chances, k)
        return self._proven(chances, k)

    def _embedding_usd(self, rows: np.ndarray) -> float:
        self._scoring.features(rows)
        return self._scoring.usd / max(len(rows), 1)

    def _trained(self, sample: np.ndarray) -> np.ndarray:
        """How likely each input scores high, float [n]; those of the sample by heads that have not seen them."""
        high = self._scored[sample] >= np.quantile(self._scored[sample], HIGH)
        generator = np.random.default_rng(self._seed)
        fitted = head.fit(self._scoring.features(sample), (~high).astype(int), 2, proxy=None, generator=generator)
        chances = np.zeros(len(self._inputs))
        chances[sample] = fitted.scores[:, 0]
        others = np.setdiff1d(self._everything, sample)
        for window in self._inputs.windows(others):
            self._run.runner.stop()
            chances[window] = fitted.predict(self._scoring.features(window), None)[:, 0]
        return chances

    def _climb(self, chances: np.ndarray, k: int) -> None:
        """Ask about the likeliest until a batch brings nothing new into the best k."""
        before = -np.inf
        while len(rows := self._open(np.argsort(-chances, kind="stable"))):
            self._ask(rows[: self._affordable(max(k, LEAST_BATCH))], "uncertain")
            mark = self._mark(k)
            if mark <= before or not self._affordable(1):
                break
            before = mark

    def _mark(self, k: int) -> float:
        """The k-th best score so far."""
        known = self._scored[~np.isnan(self._scored)]
        return float(np.sort(known)[-k]) if len(known) >= k else -np.inf

    def _proven(self, chances: np.ndarray, k: int) -> CascadeReport:
        """Bound what is missing above the mark, and buy labels until it is little enough."""
        mark, contract = self._mark(k), self._cascade.contract
        assert contract.recall is not None
        missed = (1 - contract.recall) * k
        promise = Constraint("missed", missed, 1.0, 0.0, 0.0, 0.0, contract.delta, missed)
        known = np.flatnonzero(self._said != UNKNOWN)
        room = self._asker.room()
        most = None if room is None else len(known) + room
        learner = Learner([promise], self._generator(len(known)), most_labels=most, side=REJECT)
        learner.add(np.clip(chances, 0, 1), self._inputs.n_rows)
        learner.know(known, self._above(known, mark))
        learner.close()
        while len(rows := learner.wanted()) and self._affordable(len(rows)) == len(rows):
            self._ask(rows, "uncertain")
            learner.tell(self._above(rows, mark))
        verdict = learner.verdict()
        rest = np.flatnonzero(~verdict.labelled)
        by = Routing(HEAD, "below the best", verdict.tau_low, verdict.tau_high)
        for window in self._inputs.windows(rest):
            self._store_none(window, chances[window], by)
        return self._report("head", verdict, f"recall of the best {k} >= {contract.recall:g}, delta {contract.delta:g}")

    def _above(self, rows: np.ndarray, mark: float) -> np.ndarray:
        scores = self._scored[rows]
        return np.where(np.isnan(scores), -1, scores > mark)

    def _store_none(self, rows: np.ndarray, chances: np.ndarray, by: Routing) -> None:
        import pyarrow as pa

        self._run.runner.stop()
        values = pa.nulls(len(rows), pa.float64())
        given = self._run.decided(
            self._number, self._inputs.texts(rows), self._inputs.n_rows[rows], values, chances, by
        )
        self._inputs.store(rows, given)

    def _keep(self, rows: np.ndarray, values: pa.Array) -> None:
        self._scored[rows] = values.to_numpy(zero_copy_only=False)
        self._said[rows] = 0
