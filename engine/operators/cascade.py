"""One question as a cascade: a few rows are asked of the oracle, a score is chosen by what it would save, and a learner
decides which of the others the oracle has to see (`optimizer/cascade`).

Every answer of the oracle is final and in the trace as it comes; the rows that the score decides follow at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine.budget import SPENT
from sqluice.engine.operators.ask import USD_PER_SECOND, Routing, measured
from sqluice.engine.operators.scoring import Scoring, judged, matches
from sqluice.engine.report import CascadeReport
from sqluice.errors import BrokenModelError, ModelError
from sqluice.optimizer.cascade.constraints import constraints_of, told
from sqluice.optimizer.cascade.learner import ACCEPT, BOTH, UNKNOWN, YES, Learner
from sqluice.optimizer.cascade.policy import Policy, allowed
from sqluice.udfs.contract import contract_of

if TYPE_CHECKING:
    import pyarrow as pa

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.operators.inputs import Inputs
    from sqluice.engine.operators.scoring import Score
    from sqluice.engine.run import Run
    from sqluice.optimizer.cascade.constraints import Constraint
    from sqluice.optimizer.cascade.learner import Verdict
    from sqluice.optimizer.plan import Cascade

TOO_LITTLE = "too little is left to save"
FIRST_LOOK = 32
"""Calls from which `auto` knows what one costs."""

LEAST_INPUTS = 1000
"""Fewer inputs than this are left to the oracle: the sample would be a good part of them."""

FIRST_SAMPLE, LARGEST_SAMPLE = 200, 3200
"""A remembered head needs no training: with one, half the first sample is enough."""

LARGEST_SHARE = 8
"""The sample never grows beyond one row in so many."""

WORTH = 0.9
"""A cascade that is expected to cost more than this share of the oracle on every row is not begun."""

LEAST_SECONDS = 10
"""What is left has to keep this machine busy for so long, or cost as much, for `auto` to think of a cascade."""


_NONE = np.zeros(0, np.int64)


class Cascading:
    """One question over one set of inputs."""

    def __init__(self, run: Run, number: int, cascade: Cascade, inputs: Inputs) -> None:
        self._run = run
        self._number = number
        self._cascade = cascade
        self._inputs = inputs
        self._asker = run.asker(number)
        self._spec = run.specs[number]
        self._seed = int(run.settings["ai_seed"] or 0)
        self._scoring = Scoring(run, number, inputs)
        self._chain = run.chain(cascade)
        self._constraints = self._promised()
        self._everything = np.arange(len(inputs))
        self._said = np.full(len(inputs), UNKNOWN, np.int64)
        """The oracle's answers as numbers of choices; -1 for NULL."""
        self._fresh = True
        """Whether nothing was known before, so that the sample is one of all inputs."""
        self._oracle_broken = False
        """Whether it was the oracle that an exception came from."""

    @property
    def _capped(self) -> bool:
        """Whether the budget was spent before an input was answered that had been asked about."""
        return SPENT in self._asker.warned

    def _promised(self) -> tuple[Constraint, ...]:
        """What this cascade has to keep, alone or with others."""
        if self._chain is None:
            return constraints_of(self._cascade.contract)
        return self._chain.constraints(self._number, float(self._inputs.n_rows.sum()), self._run.yes_shares)

    def decide(self) -> CascadeReport:
        """Answer every input; what it came to."""
        self._look_up(self._everything)
        room = self._asker.room()
        first = FIRST_SAMPLE if self._scoring.memory.head is None else FIRST_SAMPLE // 2
        most = first if room is None else min(first, max(room // 2, 1))
        sample = self._open(self._everything)[:most]
        self._ask(sample, "sample")
        if self._asker.room() is None and len(self._open(self._everything)) < LEAST_INPUTS - FIRST_SAMPLE:
            return self._exact(TOO_LITTLE)
        try:
            score = self._chosen(sample)
            if score is None:
                return self._exact("no score would save enough")
            chances = self._chances(score)
        except BrokenModelError as error:
            if self._oracle_broken:
                raise
            self._run.degrade(f"{self._spec.function} went on with the oracle alone: {error}")
            return self._exact("no score is to be had")
        except ModelError as error:
            if self._cascade.forced:
                raise
            self._run.warn(f"no cascade for {self._spec.function}: {error}")
            return self._exact("no score is to be had")
        return self._cascaded(score, chances)

    def _look_up(self, rows: np.ndarray) -> None:
        """What the cache knows costs nothing."""
        for window in self._inputs.windows(rows):
            known = self._asker.is_cached(self._inputs.texts(window))
            self._fresh = self._fresh and not known.any()
            self._ask(window[known], "sample")

    def _open(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows[self._said[rows] == UNKNOWN])

    def _oracle_usd(self) -> float:
        return measured(self._asker.op, self._asker.calls)

    def _chosen(self, sample: np.ndarray) -> Score | None:
        """The best score, on a sample that is doubled while that pays; None where the oracle on all rows costs less."""
        self._scoring.add(sample)
        before: Score | None = None
        while True:
            left = len(self._open(self._everything))
            usd = self._oracle_usd()
            score = self._scoring.best(self._said[sample], self._constraints, left, usd, self._seed)
            gained = np.inf if before is None else before.cost - score.cost
            bought = usd * len(sample) / 2 * max(1 - score.labels / max(left, 1), 0.0)
            more = self._open(self._everything)[: len(sample)]
            room = self._asker.room()
            if room is not None and room < 4 * len(sample):
                return score
            large = len(sample) * 2 > min(LARGEST_SAMPLE, len(self._inputs) / LARGEST_SHARE)
            if score.before is not None or gained < bought or large:
                return score if self._pays(score, left, usd) else None
            self._ask(more, "sample")
            self._scoring.add(more)
            sample = self._scoring.rows
            before = score

    def _pays(self, score: Score, left: int, usd: float) -> bool:
        if self._asker.room() is not None:
            return True  # there is no other way to answer all
        return score.labels < WORTH * left if self._cascade.forced else score.cost < WORTH * left * usd

    def _chances(self, score: Score) -> np.ndarray:
        """Probabilities of the choices for all inputs."""
        sampled = self._scoring.rows[self._said[self._scoring.rows] >= 0]
        chances = np.zeros((len(self._inputs), len(self._spec.choices)))
        chances[sampled] = score.fitted.scores  # of models that have not seen these rows
        others = np.setdiff1d(self._everything, sampled)
        chances[others] = self._scoring.scores(score, others)
        return chances

    def _generator(self, known: int) -> np.random.Generator:
        """Draws that have nothing to do with those of an earlier run, which may have left some of the known labels."""
        return np.random.default_rng([1, self._seed, self._number, known])

    def _cascaded(self, score: Score, chances: np.ndarray) -> CascadeReport:
        scores, labels = judged(self._spec, chances, self._said)
        known = np.flatnonzero(self._said != UNKNOWN)
        room = self._asker.room()
        learner = Learner(
            self._constraints,
            self._generator(len(known)),
            most_labels=None if room is None else len(known) + room,
            side=ACCEPT if matches(self._spec) else BOTH,
        )
        learner.add(scores, self._inputs.n_rows)
        learner.know(known, labels[known])
        learner.close()
        while len(asked := learner.wanted()) and self._affordable(len(asked)) == len(asked):
            self._ask(asked, "uncertain")
            learner.tell(judged(self._spec, chances[asked], self._said[asked])[1])
        verdict = learner.verdict()
        self._remember(score, scores, labels, verdict)
        if self._run.shared.learns and verdict.certified:
            self._run.shared.found[self._run.identity(self._number)] = self._policy(score, verdict)
        self._store(score, chances, scores, verdict)
        return self._report(score.name, verdict, told(self._cascade.contract))

    def _policy(self, score: Score, verdict: Verdict) -> Policy:
        """What the partitions of a job are to do."""
        contract = contract_of(self._spec, self._run.settings)
        assert contract is not None
        room = allowed(contract, verdict.answers, self._inputs.n_rows)
        return Policy(score.name, score.fitted.model, verdict.tau_low, verdict.tau_high, contract, room)

    def _remember(self, score: Score, scores: np.ndarray, labels: np.ndarray, verdict: Verdict) -> None:
        """Keep a head that was trained here for later runs, with what its rows were like and where it decided."""
        if score.name == "head":
            sampled = labels[self._scoring.rows] if self._fresh else _NONE
            seen = self._scoring.seen(scores, (verdict.tau_low, verdict.tau_high), sampled)
            found = {"head": score.fitted.model.to_dict(), "profile": seen.to_dict()}
            self._run.heads[self._scoring.memory.mark] = found

    def _ask(self, rows: np.ndarray, reason: str) -> None:
        """Ask the oracle about some inputs."""
        for window in self._inputs.windows(rows):
            self._run.runner.stop()
            self._oracle_broken = True
            given = self._run.answers(self._number, self._inputs.texts(window), self._inputs.n_rows[window], reason)
            self._oracle_broken = False
            self._inputs.store(window, given)
            self._keep(window, given.values)

    def _keep(self, rows: np.ndarray, values: pa.Array) -> None:
        """What the oracle said."""
        self._said[rows] = self._numbers(values)

    def _affordable(self, rows: int) -> int:
        """So many rows, or what the budget leaves."""
        room = self._asker.room()
        return rows if room is None else min(rows, room)

    def _exact(self, why: str) -> CascadeReport:
        """The oracle answers what is left."""
        self._ask(self._open(self._everything), "exact")
        if self._chain is not None:
            self._chain.settle(self._number, {}, certified=True)
        n = len(self._inputs)
        return CascadeReport(told(self._cascade.contract), f"exact ({why})", None, n, n)

    def _store(self, score: Score, chances: np.ndarray, scores: np.ndarray, verdict: Verdict) -> None:
        """Keep what the score decides."""
        by = Routing(score.tier, "score", verdict.tau_low, verdict.tau_high)
        for window in self._inputs.windows(np.flatnonzero(~verdict.labelled)):
            self._run.runner.stop()
            values = self._values(chances[window], verdict.answers[window] == YES)
            n_rows = self._inputs.n_rows[window]
            given = self._run.decided(self._number, self._inputs.texts(window), n_rows, values, scores[window], by)
            self._inputs.store(window, given)

    def _numbers(self, values: pa.Array) -> np.ndarray:
        """Answers as numbers of choices, -1 for NULL."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._spec.returns == "BOOLEAN":
            found: Any = pc.if_else(values, 0, 1)
        else:
            found = pc.index_in(values, pa.array(self._spec.choices))
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)

    def _values(self, chances: np.ndarray, accepted: np.ndarray) -> pa.Array:
        """The answers of the score."""
        import pyarrow as pa

        if self._spec.returns == "BOOLEAN":
            return pa.array(accepted)
        return pa.array(self._spec.choices).take(pa.array(chances.argmax(axis=1)))

    def _report(self, scorer: str, verdict: Verdict, contract: str) -> CascadeReport:
        n, usd = len(self._inputs), self._oracle_usd()
        sure = verdict.certified and not self._capped
        if self._chain is not None:
            self._chain.settle(self._number, verdict.reached, certified=sure)
        reason = "budget" if self._capped else verdict.reason
        label = f"certified({contract}, {verdict.labels:,} labels)" if sure else f"uncertified({reason})"
        return CascadeReport(
            contract,
            label,
            scorer,
            n,
            verdict.labels,
            nulls=verdict.nulls,
            saving_usd=(n - verdict.labels) * usd - self._scoring.usd,
            saving=1 - (verdict.labels * usd + self._scoring.usd) / (n * usd) if usd else 0.0,
            tau_low=None if np.isnan(verdict.tau_low) else verdict.tau_low,
            tau_high=None if np.isnan(verdict.tau_high) else verdict.tau_high,
            reached=verdict.reached if sure else {},
            drift=self._scoring.alarms(self._said[self._scoring.rows] if self._fresh else _NONE),
        )


def may_begin(cascade: Cascade, asker: Asker, inputs: int, in_all: int) -> bool:
    """Whether so many inputs are decided as a cascade from here on; not while nobody knows what a call costs. `in_all`
    counts those that they are a sample of too."""
    room = asker.room()
    if room is not None:
        return room < inputs
    sure = cascade.forced or asker.calls >= FIRST_LOOK
    return sure and inputs >= LEAST_INPUTS and may_pay(cascade, in_all, measured(asker.op, asker.calls))


def not_begun(cascade: Cascade, inputs: int) -> CascadeReport:
    """The oracle has answered all, since that costs little."""
    return CascadeReport(told(cascade.contract), f"exact ({TOO_LITTLE})", None, inputs, inputs)


def may_pay(cascade: Cascade, inputs: int, oracle_usd: float) -> bool:
    """Whether so many inputs, at so much each, are worth the thought of a cascade."""
    return inputs >= LEAST_INPUTS and (cascade.forced or inputs * oracle_usd >= LEAST_SECONDS * USD_PER_SECOND)
