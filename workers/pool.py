"""Runs a model in this process, micro-batch by micro-batch.

`LocalPool` sorts and packs rows, keeps what one bad row costs down to that row, and restores the order. A
micro-batch that fails is halved until the rows that fail stand alone; a model that has not answered one of
its first rows is given up. Models of ours may answer row by row themselves (`ask`, see `Asking`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from sqluice.errors import Error, InterruptedQueryError, ModelError
from sqluice.types import Completion
from sqluice.workers.batching import estimated_lengths, in_order, pack
from sqluice.workers.failures import describe, is_out_of_memory, overflow
from sqluice.workers.protocol import Asked, Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqluice.types import Prompt
    from sqluice.workers.protocol import Control

GIVE_UP_AFTER = 64
"""Rows that fail one after another, before any has succeeded, until the model is given up."""

FIRST_ROWS, MOST_ROWS, BATCH_SECONDS = 16, 1024, 0.25
"""Micro-batches of a model without sizes of its own: the first one, the largest, the time one should take."""

NOT_ASKED = "not asked"
"""The error of a row that an interruption left out."""

_CHARS_NO_TOKEN_HAS = 128

Operation: TypeAlias = Literal["score", "generate", "embed"]
_ANSWERS: dict[str, str] = {"score": "scores", "generate": "text", "embed": "embeddings"}


class Asking(Protocol):
    """A model that handles the failures of single rows itself: remote endpoints, recorded answers."""

    batch_rows: int

    def ask(
        self,
        operation: Operation,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Asked:
        """Answers in order, with `errors` for the rows that have none; checks `control` while it waits."""
        ...


class _UnusableError(ValueError):
    """The model answered, but with the wrong number, shape or type."""


@dataclass(slots=True)
class _Rows:
    """What one call has been told so far, in the order of its rows."""

    values: Any
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)


@dataclass(slots=True)
class _Work:
    """One call: `step` asks about some rows, stores the answers and returns the rows that got none."""

    name: str
    control: Control
    told: _Rows
    step: Callable[[np.ndarray], dict[int, str]]
    texts: Callable[[int], Sequence[str]]
    lengths: np.ndarray | None = None
    bias: np.ndarray | None = None
    ceiling: int = 0
    succeeded: bool = False
    failed: int = 0


class LocalPool:
    """Runs a model in this process, micro-batch by micro-batch.

    Every method returns answers in the order asked. They raise `ModelError` when the model cannot do the
    operation or fails on all of its first rows, and let `InterruptedQueryError` and `KeyboardInterrupt`
    through. An exception that ends a call carries what was answered until then as its attribute `asked`
    (rows not reached have the error `not asked`).
    """

    def score(self, model: Any, prompts: Sequence[Prompt], choices: Sequence[str], control: Control) -> Asked:
        """Float32 [n, k] log-probabilities of `choices`; `values` calibrated where the model offers it."""
        method = _method(model, "score")
        told = _empty(len(prompts), np.full((len(prompts), len(choices)), np.nan, dtype=np.float32))
        if not prompts:
            return _asked(told)

        def step(rows: np.ndarray) -> dict[int, str]:
            answer = method([prompts[row] for row in rows.tolist()], choices)
            found = _matrix(answer, len(rows), len(choices))
            told.values[rows] = found
            return _not_finite(found, rows)

        lengths = _admit(model, prompts, told, 0)
        bias = _calibration(model, prompts[0], choices)
        work = _Work(_name(model), control, told, step, lambda row: prompts[row].args, lengths, bias)
        if hasattr(model, "ask"):
            work.step = _asker(model, "score", prompts, told, control, choices=choices)
        return _run(work, _micro_batches(model, told, lengths))

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
        method = _method(model, "generate")
        told = _empty(len(prompts), [None] * len(prompts))

        def step(rows: np.ndarray) -> dict[int, str]:
            answer = method([prompts[row] for row in rows.tolist()], max_tokens=max_tokens, schema=schema)
            for row, completion in zip(rows.tolist(), _completions(answer, len(rows)), strict=True):
                told.values[row] = completion
                told.tokens_in[row] = completion.tokens_in or told.tokens_in[row]
                told.tokens_out[row] = completion.tokens_out
            return {}

        lengths = _admit(model, prompts, told, max_tokens)
        work = _Work(_name(model), control, told, step, lambda row: prompts[row].args, lengths)
        if hasattr(model, "ask"):
            work.step = _asker(model, "generate", prompts, told, control, max_tokens=max_tokens, schema=schema)
        return _run(work, _micro_batches(model, told, lengths, max_tokens))

    def embed(self, model: Any, texts: Sequence[str], control: Control, *, width: int = 0) -> Asked:
        """Float32 [n, d]; [n, 0] where no row could be embedded. `width` is d where it is known: rows of another
        length are errors."""
        method = _method(model, "embed")
        told = _empty(len(texts), np.full((len(texts), width), np.nan, dtype=np.float32))

        def step(rows: np.ndarray) -> dict[int, str]:
            width = told.values.shape[1]
            found = _matrix(method([texts[row] for row in rows.tolist()]), len(rows), width or None)
            _store_wide(told, rows, found)
            return _not_finite(found, rows)

        lengths = None
        if _budget(model):
            lengths = _lengths_of(getattr(model, "count_tokens", None), texts, _sizes(texts), told.tokens_in)
        work = _Work(_name(model), control, told, step, lambda row: texts[row : row + 1], lengths)
        if hasattr(model, "ask"):
            work.step = _asker(model, "embed", texts, told, control)
        return _run(work, _micro_batches(model, told, lengths))


def _admit(model: Any, prompts: Sequence[Prompt], told: _Rows, max_tokens: int) -> np.ndarray | None:
    """Tokens of each prompt past the prefix, None when nobody needs them. Rows that do not fit the model's
    context get their error."""
    limit = int(getattr(getattr(model, "info", None), "context_tokens", 0) or 0)
    measure = getattr(model, "lengths", None)
    if not prompts or not (limit or _budget(model) or callable(measure)):
        return None
    name = _name(model)
    chars = np.fromiter(map(_chars, prompts), dtype=np.int64, count=len(prompts))
    prefix = _prefix_tokens(model, prompts[0]) if callable(measure) else 0
    if limit:  # nobody spends seconds on tokenising what cannot fit
        for row in np.flatnonzero(chars > limit * _CHARS_NO_TOKEN_HAS).tolist():
            told.errors[row] = overflow("about ", int(chars[row]) // 4, limit, name, int(chars[row]), 0)
    rows = [row for row in range(len(prompts)) if row not in told.errors]
    lengths = np.zeros(len(prompts), dtype=np.int64)
    tokens = np.zeros(len(rows), dtype=np.int32)
    lengths[rows] = _lengths_of(measure, [prompts[row] for row in rows], chars[rows], tokens)
    total = lengths + prefix + max_tokens
    for row in np.flatnonzero(total > limit).tolist() if limit else ():
        about = "" if tokens.any() else "about "
        told.errors[row] = overflow(about, int(total[row]), limit, name, int(chars[row]), max_tokens)
    told.tokens_in[rows] = np.where(tokens > 0, tokens + prefix, 0)
    told.tokens_in[list(told.errors)] = 0  # never sent
    return lengths


def _chars(prompt: Prompt) -> int:
    return len(prompt.prefix) + len(prompt.template) + sum(map(len, prompt.args))


def _run(work: _Work, batches: Iterable[np.ndarray]) -> Asked:
    """Ask about every micro-batch; halve those that fail. On the way out by an exception, what was answered
    goes with it."""
    try:
        for batch in batches:
            waiting = [(batch, 1)]
            while waiting:
                rows, attempt = waiting.pop()
                work.control.check()
                if not (_too_big(work, rows) or not _attempt(work, rows, attempt)):
                    continue
                middle = len(rows) // 2
                waiting += [(rows[middle:], attempt + 1), (rows[:middle], attempt + 1)]
    except BaseException as error:
        unasked = set(range(len(work.told.tokens_in))) - _answered(work)
        for row in unasked:
            work.told.errors.setdefault(row, NOT_ASKED)
        vars(error)["asked"] = _asked(work.told, work.bias)
        raise
    return _asked(work.told, work.bias)


def _attempt(work: _Work, rows: np.ndarray, attempt: int) -> bool:
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
    batch = _batch(work, rows, started, attempt, said)
    work.told.batches.append(batch)
    work.control.done(batch)
    if cause is not None and len(rows) > 1:
        if is_out_of_memory(cause):
            work.ceiling = max(1, _padded(work, rows) // 2)
        return False
    if cause is not None:
        failed = {int(rows[0]): said}
    work.told.errors.update(failed)
    _hand_over(work, [row for row in rows.tolist() if row not in failed])
    _count(work, len(rows), failed)
    if work.failed >= GIVE_UP_AFTER and not work.succeeded:
        last = next(reversed(failed.values()))
        raise ModelError(f"{work.name} answered none of its first {work.failed} rows; the last one: {last}") from cause
    return True


def _hand_over(work: _Work, rows: list[int]) -> None:
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


def _count(work: _Work, rows: int, failed: dict[int, str]) -> None:
    """Remember whether any row was answered, and how many failed before. A score that is not a number is an
    answer here: it costs no further call."""
    broken = sum(not said.startswith(_NOT_A_NUMBER) for said in failed.values())
    work.succeeded |= broken < rows
    work.failed += broken


def _texts(work: _Work, rows: np.ndarray) -> list[str]:
    """The texts of `rows` that an error message must not repeat."""
    return [text for row in rows.tolist() for text in work.texts(row)]


def _answered(work: _Work) -> set[int]:
    """Rows whose answer is stored."""
    values = work.told.values
    if isinstance(values, list):
        return {row for row, value in enumerate(values) if value is not None}
    if not values.shape[1]:
        return set()
    return set(np.flatnonzero(~np.isnan(values).any(axis=1)).tolist())


def _too_big(work: _Work, rows: np.ndarray) -> bool:
    return bool(work.ceiling) and len(rows) > 1 and _padded(work, rows) > work.ceiling


def _padded(work: _Work, rows: np.ndarray) -> int:
    """Padded tokens of a micro-batch, or its rows where lengths are not known."""
    return len(rows) * (int(work.lengths[rows].max()) if work.lengths is not None else 1)


def _batch(work: _Work, rows: np.ndarray, started: float, attempt: int, said: str) -> Batch:
    batch = Batch(len(rows), started, time.time(), attempt=attempt, outcome="error" if said else "ok", error=said)
    if said and len(rows) > 1:
        return batch  # its rows are asked again, and counted then
    batch.tokens_in = int(work.told.tokens_in[rows].sum())
    batch.tokens_out = int(work.told.tokens_out[rows].sum())
    if work.lengths is not None and work.told.tokens_in.any():
        batch.max_tokens = int(work.lengths[rows].max())
        batch.pad_tokens = len(rows) * batch.max_tokens - int(work.lengths[rows].sum())
    return batch


def _micro_batches(model: Any, told: _Rows, lengths: np.ndarray | None, extra: int = 0) -> Iterable[np.ndarray]:
    """Rows without an error so far, packed as the model likes them."""
    n = len(told.tokens_in)
    budget, rows = _budget(model), int(getattr(model, "batch_rows", 0) or 0)
    open_rows = np.setdiff1d(np.arange(n), list(told.errors)) if told.errors else np.arange(n)
    if budget and lengths is not None:
        return [open_rows[picked] for picked in pack(lengths[open_rows], budget, extra=extra)]
    return [open_rows[picked] for picked in in_order(len(open_rows), rows)] if rows else _growing(open_rows)


def _growing(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Micro-batches for a model that says nothing of its size: as many rows as take `BATCH_SECONDS`, found by trying.
    Then progress is told and an interruption heard in time, and a fast model is asked in few calls."""
    size, at = FIRST_ROWS, 0
    while at < len(rows):
        started = time.perf_counter()
        yield rows[at : at + size]
        at += size
        seconds = max(time.perf_counter() - started, 1e-9)
        size = int(min(4 * size, MOST_ROWS, max(1, size * BATCH_SECONDS / seconds)))


