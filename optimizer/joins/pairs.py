"""What the strategies of a semantic join share: pairs of distinct inputs, requests to the engine, outcomes.

A strategy is a generator. It yields requests, is sent what the engine found, and returns an `Outcome`: no strategy
knows a model. `run` is the other half of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from sqluice.optimizer.cascade.learner import BOTH, UNKNOWN, YES, Learner

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from sqluice.optimizer.cascade.constraints import Constraint
    from sqluice.optimizer.cascade.learner import Side, Verdict

BUDGET = "budget"
_HALF = 0.5


@dataclass(slots=True)
class Pairs:
    """Pairs of distinct inputs: int32 [n] `left` and `right`, `mass` float [n] is how many pairs of rows each stands
    for, `labels` int8 [n] what the oracle said (-2 where it was not asked, -1 for NULL). `lefts` and `rights` are the
    numbers of distinct inputs; `unlisted` counts pairs that exist and are not here."""

    lefts: int
    rights: int
    left: np.ndarray
    right: np.ndarray
    mass: np.ndarray
    labels: np.ndarray
    unlisted: float = 0.0
    _keys: np.ndarray | None = field(default=None, repr=False)
    _order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @classmethod
    def all_of(cls, lefts: np.ndarray, rights: np.ndarray) -> Pairs:
        """Every pair; `lefts` and `rights` are how many rows each distinct input stands for."""
        n, m = len(lefts), len(rights)
        left = np.repeat(np.arange(n, dtype=np.int32), m)
        right = np.tile(np.arange(m, dtype=np.int32), n)
        return cls.of(n, m, left, right, (np.asarray(lefts, float)[:, None] * np.asarray(rights, float)).ravel())

    @classmethod
    def of(cls, n: int, m: int, left: np.ndarray, right: np.ndarray, mass: np.ndarray, unlisted: float = 0.0) -> Pairs:
        """Pairs about which nothing is known."""
        return cls(n, m, left, right, mass, np.full(len(left), UNKNOWN, np.int8), unlisted)

    def __len__(self) -> int:
        return len(self.left)

    def rows_of(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Numbers of pairs by their inputs, int64 [k], -1 where there is no such pair."""
        wanted = np.asarray(left, np.int64) * self.rights + right
        if len(self) == self.lefts * self.rights:
            return np.asarray(wanted)  # all there are, in this order
        if self._keys is None:
            keys = self.left.astype(np.int64) * self.rights + self.right
            self._order = np.argsort(keys, kind="stable")
            self._keys = keys[self._order]
        places = np.minimum(np.searchsorted(self._keys, wanted), max(len(self) - 1, 0))
        return np.asarray(np.where(self._keys[places] == wanted, self._order[places], -1))

    @property
    def open(self) -> np.ndarray:
        """Bool [n]: the oracle has not been asked."""
        return np.asarray(self.labels == UNKNOWN)

    @property
    def found(self) -> float:
        """Pairs of rows that the oracle has accepted."""
        return float(self.mass[self.labels == YES].sum())


@dataclass(frozen=True, slots=True)
class AskPairs:
    """Ask the oracle about pairs, int [k]. Its answers are put into `Pairs.labels`; what is sent back is how many were
    answered: fewer than were asked for when a budget is spent."""

    rows: np.ndarray
    reason: str = "uncertain"


@dataclass(frozen=True, slots=True)
class ScoreLabels:
    """Ask how well each of the right side's values fits, as a label, some inputs of the left, int [k]: float [k,
    rights] probabilities are sent back, NaN where there is no answer."""

    lefts: np.ndarray


@dataclass(frozen=True, slots=True)
class NameAttribute:
    """Ask for an attribute of some inputs of a side (0: left, 1: right), int [k]. Where the attribute has a closed set
    of values their probabilities are sent back, float [k, values], else float [k, 1] numbers, equal for equal values;
    NaN where there is no answer."""

    side: int
    inputs: np.ndarray
    attribute: str


