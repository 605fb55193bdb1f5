"""Where models run, and how one is asked micro-batch by micro-batch.

A pool sorts and packs rows, keeps what one bad row costs down to that row, and restores the order. A
micro-batch that fails is halved until the rows that fail stand alone; a model that has not answered one of
its first rows is given up. Models of ours may answer row by row themselves (`ask`, see `protocol.Asking`).

`LocalPool` does all of it in this process. `ray.pool.RayPool` admits and packs in this process as well, and has
each micro-batch `run` by a worker.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import BrokenModelError, Error, InterruptedQueryError, ModelError
from sqluice.workers import streaming
from sqluice.workers.admission import admit, token_budget
from sqluice.workers.batching import Growing, in_order, longest_first, pack
from sqluice.workers.checks import NOT_A_NUMBER, completions, matrix, method_of, name_of, not_finite
from sqluice.workers.failures import describe, is_out_of_memory
from sqluice.workers.protocol import Asked, Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqluice.types import Completion, Prompt
    from sqluice.workers.protocol import Control, Operation
    from sqluice.workers.registry import LoadOptions, Registry

GIVE_UP_AFTER = 64
"""Rows that fail one after another, before any has succeeded, until the model is given up."""

SLOTFULS = 8
"""Rows a slot, of what one worker is given to write: fewer leave slots empty, more are lost with a worker."""

NOT_ASKED = "not asked"
"""The error of a row that an interruption left out."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every row: `choices` to score, or at most `max_tokens` to write, or embeddings of `width`
    numbers (0 where that is not known)."""

    operation: Operation
    choices: tuple[str, ...] = ()
    max_tokens: int = 0
    schema: dict[str, object] | None = None
    width: int = 0

    def options(self) -> dict[str, Any]:
        """What a model's own `ask` takes beside the rows."""
        if self.operation == "score":
            return {"choices": self.choices}
        return {"max_tokens": self.max_tokens, "schema": self.schema} if self.operation == "generate" else {}


@dataclass(slots=True)
class Rows:
    """What one call has been told so far, in the order of its rows."""

    values: Any
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)

    @classmethod
    def of(cls, question: Question, n: int) -> Rows:
        """Nothing yet about n rows."""
        width = len(question.choices) if question.operation == "score" else question.width
        none: Any = [None] * n if question.operation == "generate" else np.full((n, width), np.nan, np.float32)
        return cls(none, np.zeros(n, np.int32), np.zeros(n, np.int32))

    def store(self, rows: np.ndarray, values: Any, tokens_in: np.ndarray, tokens_out: np.ndarray) -> None:
        """Answers to some rows; the first embeddings tell how wide they are."""
        self.tokens_in[rows], self.tokens_out[rows] = tokens_in, tokens_out
        if isinstance(self.values, list):
            for row, value in zip(rows.tolist(), values, strict=True):
                self.values[row] = value
        elif values.shape[1]:
            if not self.values.shape[1]:
                self.values = np.full((len(self.tokens_in), values.shape[1]), np.nan, dtype=np.float32)
            self.values[rows] = values

    def complete(self, written: dict[int, Completion]) -> None:
        """Texts of some rows."""
        for row, completion in written.items():
            self.values[row] = completion
            self.tokens_in[row] = completion.tokens_in or self.tokens_in[row]
            self.tokens_out[row] = completion.tokens_out

    def answered(self) -> set[int]:
        """Rows whose answer is stored."""
        if isinstance(self.values, list):
            return {row for row, value in enumerate(self.values) if value is not None}
        if not self.values.shape[1]:
            return set()
        return set(np.flatnonzero(~np.isnan(self.values).any(axis=1)).tolist())

    def asked(self, bias: np.ndarray | None = None) -> Asked:
        """What the caller gets."""
        values = self.values if bias is None else self.values - bias
        return Asked(values, self.values, self.tokens_in, self.tokens_out, self.errors, self.batches)

    def cut_short(self, error: BaseException, bias: np.ndarray | None = None) -> None:
        """Give an exception that ends the call what was answered until then."""
        for row in set(range(len(self.tokens_in))) - self.answered():
            self.errors.setdefault(row, NOT_ASKED)
        vars(error)["asked"] = self.asked(bias)