def _asker(
    model: Any,
    operation: Operation,
    items: Sequence[Any],
    told: _Rows,
    control: Control,
    **options: Any,
) -> Callable[[np.ndarray], dict[int, str]]:
    """A step for a model that answers row by row itself."""

    def step(rows: np.ndarray) -> dict[int, str]:
        some = [items[row] for row in rows.tolist()]
        try:
            return _store(told, rows, operation, model.ask(operation, some, control=control, **options))
        except BaseException as error:
            part = getattr(error, "part", None)  # what was answered before the interruption
            if part is not None:
                _store(told, rows, operation, part)
            raise

    return step


def _store(told: _Rows, rows: np.ndarray, operation: Operation, answer: Asked) -> dict[int, str]:
    """Store what a model told about `rows`; returns the rows it told nothing about."""
    told.tokens_in[rows] = answer.tokens_in
    told.tokens_out[rows] = answer.tokens_out
    failed = {int(rows[at]): said for at, said in answer.errors.items()}
    if operation == "generate":
        for row, completion in zip(rows.tolist(), answer.values, strict=True):
            told.values[row] = completion
        return failed
    found = np.asarray(answer.values)
    if operation == "score":
        told.values[rows] = found
    elif found.shape[1]:
        _store_wide(told, rows, found)
    return {**_not_finite(found, rows), **failed}


