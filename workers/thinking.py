"""Models that think before they answer: their budget of tokens, and the answer without the thoughts.

Thoughts stand between `<think>` and `</think>`; some chat formats open them in the prompt already. They are counted and
never returned. The limit a query sets holds for the answer; thinking has a budget of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<think>", "</think>"

BUDGET = 4096
"""Tokens of thinking a row may spend. Most tasks gain nothing beyond 4,096 to 8,192, and some lose."""

_FIRST_TOKENS = 3  # a model that thinks begins with it, after a line break at most

NO_ANSWER = "the model stopped inside its thoughts and gave no answer"


def answer(text: str, *, opened: bool = False) -> str | None:
    """What a written text says after its thoughts; None when they do not end. `opened`: the prompt began them."""
    _, closed, after = text.partition(CLOSE)
    if closed:
        return after.strip()
    return None if opened or text.lstrip().startswith(OPEN) else text.strip()


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model thinks: the tokens that open and close it, and how many may stand between them."""

    opening: int
    closing: int
    budget: int = BUDGET


def of_tokenizer(tokenizer: Any, budget: int) -> Thinking | None:
    """How the model of this tokenizer thinks; None where its vocabulary has no such tokens."""
    known = tokenizer.get_vocab()
    return Thinking(known[OPEN], known[CLOSE], budget) if OPEN in known and CLOSE in known else None


@dataclass(slots=True)
class Writing:
    """The tokens of one answer as they come. At most `most` of them answer, after at most `thinking.budget`; `begun`:
    the prompt opened the thoughts."""

    most: int
    stops: frozenset[int]
    thinking: Thinking | None = None
    begun: bool = False
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    opened: bool = field(init=False)
    _from: int = 0

    def __post_init__(self) -> None:
        self.opened = self.begun

    def add(self, token: int) -> bool:
        """Whether the answer ends with this token: by a stop token (`finish` is `stop`) or a limit (`length`)."""
        self.tokens.append(token)
        if token in self.stops:
            self.finish = "stop"
            return True
        if self.thinking is not None:
            if token == self.thinking.closing and not self._from:
                self.opened, self._from = False, len(self.tokens)
            elif token == self.thinking.opening and len(self.tokens) <= _FIRST_TOKENS:
                self.opened = True
        most = self.thinking.budget if self.thinking is not None and self.opened else self.most
        if len(self.tokens) - self._from >= most:
            self.finish = "length"
        return bool(self.finish)

    def restart(self) -> None:
        """Forget what was written: the row is asked anew."""
        self.tokens, self.finish, self._from, self.opened = [], "", 0, self.begun

    @property
    def answer(self) -> list[int]:
        """The tokens after the thoughts, without the stop token; empty while they last."""
        if self.opened:
            return []
        return self.tokens[self._from : len(self.tokens) - (self.finish == "stop")]
