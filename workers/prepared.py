"""A form in tokens, and the rows of prompts that take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt
    from sqluice.workers.forms import Form


class RowTokens(Protocol):
    """A tokenizer of rows' texts."""

    def warm(self, texts: Sequence[str]) -> None:
        """Tokenise several texts at once."""
        ...

    def of(self, text: str) -> list[int]:
        """Tokens of one text."""
        ...


@dataclass(slots=True)
class Prepared:
    """A form in tokens: what all rows share, what follows each argument, and the endings."""

    form: Form
    prefix: list[int]
    after: list[list[int]]
    tails: list[list[int]]
    owner: list[int]
    scale: np.ndarray
    bias: np.ndarray

    @property
    def fixed(self) -> int:
        """Tokens after the arguments."""
        return sum(map(len, self.after))

    @property
    def ending(self) -> int:
        """Tokens of the longest ending."""
        return max(map(len, self.tails), default=0)

    def rows(self, prompts: Sequence[Prompt], tokens: RowTokens, *, whole: bool = True) -> list[list[int]]:
        """Tokens of each row behind the prefix: texts, what stands between them, and, where `whole`, what follows."""
        slots = self.form.slots
        tokens.warm([prompt.args[slot] for prompt in prompts for slot in slots])
        pieces = self.after if whole else [*self.after[:-1], []]
        rows = []
        for prompt in prompts:
            row: list[int] = []
            for slot, piece in zip(slots, pieces, strict=True):
                row += [*tokens.of(prompt.args[slot]), *piece]
            rows.append(row)
        return rows

    def by_choice(self, told: np.ndarray) -> np.ndarray:
        """Float32 [n, k] log-probabilities of the choices from those of the endings [n, t]: means; 0 for a choice
        without an ending."""
        found = np.zeros((len(told), len(self.form.tails)), dtype=np.float32)
        for choice in set(self.owner):
            found[:, choice] = told[:, [owner == choice for owner in self.owner]].mean(axis=1)
        return found