@dataclass(slots=True)
class Work:
    """One call: `step` asks about some rows, stores the answers and returns the rows that got none. Where there are
    `waves`, a model writes in slots, and they are asked instead."""

    name: str
    control: Control
    told: Rows
    step: Callable[[np.ndarray], dict[int, str]]
    texts: Callable[[int], Sequence[str]]
    lengths: np.ndarray | None = None
    bias: np.ndarray | None = None
    ceiling: int = 0
    succeeded: bool = False
    failed: int = 0
    waves: streaming.Waves | None = None

    @classmethod
    def of(cls, model: Any, question: Question, items: Sequence[Any], told: Rows, control: Control) -> Work:
        """Asking `model`, of this process, about `items`."""
        how = (_step(model, question, items, told, control), _texts_of(items))
        return cls(name_of(model), control, told, *how, waves=streaming.waves_of(model, question, items))


class Pool(ABC):
    """Where models run. A registered object stays where it is asked unless a pool says otherwise.

    Every method returns answers in the order asked. They raise `ModelError` when the model cannot do the
    operation or fails on all of its first rows, and let `InterruptedQueryError` and `KeyboardInterrupt`
    through. An exception that ends a call carries what was answered until then as its attribute `asked`
    (rows not reached have the error `not asked`).
    """

    def score(self, model: Any, prompts: Sequence[Prompt], choices: Sequence[str], control: Control) -> Asked:
        """Float32 [n, k] log-probabilities of `choices`; `values` calibrated where the model offers it."""
        return self.ask(model, Question("score", choices=tuple(choices)), prompts, control)

    def generate(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        schema: dict[str, object] | None,
        control: Control,
    ) -> Asked:
        """A list of `Completion`, None where a row failed."""
        return self.ask(model, Question("generate", max_tokens=max_tokens, schema=schema), prompts, control)

    def embed(self, model: Any, texts: Sequence[str], control: Control, *, width: int = 0) -> Asked:
        """Float32 [n, d]; [n, 0] where no row could be embedded. `width` is d where it is known: rows of another
        length are errors."""
        return self.ask(model, Question("embed", width=width), texts, control)

    @abstractmethod
    def model(
        self,
        registry: Registry,
        uri: str,
        options: LoadOptions,
        *,
        role: str,
        progress: Callable[..., None] | None = None,
    ) -> Any:
        """The model named `uri`, ready to be asked here, in a role of `where.ROLES`. Raises what `Registry.load`
        raises."""

    @abstractmethod
    def ask(self, model: Any, question: Question, items: Sequence[Any], control: Control) -> Asked:
        """Answers to `items`, prompts or texts, in their order."""

    @abstractmethod
    def close(self) -> None:
        """End what this pool started. It can be asked again, and starts it again then."""


class LocalPool(Pool):
    """Runs a model in this process, micro-batch by micro-batch."""

    def model(
        self,
        registry: Registry,
        uri: str,
        options: LoadOptions,
        *,
        role: str = "oracle",
        progress: Callable[..., None] | None = None,
    ) -> Any:
        """The model, loaded into this process."""
        del role
        return registry.load(uri, options, progress)

    def close(self) -> None:
        """Nothing: models stay loaded until `registry.unload_all`."""

    def ask(self, model: Any, question: Question, items: Sequence[Any], control: Control) -> Asked:
        """One micro-batch after another."""
        told = Rows.of(question, len(items))
        lengths = admit(model, question, items, told)
        work = Work.of(model, question, items, told, control)
        work.lengths, work.bias = lengths, calibration(model, question, items)
        if hasattr(model, "stream"):
            return _flow(model, question, items, work)
        batches = micro_batches(model, question, told, lengths)
        if work.waves is not None and isinstance(batches, list) and batches:
            batches = [np.concatenate(batches)]  # the more rows wait, the longer the slots stay full
        return run(work, batches)


def run(work: Work, batches: Iterable[np.ndarray]) -> Asked:
    """Ask about every micro-batch; halve those that fail. On the way out by an exception, what was answered
    goes with it."""
    try:
        for batch in batches:
            if work.waves is not None:
                streaming.written(work.waves, batch, work.texts, work.control, partial(_settle, work))
                continue
            waiting = [(batch, 1)]
            while waiting:
                rows, attempt = waiting.pop()
                work.control.check()
                if not (_too_big(work, rows) or not _attempt(work, rows, attempt)):
                    continue
                middle = len(rows) // 2
                waiting += [(rows[middle:], attempt + 1), (rows[:middle], attempt + 1)]
    except BaseException as error:
        work.told.cut_short(error, work.bias)
        raise
    return work.told.asked(work.bias)


