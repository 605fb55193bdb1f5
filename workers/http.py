"""Models behind an OpenAI-compatible endpoint: `http(s)://host/v1#model`.

`score` asks for one token (or as many as tell the choices apart) with `logprobs`, and reads the choices'
probabilities from `top_logprobs`. A server that gives none is asked for its answer in words: the choice it
names then scores log(1 - 0.001), every other log(0.001), and `info.extra['scores']` says `answer text`.
Rows are asked one by one, `concurrency` at a time; a row that fails costs that row.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from sqluice.errors import ModelError
from sqluice.types import Completion, ModelInfo
from sqluice.workers.chat import all_or_error, messages, positions
from sqluice.workers.choices import certain, named, scores, tokens_needed
from sqluice.workers.failures import describe
from sqluice.workers.protocol import Asked
from sqluice.workers.transport import Limits, RefusedError, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqluice.types import Prompt
    from sqluice.workers.protocol import Control

FORM = "chat-1"
"""Version of how prompts are put to an endpoint; part of the revision."""

TOP = (20, 5, 0)
"""`top_logprobs` to ask for; the next one when a server refuses. 0: the answer in words."""

WORDS_TOKENS = 24
EMBED_ROWS = 32
_LIMITS = Limits()


@dataclass(slots=True)
class _Tally:
    """Rows of one call that were answered and refused, so that a dead endpoint is not asked about each."""

    answered: int = 0
    refused: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class _Told:
    """What one row was told."""

    value: Any
    tokens_in: int = 0
    tokens_out: int = 0


_Work: TypeAlias = Callable[[], Awaitable[list[_Told | str]]]


class Endpoint:
    """A model at an OpenAI-compatible endpoint. Thread-safe: requests run on one background loop."""

    batch_rows = 512

    def __init__(self, base: str, model: str, *, key_env: str | None = None, limits: Limits | None = None) -> None:
        self._transport = Transport(base, key_env, limits or Limits())
        self._model = model
        self._top = TOP[0]
        self._limit_name = "max_tokens"
        revision = hashlib.blake2b(f"{FORM}|{base}|{model}".encode(), digest_size=16).hexdigest()
        self.info = ModelInfo(f"{base}#{model}", revision, device="remote", extra={"scores": "logprobs"})

    def __repr__(self) -> str:
        return f"<Endpoint {self.info.name}>"

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k] log-probabilities; `ModelError` for the first row that failed."""
        return np.asarray(all_or_error(self.ask("score", prompts, choices=choices)))

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt; `ModelError` for the first row that failed."""
        return list(all_or_error(self.ask("generate", prompts, max_tokens=max_tokens, schema=schema)))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d] of unit norm; `ModelError` for the first row that failed."""
        return np.asarray(all_or_error(self.ask("embed", texts)))

    def close(self) -> None:
        """Close the connections."""
        self._transport.run(self._transport.close())

    def ask(
        self,
        operation: str,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Asked:
        """Answers with `errors` for the rows that have none; see `pool.Asking`."""
        told: list[_Told | str] = ["not asked"] * len(items)
        work = self._work(operation, list(items), choices, max_tokens, schema)
        try:
            self._transport.run(_every(work, told, self._transport.limits.concurrency), control)
        except BaseException as error:
            vars(error)["part"] = _asked(operation, told, len(choices))
            raise
        return _asked(operation, told, len(choices))

    def _work(
        self,
        operation: str,
        rows: list[Any],
        choices: Sequence[str],
        max_tokens: int,
        schema: dict[str, object] | None,
    ) -> list[_Work]:
        """One piece of work a request: a row, or some texts to embed."""
        tally = _Tally()
        if operation == "embed":
            pieces = [rows[at : at + EMBED_ROWS] for at in range(0, len(rows), EMBED_ROWS)]
            return [partial(self._embedded, piece, tally) for piece in pieces]
        ask = (
            partial(self._scored, choices=choices)
            if operation == "score"
            else partial(self._written, max_tokens=max_tokens, schema=schema)
        )
        return [partial(_guarded, tally, row.args, partial(ask, row)) for row in rows]

    async def _scored(self, prompt: Prompt, choices: Sequence[str]) -> _Told:
        """Scores of one row, by log-probabilities where the server gives them."""
        tokens = 0, 0
        while self._top:
            told = await self._chat(prompt, choices, tokens_needed(choices), top=self._top)
            choice = _first(told)
            tokens = _usage(told, tokens)
            written = positions(choice)
            if not written:
                self._no_logprobs()
                break
            found = scores(written, choices)
            if found is None:
                raise RefusedError("the model's answer begins none of the choices")
            return _Told(found, *tokens)
        told = await self._chat(prompt, choices, WORDS_TOKENS)
        tokens = _usage(told, tokens)
        which = named(_content(_first(told)), choices)
        if which is None:
            raise RefusedError("the model's answer names none of the choices")
        return _Told(certain(which, len(choices)), *tokens)

    async def _written(self, prompt: Prompt, max_tokens: int, schema: dict[str, object] | None) -> _Told:
        """A completion of one row."""
        form: dict[str, Any] = {}
        if schema is not None:
            named_schema = {"name": "answer", "schema": schema, "strict": True}
            form["response_format"] = {"type": "json_schema", "json_schema": named_schema}
        told = await self._chat(prompt, (), max_tokens, **form)
        choice = _first(told)
        cut = choice.get("finish_reason") == "length"
        tokens = _usage(told, (0, 0))
        return _Told(Completion(_content(choice), "length" if cut else "stop", *tokens), *tokens)

    async def _embedded(self, texts: list[str], tally: _Tally) -> list[_Told | str]:
        """Embeddings of some rows by one request; halved when the server refuses it."""
        told = await _guarded(tally, texts, partial(self._vectors, texts), rows=len(texts))
        if len(texts) == 1 or not isinstance(told[0], str) or tally.refused >= 4 * EMBED_ROWS:
            return told
        middle = len(texts) // 2
        halves = [await self._embedded(half, tally) for half in (texts[:middle], texts[middle:])]
        return halves[0] + halves[1]

    async def _vectors(self, texts: list[str]) -> list[_Told]:
        payload = {"model": self._model, "input": texts, "encoding_format": "float"}
        told = await self._transport.post("/embeddings", payload, texts)
        try:
            data = sorted(told["data"], key=lambda one: one["index"])
            found = np.array([one["embedding"] for one in data], dtype=np.float32)
        except (LookupError, TypeError, ValueError):
            raise RefusedError("the endpoint sent embeddings in an unknown form") from None
        if found.ndim != 2 or len(found) != len(texts):
            raise RefusedError(f"the endpoint sent {len(found)} embeddings for {len(texts)} texts")
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.where(norms > 0, norms, 1)
        total = _usage(told, (0, 0))[0]
        share = [total // len(texts) + (at < total % len(texts)) for at in range(len(texts))]
        return [_Told(vector, tokens) for vector, tokens in zip(found, share, strict=True)]

    async def _chat(
        self, prompt: Prompt, choices: Sequence[str], max_tokens: int, *, top: int = 0, **form: Any
    ) -> dict[str, Any]:
        """One chat completion; takes back what the server says it does not know."""
        while True:
            payload: dict[str, Any] = {
                "model": self._model,
                "messages": messages(prompt, choices),
                "temperature": 0,
                self._limit_name: max_tokens,
                **form,
            }
            if top:
                payload |= {"logprobs": True, "top_logprobs": top}
            try:
                return await self._transport.post("/chat/completions", payload, prompt.args)
            except RefusedError as error:
                if error.status not in (400, 422):
                    raise
                said = str(error)
                if "max_completion_tokens" in said and "max_completion_tokens" not in payload:
                    self._limit_name = "max_completion_tokens"
                elif top and "logprobs" in said:
                    top = next(fewer for fewer in TOP if fewer < top)
                    self._top = min(self._top, top)
                    if not top:
                        self._no_logprobs()
                else:
                    raise

    def _no_logprobs(self) -> None:
        self._top = 0
        self.info = replace(self.info, extra={"scores": "answer text"})


async def _every(work: Sequence[_Work], told: list[_Told | str], at_once: int) -> None:
    """Do all of `work`, `at_once` pieces at a time; what each tells goes to its place in `told` at once."""
    rows = 1 if len(work) == len(told) else EMBED_ROWS
    left = iter(enumerate(work))

    async def some() -> None:
        for at, piece in left:
            told[at * rows : at * rows + rows] = await piece()

    await asyncio.gather(*(some() for _ in range(min(at_once, len(work)))))


def load(base: str, model: str, options: Mapping[str, str]) -> Endpoint:
    """The endpoint `base` (without a trailing slash) with the options of its URI."""
    given: dict[str, float] = {}
    for name in ("concurrency", "timeout", "deadline"):
        try:
            given[name] = float(options.get(name, getattr(_LIMITS, name)))
        except ValueError:
            raise ModelError(f"{base}#{model}: {name} takes a number") from None
        if not 0 < given[name] < math.inf:
            raise ModelError(f"{base}#{model}: {name} is a number above zero")
    limits = Limits(max(1, int(given["concurrency"])), given["timeout"], given["deadline"])
    _check_reachable(base, model, min(given["timeout"], 10.0))
    return Endpoint(base, model, key_env=options.get("api_key_env"), limits=limits)


def _check_reachable(base: str, model: str, timeout: float) -> None:
    """A connection can be opened. A server that is not there would fail every row, each after its retries."""
    parts = urlsplit(base)
    if urllib.request.getproxies().get(parts.scheme):
        return  # only the proxy knows
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
    except OSError as error:
        raise ModelError(
            f"{base}#{model} cannot be reached: {error.strerror or error}; is the server running, and is the URL right?"
        ) from error


async def _guarded(
    tally: _Tally, texts: Sequence[str], work: Callable[[], Awaitable[Any]], rows: int = 1
) -> list[_Told | str]:
    """What `work` tells, or its error for each of the rows. Once 64 rows failed and none was answered, the
    rest is not asked."""
    if tally.refused >= 64 and not tally.answered:
        return [f"not asked, since the rows before failed: {tally.last}"] * rows
    try:
        told = await work()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong costs these rows
        tally.refused += rows
        tally.last = describe(error, texts)
        return [tally.last] * rows
    tally.answered += rows
    return told if isinstance(told, list) else [told]


def _asked(operation: str, told: Sequence[_Told | str], k: int) -> Asked:
    """Rows put together; NaN or None stands where a row failed."""
    errors = {at: one for at, one in enumerate(told) if isinstance(one, str)}
    good = [(at, one) for at, one in enumerate(told) if isinstance(one, _Told)]
    tokens = np.zeros((2, len(told)), dtype=np.int32)
    for at, one in good:
        tokens[:, at] = one.tokens_in, one.tokens_out
    values: Any = [None] * len(told)
    if operation == "generate":
        for at, one in good:
            values[at] = one.value
        return Asked(values, values, tokens[0], tokens[1], errors)
    width = k if operation == "score" else max((len(one.value) for _, one in good), default=0)
    values = np.full((len(told), width), np.nan, dtype=np.float32)
    for at, one in good:
        if len(one.value) == width:
            values[at] = one.value
        else:
            errors[at] = f"the endpoint sent {len(one.value)} numbers, not {width}"
    return Asked(values, values, tokens[0], tokens[1], errors)


def _first(told: dict[str, Any]) -> dict[str, Any]:
    """The first choice of a chat completion."""
    try:
        choice = told["choices"][0]
        if isinstance(choice["message"], dict):
            return dict(choice)
    except (LookupError, TypeError):
        pass
    raise RefusedError("the endpoint sent a chat completion in an unknown form")


def _content(choice: dict[str, Any]) -> str:
    if choice.get("finish_reason") == "content_filter":
        raise RefusedError("the endpoint's content filter withheld the answer")
    content = choice["message"].get("content")
    if not isinstance(content, str):
        raise RefusedError("the endpoint sent an answer without text")
    return content


def _usage(told: dict[str, Any], before: tuple[int, int]) -> tuple[int, int]:
    """Tokens in and out of one answer, added to those before."""
    usage = told.get("usage") or {}
    return (
        before[0] + int(usage.get("prompt_tokens") or 0),
        before[1] + int(usage.get("completion_tokens") or 0),
    )
