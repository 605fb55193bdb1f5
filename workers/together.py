"""Several questions about the same texts in one pass: the model reads a text once, and each question behind it.

The tokens that decide an answer are those of the question asked alone, so that answers are the same but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sqluice.workers.protocol import Asked

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sqluice.types import ModelInfo, Prompt
    from sqluice.workers.protocol import Batch


@dataclass(frozen=True, slots=True)
class Question:
    """`sample` is its prompt with the arguments of any row."""

    sample: Prompt
    choices: tuple[str, ...]


class Joinable(Protocol):
    """A model that can answer several questions in one pass."""

    info: ModelInfo
    token_budget: int

    def beginning(self, question: Question) -> Hashable | None:
        """What a question puts in front of and between a row's texts. Questions with the same can be asked in one pass;
        None where it goes with no other."""
        ...

    def question_tokens(self, question: Question) -> int:
        """Tokens that a question puts behind a row's texts, its endings included."""
        ...

    def text_tokens(self, prompts: Sequence[Prompt], question: Question) -> list[int]:
        """Tokens of each row up to where questions begin, without what all rows share."""
        ...

    def score_all(self, prompts: Sequence[Prompt], questions: Sequence[Question]) -> np.ndarray:
        """Float32 [n, k]: the scores of the choices of all questions, side by side, about the texts of `prompts`."""
        ...

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
        """Float32 [k] to subtract from the scores of one question."""
        ...

    def prefix_tokens(self, prompt: Prompt) -> int:
        """Tokens that all rows share, and those of the longest ending."""
        ...


class Together:
    """Questions with the same beginning, as one model whose choices are those of all of them."""

    def __init__(self, model: Joinable, questions: Sequence[Question]) -> None:
        self.info = model.info
        self.token_budget = model.token_budget
        self.questions = list(questions)
        self._model = model

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of all questions."""
        return tuple(choice for one in self.questions for choice in one.choices)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:  # noqa: ARG002 - as `LocalModel` has it
        """Float32 [n, k] raw scores."""
        return self._model.score_all(prompts, self.questions)

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:  # noqa: ARG002 - as `LocalModel` has it
        """Float32 [k] of all questions."""
        return np.concatenate([self._model.calibration(one.sample, one.choices) for one in self.questions])

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each row with all questions behind it."""
        behind = sum(self.question_tokens())
        return [tokens + behind for tokens in self._model.text_tokens(prompts, self.questions[0])]

    def prefix_tokens(self, prompt: Prompt) -> int:  # noqa: ARG002 - as `LocalModel` has it
        """Tokens that all rows share."""
        return max(self._model.prefix_tokens(one.sample) for one in self.questions)

    def question_tokens(self) -> list[int]:
        """Tokens of each question."""
        return [self._model.question_tokens(one) for one in self.questions]

    def apart(self, asked: Asked) -> list[Asked]:
        """What was asked in one pass, by question. The texts' tokens are the first one's; seconds are shared evenly."""
        ends = np.cumsum([len(one.choices) for one in self.questions])
        tokens = [0, *self.question_tokens()[1:]]
        sent = asked.tokens_in > 0
        found = []
        for at, (end, own) in enumerate(zip(ends.tolist(), tokens, strict=True)):
            here = slice(end - len(self.questions[at].choices), end)
            values, raw = (np.ascontiguousarray(part[:, here]) for part in (asked.values, asked.raw))
            read = np.where(sent, own if at else asked.tokens_in - sum(tokens), 0).astype(np.int32)
            batches = [_share(batch, at, len(ends), own, sum(tokens)) for batch in asked.batches]
            found.append(Asked(values, raw, read, np.zeros_like(read), dict(asked.errors), batches))
        return found


def _share(batch: Batch, at: int, n: int, own: int, others: int) -> Batch:
    """Question `at`'s part of a micro-batch that n questions shared."""
    each = (batch.ended - batch.started) / n
    started, ended = batch.started + at * each, batch.started + (at + 1) * each
    if not batch.tokens_in:
        own = others = 0
    tokens = batch.rows * own if at else max(batch.tokens_in - batch.rows * others, 0)
    pad = 0 if at else batch.pad_tokens
    joules = None if batch.joules is None else batch.joules / n
    return replace(batch, started=started, ended=ended, tokens_in=tokens, pad_tokens=pad, joules=joules)


def joinable(model: Any) -> bool:
    """Whether a model can answer several questions in one pass."""
    return hasattr(model, "score_all") and hasattr(model, "beginning")
