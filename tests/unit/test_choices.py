"""Scores of choices from likely tokens and from words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sqluice.workers.choices import Position, certain, named, scores, tokens_needed


def at(token: str, *top: tuple[str, float]) -> Position:
    return Position(token, tuple((word, math.log(p)) for word, p in top))


def chances(choices: tuple[str, ...], *positions: Position) -> list[float]:
    found = scores(positions, choices)
    assert found is not None
    return list(np.exp(found))


def test_spellings_of_a_choice_add_up() -> None:
    told = chances(("yes", "no"), at("Yes", ("Yes", 0.5), (" yes", 0.2), ("No", 0.2), ("Well", 0.1)))
    assert told == pytest.approx([0.7, 0.2])


def test_a_choice_out_of_sight_gets_what_is_left_over() -> None:
    assert chances(("yes", "no"), at("Yes", ("Yes", 0.9), ("Y", 0.05)))[1] == pytest.approx(0.05)
    assert chances(("yes", "no"), at("Yes", ("Yes", 0.9), ("Sure", 0.02)))[1] == pytest.approx(0.02)


def test_leading_blanks_and_marks_are_passed_over() -> None:
    assert chances(("yes", "no"), at("\n", ("\n", 1.0)), at("No", ("No", 0.9), ("Yes", 0.1))) == pytest.approx(
        [0.1, 0.9]
    )


def test_one_choice_begins_another() -> None:
    labels = ("sport", "sports", "news")
    positions = at("sport", ("sport", 0.8), ("news", 0.2)), at("", ("", 0.75), ("s", 0.25))
    assert chances(labels, *positions) == pytest.approx([0.6, 0.2, 0.2])


def test_no_choice_at_all() -> None:
    assert scores([at("Perhaps", ("Perhaps", 0.9), ("Maybe", 0.1))], ("yes", "no")) is None
    assert scores([], ("yes", "no")) is None


@pytest.mark.parametrize(
    ("choices", "tokens"),
    [(("yes", "no"), 1), (("sport", "space"), 4), (("a", "ab"), 3), (("x" * 90, "x" * 91), 24)],
)
def test_tokens_needed(choices: tuple[str, ...], tokens: int) -> None:
    assert tokens_needed(choices) == tokens


@pytest.mark.parametrize(
    ("text", "which"),
    [
        ("Yes", 0),
        (" **no**.", 1),
        ("No, it is not.", 1),
        ("The answer is: yes!", 0),
        ("yesterday", None),
        ("It is yes and no", None),
        ("", None),
    ],
)
def test_named(text: str, which: int | None) -> None:
    assert named(text, ("yes", "no")) == which


def test_the_longest_name_wins() -> None:
    assert named("news and media, clearly", ("news", "news and media")) == 1


def test_certain() -> None:
    assert np.exp(certain(1, 3)) == pytest.approx([0.001, 0.999, 0.001], rel=1e-4)
