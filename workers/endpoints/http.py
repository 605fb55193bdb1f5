"""Models behind an OpenAI-compatible endpoint: `http(s)://host/v1#model`.

`score` asks for one token (or as many as tell the choices apart) with `logprobs`, and reads the choices' probabilities
from `top_logprobs`. A row whose likely tokens begin none of the choices, and every row of a server that gives no
log-probabilities, is asked for its answer in words: the choice it names then scores log(1 - 0.001), every other
log(0.001), and `info.extra['scores']` says `answer text` for such a server.
Rows are asked one by one, as many at once as the endpoint takes; a row that fails costs that row. With the option
`batch` many rows go through the server's batch API instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent import futures
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from sqluice.errors import BrokenModelError, ModelError
from sqluice.types import Completion, ModelInfo
from sqluice.workers.chat import all_or_error
from sqluice.workers.endpoints import batch_api, completions
from sqluice.workers.endpoints.completions import Question, Usage, Ways
from sqluice.workers.endpoints.transport import Limits, RefusedError, Transport, proxied
from sqluice.workers.failures import describe
from sqluice.workers.protocol import RETRY, Asked, Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqluice.types import Prompt
    from sqluice.workers.protocol import Control

FORM = "chat-1"
"""Version of how prompts are put to an endpoint; part of the revision."""

EMBED_ROWS = 32
LEAST_BATCH = 100
"""Rows from which the batch API is used: below, a batch is not worth its wait."""

PART_ROWS, PART_SECONDS = 512, 0.25
"""Answers are handed over when so many have come, or after so long."""

_POLL = 0.05
_NONE_ANSWERED = 64
_NUMBERS = ("concurrency", "timeout", "deadline")
_PRICES = ("price_in", "price_out", "price_cached")
_LIMITS = Limits()


_NO_USAGE = Usage()


@dataclass(slots=True)
class _Tally:
    """Rows of one call that were answered and refused, so that a dead endpoint is not asked about each."""

    answered: int = 0
    refused: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class _Told:
    """What one row was told: a value, or why there is none; and what that took."""

    value: Any
    error: str = ""
    usage: Usage = _NO_USAGE


_Work: TypeAlias = Callable[[], Awaitable[list[_Told]]]
_Done: TypeAlias = "deque[tuple[int, list[_Told]]]"


class Endpoint:
    """A model at an OpenAI-compatible endpoint. Thread-safe: requests run on one background loop. `window` is the
    completion window of the batch API, empty where it is not to be used."""

    def __init__(
        self,
        base: str,
        model: str,
        *,
        key_env: str | None = None,
        limits: Limits | None = None,
        prices: Mapping[str, float] | None = None,
        window: str = "",
    ) -> None:
        self._transport = Transport(base, key_env, limits or Limits())
        self._model = model
        self._window = window
        self._ways = Ways()
        revision = hashlib.blake2b(f"{FORM}|{base}|{model}".encode(), digest_size=16).hexdigest()
        known: dict[str, Any] = dict(prices or {})
        self.info = ModelInfo(f"{base}#{model}", revision, device="remote", extra={"scores": "logprobs"}, **known)

    def __repr__(self) -> str:
        return f"<Endpoint {self.info.name}>"

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k] log-probabilities; `ModelError` for the first row that failed."""
        return np.asarray(self._whole("score", prompts, choices=choices))

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt; `ModelError` for the first row that failed."""
        return list(self._whole("generate", prompts, max_tokens=max_tokens, schema=schema))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d] of unit norm; `ModelError` for the first row that failed."""
        return np.asarray(self._whole("embed", texts))

    def close(self) -> None:
        """Close the connections."""
        self._transport.start(self._transport.close()).result()

    def stream(
        self,
        operation: str,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Iterator[tuple[np.ndarray, Asked]]:
        """Answers as they come; see `protocol.Streaming`."""
        rows, question = list(items), Question(tuple(choices), max_tokens, schema)
        parts = _Parts(operation, len(choices), self._transport.where)
        work = self._answers(operation, rows, question, parts.done, control)
        running = self._transport.start(work, parts.retried)
        try:
            while not running.done():
                if control is not None:
                    control.check()
                futures.wait([running], timeout=_POLL)
                if parts.is_due():
                    yield parts.taken()
        except GeneratorExit:
            running.cancel()
            raise
        except BaseException:
            running.cancel()
            yield parts.taken()
            raise
        yield parts.taken()
        running.result()

    def _whole(self, operation: str, items: Sequence[Any], **options: Any) -> Any:
        """The values of all rows; `ModelError` for the first that failed."""
        told: dict[int, Any] = {}
        for rows, part in self.stream(operation, items, **options):
            told.update(zip(rows.tolist(), all_or_error(part), strict=True))
        return [told[row] for row in range(len(items))]

    def _answers(
        self, operation: str, rows: list[Any], question: Question, done: _Done, control: Control | None
    ) -> Awaitable[None]:
        """Puts what all rows are told into `done`."""
        tally, at_once = _Tally(), self._transport.limits.concurrency
        if operation == "embed":
            pieces = [rows[at : at + EMBED_ROWS] for at in range(0, len(rows), EMBED_ROWS)]
            work = {at * EMBED_ROWS: partial(self._embedded, piece, tally) for at, piece in enumerate(pieces)}
            return _every(work, done, at_once)
        if self._window and len(rows) >= LEAST_BATCH:
            return self._in_a_batch(rows, question, done, getattr(control, "under_way", None))
        return _every({at: self._row(row, question, tally) for at, row in enumerate(rows)}, done, at_once)

    def _row(self, prompt: Prompt, question: Question, tally: _Tally, ways: Ways | None = None) -> _Work:
        return partial(_guarded, tally, partial(self._answer, prompt, question, ways))

    async def _answer(self, prompt: Prompt, question: Question, ways: Ways | None = None) -> list[_Told]:
        """What one row is told, asked in another way where the first one gives no answer."""
        ways = ways or self._ways
        used = Usage()
        try:
            while True:
                told, ways = await self._chat(prompt, question, ways)
                used += completions.usage(told)
                value = self._value(told, question, ways)
                if value is not None:
                    return [_Told(value, "", used)]
                ways = replace(ways, top=0)
        except BrokenModelError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong costs this row
            return [_Told(None, describe(error, prompt.args), used)]

    def _value(self, told: dict[str, Any], question: Question, ways: Ways) -> Any:
        """What an answer is worth; None where the row is to be asked in words."""
        if not question.choices:
            return completions.completion(told, question.schema)
        if not ways.top:
            return completions.scored_by_words(told, question.choices)
        if not completions.has_logprobs(told):
            self._learn({"top": 0})
            return None
        return completions.scored(told, question.choices)

    async def _chat(self, prompt: Prompt, question: Question, ways: Ways) -> tuple[dict[str, Any], Ways]:
        """One chat completion, and the ways in which it was asked; takes back what the server does not know."""
        while True:
            payload = completions.payload(self._model, prompt, question, ways)
            try:
                return await self._transport.post("/chat/completions", payload, prompt.args), ways
            except RefusedError as error:
                change = completions.understood(str(error), question, ways) if error.status in (400, 422) else {}
                if not change:
                    raise
                ways = replace(ways, **change)
                self._learn(change)

    def _learn(self, change: dict[str, Any]) -> None:
        """Keep what the server does not know for the rows to come."""
        if "top" in change:
            change = {"top": min(self._ways.top, change["top"])}
        self._ways = replace(self._ways, **change)
        extra = {"scores": "logprobs" if self._ways.top else "answer text"}
        if not self._ways.by_schema:
            extra["json"] = "by instruction"
        self.info = replace(self.info, extra=extra)

    async def _in_a_batch(
        self, prompts: list[Prompt], question: Question, done: _Done, under_way: Callable[[int], None] | None
    ) -> None:
        """All rows by the batch API, but for the first one, which finds out what the server understands."""
        tally, at_once = _Tally(), self._transport.limits.concurrency
        done.append((0, await _guarded(tally, partial(self._answer, prompts[0], question))))
        ways = self._ways
        payloads = [completions.payload(self._model, prompt, question, ways) for prompt in prompts[1:]]
        told = await batch_api.run(self._transport, payloads, self._window, under_way or (lambda _done: None))
        again: dict[int, _Work] = {}
        for at, one in enumerate(told, 1):
            row = self._batched(one, prompts[at], question, ways)
            if row is None:
                again[at] = self._row(prompts[at], question, tally, replace(ways, top=0))
            else:
                done.append((at, [row]))
        await _every(again, done, at_once)

    def _batched(self, told: dict[str, Any] | str, prompt: Prompt, question: Question, ways: Ways) -> _Told | None:
        """What the batch told one row; None where it is to be asked in words."""
        if isinstance(told, str):
            return _Told(None, describe(ModelError(told), prompt.args))
        used = completions.usage(told)
        try:
            value = self._value(told, question, ways)
        except ModelError as error:
            return _Told(None, describe(error, prompt.args), used)
        return None if value is None else _Told(value, "", used)

    async def _embedded(self, texts: list[str], tally: _Tally) -> list[_Told]:
        """Embeddings of some rows by one request; halved when the server refuses it."""
        told = await _guarded(tally, partial(self._vectors, texts), len(texts))
        if len(texts) == 1 or not told[0].error or tally.refused >= 4 * EMBED_ROWS:
            return told
        middle = len(texts) // 2
        halves = [await self._embedded(half, tally) for half in (texts[:middle], texts[middle:])]
        return halves[0] + halves[1]

    async def _vectors(self, texts: list[str]) -> list[_Told]:
        payload = {"model": self._model, "input": texts, "encoding_format": "float"}
        try:
            told = await self._transport.post("/embeddings", payload, texts)
            found = completions.embeddings(told, len(texts))
        except BrokenModelError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong costs these rows
            return [_Told(None, describe(error, texts))] * len(texts)
        n, used = len(texts), completions.usage(told)
        share = [(used.tokens_in + at) // n for at in range(n)]  # adds up to the whole
        cached = [(used.cached + at) // n for at in range(n)]
        return [_Told(vector, "", Usage(share[at], 0, cached[at])) for at, vector in enumerate(found)]


class _Parts:
    """Answers on their way from the loop to the caller. `done` is filled by the loop, one (first row, what it and the
    next ones were told) after the other."""

    def __init__(self, operation: str, choices: int, worker: str) -> None:
        self.done: _Done = deque()
        self._operation = operation
        self._width = choices if operation == "score" else 0
        self._worker = worker
        self._causes: deque[str] = deque()
        self._since = time.time()

    def retried(self, cause: str) -> None:
        """An attempt has to be made again."""
        self._causes.append(cause)

    def is_due(self) -> bool:
        """Whether there is enough to hand over."""
        waited = time.time() - self._since >= PART_SECONDS
        return len(self.done) >= PART_ROWS or (waited and bool(self.done or self._causes))

    def taken(self) -> tuple[np.ndarray, Asked]:
        """What has come since the last time: int64 [m] rows, and their answers."""
        rows: list[int] = []
        told: list[_Told] = []
        for _ in range(len(self.done)):
            first, some = self.done.popleft()
            rows += range(first, first + len(some))
            told += some
        asked = self._asked(told)
        now = time.time()
        used = sum((one.usage for one in told), Usage())
        if rows:
            asked.batches = [Batch(len(rows), self._since, now, worker=self._worker)]
            one = asked.batches[0]
            one.tokens_in, one.tokens_out, one.tokens_cached = used.tokens_in, used.tokens_out, used.cached
        causes = Counter(self._causes.popleft() for _ in range(len(self._causes)))
        asked.batches += [
            Batch(times, now, now, outcome=RETRY, worker=self._worker, error=cause) for cause, times in causes.items()
        ]
        self._since = now
        return np.array(rows, np.int64), asked

    def _asked(self, told: list[_Told]) -> Asked:
        """Rows put together; NaN or None stands where a row failed."""
        errors = {at: one.error for at, one in enumerate(told) if one.error}
        tokens = np.array([(one.usage.tokens_in, one.usage.tokens_out) for one in told], np.int32).reshape(-1, 2)
        values: Any = [one.value for one in told]
        if self._operation != "generate":
            self._width = self._width or max((len(value) for value in values if value is not None), default=0)
            values = np.full((len(told), self._width), np.nan, dtype=np.float32)
            for at, one in enumerate(told):
                if one.value is not None and len(one.value) == self._width:
                    values[at] = one.value
                elif one.value is not None:
                    errors[at] = f"the endpoint sent {len(one.value)} numbers, not {self._width}"
        return Asked(values, values, tokens[:, 0], tokens[:, 1], errors)


async def _every(work: Mapping[int, _Work], done: _Done, at_once: int) -> None:
    """Do all of `work`, `at_once` pieces at a time; what each tells goes into `done`, with its first row."""
    left = iter(work.items())

    async def some() -> None:
        for first, piece in left:
            done.append((first, await piece()))

    tasks = [asyncio.ensure_future(some()) for _ in range(min(at_once, len(work)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _guarded(tally: _Tally, work: _Work, rows: int = 1) -> list[_Told]:
    """What `work` tells. Once 64 rows failed and none was answered, the rest is not asked."""
    if tally.refused >= _NONE_ANSWERED and not tally.answered:
        return [_Told(None, f"not asked, since the rows before failed: {tally.last}")] * rows
    told = await work()
    refused = sum(bool(one.error) for one in told)
    tally.refused += refused
    tally.answered += len(told) - refused
    tally.last = next((one.error for one in told if one.error), tally.last)
    return told


def load(base: str, model: str, options: Mapping[str, str]) -> Endpoint:
    """The endpoint `base` (without a trailing slash) with the options of its URI."""
    given = {name: _number(base, model, name, options[name]) for name in (*_NUMBERS, *_PRICES) if name in options}
    limits = Limits(
        max(1, int(given.get("concurrency", _LIMITS.concurrency))),
        given.get("timeout", _LIMITS.timeout),
        given.get("deadline", _LIMITS.deadline),
    )
    window = options.get("batch", "")
    if window and not (window[:-1].isdigit() and window[-1] in "hd"):
        raise ModelError(f"{base}#{model}: batch takes the server's completion window, e.g. 24h")
    prices = {name: given[name] for name in _PRICES if name in given}
    _check_reachable(base, model, min(limits.timeout, 10.0))
    return Endpoint(base, model, key_env=options.get("api_key_env"), limits=limits, prices=prices, window=window)


def _number(base: str, model: str, name: str, text: str) -> float:
    """The value of an option; prices may be 0."""
    try:
        found = float(text)
    except ValueError:
        raise ModelError(f"{base}#{model}: {name} takes a number") from None
    if not 0 <= found < math.inf or (found == 0 and name not in _PRICES):
        raise ModelError(f"{base}#{model}: {name} is a number above zero")
    return found


def _check_reachable(base: str, model: str, timeout: float) -> None:
    """A connection can be opened. A server that is not there would fail every row, each after its retries."""
    parts = urlsplit(base)
    if proxied(base):
        return  # only the proxy knows
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
    except OSError as error:
        raise BrokenModelError(
            f"{base}#{model} cannot be reached: {error.strerror or error}; is the server running, and is the URL right?"
        ) from error
