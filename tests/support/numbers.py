"""A table of texts with numbers in them, models that answer by these numbers, and connections that cascade on them."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import sqluice
from sqluice.types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice import Connection
    from sqluice.types import Prompt

ROWS = 4000
BLUR = 0.06
POSITIVE = "AI_FILTER(PROMPT('is {0} positive?', s))"


def values(text: str) -> np.ndarray:
    """The numbers in a text."""
    return np.array([float(one) for one in re.findall(r"0\.\d+", text)])


def noise(text: str) -> float:
    """A number around 0 that depends on the text."""
    return float(np.random.default_rng(zlib.crc32(text.encode())).normal())


@dataclass
class Model:
    """Says yes where the number asked about exceeds a mark, a little blurred; counts what it is asked."""

    price: float = 0.0
    seconds: float = 0.0
    fails: Callable[[str], bool] = lambda _text: False
    mark: float = 0.6
    asked: list[str] = field(default_factory=list)
    info: ModelInfo = field(default_factory=lambda: ModelInfo(name="oracle", revision="1"))

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities; NaN for rows that fail."""
        self.asked += [prompt.args[0] for prompt in prompts]
        found = np.full((len(prompts), len(choices)), np.log(0.02), np.float32)
        for at, prompt in enumerate(prompts):
            found[at, self.choice(prompt, len(choices))] = np.log(0.97)
            if self.fails(prompt.args[0]):
                found[at] = np.nan
        return found

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Six tokens for every prompt."""
        return [6] * len(prompts)

    def choice(self, prompt: Prompt, k: int) -> int:
        """Which choice is right: of two the first where the number is high, of more by its size."""
        which = 1 if "second" in prompt.template else 0
        value = float(values(prompt.args[0])[which] + BLUR * noise(prompt.args[0]))
        return int(value <= self.mark) if k == 2 else int(np.clip(value * k, 0, k - 1))


class Embedder:
    """Directions that turn with the numbers in a text."""

    info = ModelInfo(name="embedder", revision="1")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 8], unit norm."""
        rows = []
        for text in texts:
            u = np.resize(values(text), 2) if len(values(text)) else np.zeros(2)
            rows.append([*np.cos(np.pi * u), *np.sin(np.pi * u), *np.cos(2 * np.pi * u), *np.sin(2 * np.pi * u)])
        found = np.array(rows, np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


class Proxy(Model):
    """A score of its own for each text."""

    def __init__(self, score: Callable[[str], float]) -> None:
        super().__init__(info=ModelInfo(name="proxy", revision="1"))
        self.rule = score

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities by the rule."""
        self.asked += [prompt.args[0] for prompt in prompts]
        yes = np.array([self.rule(prompt.args[0]) for prompt in prompts])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.stack([yes, 1 - yes], axis=1)), np.float32)


def connected(oracle: Model) -> Connection:
    """Cascades are forced, nothing is cached; table t has `ROWS` rows (id, s)."""
    connection = sqluice.connect(ai_cache="off", ai_mode="cascade", ai_oracle="oracle", ai_embedder="embedder")
    connection.register_model("oracle", oracle)
    connection.register_model("embedder", Embedder())
    generator = np.random.default_rng(5)
    rows = [
        f"({at}, 'item 0.{a:06d} and 0.{b:06d}')" for at, (a, b) in enumerate(generator.integers(1, 10**6, (ROWS, 2)))
    ]
    connection.cursor().execute(f"CREATE TABLE t AS SELECT * FROM (VALUES {', '.join(rows)}) AS v(id, s)")
    return connection


def run(con: Connection, sql: str) -> tuple[list[Any], Any]:
    """Rows and report."""
    cursor = con.cursor()
    cursor.execute(sql)
    return (cursor.fetchall() if cursor.description else []), cursor.report


def exact(con: Connection, sql: str) -> set[Any]:
    """What the oracle on every row gives."""
    cursor = con.cursor()
    cursor.execute("SET ai_mode = 'exact'")
    rows = set(cursor.execute(sql).fetchall())
    cursor.execute("SET ai_mode = 'cascade'")
    return rows


def quality(found: set[Any], true: set[Any]) -> tuple[float, float]:
    """Recall and precision."""
    return len(found & true) / len(true), len(found & true) / len(found)
