"""Scores for the rows of a cascade: from embeddings of their texts, from a cheaper model, or from both.

Candidates are fitted on a sample that has labels, cross-fitted, and compared by what they would save. Rows are scored
window by window, so that embeddings are never held for more than one of them and the sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine.operators.ask import HEAD, PROXY, cost, guessed_tokens, measured
from sqluice.engine.operators.watch import Watch
from sqluice.optimizer.cascade import head
from sqluice.optimizer.cascade.drift import Profile, compare, profile
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.cascade.head import Linear
from sqluice.types import Prompt
from sqluice.udfs.spec import Spec
from sqluice.workers.pool import NOT_ASKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.engine.operators.inputs import Inputs
    from sqluice.engine.run import Run
    from sqluice.engine.trace import OpTrace
    from sqluice.optimizer.cascade.constraints import Constraint
    from sqluice.optimizer.cascade.head import Fitted
    from sqluice.workers.protocol import Asked

MOST_KNOWN = 50_000
"""Embeddings that are held."""

_COMPARED = 2
"""Arguments that are embedded apart; more are embedded as one text."""


@dataclass(frozen=True, slots=True)
class Score:
    """A fitted candidate. `name` is `head`, `proxy`, `head and proxy` or `remembered head`; `labels` is what a cascade
    by it would buy, `cost` what that and the scores cost in US dollars. `before` is the head of an earlier run that it
    only calibrates anew."""

    name: str
    fitted: Fitted
    labels: float
    cost: float
    before: Linear | None = None

    @property
    def tier(self) -> int:
        """Its number in `TIERS`."""
        return PROXY if "proxy" in self.name else HEAD


class Scoring:
    """The candidates of one question."""

    def __init__(self, run: Run, number: int, inputs: Inputs) -> None:
        self._run = run
        self._inputs = inputs
        self._spec = run.specs[number]
        proxy = run.proxy(self._spec)
        self._embedder = Embedder(run, self._spec)
        self._proxy = None if proxy in (None, run.uri(self._spec)) else _Proxy(run, proxy, self._spec)
        self.rows = np.zeros(0, np.int64)
        """The sample, int [m]."""
        self._features: list[np.ndarray] = []
        self._chances: list[np.ndarray] = []
        self.memory = Memory.of(run, number, self._embedder.uri)
        remembered = 0 if self.memory.head is None else len(inputs)
        self._recalled = np.full((remembered, len(self._spec.choices)), np.nan)
        """What the remembered head says of the inputs whose embeddings were made; no rows without one."""
        self._lengths = np.full(len(inputs), np.nan)
        """Characters of the inputs that were looked at."""

    def add(self, rows: np.ndarray) -> None:
        """More rows of the sample."""
        self.rows = np.concatenate([self.rows, rows])
        for window in self._inputs.windows(rows):
            texts = self._inputs.texts(window)
            features = self._embedder.features(texts)
            self._features.append(features)
            self._look(window, texts, features)
            if self._proxy is not None:
                self._chances.append(self._proxy.chances(texts))

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of some inputs, float32 [n, d]."""
        return self._embedder.features(self._inputs.texts(rows))

    def _look(self, rows: np.ndarray, texts: list[list[str]], features: np.ndarray | None) -> None:
        """Keep what drift shows in."""
        self._lengths[rows] = [sum(map(len, row)) for row in zip(*texts, strict=True)]
        if self.memory.head is not None and features is not None:
            self._recalled[rows] = self.memory.head.predict(features, None)

    def best(
        self, said: np.ndarray, constraints: Sequence[Constraint], left: int, oracle_usd: float, seed: int
    ) -> Score:
        """The candidate that costs least for `left` more rows; `said` int [m] are the labels of the sample, as numbers
        of choices, -1 for NULL."""
        known = np.flatnonzero(said >= 0)
        features = np.concatenate(self._features)
        proxy = np.concatenate(self._chances) if self._chances else None
        before = self.memory.head
        recalled = None if before is None else self._recalled[self.rows]
        found = []
        for name, usd in self._candidates():
            fitted = head.fit(
                features[known] if name.startswith("head") else None,
                said[known],
                len(self._spec.choices),
                proxy=_taken({"head": None, "remembered head": recalled}.get(name, proxy), known),
                generator=np.random.default_rng(seed),
            )
            seen = judged(self._spec, fitted.scores, said[known])
            labels = forecast(*seen, constraints, left, matches=matches(self._spec))
            by = before if name == "remembered head" else None
            found.append(Score(name, fitted, labels, left * usd + labels * oracle_usd, by))
        return min(found, key=lambda one: one.cost)

    def alarms(self, said: np.ndarray) -> tuple[str, ...]:
        """How the inputs differ from those that the remembered head was learnt on; `said` int [m] are the labels of the
        sample, none where it is not a random one of all inputs."""
        before = self.memory.profile
        if before is None or (not len(said) and bool(np.isnan(self._recalled).any())):
            return ()
        _, labels = judged(self._spec, self._recalled[self.rows[: len(said)]], said)
        scores, _ = judged(self._spec, self._recalled, np.full(len(self._inputs), -1))
        return compare(before, profile(scores, self._lengths, before.thresholds, labels))

    def seen(self, scores: np.ndarray, thresholds: tuple[float, float], labels: np.ndarray) -> Profile:
        """The profile to keep with a head trained here: `scores` float [n] of all inputs, `labels` of the sample."""
        scores = scores.copy()
        if len(labels):
            scores[self.rows] = np.nan  # a head is surer of the rows it was trained on
        return profile(scores, self._lengths, thresholds, labels)

    def scores(self, score: Score, rows: np.ndarray) -> np.ndarray:
        """Probabilities of the choices, float64 [n, k], NaN where a row could not be scored."""
        found = []
        for window in self._inputs.windows(rows):
            self._run.runner.stop()
            texts = self._inputs.texts(window)
            features = None if score.name == "proxy" else self._embedder.features(texts)
            self._look(window, texts, features)
            chances = self._proxy.chances(texts) if self._proxy is not None and "proxy" in score.name else None
            if score.before is not None:
                features, chances = None, self._recalled[window]
            found.append(score.fitted.predict(features, chances))
        return np.concatenate(found) if found else np.zeros((0, len(self._spec.choices)))

    @property
    def usd(self) -> float:
        """US dollars that scores have cost, machine time included."""
        return self._embedder.usd + (0.0 if self._proxy is None else self._proxy.usd)

    def _candidates(self) -> list[tuple[str, float]]:
        """Names, and US dollars a row."""
        head_usd = self._embedder.usd_per_row
        found = [("head", head_usd)]
        if self.memory.head is not None:
            found.append(("remembered head", head_usd))
        if self._proxy is None:
            return found
        proxy_usd = self._proxy.usd_per_row
        return [*found, ("proxy", proxy_usd), ("head and proxy", head_usd + proxy_usd)]


