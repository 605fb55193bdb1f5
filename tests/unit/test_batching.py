"""Micro-batches: every row once, within the budget, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqluice.workers.batching import MAX_ROWS, in_order, pack, padding_share


def lognormal(n: int, median: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 0.8, n)
    return np.maximum(1, drawn.astype(int))


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("median", [20, 60, 200])
@pytest.mark.parametrize("budget", [1024, 4096, 16384])
def test_padding_of_heavy_tails_stays_below_five_percent(n: int, median: int, budget: int) -> None:
    lengths = lognormal(n, median)
    batches = pack(lengths, budget)
    assert padding_share([lengths[rows] for rows in batches]) <= 0.05


@given(st.lists(st.integers(0, 500), max_size=200), st.integers(1, 4000), st.integers(0, 50))
def test_every_row_once_and_within_the_budget(lengths: list[int], budget: int, extra: int) -> None:
    batches = pack(np.array(lengths, dtype=np.int64), budget, extra=extra)
    rows = np.concatenate([*batches, np.array([], dtype=int)])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(1, *(lengths[row] for row in batch)) if len(batch) > 1 else 0
        assert len(batch) == 1 or len(batch) * (longest + extra) <= budget


def test_longest_rows_come_first() -> None:
    lengths = lognormal(500, 40)
    firsts = [int(lengths[rows[0]]) for rows in pack(lengths, 1024)]
    assert firsts == sorted(firsts, reverse=True)


def test_a_small_budget_still_takes_several_rows_together() -> None:
    lengths = np.array([30, 25, 20, 15, 10, 9, 8, 7, 6, 5])
    assert max(len(rows) for rows in pack(lengths, 64)) >= 3


def test_equal_rows_fill_the_budget() -> None:
    assert [len(rows) for rows in pack(np.full(100, 10), 250)] == [25] * 4


def test_arrival_order_is_cut_into_equal_pieces() -> None:
    pieces = in_order(2 * MAX_ROWS + 1)
    assert [len(piece) for piece in pieces] == [MAX_ROWS, MAX_ROWS, 1]
    assert np.concatenate(pieces).tolist() == list(range(2 * MAX_ROWS + 1))
    assert in_order(0) == []
