"""One statement with AI expressions while it runs: its models, its questions, its trace.

`Runner` is what a session lends to a run: everything that outlives a statement.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice import errors
from sqluice.engine.operators.ask import TIERS, Answers, Asker, Watch, template_digest
from sqluice.errors import InterruptedQueryError, ModelError
from sqluice.udfs.answers import answer_text, arrow_type, sql_type
from sqluice.workers.pool import LocalPool
from sqluice.workers.registry import LoadOptions, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.engine.answer_cache import AnswerCache
    from sqluice.engine.report import Report
    from sqluice.engine.trace import OpTrace, RunTrace, Status
    from sqluice.types import Progress
    from sqluice.udfs.spec import Spec


@dataclass(slots=True)
class Runner:
    """What runs of one session share. `interrupted` is set from another thread."""

    registry: Registry
    progress: Callable[[Progress], None] | None = None
    fetching: Callable[..., None] | None = None
    pool: LocalPool = field(default_factory=LocalPool)
    dimensions: dict[int, tuple[Any, int]] = field(default_factory=dict)
    interrupted: bool = False

    def stop(self) -> None:
        """`InterruptedQueryError` once `interrupted` was set."""
        if self.interrupted:
            raise InterruptedQueryError("interrupted; answers so far are in the cache")


@dataclass(slots=True)
class _Memo:
    """Answers that the row-wise functions have given in this run, by input."""

    values: dict[tuple[str | None, ...], tuple[int, int]] = field(default_factory=dict)
    parts: list[Answers] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    texts: list[list[tuple[str, ...]]] = field(default_factory=list)
    nulls: int = 0


class Run:
    """One statement: askers by the number of their spec, and the trace they write to."""

    def __init__(
        self, runner: Runner, specs: list[Spec], settings: dict[str, Value], cache: AnswerCache, trace: RunTrace
    ) -> None:
        self.runner = runner
        self.specs = specs
        self.settings = settings
        self.trace = trace
        self.warnings: dict[str, int] = {}
        self.failure: BaseException | None = None
        self._cache = cache
        self._askers: dict[int, Asker] = {}
        self._memos: dict[int, _Memo] = {}
        self._report: Report | None = None

    def uri(self, spec: Spec) -> str:
        """The model that a spec is asked of."""
        if spec.model is not None:
            return spec.model
        embeds = spec.operation == "embed" or ("function", "AI_EMBED") in spec.options
        return str(self.settings["ai_embedder" if embeds else "ai_oracle"])

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
        return self.runner.registry.load(self.uri(spec), options, self.runner.fetching)

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
            watch = Watch(self.runner.stop, self.runner.progress, spec.function)
            asker = Asker(spec, model, self.runner.pool, self._cache, op, watch, self.settings)
            asker.dimension = self.dimension(spec)
            self._askers[number] = asker
        return self._askers[number]

    def answer_rows(self, number: int, columns: Sequence[Sequence[str | None]], n: int, *, error: bool) -> pa.Array:
        """What a row-wise function returns for n rows: answers, or the texts of errors."""
        import pyarrow as pa

        memo = self._memos.setdefault(number, _Memo())
        rows: list[tuple[str | None, ...]] = list(zip(*columns, strict=True)) if columns else [()] * n
        whole = [row for row in rows if None not in row]
        new = list(dict.fromkeys(row for row in whole if row not in memo.values))
        if new:
            asker = self.asker(number)
            asker.watch.total = None
            texts: list[tuple[str, ...]] = new  # type: ignore[assignment]
            answers = asker.answer([list(column) for column in zip(*texts, strict=True)], len(texts))
            memo.values.update({row: (len(memo.parts), at) for at, row in enumerate(texts)})
            memo.parts.append(answers)
            memo.rows.append(np.zeros(len(texts), np.int64))
            memo.texts.append(texts)
        places = [memo.values.get(row) for row in rows]
        memo.nulls += sum(place is None for place in places)
        for place in places:
            if place is not None and not error:
                memo.rows[place[0]][place[1]] += 1
        spec = self.specs[number]
        if error:
            said = [None if place is None else memo.parts[place[0]].errors.get(place[1]) for place in places]
            return pa.array(said, pa.string())
        kind = arrow_type(spec) if spec.operation == "embed" else arrow_type(spec, self.dimension(spec))
        picked = [None if place is None else memo.parts[place[0]].values[place[1]].as_py() for place in places]
        return pa.array(picked, kind)

    def decided(
        self,
        number: int,
        hashes: Sequence[bytes],
        n_rows: np.ndarray,
        tiers: np.ndarray,
        scores: np.ndarray,
        raw: np.ndarray,
        answers: pa.Array,
        errors: dict[int, str],
        tokens: tuple[np.ndarray, np.ndarray],
        texts: list[str] | None = None,
    ) -> None:
        """Record decisions in the trace."""
        failed = np.zeros(len(hashes), bool)
        failed[list(errors)] = True
        status = np.where(failed, "failed", "answered").tolist() if errors else "answered"
        same = len(tiers) > 0 and bool((tiers == tiers[0]).all())
        tier: list[str] | str = TIERS[int(tiers[0])] if same else [TIERS[code] for code in tiers.tolist()]
        self.op(number).add_decisions(
            hashes,
            n_rows,
            tier=tier,
            scores=scores,
            raw_scores=raw,
            answers=answers,
            status=status,
            errors=errors,
            tokens_in=tokens[0],
            tokens_out=tokens[1],
            texts=texts,
        )

    def op(self, number: int) -> OpTrace:
        """The operator of a spec in the trace."""
        return self.asker(number).op

    def warn(self, text: str) -> None:
        """A warning on the cursor and in the trace."""
        self.warnings[text] = self.warnings.get(text, 0) + 1
        self.trace.warn(text)

    def messages(self) -> list[tuple[type, str]]:
        """What the cursor shows: warnings of the run and of its trace, each once."""
        return [(errors.Warning, text) for text in {**self.warnings, **self.trace.warnings}]

    def count_lost(self) -> None:
        """Count what was asked where the decisions themselves are lost."""
        for asker in self._askers.values():
            op = asker.op
            if not op.distinct_inputs:
                op.calls, op.cached = asker.asked, asker.hits
                op.distinct_inputs = asker.asked + asker.hits

    def finish(self, error: BaseException | None = None) -> Report:
        """Write the trace and make the report; later calls change nothing."""
        if self._report is None:
            self._settle()
            self._report = self.trace.finish(_status(error), None if error is None else str(error))
        return self._report

    def _settle(self) -> None:
        for number, memo in self._memos.items():
            for part, n_rows, texts in zip(memo.parts, memo.rows, memo.texts, strict=True):
                shown = ["\n".join(row) for row in texts] if self.trace.mode == "text" else None
                self.decided(
                    number,
                    part.hashes,
                    n_rows,
                    part.tiers,
                    part.scores,
                    part.raw,
                    answer_text(part.values),
                    part.errors,
                    (part.tokens_in, part.tokens_out),
                    shown,
                )
            if number in self._askers:
                op = self._askers[number].op
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


def _status(error: BaseException | None) -> Status:
    if error is None:
        return "ok"
    return "interrupted" if isinstance(error, InterruptedQueryError | KeyboardInterrupt) else "error"
