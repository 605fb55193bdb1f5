"""Padding on lengths with a heavy tail, as `ai.ops` tells it: at most 5 % for scores, texts and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

import sqluice
from sqluice.types import Completion, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice import Connection
    from sqluice.types import Prompt

ROWS = 8192


class Budgeted:
    """A word is a token; 2,048 padded tokens a micro-batch. Counts the cells it is made to compute."""

    info = ModelInfo("budgeted", revision="1")
    token_budget = 2048

    def __init__(self) -> None:
        self.cells = self.words = 0

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return self.count_tokens([prompt.args[0] for prompt in prompts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [text.count(" ") for text in texts]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        self._saw(self.lengths(prompts))
        return np.zeros((len(prompts), len(choices)), np.float32)

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        self._saw(self.lengths(prompts))
        return [Completion("well")] * len(prompts)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self._saw(self.count_tokens(texts))
        return np.ones((len(texts), 1), np.float32)

    def _saw(self, lengths: list[int]) -> None:
        self.cells += len(lengths) * max(lengths)
        self.words += sum(lengths)


@pytest.fixture
def con() -> Iterator[Connection]:
    con = sqluice.connect(ai_mode="exact", ai_cache="off")
    drawn = np.random.default_rng(7).lognormal(np.log(40), 0.9, ROWS)
    texts = [f"{row} " + "w " * int(length) for row, length in enumerate(np.clip(drawn, 1, 1500))]
    con.register("texts", pa.table({"s": texts}))
    con.execute("CREATE TABLE t AS SELECT s FROM texts")
    yield con
    con.close()


@pytest.mark.parametrize(
    "call", ["AI_FILTER(PROMPT('Is it {0}?', s))", "AI_COMPLETE(PROMPT('Say {0}', s))", "AI_EMBED(s)"]
)
def test_padding_stays_below_five_percent(con: Connection, call: str) -> None:
    model = Budgeted()
    con.register_model("budgeted", model)
    con.execute("SET ai_oracle = 'budgeted'")
    con.execute("SET ai_embedder = 'budgeted'")
    report = con.execute(f"SELECT count({call}) FROM t").report
    assert report is not None
    ((padding, tokens, pad),) = con.execute(
        "SELECT padding, tokens_in, pad_tokens FROM ai.ops WHERE run_id = ?", [report.run_id]
    ).fetchall()
    assert tokens == model.words
    assert pad == model.cells - model.words
    assert 0 < padding <= 0.05
