"""OpenAI's forms: the payload that asks about one prompt, and what its answer says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError
from sqluice.types import Completion
from sqluice.workers.chat import messages, positions
from sqluice.workers.choices import certain, named, scores, tokens_needed
from sqluice.workers.endpoints.json_answer import bare, instruction, misfit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

TOP = (20, 5, 0)
"""`top_logprobs` to ask for; the next one when a server refuses. 0: the answer in words."""

WORDS_TOKENS = 24
"""Of an answer in words."""


class UnusableAnswerError(ModelError):
    """The endpoint answered, and the answer cannot be used."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of an answer; `cached` of `tokens_in` were in the server's cache."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out, self.cached + other.cached)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every prompt of a call: the score of `choices`, or a text of `max_tokens`, by `schema`."""

    choices: tuple[str, ...] = ()
    max_tokens: int = 0
    schema: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Ways:
    """What a server is known to understand. `top` log-probabilities of a token, 0 for none; `limit` is its name for the
    most tokens; `by_schema` whether it holds a model to a JSON schema."""

    top: int = TOP[0]
    limit: str = "max_tokens"
    by_schema: bool = True


def payload(model: str, prompt: Prompt, question: Question, ways: Ways) -> dict[str, Any]:
    """The body of POST /chat/completions."""
    chat = messages(prompt, question.choices)
    tokens = question.max_tokens
    extra: dict[str, Any] = {}
    if question.choices:
        tokens = tokens_needed(question.choices) if ways.top else WORDS_TOKENS
        if ways.top:
            extra = {"logprobs": True, "top_logprobs": ways.top}
    elif question.schema is not None and ways.by_schema:
        named_schema = {"name": "answer", "schema": question.schema, "strict": True}
        extra = {"response_format": {"type": "json_schema", "json_schema": named_schema}}
    elif question.schema is not None:
        chat = [{"role": "system", "content": instruction(question.schema)}, *chat]
        if chat[1]["role"] == "system":
            chat[:2] = [{"role": "system", "content": f"{chat[1]['content']}\n\n{chat[0]['content']}"}]
    return {"model": model, "messages": chat, "temperature": 0, ways.limit: tokens, **extra}


def understood(said: str, question: Question, ways: Ways) -> dict[str, Any]:
    """What to change in `ways` after the server refused a request and `said` why; nothing where it is about the row."""
    if "max_completion_tokens" in said and ways.limit != "max_completion_tokens":
        return {"limit": "max_completion_tokens"}
    if question.choices and ways.top and "logprobs" in said:
        return {"top": next(fewer for fewer in TOP if fewer < ways.top)}
    asks_schema = question.schema is not None and ways.by_schema
    if asks_schema and any(word in said.lower() for word in ("response_format", "schema", "structured")):
        return {"by_schema": False}
    return {}


def has_logprobs(told: dict[str, Any]) -> bool:
    """Whether an answer tells log-probabilities."""
    return bool(positions(_first(told)))


def scored(told: dict[str, Any], choices: Sequence[str]) -> np.ndarray | None:
    """Float32 [k] scores by log-probabilities; None where the likely tokens begin none of the choices."""
    return scores(positions(_first(told)), choices)


def scored_by_words(told: dict[str, Any], choices: Sequence[str]) -> np.ndarray:
    """Float32 [k] scores of an answer in words; `UnusableAnswerError` where it names none of the choices."""
    which = named(_content(_first(told)), choices)
    if which is None:
        raise UnusableAnswerError("the model's answer names none of the choices")
    return certain(which, len(choices))


def completion(told: dict[str, Any], schema: dict[str, object] | None) -> Completion:
    """The text of an answer; `UnusableAnswerError` where it is whole and does not fit the schema."""
    choice, used = _first(told), usage(told)
    cut = choice.get("finish_reason") == "length"
    text = _content(choice)
    if schema is not None and not cut:
        text = bare(text)
        why = misfit(text, schema)
        if why:
            raise UnusableAnswerError(f"the model's answer does not fit the JSON schema: {why}")
    return Completion(text, "length" if cut else "stop", used.tokens_in, used.tokens_out)


def embeddings(told: dict[str, Any], n: int) -> np.ndarray:
    """Float32 [n, d] of unit norm, in the order asked."""
    try:
        data = sorted(told["data"], key=lambda one: one["index"])
        found = np.array([one["embedding"] for one in data], dtype=np.float32)
    except (LookupError, TypeError, ValueError):
        raise UnusableAnswerError("the endpoint sent embeddings in an unknown form") from None
    if found.ndim != 2 or len(found) != n:
        raise UnusableAnswerError(f"the endpoint sent {len(found)} embeddings for {n} texts")
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(norms > 0, norms, 1))


def usage(told: dict[str, Any]) -> Usage:
    """Tokens that an answer says it took, 0 where it does not say."""
    used = told.get("usage") or {}
    details = used.get("prompt_tokens_details") or {}
    counts = used.get("prompt_tokens"), used.get("completion_tokens"), details.get("cached_tokens")
    return Usage(*(int(count or 0) for count in counts))


def _first(told: dict[str, Any]) -> dict[str, Any]:
    """The first choice of a chat completion."""
    try:
        choice = told["choices"][0]
        if isinstance(choice["message"], dict):
            return dict(choice)
    except (LookupError, TypeError):
        pass
    raise UnusableAnswerError("the endpoint sent a chat completion in an unknown form")


def _content(choice: dict[str, Any]) -> str:
    if choice.get("finish_reason") == "content_filter":
        raise UnusableAnswerError("the endpoint's content filter withheld the answer")
    content = choice["message"].get("content")
    if not isinstance(content, str):
        raise UnusableAnswerError("the endpoint sent an answer without text")
    return content
