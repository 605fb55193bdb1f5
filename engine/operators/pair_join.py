"""One question about two sets of inputs: finds the pairs for which it is true, by the cheapest strategy that will do.

A few pairs drawn at random are asked about; what they say decides which strategies (`optimizer/joins`) are tried, in
the order of the calls they are expected to take. A strategy asks for answers and for scores of labels; this operator
gets them, and puts every pair that was asked about into the trace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from sqluice.engine.operators.ask import measured
from sqluice.engine.operators.candidates import nearest
from sqluice.engine.operators.label_scores import Attributes, LabelScores
from sqluice.engine.operators.pair_asking import PairAsking
from sqluice.engine.operators.scoring import Embedder, Source
from sqluice.engine.operators.written import Mapped, Together
from sqluice.engine.report import CascadeReport
from sqluice.errors import ModelError, NotSupportedError
from sqluice.optimizer.cascade.constraints import told
from sqluice.optimizer.cascade.learner import NULL, YES
from sqluice.optimizer.joins import attribute, block, choose, classify, equivalence, factor, several, symmetry
from sqluice.optimizer.joins.detect import MOST_SAMPLES, parse, question
from sqluice.optimizer.joins.features import Described
from sqluice.optimizer.joins.pairs import (
    BUDGET,
    AskPairs,
    JudgeTogether,
    NameAttribute,
    Outcome,
    ScoreLabels,
    asked_everything,
    run,
)
from sqluice.optimizer.joins.symmetry import Folded, agree, turned

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.engine.operators.pair_asking import Inputs
    from sqluice.engine.run import Run
    from sqluice.optimizer.joins.choose import Option
    from sqluice.optimizer.joins.detect import Detection
    from sqluice.optimizer.joins.pairs import Pairs, Request, Strategy
    from sqluice.optimizer.plan import Cascade

S = TypeVar("S", bound=Source)

MOST_TOKENS = 80
"""Of a model's opinion about a question."""

ASKED_ALL = "exact (every pair was asked about)"

WORTH = 0.5
"""A strategy that is expected to ask about more than this share of the pairs is not taken."""


class _EnoughError(Exception):
    """As many matches were found as are wanted."""


