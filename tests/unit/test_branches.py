"""Several questions behind one reading of a row: the same log-probabilities as each alone, on a tiny random model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sqluice.workers.torch_lm import Branch, CausalLM, lay_out

ROWS: tuple[list[int], ...] = ([5, 6, 7, 8, 9], [3, 4], [])
BRANCHES = (
    Branch([20, 21, 22], [[30], [31, 32], [33, 34, 35]]),
    Branch([23], [[30, 31], [36]]),
    Branch([24, 25], [[1]]),
)


@pytest.fixture(scope="module")
def lm() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=64, max_position_embeddings=64, **size)
    return CausalLM(transformers.LlamaForCausalLM(config).eval(), 0, [])


@pytest.mark.parametrize("prefix", [[1, 2], []])
def test_branches_say_what_questions_alone_say(lm: Any, prefix: list[int]) -> None:
    rows = ROWS if prefix else ROWS[:2]
    alone = [lm.endings(prefix, [[*row, *one.fixed] for row in rows], one.tails) for one in BRANCHES]
    assert np.allclose(lm.branches(prefix, rows, BRANCHES), np.hstack(alone), atol=1e-5)


def test_a_token_sees_its_own_ending_and_the_question_in_front_of_it() -> None:
    tails = lay_out([Branch([7, 8], [[1, 2, 3], [4]]), Branch([], [[5, 6]])])
    assert tails.strip == [7, 8, 1, 2, 5]
    assert tails.offsets == [0, 1, 2, 3, 0]
    assert tails.targets == [(0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 1, 4), (2, -1, 5), (2, 4, 6)]
    assert tails.sees.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