def _flow(model: Any, question: Question, items: Sequence[Any], work: Work) -> Asked:
    """Ask about all rows at once, and take the answers as they come."""
    rows = np.setdiff1d(np.arange(len(items)), list(work.told.errors))
    some = [items[row] for row in rows.tolist()]
    try:
        with closing(model.stream(question.operation, some, control=work.control, **question.options())) as parts:
            for at, part in parts:
                failed = _store(work.told, rows[at], question.operation, part)
                work.told.batches += part.batches
                for batch in part.batches:
                    work.control.done(batch)
                _done(work, rows[at].tolist(), failed)
    except BaseException as error:
        work.told.cut_short(error, work.bias)
        raise
    return work.told.asked(work.bias)


def _attempt(work: Work, rows: np.ndarray, attempt: int) -> bool:
    """Ask once; False when the micro-batch is to be halved. A row alone that fails gets its error."""
    started = time.time()
    failed: dict[int, str] = {}
    cause: Exception | None = None
    said = ""
    try:
        failed = work.step(rows)
    except InterruptedQueryError:
        raise
    except Exception as error:  # noqa: BLE001 - a model may raise anything; it costs the rows that cause it
        cause = error
        said = describe(error, _texts(work, rows))
    batch = _batch_of(work, rows, started, attempt, said)
    work.told.batches.append(batch)
    work.control.done(batch)
    if cause is not None and len(rows) > 1:
        if is_out_of_memory(cause):
            work.ceiling = max(1, _padded(work, rows) // 2)
        return False
    if cause is not None:
        failed = {int(rows[0]): said}
    _done(work, rows.tolist(), failed, cause)
    return True


def _settle(work: Work, batch: Batch, written: dict[int, Completion], failed: dict[int, str]) -> None:
    """Take in a micro-batch of a model that writes in slots."""
    work.told.complete(written)
    work.told.batches.append(batch)
    work.control.done(batch)
    if written or failed:
        _done(work, [*written, *failed], failed)


def _done(work: Work, rows: list[int], failed: dict[int, str], cause: Exception | None = None) -> None:
    """Rows are answered, or have failed for good."""
    work.told.errors.update(failed)
    hand_over(work, [row for row in rows if row not in failed])
    count(work, len(rows), failed)
    if work.failed >= GIVE_UP_AFTER and not work.succeeded:
        said = f"none of its first {work.failed} rows; the last one: {next(reversed(work.told.errors.values()))}"
        raise BrokenModelError(f"{work.name} answered {said}") from cause


def hand_over(work: Work, rows: list[int]) -> None:
    """Tell a caller who wants to know the answers of a micro-batch at once."""
    answered = getattr(work.control, "answered", None)
    if answered is None or not rows:
        return
    values = work.told.values
    if isinstance(values, list):
        answered(rows, [values[row] for row in rows], None)
    else:
        raw = values[rows]
        answered(rows, raw if work.bias is None else raw - work.bias, raw)


def count(work: Work, rows: int, failed: dict[int, str]) -> None:
    """Remember whether any row was answered, and how many failed before. A score that is not a number is an
    answer here: it costs no further call."""
    broken = sum(not said.startswith(NOT_A_NUMBER) for said in failed.values())
    work.succeeded |= broken < rows
    work.failed += broken


def _texts(work: Work, rows: np.ndarray) -> list[str]:
    """The texts of `rows` that an error message must not repeat."""
    return [text for row in rows.tolist() for text in work.texts(row)]


def _too_big(work: Work, rows: np.ndarray) -> bool:
    return bool(work.ceiling) and len(rows) > 1 and _padded(work, rows) > work.ceiling


def _padded(work: Work, rows: np.ndarray) -> int:
    """Padded tokens of a micro-batch, or its rows where lengths are not known."""
    return len(rows) * (int(work.lengths[rows].max()) if work.lengths is not None else 1)


def _batch_of(work: Work, rows: np.ndarray, started: float, attempt: int, said: str) -> Batch:
    batch = Batch(len(rows), started, time.time(), attempt=attempt, outcome="error" if said else "ok", error=said)
    if said and len(rows) > 1:
        return batch  # its rows are asked again, and counted then
    batch.tokens_in = int(work.told.tokens_in[rows].sum())
    batch.tokens_out = int(work.told.tokens_out[rows].sum())
    if work.lengths is not None and work.told.tokens_in.any():
        batch.max_tokens = int(work.lengths[rows].max())
        batch.pad_tokens = len(rows) * batch.max_tokens - int(work.lengths[rows].sum())
    return batch


def micro_batches(model: Any, question: Question, told: Rows, lengths: np.ndarray | None) -> list[np.ndarray] | Growing:
    """Rows without an error so far, packed as the model likes them."""
    extra = question.max_tokens
    budget, rows = token_budget(model), int(getattr(model, "batch_rows", 0) or 0)
    open_rows = np.setdiff1d(np.arange(len(told.tokens_in)), list(told.errors))
    slots = int(getattr(model, "slots", 0) or 0) if question.operation == "generate" else 0
    if slots and lengths is not None:
        return [open_rows[picked] for picked in longest_first(lengths[open_rows], SLOTFULS * slots)]
    if budget and lengths is not None:
        return [open_rows[picked] for picked in pack(lengths[open_rows], budget, extra=extra)]
    return [open_rows[picked] for picked in in_order(len(open_rows), rows)] if rows else Growing(open_rows)


def _step(
    model: Any, question: Question, items: Sequence[Any], told: Rows, control: Control
) -> Callable[[np.ndarray], dict[int, str]]:
    """How some rows are asked about: stores the answers and returns the rows that got none, with why."""
    method, operation = method_of(model, question.operation), question.operation

    def own(rows: np.ndarray) -> dict[int, str]:
        some = [items[row] for row in rows.tolist()]
        try:
            return _store(told, rows, operation, model.ask(operation, some, control=control, **question.options()))
        except BaseException as error:
            part = getattr(error, "part", None)  # what was answered before the interruption
            if part is not None:
                _store(told, rows, operation, part)
            raise

    def score(rows: np.ndarray) -> dict[int, str]:
        answer = method([items[row] for row in rows.tolist()], question.choices)
        found = told.values[rows] = matrix(answer, len(rows), len(question.choices))
        return not_finite(found, rows)

    def generate(rows: np.ndarray) -> dict[int, str]:
        answer = method([items[row] for row in rows.tolist()], **question.options())
        told.complete(dict(zip(rows.tolist(), completions(answer, len(rows)), strict=True)))
        return {}

    def embed(rows: np.ndarray) -> dict[int, str]:
        answer = method([items[row] for row in rows.tolist()])
        found = matrix(answer, len(rows), told.values.shape[1] or None)
        told.store(rows, found, told.tokens_in[rows], told.tokens_out[rows])
        return not_finite(found, rows)

    return own if hasattr(model, "ask") else {"score": score, "generate": generate, "embed": embed}[operation]


def _texts_of(items: Sequence[Any]) -> Callable[[int], Sequence[str]]:
    """What an error message about a row must not repeat."""
    return lambda row: (items[row],) if isinstance(items[row], str) else items[row].args


def _store(told: Rows, rows: np.ndarray, operation: Operation, answer: Asked) -> dict[int, str]:
    """Store what a model told about `rows`; returns the rows it told nothing about."""
    failed = {int(rows[at]): said for at, said in answer.errors.items()}
    values = answer.values if operation == "generate" else np.asarray(answer.values)
    told.store(rows, values, answer.tokens_in, answer.tokens_out)
    return failed if operation == "generate" else {**not_finite(values, rows), **failed}


def calibration(model: Any, question: Question, items: Sequence[Any]) -> np.ndarray | None:
    """Float32 [k]: what is taken off the scores of all rows; None where the model offers none."""
    calibrate = getattr(model, "calibration", None)
    if question.operation != "score" or not items or not callable(calibrate):
        return None
    prompt = items[0]
    try:
        return np.asarray(calibrate(prompt, question.choices), dtype=np.float32)
    except Error:
        raise
    except Exception as error:
        raise ModelError(f"{name_of(model)} cannot be calibrated: {describe(error, prompt.args)}") from error