def _store_wide(told: _Rows, rows: np.ndarray, found: np.ndarray) -> None:
    """Store embeddings; the first ones tell how wide they are."""
    if not told.values.shape[1]:
        told.values = np.full((len(told.tokens_in), found.shape[1]), np.nan, dtype=np.float32)
    told.values[rows] = found


def _matrix(answer: Any, n: int, k: int | None) -> np.ndarray:
    """`answer` as float32 [n, k]; `_UnusableError` when it is not one."""
    try:
        found = np.asarray(answer)
    except (TypeError, ValueError):
        raise _UnusableError("the model returned something that is not an array of numbers") from None
    if found.dtype.kind not in "fiu":
        raise _UnusableError(f"the model returned {found.dtype} values, not numbers")
    if found.ndim != 2 or found.shape[0] != n or (k is not None and found.shape[1] != k):
        raise _UnusableError(f"the model returned shape {list(found.shape)}, not [{n}, {k or 'd'}]")
    return found.astype(np.float32, copy=False)


_NOT_A_NUMBER = "model returned NaN"


def _not_finite(found: np.ndarray, rows: np.ndarray) -> dict[int, str]:
    """Rows with NaN or +inf, or with no finite number at all. A single -inf is the log of zero."""
    bad = np.isnan(found).any(axis=1) | (found == np.inf).any(axis=1) | np.isneginf(found).all(axis=1)
    if not bad.any():
        return {}
    nan = np.isnan(found).any(axis=1)
    infinite = f"{_NOT_A_NUMBER} or an infinite value"
    return {int(rows[at]): _NOT_A_NUMBER if nan[at] else infinite for at in np.flatnonzero(bad).tolist()}