@dataclass(frozen=True, slots=True)
class Memory:
    """What an earlier run has left of a question for the same models: a head, and a profile of the rows it met."""

    mark: str
    head: Linear | None = None
    profile: Profile | None = None

    @classmethod
    def of(cls, run: Run, number: int, embedder: str) -> Memory:
        """What there is; nothing where what was kept cannot be read."""
        mark = f"{run.identity(number)} {run.revision(number)} {embedder}"
        statistics = None if run.shared.is_job else run.runner.statistics  # partitions run on any machine
        found = None if statistics is None else statistics.head(mark)
        if found is None:
            return cls(mark)
        try:
            return cls(mark, Linear.from_dict(found["head"]), Profile.from_dict(found["profile"]))
        except (KeyError, TypeError, ValueError):
            return cls(mark)


def _taken(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[rows]


def judged(spec: Spec, chances: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a learner sees: scores float64 [n], and labels int [n]. Of yes/no answers the probability of yes; of others
    the confidence in the best choice, and whether that is the oracle's."""
    if spec.returns == "BOOLEAN":
        return chances[:, 0], np.where(said < 0, said, said == 0)
    unscored = np.isnan(chances).any(axis=1)
    best = np.where(unscored[:, None], 0.0, chances).argmax(axis=1)
    confidence = np.where(unscored, np.nan, chances[np.arange(len(best)), best])
    return confidence, np.where(said < 0, said, said == best)


def matches(spec: Spec) -> bool:
    """Whether a row is judged by whether its best choice is right, not by which of two it is."""
    return spec.returns != "BOOLEAN"


class Source:
    """A model that scores are made from: an operator of its own in the trace, and what a row of it costs."""

    def __init__(self, run: Run, spec: Spec, function: str) -> None:
        self._run = run
        self._spec = spec
        self._function = function
        self._op: OpTrace | None = None
        self._rows = 0

    @property
    def uri(self) -> str:
        """The model's name."""
        return self._run.uri(self._spec)

    def _started(self) -> tuple[Any, OpTrace]:
        """The model, loaded now if need be, and its operator."""
        started = time.monotonic()
        model = self._run.model(self._spec)
        if self._op is None:
            revision = str(getattr(model.info, "revision", ""))
            self._op = self._run.trace.operator(self._function, self._run.uri(self._spec), revision, "")
            self._op.seconds_load = time.monotonic() - started
        return model, self._op

    def _watch(self, model: Any) -> Watch:
        run = self._run
        return Watch(run.runner.stop, run.runner.progress, self._function, meter=run.efforts.meter(model))

    def _charge(self, asked: Asked, model: Any, prompts: Sequence[Prompt]) -> float:
        """Count what asking cost; it, in US dollars."""
        assert self._op is not None
        n_rows = len(asked.tokens_in) - sum(said == NOT_ASKED for said in asked.errors.values())
        self._rows += n_rows
        self._op.scored += n_rows
        usd = cost(model.info, asked.batches, 0.0 if asked.tokens_in.any() else guessed_tokens(prompts))
        self._op.add_batches(asked.batches)
        self._op.cost_usd += usd
        return usd

    @property
    def usd(self) -> float:
        """US dollars so far, machine time included."""
        return 0.0 if self._op is None else measured(self._op, 1)

    @property
    def usd_per_row(self) -> float:
        """US dollars a row."""
        return self.usd / max(self._rows, 1)


class Embedder(Source):
    """Embeddings of the arguments. Two arguments are compared feature by feature."""

    def __init__(self, run: Run, spec: Spec) -> None:
        uri = str(run.settings["ai_embedder"])
        super().__init__(run, Spec("AI_EMBED", "embed", "FLOAT[]", model=uri), f"{spec.function} head")
        self._known: dict[str, np.ndarray] = {}

    def features(self, texts: list[list[str]]) -> np.ndarray:
        """Float32 [n, d], NaN in rows that could not be embedded."""
        sides = texts if len(texts) <= _COMPARED else [["\n".join(row) for row in zip(*texts, strict=True)]]
        found = [self.embedded(side) for side in sides]
        if len(found) == _COMPARED:
            found += [found[0] * found[1], np.abs(found[0] - found[1])]
        return np.concatenate(found, axis=1)

    def embedded(self, texts: list[str]) -> np.ndarray:
        """Embeddings of texts, float32 [n, d], each text once: the sides of a join come again and again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            model, _ = self._started()
            width = self._run.dimension(self._spec) or 0
            asked = self._run.runner.pool.embed(model, new, self._watch(model), width=width)
            self._charge(asked, model, [Prompt("{0}", (text,)) for text in new])
            self._known.update(zip(new, np.asarray(asked.values, np.float32), strict=True))
        found = np.stack([self._known[text] for text in texts])
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return found


def chances_of(scores: Any) -> np.ndarray:
    """Probabilities from log scores, float64 [n, k], NaN in rows with a NaN."""
    logs = np.asarray(scores, np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class _Proxy(Source):
    """What a cheaper model says."""

    def __init__(self, run: Run, uri: str, spec: Spec) -> None:
        super().__init__(run, replace(spec, model=uri, options=()), f"{spec.function} proxy")

    def chances(self, texts: list[list[str]]) -> np.ndarray:
        """Float64 [n, k] probabilities of the choices, NaN in rows without an answer."""
        model, _ = self._started()
        spec = self._spec
        prompts = [Prompt(spec.template, row, "", spec.kind) for row in zip(*texts, strict=True)]
        asked = self._run.runner.pool.score(model, prompts, spec.choices, self._watch(model))
        self._charge(asked, model, prompts)
        return chances_of(asked.values)
