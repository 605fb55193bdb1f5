"""Which rows a model can take, and how long they are: before anything is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import BrokenModelError, InterruptedQueryError
from sqluice.workers.batching import estimated_lengths
from sqluice.workers.checks import name_of
from sqluice.workers.failures import overflow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt
    from sqluice.workers.pool import Question, Rows

_CHARS_NO_TOKEN_HAS = 128


def admit(model: Any, question: Question, items: Sequence[Any], told: Rows) -> np.ndarray | None:
    """Tokens of each item, int64 [n], past the prefix that prompts share; None when nobody needs them. Prompts that do
    not fit the model's context get their error."""
    if question.operation != "embed":
        return _admit_prompts(model, items, told, question.max_tokens)
    measure = getattr(model, "count_tokens", None)
    return _lengths_of(measure, items, _sizes(items), told.tokens_in) if token_budget(model) else None


def _admit_prompts(model: Any, prompts: Sequence[Prompt], told: Rows, max_tokens: int) -> np.ndarray | None:
    limit = int(getattr(getattr(model, "info", None), "context_tokens", 0) or 0)
    measure = getattr(model, "lengths", None)
    if not prompts or not (limit or token_budget(model) or callable(measure)):
        return None
    name = name_of(model)
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


def token_budget(model: Any) -> int:
    """Padded tokens of a micro-batch that suit a model, 0 where it does not say."""
    return int(getattr(model, "token_budget", 0) or 0)


def _prefix_tokens(model: Any, prompt: Prompt) -> int:
    """Tokens of the instruction prefix that `model.lengths` leaves out."""
    tokens = getattr(model, "prefix_tokens", 0)
    return int(tokens(prompt) if callable(tokens) else tokens or 0)


def _sizes(texts: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _lengths_of(measure: Any, items: Sequence[Any], chars: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Int64 [n] tokens by `measure`, also written to `tokens`; a guess where it is missing or fails."""
    if callable(measure):
        try:
            found = np.asarray(measure(items), dtype=np.int64)
        except (InterruptedQueryError, BrokenModelError):
            raise
        except Exception:  # noqa: BLE001 - the row that cannot be tokenised is found when it is asked
            found = np.empty(0, dtype=np.int64)
        if found.shape == (len(items),):
            tokens[:] = found
            return found
    return estimated_lengths(chars)
