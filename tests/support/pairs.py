"""Models that answer about pairs by a rule, and what tests of joins share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import sqluice
from sqluice.types import Completion, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice import Connection
    from sqluice.types import Prompt

YES_NO = ("yes", "no")
TOPICS = ["trade", "ships", "money", "grain", "crude", "earnings"]


class Pairwise:
    """Says yes to pairs by a rule; a label fits a text where the rule says so. Keeps what it was asked."""

    def __init__(self, rule: Callable[[str, str], bool]) -> None:
        self.info = ModelInfo("pairwise", revision="1")
        self.rule = rule
        self.asked: list[tuple[str, ...]] = []
        self.labelled = 0

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]."""
        found = np.full((len(prompts), len(choices)), -20.0, np.float32)
        for at, prompt in enumerate(prompts):
            if tuple(choices) == YES_NO:
                self.asked.append(tuple(prompt.args))
                found[at, 0 if self.rule(prompt.args[0], prompt.args[-1]) else 1] = 0.0
            else:
                self.labelled += 1
                found[at, [self.rule(prompt.args[0], choice) for choice in choices]] = 0.0
        return found


class NoLabels(Pairwise):
    """Knows pairs only."""

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, 2]."""
        if tuple(choices) != YES_NO:
            raise ValueError("yes or no")
        return super().score(prompts, choices)


class Letters:
    """Embeddings from counts of letters."""

    info = ModelInfo("letters", revision="1")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 26]."""
        found = np.array([[text.lower().count(chr(97 + at)) + 0.01 for at in range(26)] for text in texts], np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


class Writing(NoLabels):
    """Writes an answer by a rule from the prompt's arguments."""

    def __init__(self, rule: Callable[[str, str], bool], write: Callable[[Prompt], str]) -> None:
        super().__init__(rule)
        self.write = write
        self.written = 0

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One text a prompt."""
        self.written += len(prompts)
        return [Completion(self.write(prompt), "stop") for prompt in prompts]


def joining() -> Connection:
    """A connection that cascades, caches nothing, and embeds by letters; its oracle is yet to be registered."""
    con = sqluice.connect(ai_cache="off", ai_mode="cascade", ai_embedder="letters", ai_oracle="oracle")
    con.register_model("letters", Letters())
    return con


def run(con: Connection, sql: str, params: Any = None) -> tuple[list[Any], Any]:
    """Rows, none where the statement has none, and the report."""
    cursor = con.cursor()
    cursor.execute(sql, *([] if params is None else [params]))
    return cursor.fetchall() if cursor.description else [], cursor.report


def table(con: Connection, name: str, values: Sequence[Any]) -> None:
    """A table with columns `i` and `s`."""
    run(con, f"CREATE TABLE {name} AS SELECT unnest(?) AS i, unnest(?) AS s", [list(range(len(values))), list(values)])


def scorer(report: Any) -> str | None:
    """The strategy that was taken."""
    return next((one.scorer for op in report.operators for one in op.cascades), None)


def shops(con: Connection) -> tuple[Pairwise, set[tuple[int, int]]]:
    """Two lists of things, of which the second names them otherwise; the pairs that are the same."""
    generator = np.random.default_rng(3)
    syllables = [a + b for a in "bdgklmnprst" for b in "aeiou"]
    words = ["".join(generator.choice(syllables, 3)) for _ in range(150)]
    left = [" ".join(generator.choice(words, 4)) + f" {at}" for at in range(120)]
    right = [" ".join([*name.split()[1:4], "new"]) for name in left[:90]]
    right += [" ".join(generator.choice(words, 4)) for _ in range(60)]
    same = {(left[at], right[at]) for at in range(90)}
    oracle = Pairwise(lambda a, b: (a, b) in same)
    con.register_model("oracle", oracle)
    table(con, "l", left)
    table(con, "r", right)
    return oracle, {(at, at) for at in range(90)}
