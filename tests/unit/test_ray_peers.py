"""Which workers are slow, stuck or lost; and what travels to them. None of it needs Ray."""

from __future__ import annotations

import numpy as np
import pytest

from sqluice.types import Completion, Prompt
from sqluice.workers.ray.peers import Limits, Peer, is_hung, is_slow, predicted, wants_copy
from sqluice.workers.ray.wire import from_table, pack_values, to_table, unpack_values

LIMITS = Limits()


def peer(name: str, *paces: float) -> Peer:
    made = Peer(name, None)
    for pace in paces:
        made.took("score", 10, 10 * pace)
    return made


def test_a_worker_is_judged_by_the_others() -> None:
    slow, fast = peer("slow", 0.5, 0.5), [peer("a", 0.1), peer("b", 0.1, 0.1)]
    assert is_slow(slow, [slow, *fast], "score", LIMITS)
    assert not is_slow(fast[0], [slow, *fast], "score", LIMITS)
    assert not is_slow(slow, [slow], "score", LIMITS)  # nobody to compare with
    assert predicted([slow, *fast], "score", 100, beside=slow) == pytest.approx(10)
    assert predicted([slow], "score", 100, beside=slow) == pytest.approx(50)
    assert predicted([peer("new")], "score", 100) is None


def test_one_late_micro_batch_makes_no_worker_slow() -> None:
    usual = peer("a", 0.1, 0.1, 5.0, 0.1)
    assert not is_slow(usual, [usual, peer("b", 0.1)], "score", LIMITS)


def test_copies_are_for_slow_workers_and_stalled_ones() -> None:
    assert wants_copy(1.5, 1.0, slow=True, limits=LIMITS)
    assert not wants_copy(5.0, 1.0, slow=False, limits=LIMITS)  # its rows may be hard
    assert wants_copy(11.0, 1.0, slow=False, limits=LIMITS)
    assert not wants_copy(1.9, 0.001, slow=False, limits=LIMITS)
    assert not wants_copy(1e6, None, slow=True, limits=LIMITS)


def test_a_stuck_worker_is_judged_by_what_was_predicted() -> None:
    assert is_hung(61.0, 1.0, LIMITS)
    assert not is_hung(59.0, 0.01, LIMITS)
    assert not is_hung(299.0, 10.0, LIMITS)
    assert not is_hung(899.0, None, LIMITS)
    assert is_hung(901.0, None, LIMITS)


def test_calls_that_one_death_ends_count_once_and_an_answer_forgives() -> None:
    one = peer("a", 0.1)
    assert one.died(0, "killed")
    assert not one.died(0, "killed")
    assert one.died(1, "killed again")
    assert (one.deaths, one.said) == (2, "killed again")
    assert one.died(2, "of a row that kills", blamed=False)
    assert one.deaths == 2
    one.took("score", 1, 1)
    assert one.deaths == 0


def test_rows_survive_the_wire() -> None:
    prompts = [
        Prompt("Is {0} like {1}?", ("a", "ü\x00"), "Read.\n", "filter"),
        Prompt("Other", (), "", "classify"),
        Prompt("{0}", ("\ud800 alone",)),
    ]
    assert from_table(to_table(prompts)) == prompts
    assert from_table(to_table(["x", "\ud800", ""])) == ["x", "\ud800", ""]
    assert from_table(to_table([])) == []
    said = [Completion("yes"), None, Completion("cut \ud800", "length", 3, 9)]
    assert unpack_values(pack_values(said)) == said
    scores = np.zeros((2, 3), np.float32)
    assert unpack_values(pack_values(scores)) is scores


def test_a_table_holds_its_rows_and_nothing_else() -> None:
    prompts = [Prompt("{0}", ("x" * 1000,)) for _ in range(1000)]
    assert to_table(prompts[:10]).nbytes < 12_000
