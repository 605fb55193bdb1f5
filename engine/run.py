"""One statement with AI expressions while it runs: its models, its questions, its trace.

`Runner` is what a session lends to a run: everything that outlives a statement.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice import errors
from sqluice.engine.budget import SPENT, Budget
from sqluice.engine.efforts import Efforts, samples
from sqluice.engine.operators.ask import (
    USD_PER_SECOND,
    Answers,
    Asker,
    marked,
    measured,
    template_digest,
    tier_names,
)
from sqluice.engine.operators.watch import Watch
from sqluice.engine.policies import Shared
from sqluice.errors import InterruptedQueryError, ModelError
from sqluice.optimizer.ast import own_sites, spec_of
from sqluice.optimizer.cascade.compose import Chain
from sqluice.optimizer.cascade.constraints import told
from sqluice.optimizer.insert_cascades import COMPOSITION
from sqluice.optimizer.rules import order_conjuncts
from sqluice.optimizer.statistics import fingerprint, prior
from sqluice.udfs.answers import arrow_type, sql_type
from sqluice.udfs.spec import Spec
from sqluice.workers.places import at_bits
from sqluice.workers.pool import LocalPool, Pool
from sqluice.workers.pools import pool_of
from sqluice.workers.quant import artifact
from sqluice.workers.registry import LoadOptions, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from sqlglot import exp

    from sqluice.config import Value
    from sqluice.engine.answer_cache import AnswerCache
    from sqluice.engine.operators.ask import Routing
    from sqluice.engine.report import CascadeReport, Report
    from sqluice.engine.statistics import Statistics
    from sqluice.engine.trace import OpTrace, RunTrace, Status
    from sqluice.optimizer.cascade.policy import Policy
    from sqluice.optimizer.plan import Cascade, Stage
    from sqluice.optimizer.statistics import Share
    from sqluice.types import Progress


LEAST_SECONDS = 1e-3
SURE_CALLS = 16


@dataclass(slots=True)
class Runner:
    """What runs of one session share. `interrupted` is set from another thread."""

    registry: Registry
    progress: Callable[[Progress], None] | None = None
    fetching: Callable[..., None] | None = None
    pool: Pool = field(default_factory=LocalPool)
    dimensions: dict[int, tuple[Any, int]] = field(default_factory=dict)
    statistics: Statistics | None = None
    interrupted: bool = False
    shared: Shared = field(default_factory=Shared)

    def stop(self) -> None:
        """`InterruptedQueryError` once `interrupted` was set."""
        if self.interrupted:
            raise InterruptedQueryError("interrupted; answers so far are in the cache")


@dataclass(frozen=True, slots=True)
class Expected:
    """Calls by leaf of a stage's filters, and the cost of the written order as a multiple of the order taken."""

    calls: dict[str, int]
    saving: float


@dataclass(slots=True)
class Given:
    """Answers to n inputs as a statement needs them. `places` are those of their decisions, int64 [n]; `tiers` are
    numbers in `TIERS`, uint8 [n]; `errors` are keyed by position."""

    values: pa.Array
    errors: dict[int, str]
    places: np.ndarray
    tiers: np.ndarray


@dataclass(slots=True)
class _Memo:
    """Answers by input, for questions that are asked row by row. `rows` counts for each part the rows that DuckDB has
    asked about, which nobody else counts."""

    found: dict[tuple[str | None, ...], tuple[int, int]] = field(default_factory=dict)
    parts: list[Answers] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    nulls: int = 0

    def add(self, texts: list[tuple[str, ...]], answers: Answers) -> None:
        self.found.update({row: (len(self.parts), at) for at, row in enumerate(texts)})
        self.parts.append(answers)
        self.rows.append(np.zeros(len(texts), np.int64))

    def value(self, place: tuple[int, int]) -> object:
        return self.parts[place[0]].values[place[1]].as_py()

    def error(self, place: tuple[int, int]) -> str | None:
        return self.parts[place[0]].errors.get(place[1])


