"""Continuous slots: who enters when, how full the slots are, and what an error costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqluice.workers.slots import Ended, Slots
from support.slots import ScriptedDecoder, heavy_tailed, static_use

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOM = 1 << 40


def run(slots: Slots) -> tuple[list[int], dict[int, Exception], list[Ended]]:
    """Rows in the order they were done, errors of those that failed, and everything that was told."""
    told = list(slots.run())
    failed = {row: error for one in told for row, error in one.failed.items()}
    return [row for one in told for row in one.rows], failed, told


def test_slots_stay_full_on_heavy_tails_where_a_static_batch_is_a_fifth_full() -> None:
    lengths = heavy_tailed(4096)
    decoder = ScriptedDecoder(lengths.tolist())
    slots = Slots(decoder, [1] * len(lengths), most_rows=32, most_tokens=ROOM)
    done, failed, _ = run(slots)
    assert sorted(done) == list(range(len(lengths)))
    assert not failed
    assert decoder.most_rows == 32
    assert slots.use >= 0.90
    assert static_use(lengths, 32) <= 0.25
    assert slots.busy == int(lengths.sum()) - len(lengths)  # the first token of a row comes from its prompt


def test_longest_predicted_first_leaves_no_tail() -> None:
    lengths = heavy_tailed(1024)
    slots = Slots(ScriptedDecoder(lengths.tolist()), [1] * 1024, most_rows=32, most_tokens=ROOM, predicted=lengths)
    run(slots)
    blind = Slots(ScriptedDecoder(lengths.tolist()), [1] * 1024, most_rows=32, most_tokens=ROOM)
    run(blind)
    assert slots.use > 0.95
    assert slots.use > blind.use


def test_rows_enter_in_the_order_of_their_need() -> None:
    decoder = ScriptedDecoder([3] * 6)
    run(Slots(decoder, [5, 9, 7, 9, 1, 8], most_rows=2, most_tokens=ROOM))
    assert [row for rows in decoder.admissions for row in rows] == [1, 3, 5, 2, 0, 4]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), max_size=60),
    st.integers(1, 9),
    st.integers(1, 400),
)
def test_memory_is_never_promised_twice_and_every_row_ends(
    rows: list[tuple[int, int]], most_rows: int, most_tokens: int
) -> None:
    prompts, lengths = [one for one, _ in rows], [one for _, one in rows]
    needs = [prompt + length for prompt, length in rows]
    decoder = ScriptedDecoder(lengths, prompts)
    slots = Slots(decoder, needs, most_rows=most_rows, most_tokens=most_tokens)
    done = []
    for ended in slots.run():
        done += ended.rows
        held = list(decoder.written)
        assert len(held) <= most_rows
        assert len(held) <= 1 or slots.reserved() <= most_tokens
    assert sorted(done) == list(range(len(rows)))
    assert not decoder.written
    assert decoder.most_cells <= max([most_tokens, *needs])


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 300),
)
def test_out_of_memory_halves_down_to_the_row_that_does_not_fit(
    rows: list[tuple[int, int]], most_rows: int, memory: int
) -> None:
    """The budget is wrong: there is less memory than was promised."""
    prompts, lengths = [one for one, _ in rows], [one for _, one in rows]
    needs = [prompt + length for prompt, length in rows]
    decoder = ScriptedDecoder(lengths, prompts, memory=memory)
    done, failed, _ = run(Slots(decoder, needs, most_rows=most_rows, most_tokens=ROOM))
    fits = {row for row, need in enumerate(needs) if need <= memory}
    assert set(done) == fits
    assert len(done) == len(fits)
    assert set(failed) == set(range(len(rows))) - fits


@pytest.mark.parametrize("late", [False, True])
def test_a_row_that_breaks_the_model_fails_alone(late: bool) -> None:
    bad = {3, 17}

    def fails(rows: Sequence[int]) -> None:
        at_work = all(decoder.written.get(row, 0) >= 2 for row in bad & set(rows)) if late else True
        if bad & set(rows) and at_work:
            raise ValueError("this row")

    decoder = ScriptedDecoder([5] * 40, fails=fails)
    slots = Slots(decoder, [10] * 40, most_rows=8, most_tokens=ROOM)
    done, failed, told = run(slots)
    assert set(failed) == bad
    assert sorted(done) == sorted(set(range(40)) - bad)
    assert sum(one.lost for one in told) > 0
    assert all(one.error is not None for one in told if one.lost)


def test_after_the_cause_is_gone_the_slots_are_offered_again() -> None:
    def fails(rows: Sequence[int]) -> None:
        if 0 in rows and decoder.written.get(0, 0) >= 2:
            raise ValueError("the first row")

    decoder = ScriptedDecoder([20] * 200, fails=fails)
    run(Slots(decoder, [30] * 200, most_rows=16, most_tokens=ROOM))
    later = decoder.admissions[len(decoder.admissions) // 2 :]
    assert max(map(len, later)) == 16


def test_interruption_goes_through() -> None:
    def fails(_: Sequence[int]) -> None:
        raise KeyboardInterrupt

    slots = Slots(ScriptedDecoder([5] * 4, fails=fails), [9] * 4, most_rows=2, most_tokens=ROOM)
    with pytest.raises(KeyboardInterrupt):
        run(slots)


def test_nothing_to_do() -> None:
    slots = Slots(ScriptedDecoder([]), np.array([], dtype=np.int64).tolist(), most_rows=4, most_tokens=ROOM)
    assert run(slots) == ([], {}, [])
    assert slots.use == 1.0