class PairJoin:
    """One question over two sides. `need` is how many pairs of rows are wanted, None for all; `detection` is what the
    wording of the question tells."""

    def __init__(
        self,
        run: Run,
        number: int,
        cascade: Cascade | None,
        left: Inputs,
        right: Inputs,
        need: int | None,
        detection: Detection,
    ) -> None:
        self._run = run
        self._number = number
        self._cascade = cascade
        self._left, self._right = left, right
        self._need = need
        self._spec = run.specs[number]
        self._generator = np.random.default_rng([2, int(run.settings["ai_seed"] or 0), number])
        self._same = left.keys == right.keys
        self._detection = detection
        self._sources: dict[type[Source], Source] = {}
        """Models that are asked something else than the question."""
        self._described: Described | None = None
        self._folded: Folded | None = None
        self._asking: PairAsking | None = None

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Left and right inputs of the most similar pairs, int32 [k], where there are too many to list them all."""
        return nearest(self._descriptions(), self._run.runner.stop)

    @property
    def _is_equivalence(self) -> bool:
        """Whether the query says that the question is one, where answers may be inferred."""
        return self._cascade is not None and ("equivalence", True) in self._spec.options

    @property
    def _writes(self) -> bool:
        """Whether the oracle writes texts about questions of two placeholders."""
        two = len(self._left.places) == len(self._right.places) == 1
        return two and callable(getattr(self.asking.asker.model, "generate", None))

    @property
    def asking(self) -> PairAsking:
        """What has been asked."""
        assert self._asking is not None
        return self._asking

    def decide(self, pairs: Pairs, most_calls: int) -> Outcome | None:
        """Which pairs match; None where a filter of all pairs is left to do it. `NotSupportedError` where every pair
        would have to be asked about and those are more than `most_calls`."""
        self._asking = PairAsking(self._run, self._number, self._left, self._right, pairs)
        self.asking.asker.watch.total = None
        try:
            return self._decide(pairs, most_calls)
        except _EnoughError:
            self._asking.count()
            return asked_everything(pairs)

    def _decide(self, pairs: Pairs, most_calls: int) -> Outcome | None:
        exact = self._cascade is None
        if self._need == 0:
            raise _EnoughError
        if len(pairs) + pairs.unlisted < choose.LEAST_PAIRS or (exact and self._need is None):
            return self._cross(pairs, most_calls)
        if self._is_equivalence:
            self.asking.infer(same=self._same)
        if not pairs.unlisted:
            self._draw(pairs)
        if not exact and not self._detection.sure:
            self._detection = self._opinion(pairs) or self._detection
        facts = self._facts(pairs)
        if self._need is not None and (facts.share or 0) * WORTH > self._need / choose.TO_BEGIN:
            return self._cross(pairs, most_calls)  # in any order: matches are frequent
        best: tuple[str, Outcome] | None = None
        for option in choose.options(facts, approximate=True):
            room = self.asking.asker.room()
            spent = room is not None and option.name != "block" and option.calls > room
            if option.why_not or option.name == choose.CROSS or spent or (exact and option.name != "block"):
                continue
            outcome = self._tried(option)
            if outcome is not None and exact:
                return self._cross(pairs, most_calls)
            if outcome is not None and (outcome.certified or outcome.reason == BUDGET):
                return self._finished(option.name, outcome)
            if outcome is not None:
                best = (option.name, outcome)
        if best is not None:
            return self._finished(*best)
        return self._cross(pairs, most_calls) if exact or pairs.unlisted else None

    def _facts(self, pairs: Pairs) -> choose.Facts:
        known = pairs.labels[pairs.labels >= 0]
        positive = int((known == YES).sum())
        share = (positive + 0.5) / (len(known) + 1)
        if positive < choose.DENSE:
            share = min(share, 1 / max(min(pairs.lefts, pairs.rights), 1))
        lengths = list(map(len, self._right.lines))
        length = float(np.mean(lengths)) if lengths else 0.0
        n = len(pairs) + int(pairs.unlisted)
        return choose.Facts(pairs.lefts, pairs.rights, n, share, length, self._same, self._detection, self._writes)

    def _draw(self, pairs: Pairs) -> None:
        """The first pairs, at random. Where both sides hold the same texts, some of them both ways: a question that
        does not tell its sides apart is then asked about each unordered pair once. An equivalence does not."""
        rows = np.sort(self._generator.permutation(len(pairs))[: choose.PILOT])
        self._ask(rows, "sample")
        if not self._same or self._cascade is None:
            return
        if self._is_equivalence:
            self._folded = Folded.of(pairs)
            return
        back = turned(pairs, rows)
        back = np.unique(back[back >= 0])[: symmetry.FIRST_TESTED]
        if len(back) and self._ask(back[pairs.open[back]], "sample") and agree(pairs, rows):
            self._folded = Folded.of(pairs)

    def _opinion(self, pairs: Pairs) -> Detection | None:
        """What the oracle's model says of the question, where it writes texts; None where that is nothing of use."""
        if not self._writes:
            return None
        samples = [
            (texts[0], texts[1])
            for texts in zip(*self.asking.texts(np.flatnonzero(~pairs.open)[:MOST_SAMPLES]), strict=True)
        ]
        prompt = question(self._spec.template, samples)
        function, model = f"{self._spec.function} detector", self._run.uri(self._spec)
        try:
            return parse(self._run.completed(function, model, prompt, MOST_TOKENS))
        except ModelError:
            return None

    def _tried(self, option: Option) -> Outcome | None:
        """What a strategy comes to; None where it would not do."""
        pairs = self.asking.pairs if self._folded is None else self._folded.pairs
        try:
            outcome = run(self._strategy(option, pairs), self._answer)
        except ModelError as error:
            self._run.warn(f"{self._spec.function}: strategy {option.name} was left out: {error}")
            return None
        if self._folded is None or outcome is None:
            return outcome
        return self._unfolded(option, self._folded, outcome)

    def _unfolded(self, option: Option, folded: Folded, outcome: Outcome) -> Outcome | None:
        """The outcome for all pairs, once some matches were asked about the other way too."""
        whole = folded.whole
        if self._is_equivalence:
            self._folded = None
            return outcome.spread(folded.place, _mirrored(folded))
        rows = folded.first[np.flatnonzero(folded.pairs.labels == YES)]
        tested = self._generator.permutation(rows[turned(whole, rows) >= 0])[: symmetry.TESTED]
        back = turned(whole, tested)
        self._folded = None
        self._ask(np.unique(back[whole.open[back]]), "sample")
        if not agree(whole, tested):
            return self._tried(option)
        return outcome.spread(folded.place, _mirrored(folded)).assuming_too(symmetry.ASSUMING)

    def _strategy(self, option: Option, pairs: Pairs) -> Strategy:
        assert self._cascade is not None or self._need is not None
        generator = self._generator
        contract = choose.EXACT if self._cascade is None else self._cascade.contract
        most = WORTH * len(pairs)
        if option.name == "classify":
            return classify.search(pairs, contract, generator, most)
        if option.name == choose.BY_ATTRIBUTE:
            return attribute.search(pairs, contract, generator, most, self._detection, same=self._same)
        if option.name == "factor":
            return factor.search(pairs, contract, generator, most, same=self._same)
        if option.name == "several":
            return several.search(pairs, contract, generator, most)
        if option.name == choose.MAP:
            features, prior = self._mapped(pairs)
            return block.search(pairs, features, prior, contract, generator)
        features, prior = self._descriptions().of_pairs(pairs, self._run.runner.stop)
        last = self._cascade is None or not self._writes
        return block.search(pairs, features, prior, contract, generator, last=last)

    def _mapped(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Features and similarities of the pairs, and of what the model writes for each left input with the right."""
        writer = self._source(Mapped, lambda: Mapped(self._run, self._spec, self.asking.asker, self._left.places[0]))
        lines = writer.of(self._left.lines)
        plain, vectors = self._descriptions(), None
        if plain.vectors is not None:
            vectors = (self._embedder().embedded(lines), plain.vectors[1])
        stop = self._run.runner.stop
        found = [one.of_pairs(pairs, stop) for one in (plain, Described.of(lines, self._right.lines, vectors))]
        return np.concatenate([one[0] for one in found], axis=1), found[0][1] + found[1][1]

    def _descriptions(self) -> Described:
        if self._described is None:
            self._described = Described.of(self._left.lines, self._right.lines, self._vectors())
        return self._described

    def _vectors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Embeddings of both sides; None where there is no embedder to be had."""
        embedder = self._embedder()
        try:
            return embedder.embedded(self._left.lines), embedder.embedded(self._right.lines)
        except ModelError as error:
            self._run.warn(f"pairs are ranked without embeddings: {error}")
            return None

    def _answer(self, request: Request) -> np.ndarray | int:
        asker = self.asking.asker
        if isinstance(request, AskPairs):
            rows = self._whole(request.rows)
            done = self._ask(rows, request.reason)
            if self._folded is not None:
                self._folded.pairs.labels[request.rows[:done]] = self._folded.whole.labels[rows[:done]]
            return done
        if isinstance(request, NameAttribute):
            name = request.attribute
            attributes = self._source(Attributes, lambda: Attributes(self._run, self._spec, asker, name))
            lines = (self._right if request.side else self._left).lines
            return attributes.of([lines[at] for at in request.inputs.tolist()])
        if isinstance(request, JudgeTogether):
            place = self._left.places[0]
            together = self._source(Together, lambda: Together(self._run, self._spec, asker, place))
            texts = self.asking.texts(self._whole(request.rows))
            return together.of(texts[place], texts[1 - place])
        assert isinstance(request, ScoreLabels)
        places, values = self._left.places, self._right.lines
        labels = self._source(LabelScores, lambda: LabelScores(self._run, self._spec, asker, places, values))
        return labels.of(self._left.texts, request.lefts)

    def _source(self, kind: type[S], make: Callable[[], S]) -> S:
        """The source of a kind, made the first time."""
        if kind not in self._sources:
            self._sources[kind] = make()
        return cast("S", self._sources[kind])

    def _embedder(self) -> Embedder:
        return self._source(Embedder, lambda: Embedder(self._run, self._spec))

    def _whole(self, rows: np.ndarray) -> np.ndarray:
        """Pairs as they were before they were folded."""
        return rows if self._folded is None else self._folded.first[rows]

    def _ask(self, rows: np.ndarray, reason: str, *, whole: bool = False) -> int:
        done = self.asking.ask(rows, reason, whole=whole)
        if self._need is not None and self.asking.pairs.found >= self._need:
            raise _EnoughError
        return done

    def _cross(self, pairs: Pairs, most_calls: int) -> Outcome | None:
        """Ask about every pair, a few at a time where not all are wanted. None where those listed are not all, and too
        few of them match."""
        rows = np.flatnonzero(pairs.open)
        if len(rows) + pairs.unlisted > most_calls and self._need is None:
            raise NotSupportedError(too_many(f"{len(rows) + pairs.unlisted:,.0f} calls"))
        watch = self.asking.asker.watch
        watch.total = watch.done_rows + len(rows)
        if self._need is not None:
            rows = self._generator.permutation(rows)
        step = len(rows) if self._need is None else max(self._need, choose.PILOT)
        asked = 0
        for start in range(0, len(rows), max(step, 1)):
            if asked > most_calls:
                raise NotSupportedError(too_many(f"more than {most_calls:,} calls"))
            asked += self._ask(rows[start : start + step], "exact", whole=True)
        if pairs.unlisted:
            return None
        self.asking.count()
        return asked_everything(pairs)

    def _finished(self, name: str, outcome: Outcome) -> Outcome:
        """Count what was asked, put what was decided otherwise into the trace, and say what it came to."""
        assert self._cascade is not None
        asking, pairs = self.asking, self.asking.pairs
        if self._is_equivalence:
            outcome = self._audited(outcome)
        asking.count()
        asking.trace(name, outcome)
        contract, labels, n = told(self._cascade.contract), asking.labels, len(pairs) + int(pairs.unlisted)
        if labels == n:
            self._run.cascaded(self._number, self._cascade, CascadeReport(contract, ASKED_ALL, None, n, n))
            return outcome
        usd = measured(asking.asker.op, asking.asker.calls)
        paid = sum(one.usd for one in self._sources.values())
        sure = f"{contract}, {labels:,} labels"
        if outcome.assuming:
            sure = f"assuming {outcome.assuming}; {sure}"
        report = CascadeReport(
            contract,
            f"certified({sure})" if outcome.certified else f"uncertified({outcome.reason})",
            name,
            n,
            labels,
            nulls=int((pairs.labels == NULL).sum()),
            saving_usd=(n - labels) * usd - paid,
            saving=1 - (labels * usd + paid) / (n * usd) if usd else 0.0,
            tau_low=_number(outcome.tau_low),
            tau_high=_number(outcome.tau_high),
            reached=outcome.reached if outcome.certified else {},
            cut=_number(outcome.cut),
            pruned=int(outcome.pruned),
        )
        self._run.cascaded(self._number, self._cascade, report)
        return outcome

    def _audited(self, outcome: Outcome) -> Outcome:
        """The outcome once some answers that follow from others were asked for; warns where they contradict those."""
        asking, labels = self.asking, self.asking.pairs.labels
        asking.audit(equivalence.AUDITED, self._generator)
        if asking.contradictions:
            self._run.warn(
                f"{self._spec.function}: the question is said to be an equivalence, and {asking.contradictions:,} of "
                f"{asking.labels:,} answers contradict that; without the option each pair is decided for itself"
            )
        accepted = np.where(labels > NULL, labels == YES, outcome.accepted)
        return replace(outcome, accepted=accepted).assuming_too(equivalence.ASSUMING)


def _mirrored(folded: Folded) -> Pairs:
    """All pairs, with the answers to those that were asked about turned round."""
    whole = folded.whole
    inferred = np.flatnonzero(whole.open & (folded.pairs.labels[folded.place] >= 0))
    whole.labels[inferred] = folded.pairs.labels[folded.place[inferred]]
    return whole


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def too_many(what: str) -> str:
    """Why a semantic join is refused, and what to do."""
    return (
        f"this semantic join would need {what}: add a cheap condition to its ON or WHERE, or allow more with "
        "SET ai_max_cross_calls = ..."
    )