def _completions(answer: Any, n: int) -> list[Completion]:
    """`answer` as n completions; plain strings are taken as complete texts."""
    if not isinstance(answer, (list, tuple)) or len(answer) != n:
        what = f"{len(answer)} completions" if isinstance(answer, (list, tuple)) else type(answer).__name__
        raise _UnusableError(f"the model returned {what}, not a list of {n} completions")
    found = [Completion(one) if isinstance(one, str) else one for one in answer]
    for one in found:
        if not isinstance(one, Completion) or not isinstance(one.text, str):
            raise _UnusableError(f"the model returned a {type(one).__name__}, not a Completion")
    return found


def _method(model: Any, operation: Operation) -> Any:
    method = getattr(model, operation, None)
    if callable(method):
        return method
    offers = [name for name in _ANSWERS if callable(getattr(model, name, None))]
    raise ModelError(
        f"{_name(model)} gives no {_ANSWERS[operation]}: it has no method {operation}"
        f" ({'it has ' + ', '.join(offers) if offers else 'nor any other of a model'}); name another model"
    )


def _name(model: Any) -> str:
    return f"model {getattr(getattr(model, 'info', None), 'name', '') or type(model).__name__}"


def _budget(model: Any) -> int:
    return int(getattr(model, "token_budget", 0) or 0)


def _prefix_tokens(model: Any, prompt: Prompt) -> int:
    """Tokens of the instruction prefix that `model.lengths` leaves out."""
    tokens = getattr(model, "prefix_tokens", 0)
    return int(tokens(prompt) if callable(tokens) else tokens or 0)


def _calibration(model: Any, prompt: Prompt, choices: Sequence[str]) -> np.ndarray | None:
    calibrate = getattr(model, "calibration", None)
    if not callable(calibrate):
        return None
    try:
        return np.asarray(calibrate(prompt, choices), dtype=np.float32)
    except Error:
        raise
    except Exception as error:
        raise ModelError(f"{_name(model)} cannot be calibrated: {describe(error, prompt.args)}") from error


def _sizes(texts: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _lengths_of(measure: Any, items: Sequence[Any], chars: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Int64 [n] tokens by `measure`, also written to `tokens`; a guess where it is missing or fails."""
    if callable(measure):
        try:
            found = np.asarray(measure(items), dtype=np.int64)
        except Exception:  # noqa: BLE001 - the row that cannot be tokenised is found when it is asked
            found = np.empty(0, dtype=np.int64)
        if found.shape == (len(items),):
            tokens[:] = found
            return found
    return estimated_lengths(chars)


def _empty(n: int, values: Any) -> _Rows:
    return _Rows(values, np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32))


def _asked(told: _Rows, bias: np.ndarray | None = None) -> Asked:
    values = told.values if bias is None else told.values - bias
    return Asked(values, told.values, told.tokens_in, told.tokens_out, told.errors, told.batches)
