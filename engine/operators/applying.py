"""One question of a partition as a cascade by the thresholds of the whole job (`optimizer/cascade/policy.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice.engine.operators.cascade import Cascading
from sqluice.engine.operators.scoring import Score, judged
from sqluice.engine.policies import Seen
from sqluice.engine.report import CascadeReport
from sqluice.optimizer.cascade.constraints import told
from sqluice.optimizer.cascade.head import Fitted
from sqluice.optimizer.cascade.learner import UNKNOWN, YES, Verdict
from sqluice.optimizer.cascade.policy import ACCEPTED, ASKED, drawn

if TYPE_CHECKING:
    from sqluice.engine.operators.inputs import Inputs
    from sqluice.engine.run import Run
    from sqluice.optimizer.cascade.policy import Policy
    from sqluice.optimizer.plan import Cascade

BY_POLICY = "policy"
"""The label of a run whose proof is a matter of the whole job."""


class Applying(Cascading):
    """One question over one set of inputs, by a policy."""

    def __init__(self, run: Run, number: int, cascade: Cascade, inputs: Inputs, policy: Policy) -> None:
        super().__init__(run, number, cascade, inputs)
        self._given = policy

    def decide(self) -> CascadeReport:
        """Answer every input; what was seen goes to the job."""
        policy, n_rows = self._given, self._inputs.n_rows
        score = Score(policy.name, Fitted(np.zeros(0), 0.0, policy.model), 0.0, 0.0)
        chances = self._scoring.scores(score, self._everything)
        scores, _ = judged(self._spec, chances, self._said)
        sides = policy.sides(scores, n_rows)
        keys = self._inputs.keys
        beyond = sides != ASKED
        audit = beyond & drawn(keys, self._seed, policy.rate)
        self._ask(np.flatnonzero(~beyond), "uncertain")
        self._ask(np.flatnonzero(audit), "audit")
        scores, labels = judged(self._spec, chances, self._said)
        asked = self._said != UNKNOWN
        answers = np.where(sides == ACCEPTED, YES, 0).astype(np.int8)
        count = int(asked.sum())
        verdict = Verdict(
            answers,
            asked,
            policy.tau_low,
            policy.tau_high,
            certified=False,
            reason="",
            labels=count,
            nulls=0,
            reached={},
        )
        self._store(score, chances, scores, verdict)
        labels = np.where(asked, labels, UNKNOWN).astype(np.int8)
        self._run.shared.seen.append(Seen(self._run.identity(self._number), keys, n_rows, sides, labels))
        n, usd = len(self._inputs), self._oracle_usd()
        return CascadeReport(
            told(policy.contract),
            BY_POLICY,
            policy.name,
            n,
            count,
            saving_usd=(n - count) * usd - self._scoring.usd,
            tau_low=None if np.isnan(policy.tau_low) else policy.tau_low,
            tau_high=None if np.isnan(policy.tau_high) else policy.tau_high,
        )
