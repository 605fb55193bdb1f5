"""Models that answer by rule, for tests of what stands around a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from sqluice.types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt


class WordModel:
    """Says the first choice when the prompt holds `word`, else the last; sleeps `delay` seconds a prompt."""

    def __init__(self, word: str = "good", delay: float = 0.0) -> None:
        self.info = ModelInfo(name="scripted", revision=f"{word}-1", context_tokens=4096)
        self.word = word
        self.delay = delay
        self.asked = 0

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities near 0 for the choice it takes."""
        time.sleep(self.delay * len(prompts))
        self.asked += len(prompts)
        scores = np.full((len(prompts), len(choices)), -5.0, np.float32)
        for row, prompt in enumerate(prompts):
            scores[row, 0 if self.word in " ".join(prompt.args) else -1] = -0.01
        return scores