class Run:
    """One statement: askers by the number of their spec, and the trace they write to."""

    def __init__(
        self, runner: Runner, specs: list[Spec], settings: dict[str, Value], cache: AnswerCache, trace: RunTrace
    ) -> None:
        self.runner = runner
        runner.pool = pool_of(str(settings["ai_workers"]))
        self.specs = specs
        self.settings = settings
        self.trace = trace
        self.warnings: dict[str, int] = {}
        self.failure: BaseException | None = None
        self.both_ways: set[int] = set()
        """Specs that stages and row-wise functions ask alike: their answers are shared."""
        self.expected: dict[str, Expected] = {}
        """By stage what its filters were expected to ask, once its rows were known."""
        self.yes_shares: dict[int, float] = {}
        """By the number of a question how often it is expected to say yes."""
        self._cascades: dict[int, Cascade] = {}
        self._chain: Chain | None = None
        self.heads: dict[str, dict[str, Any]] = {}
        """What cascades leave for later runs, by question."""
        told_budget = settings["ai_budget"]
        self.budget = None if told_budget is None else Budget.of(str(told_budget))
        self._kept = 0
        self._learnt: dict[str, tuple[Share, float, str]] = {}
        self._cache = cache
        self._askers: dict[int, Asker] = {}
        self._memos: dict[int, _Memo] = {}
        self._costs: dict[str, tuple[float, float]] | None = None
        self.efforts = Efforts(runner.statistics)
        self._report: Report | None = None

    def uri(self, spec: Spec) -> str:
        """The model that a spec is asked of."""
        embeds = spec.operation == "embed" or ("function", "AI_EMBED") in spec.options
        uri = spec.model or str(self.settings["ai_embedder" if embeds else "ai_oracle"])
        bits = next((value for name, value in spec.options if name == "bits"), None)
        return uri if bits is None else at_bits(uri, float(bits))

    def proxy(self, spec: Spec) -> str | None:
        """The cheaper model of a question: `ai_proxy`, else what the policy of the oracle's artifact names."""
        given = self.settings["ai_proxy"]
        return artifact.proxy_of(self.uri(spec)) if given is None else str(given)

    def check(self) -> None:
        """Every model named is known, allowed and able; nothing is loaded. `ModelError` with the remedy."""
        for spec in self.specs:
            needs = None if spec.operation == "count_tokens" else spec.operation
            self.runner.registry.check(self.uri(spec), needs=needs)

    def model(self, spec: Spec) -> Any:
        """The loaded model of a spec."""
        settings = self.settings
        options = LoadOptions(
            threads=int(settings["ai_threads"] or 0), dtype=str(settings["ai_dtype"]), device=str(settings["ai_device"])
        )
        uri = self.uri(spec)
        runner = self.runner
        return runner.pool.model(runner.registry, uri, options, role=self._role(uri), progress=runner.fetching)

    def _role(self, uri: str) -> str:
        """What a model is to this statement, of `workers.where.ROLES`."""
        roles = {str(self.settings[f"ai_{role}"]): role for role in ("embedder", "proxy", "oracle")}
        return roles.get(uri, "oracle")

    def dimension(self, spec: Spec) -> int | None:
        """Length of a spec's embeddings, None for other operations. Asks the model once a session."""
        if spec.operation != "embed":
            return None
        model = self.model(spec)
        known = self.runner.dimensions.get(id(model))
        if known is None or known[0] is not model:
            asked = self.runner.pool.embed(model, ["dimension"], Watch(self.runner.stop, None, spec.function))
            values: Any = asked.values
            if not values.shape[1]:
                raise ModelError(f"model {self.uri(spec)} gives no embedding: {next(iter(asked.errors.values()), '')}")
            known = self.runner.dimensions[id(model)] = (model, int(values.shape[1]))
        return known[1]

    def sql_type(self, number: int) -> str:
        """SQL type of a spec's answers."""
        spec = self.specs[number]
        return sql_type(spec, self.dimension(spec))

    def asker(self, number: int) -> Asker:
        """The asker of a spec; its model is loaded now if need be."""
        if number not in self._askers:
            spec = self.specs[number]
            started = time.monotonic()
            model = self.model(spec)
            op = self.trace.operator(
                spec.function,
                self.uri(spec),
                str(getattr(model.info, "revision", "")),
                template_digest(spec.template),
                free_text=spec.operation == "generate",
            )
            op.seconds_load = time.monotonic() - started
            watch = Watch(self.runner.stop, self.runner.progress, spec.function, meter=self.efforts.meter(model))
            budgets = self._budgets_of(spec)
            for budget in budgets:
                budget.needs(watch.meter, self.uri(spec))
            asker = Asker(spec, model, self.runner.pool, self._cache, op, watch, self.settings, budgets)
            asker.dimension = self.dimension(spec)
            self._askers[number] = asker
        return self._askers[number]

    def _budgets_of(self, spec: Spec) -> list[Budget]:
        """The statement's budget, and the question's own."""
        own = [Budget.of(str(value)) for name, value in spec.options if name == "budget"]
        return own if self.budget is None else [self.budget, *own]

    def decided(
        self,
        number: int,
        texts: Sequence[Sequence[str]],
        n_rows: np.ndarray,
        values: pa.Array,
        scores: np.ndarray,
        by: Routing,
    ) -> Given:
        """Answers that a cheaper tier gave to distinct inputs."""
        answers = self.asker(number).decide(texts, n_rows, values, scores, by)
        places = np.arange(answers.first, answers.first + len(n_rows))
        return Given(answers.values, {}, places, answers.tiers)

    def answers(self, number: int, texts: Sequence[Sequence[str]], n_rows: np.ndarray, reason: str = "exact") -> Given:
        """Answers to distinct inputs, one column an argument, that stand for int64 [n] rows each. `reason` is why the
        oracle is asked."""
        if number not in self.both_ways:
            answers = self.asker(number).answer(texts, n_rows, reason)
            places = np.arange(answers.first, answers.first + len(n_rows))
            return Given(answers.values, answers.errors, places, answers.tiers)
        memo = self._memos.setdefault(number, _Memo())
        rows: list[tuple[str, ...]] = list(zip(*texts, strict=True)) if texts else [()] * len(n_rows)
        fresh = np.array([row not in memo.found for row in rows], bool)
        if fresh.any():
            self._ask_new(number, memo, [rows[at] for at in np.flatnonzero(fresh)], n_rows[fresh])
        found = [memo.found[row] for row in rows]
        places = np.array([memo.parts[part].first + at for part, at in found], np.int64)
        tiers = np.array([memo.parts[part].tiers[at] for part, at in found], np.uint8)
        errors = {at: said for at, place in enumerate(found) if (said := memo.error(place)) is not None}
        values = self._array(number, [memo.value(place) for place in found])
        failed = marked(errors, len(rows))
        self.again(number, places[~fresh], n_rows[~fresh], tiers[~fresh], failed[~fresh])
        return Given(values, errors, places, tiers)

    def completed(self, function: str, model: str, prompt: str, max_tokens: int) -> str:
        """What a model writes on one prompt, for an operator of its own called `function`; empty where it writes
        nothing."""
        spec = Spec(function, "generate", "VARCHAR", kind="complete", model=model, max_tokens=max_tokens)
        self.specs.append(spec)
        given = self.answers(len(self.specs) - 1, [[prompt]], np.ones(1, np.int64))
        return str(given.values[0].as_py() or "")

    def answer_rows(self, number: int, columns: Sequence[Sequence[str | None]], n: int, *, error: bool) -> pa.Array:
        """What a row-wise function returns for n rows: answers, or the texts of errors."""
        import pyarrow as pa

        memo = self._memos.setdefault(number, _Memo())
        rows: list[tuple[str | None, ...]] = list(zip(*columns, strict=True)) if columns else [()] * n
        whole = [row for row in rows if None not in row]
        new = list(dict.fromkeys(row for row in whole if row not in memo.found))
        if new:
            self.asker(number).watch.total = None
            self._ask_new(number, memo, new, np.zeros(len(new), np.int64))  # type: ignore[arg-type]
        places = [memo.found.get(row) for row in rows]
        memo.nulls += sum(place is None for place in places)
        for place in places:
            if place is not None and not error:
                memo.rows[place[0]][place[1]] += 1
        if error:
            return pa.array([None if place is None else memo.error(place) for place in places], pa.string())
        return self._array(number, [None if place is None else memo.value(place) for place in places])

    def _ask_new(self, number: int, memo: _Memo, texts: list[tuple[str, ...]], n_rows: np.ndarray) -> None:
        columns = [list(column) for column in zip(*texts, strict=True)]
        memo.add(texts, self.asker(number).answer(columns, n_rows))

    def _array(self, number: int, values: list[object]) -> pa.Array:
        import pyarrow as pa

        spec = self.specs[number]
        kind = arrow_type(spec) if spec.operation == "embed" else arrow_type(spec, self.dimension(spec))
        return pa.array(values, kind)

    def again(self, number: int, places: np.ndarray, n_rows: np.ndarray, tiers: np.ndarray, failed: np.ndarray) -> None:
        """More rows of inputs that are decided; fewer where `n_rows` is negative."""
        self.op(number).add_rows(places, n_rows, tier_names(tiers), failed)

    def op(self, number: int) -> OpTrace:
        """The operator of a spec in the trace."""
        return self.asker(number).op

    def identity(self, number: int) -> str:
        """What a question is across runs: its model's name and its constant part."""
        spec = self.specs[number]
        return f"{self.uri(spec)} {replace(spec, model=None, errors=False, options=())!r}"

    def revision(self, number: int) -> str:
        """The revision of a question's model, empty until it is loaded."""
        return self._askers[number].op.revision if number in self._askers else ""

    def shares(self, stage: Stage, rows: int) -> dict[str, Share]:
        """What is expected of each leaf of a stage's filters before it runs on `rows` rows. What other revisions of a
        model said does not count, where its revision is known."""
        leaves = order_conjuncts.asking(stage.filters)
        marks = {name: fingerprint(stage, leaf, self.identity) for name, leaf in leaves.items()}
        statistics = self.runner.statistics
        known = {} if statistics is None else statistics.shares(list(marks.values()))
        now = time.time()
        found = {}
        for name, mark in marks.items():
            found[name] = prior(leaves[name])
            now_it_is = self._revision(leaves[name])
            if mark in known and (known[mark].revision == now_it_is or not now_it_is.strip()):
                found[name] = found[name].plus(known[mark].now(rows, now))
        return found

    def learn(self, stage: Stage, leaf: exp.Expr, seen: Share, rows: int) -> None:
        """Keep for later runs what this one saw of a leaf on `rows` rows."""
        mark = fingerprint(stage, leaf, self.identity)
        self._learnt[mark] = (seen, float(rows), self._revision(leaf))

    def _revision(self, leaf: exp.Expr) -> str:
        return " ".join(self.revision(spec_of(site)) for site in own_sites(leaf))

    @property
    def shared(self) -> Shared:
        """What the partitions of a job have together."""
        return self.runner.shared

    def policy(self, number: int) -> Policy | None:
        """The policy of a question, in a partition of a job that has one for it."""
        return self.shared.policies.get(self.identity(number)) if self.shared.policies else None

    def chain(self, cascade: Cascade) -> Chain | None:
        """The chain that a cascade stands in, made for the first of them."""
        if cascade.chain and self._chain is None:
            self._chain = Chain(cascade.contract, cascade.chain)
        return self._chain if cascade.chain else None

    def kept(self, rows: int) -> None:
        """So many rows met all predicates of a stage."""
        self._kept = rows

    def cascaded(self, number: int, cascade: Cascade, report: CascadeReport) -> None:
        """What a question came to as a cascade."""
        self._cascades[number] = cascade
        self.op(number).cascades.append(report)

    def _label(self) -> str:
        """What the result can be trusted for."""
        ran = [(one, report) for number, one in self._cascades.items() for report in self.op(number).cascades]
        ran = [(one, report) for one, report in ran if report.scorer is not None]
        if any(SPENT in asker.warned for asker in self._askers.values()):
            return "uncertified(budget)"
        if not ran:
            return "exact"
        first, report = ran[0]
        if self._chain is not None and self.shared.policies:
            return f"uncertified({COMPOSITION})"
        if self._chain is not None:
            labels = sum(report.labels for _, report in ran)
            sure = self._chain.holds(self._kept)
            return f"certified({report.contract}, {labels:,} labels)" if sure else "uncertified(composition)"
        return report.label if len(ran) == 1 and first.apart is None else f"uncertified({COMPOSITION})"

    def measured(self, number: int) -> float:
        """US dollars a call of a question has cost in this run, machine time included."""
        asker = self._askers.get(number)
        return 0.0 if asker is None else measured(asker.op, asker.calls)

    def unit_cost(self, numbers: Sequence[int]) -> float:
        """US dollars a call of all these questions together, machine time included."""
        return sum(map(self._unit_cost, numbers))

    def earlier_cost(self, number: int) -> tuple[float, float] | None:
        """Seconds and US dollars a call of a question took in earlier runs; None where it was not asked."""
        if self._costs is None:
            marks = [self.identity(at) for at in range(len(self.specs))]
            self._costs = {} if self.runner.statistics is None else self.runner.statistics.costs(marks)
        return self._costs.get(self.identity(number))

    def _unit_cost(self, number: int) -> float:
        asker = self._askers.get(number)
        if asker is not None and asker.calls >= SURE_CALLS:
            seconds = asker.op.seconds_busy / asker.calls
            return asker.op.cost_usd / asker.calls + USD_PER_SECOND * max(seconds, LEAST_SECONDS)
        seconds, usd = self.earlier_cost(number) or (self.efforts.usual_seconds(asker.model) if asker else 0.0, 0.0)
        return usd + USD_PER_SECOND * max(seconds, LEAST_SECONDS)

    def expect(self, stage: Stage, rows: dict[str, int], calls: dict[str, int], saving: float) -> None:
        """Rows that are expected to come to each leaf of a stage's filters, what they are expected to ask, and how many
        times as much the written order would cost."""
        self.expected[stage.name] = Expected(calls, saving)
        for name, leaf in order_conjuncts.asking(stage.filters).items():
            for number in {spec_of(site) for site in own_sites(leaf)}:
                estimates = self.op(number).estimates
                estimates["rows"] = estimates.get("rows", 0.0) + rows.get(name, 0)
                estimates["calls"] = estimates.get("calls", 0.0) + calls.get(name, 0)

    def degrade(self, text: str) -> None:
        """A part of the statement did without what it was told to use; also a warning."""
        self.trace.degraded = True
        self.warn(text)

    def warn(self, text: str) -> None:
        """A warning on the cursor and in the trace."""
        self.warnings[text] = self.warnings.get(text, 0) + 1
        self.trace.warn(text)

    def messages(self) -> list[tuple[type, str]]:
        """What the cursor shows: warnings of the run and of its trace, each once."""
        return [(errors.Warning, text) for text in {**self.warnings, **self.trace.warnings}]

    def finish(self, error: BaseException | None = None) -> Report:
        """Write the trace and make the report; later calls change nothing."""
        if self._report is None:
            self._settle()
            self._learn()
            self.trace.label = self._label()
            self.trace.contract = "; ".join(sorted({told(one.contract) for one in self._cascades.values()})) or None
            self._report = self.trace.finish(_status(error), None if error is None else str(error))
        return self._report

    def _settle(self) -> None:
        for number, memo in self._memos.items():
            if number not in self._askers:
                continue
            op = self._askers[number].op
            for part, n_rows in zip(memo.parts, memo.rows, strict=True):
                failed = marked(part.errors, len(n_rows))
                here = n_rows > 0
                places = part.first + np.flatnonzero(here)
                op.add_rows(places, n_rows[here], tier_names(part.tiers[here]), failed[here])
            op.nulls += memo.nulls
            op.rows_in += memo.nulls + int(sum(rows.sum() for rows in memo.rows))
            op.rows_out = op.rows_in
        for asker in self._askers.values():
            spec = asker.spec
            counts: dict[str, int] = {}
            for said in asker.warned:
                counts[said] = counts.get(said, 0) + 1
            for said, times in counts.items():
                rows = "a row has" if times == 1 else f"{times:,} inputs have"
                self.warn(f"{spec.function}: {rows} no answer: {said}")

    def _learn(self) -> None:
        costs = {
            self.identity(number): (asker.op.seconds_busy, asker.op.cost_usd, asker.calls)
            for number, asker in self._askers.items()
            if asker.calls
        }
        if self.runner.statistics is not None and (self._learnt or costs):
            self.runner.statistics.learn(self._learnt, costs, self.heads, samples(self._askers.values()))


def _status(error: BaseException | None) -> Status:
    if error is None:
        return "ok"
    return "interrupted" if isinstance(error, InterruptedQueryError | KeyboardInterrupt) else "error"
