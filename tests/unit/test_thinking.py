"""Models that think first: what of a text is the answer, and which limit ends it."""

from __future__ import annotations

import pytest

from sqluice.workers.thinking import Thinking, Writing, answer

STOP, OPEN, CLOSE = 0, 1, 2
THINKING = Thinking(OPEN, CLOSE, budget=5)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("yes", False, "yes"),
        ("<think>let me see</think>\n\nyes ", False, "yes"),
        ("let me see</think>yes", True, "yes"),
        ("<think>let me see", False, None),
        ("let me see", True, None),
        ("<think></think>", False, ""),
        ("a tag <think> in an answer", False, "a tag <think> in an answer"),
        ("<think>a</think>write </think> so", False, "write </think> so"),
    ],
)
def test_thoughts_are_taken_off(text: str, opened: bool, expected: str | None) -> None:
    assert answer(text, opened=opened) == expected


def write(tokens: list[int], *, begun: bool = False, thinking: Thinking | None = THINKING, most: int = 3) -> Writing:
    """Tokens until one ends the answer; all of them must be needed."""
    writing = Writing(most, frozenset([STOP]), thinking, begun)
    ends = [writing.add(token) for token in tokens]
    assert not any(ends[:-1])
    assert ends[-1] == bool(writing.finish)
    return writing


def test_the_limit_holds_for_the_answer_and_the_budget_for_thoughts() -> None:
    writing = write([OPEN, 7, 7, CLOSE, 8, 9, 10])
    assert (writing.finish, writing.answer) == ("length", [8, 9, 10])
    assert len(writing.tokens) == 7


def test_an_answer_that_stops() -> None:
    assert write([OPEN, 7, CLOSE, 8, STOP]).answer == [8]
    assert write([8, 9, STOP]).answer == [8, 9]
    assert write([8, STOP], thinking=None).answer == [8]


def test_thoughts_beyond_their_budget_are_cut_and_no_answer() -> None:
    writing = write([OPEN, 7, 7, 7, 7])
    assert (writing.finish, writing.answer) == ("length", [])
    assert write([7, 7, 7, 7, 7], begun=True).finish == "length"


def test_a_model_that_does_not_think_has_no_budget_for_it() -> None:
    assert write([7, 8, 9]).answer == [7, 8, 9]
    assert write([7, OPEN, CLOSE], thinking=None).finish == "length"


def test_stopping_inside_the_thoughts_leaves_no_answer() -> None:
    writing = write([7, STOP], begun=True)
    assert (writing.finish, writing.opened, writing.answer) == ("stop", True, [])


def test_closing_again_and_again_does_not_write_for_ever() -> None:
    assert write([OPEN, CLOSE, CLOSE, CLOSE, CLOSE]).finish == "length"


def test_a_row_asked_anew_starts_from_nothing() -> None:
    writing = write([7, CLOSE, 8, STOP], begun=True)
    writing.restart()
    assert (writing.tokens, writing.finish, writing.opened, writing.answer) == ([], "", True, [])