@dataclass(frozen=True, slots=True)
class JudgeTogether:
    """Ask about several pairs in one prompt, int [k]: how likely each is a match is sent back, float [k], NaN where
    there is no answer."""

    rows: np.ndarray


Request: TypeAlias = AskPairs | ScoreLabels | NameAttribute | JudgeTogether


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the pairs. `accepted` bool [n]; `scores` float [n] by which pairs without a label were decided,
    NaN where there is none; those at or below `tau_low` were rejected, at or above `tau_high` accepted. `certified`
    holds under `assuming`, where that is not empty; else `reason` says why not. `reached` is what is proven of each
    target; `cut` is the score below which pairs were not looked at one by one, and `pruned` counts those."""

    accepted: np.ndarray
    scores: np.ndarray
    certified: bool
    reason: str = ""
    assuming: str = ""
    tau_low: float = np.nan
    tau_high: float = np.nan
    reached: dict[str, float] = field(default_factory=dict)
    cut: float = np.nan
    pruned: float = 0.0

    def assuming_too(self, what: str) -> Outcome:
        """The same, resting on one thing more."""
        return replace(self, assuming=", ".join(filter(None, [self.assuming, what])))

    def spread(self, place: np.ndarray, whole: Pairs) -> Outcome:
        """The same for the pairs `whole`, of which each went to `place`, int64 [n]."""
        accepted = np.where(whole.open, self.accepted[place], whole.labels == YES)
        return replace(self, accepted=accepted, scores=self.scores[place])

    @classmethod
    def unfinished(cls, pairs: Pairs, scores: np.ndarray) -> Outcome:
        """What there is when a budget is spent."""
        likely = np.nan_to_num(scores, nan=0.0) > _HALF
        return cls(np.where(pairs.open, likely, pairs.labels == YES), scores, certified=False, reason=BUDGET)


Strategy: TypeAlias = "Generator[Request, np.ndarray | int, Outcome | None]"
"""None where the strategy finds that it would not do."""


def run(strategy: Strategy, answer: Callable[[Request], np.ndarray | int]) -> Outcome | None:
    """Drive a strategy to its end; `answer` does what it requests."""
    try:
        request = next(strategy)
        while True:
            request = strategy.send(answer(request))
    except StopIteration as end:
        outcome: Outcome | None = end.value
        return outcome


def asked_everything(pairs: Pairs) -> Outcome:
    """The outcome where the oracle has answered every pair."""
    none = np.full(len(pairs), np.nan)
    return Outcome(pairs.labels == YES, none, certified=True, reached={"recall": 1.0, "precision": 1.0})


def decided(
    pairs: Pairs, scores: np.ndarray, promises: Sequence[Constraint], generator: np.random.Generator
) -> Generator[Request, int, Outcome]:
    """Accept and reject by `scores` float [n], and ask about what lies between until all `promises` are proven."""
    verdict = yield from proven(pairs, np.arange(len(pairs)), scores, promises, generator)
    if verdict is None:
        return Outcome.unfinished(pairs, scores)
    return Outcome(
        verdict.answers == YES,
        scores,
        verdict.certified,
        verdict.reason,
        tau_low=verdict.tau_low,
        tau_high=verdict.tau_high,
        reached=verdict.reached,
    )


def proven(
    pairs: Pairs,
    rows: np.ndarray,
    scores: np.ndarray,
    promises: Sequence[Constraint],
    generator: np.random.Generator,
    *,
    side: Side = BOTH,
) -> Generator[Request, int, Verdict | None]:
    """Prove `promises` of some pairs, int [k], by their `scores` float [k]; None when the budget is spent."""
    learner = Learner(promises, generator, side=side)
    learner.add(scores, pairs.mass[rows])
    known = np.flatnonzero(~pairs.open[rows])
    learner.know(known, pairs.labels[rows[known]])
    learner.close()
    while len(wanted := learner.wanted()):
        if (yield AskPairs(rows[wanted])) < len(wanted):
            return None
        learner.tell(pairs.labels[rows[wanted]])
    return learner.verdict()
