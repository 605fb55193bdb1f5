"""A model that scripted faults happen to, wherever it runs: what it did, and what already happened, stands in a folder.

Rows are answered by `rule`; a row's text may hold words that make the worker die, hang or fail.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sqluice.types import Completion, ModelInfo
from support.scripted import embedding, percent, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqluice.types import Prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes wrong. Words stand for rows: `dies` kills its worker each time, `dies_once` and `hangs_once` the first
    time only. `slow` is how many times as long one worker takes, whichever is first; `fails_start` how many workers
    cannot load the model; `memory` the rows above which a micro-batch runs out of memory."""

    dies: str = ""
    dies_once: str = ""
    hangs_once: str = ""
    hard: str = ""
    slow: float = 1.0
    fails_start: int = 0
    memory: int = 0
    seconds_a_row: float = 0.0
    batch_rows: int = 0


class Worked:
    """The model. `folder` is shared by all of its copies."""

    def __init__(self, folder: Path, plan: Plan = Plan(), name: str = "oracle") -> None:
        self.folder = folder
        self.plan = plan
        self.info = ModelInfo(name=name, revision=f"{name} {plan}", price_in=1.0)
        self.batch_rows = plan.batch_rows
        self._factor = 0.0

    def __reduce__(self) -> tuple[object, ...]:
        return _started, (self.folder, self.plan, self.info.name)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities of yes and no, or of other choices by whether they stand in the text."""
        texts = self._asked(prompts)
        if tuple(choices) == ("yes", "no"):
            chances = np.array([percent("40")(text) for text in texts])
            return np.asarray(np.log(np.stack([chances, 1 - chances], axis=1)), np.float32)
        return np.array([[-0.1 if one in text else -5.0 for one in choices] for text in texts], np.float32)

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """One token a word."""
        return [len(text_of(prompt).split()) for prompt in prompts]

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """The text in upper case."""
        return [Completion(text.upper(), "stop", len(text.split()), len(text.split())) for text in self._asked(prompts)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 8]."""
        self._asked(texts)
        return np.array([embedding(text) for text in texts], np.float32)

    def _asked(self, items: Sequence[Prompt] | Sequence[str]) -> list[str]:
        texts = [item if isinstance(item, str) else text_of(item) for item in items]
        with (self.folder / f"asked-{os.getpid()}").open("a", encoding="utf-8") as file:
            file.write("".join(f"{text}\n" for text in texts))
        if self.plan.memory and len(texts) > self.plan.memory:
            raise MemoryError("scripted")
        if _holds(texts, self.plan.dies) or (_holds(texts, self.plan.dies_once) and self._first("died")):
            os.kill(os.getpid(), signal.SIGKILL)
        if _holds(texts, self.plan.hangs_once) and self._first("hung"):
            time.sleep(3600)
        hard = sum(bool(self.plan.hard) and self.plan.hard in text for text in texts)
        time.sleep(self.plan.seconds_a_row * self._speed() * (len(texts) + 50 * hard))
        return texts

    def _speed(self) -> float:
        if not self._factor:
            self._factor = self.plan.slow if self.plan.slow != 1.0 and self._first("slow") else 1.0
        return self._factor

    def _first(self, what: str) -> bool:
        """Whether this is the first time, of all copies."""
        try:
            (self.folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def asked(folder: Path) -> Counter[str]:
    """How often each text was asked, by all workers together."""
    return Counter(line for path in folder.glob("asked-*") for line in path.read_text("utf-8").splitlines())


def processes(folder: Path) -> set[int]:
    """The workers that were asked anything."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("asked-*")}


def _holds(texts: Sequence[str], word: str) -> bool:
    return bool(word) and any(word in text for text in texts)


def _started(folder: Path, plan: Plan, name: str) -> Worked:
    """A copy on a worker; fails where the plan says so."""
    for at in range(plan.fails_start):
        try:
            (folder / f"start-{at}").touch(exist_ok=False)
        except FileExistsError:
            continue
        raise RuntimeError(f"scripted: start {at} fails")
    return Worked(folder, plan, name)
