"""Alarms ring where scores, answers or texts have changed, and nowhere else."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sqluice.optimizer.cascade.drift import SLICES, Profile, changed, compare, moved, profile

BETWEEN = 1 / (1 + math.exp(0.302)), 1 / (1 + math.exp(-1.527))
"""Thresholds beyond which 1 % of the score's decisions are wrong, where one row in five is a yes, the log-odds of yes
are normal around 1.5 and those of no around -1.5."""

ROWS, EARLIER, LABELS, WINDOWS = 2_000, 20_000, 300, 100


def window(
    seed: int, rows: int = ROWS, /, *, positives: float = 0.2, separation: float = 1.5, shift: float = 0.0
) -> tuple[Profile, float]:
    """A profile, and the share of wrong answers among those of the score."""
    generator = np.random.default_rng(seed)
    truth = generator.random(rows) < positives
    logits = generator.normal(np.where(truth, separation, -separation) + shift)
    scores = 1 / (1 + np.exp(-logits))
    decided = (scores <= BETWEEN[0]) | (scores >= BETWEEN[1])
    lengths = np.exp(generator.normal(5, 1, rows)).astype(int)
    found = profile(scores, lengths, BETWEEN, truth[:LABELS].astype(int))
    return found, float(((scores >= BETWEEN[1]) != truth)[decided].mean())


@pytest.fixture(scope="module")
def before() -> Profile:
    return window(0, EARLIER)[0]


def test_what_stays_the_same_raises_no_alarm(before: Profile) -> None:
    """Four alarms of one in a thousand each: 1 in 250 windows; more than 5 in 400 happens once in 200 such tests."""
    assert sum(bool(compare(before, window(seed)[0])) for seed in range(1, 401)) <= 5


# Wrong answers among those of the score, and the share of rows between the thresholds: a shift does no harm.
CHANGES: list[tuple[dict[str, float], float, float]] = [
    ({}, 0.010, 0.18),
    ({"shift": 0.25}, 0.009, 0.21),
    ({"shift": 0.5}, 0.011, 0.24),
    ({"positives": 0.3}, 0.015, 0.21),
    ({"positives": 0.4}, 0.020, 0.24),
    ({"separation": 1.2}, 0.023, 0.24),
    ({"separation": 1.0}, 0.035, 0.30),
]


@pytest.mark.parametrize(("change", "wrong", "delegated"), CHANGES, ids=str)
def test_an_alarm_where_something_has_changed(
    before: Profile, change: dict[str, float], wrong: float, delegated: float
) -> None:
    windows = [window(seed, **change) for seed in range(1, WINDOWS + 1)]
    alarmed = sum(any("log-odds" in one for one in compare(before, found)) for found, _ in windows)
    assert not change or alarmed == WINDOWS
    assert np.mean([share for _, share in windows]) == pytest.approx(wrong, abs=0.0025)
    assert np.mean([found.delegated for found, _ in windows]) == pytest.approx(delegated, abs=0.025)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"positives": 0.4}, "positives went from"),
        ({"positives": 0.05}, "to 0.05"),
        ({"delegated": 0.3}, "scores between the earlier thresholds went from"),
        ({"lengths": (5.5,) * SLICES}, "log-lengths of the texts moved by"),
        ({"scores": (1.0,) * SLICES}, "log-odds of the scores moved by"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_each_alarm_says_what_has_changed(before: Profile, other: dict[str, Any], told: str) -> None:
    (alarm,) = compare(before, Profile.from_dict(window(1)[0].to_dict() | other))
    assert told in alarm


@pytest.mark.parametrize("rows", [50, 1_000, 300_000])
def test_many_equal_scores_are_no_drift(rows: int) -> None:
    alarmed = 0
    for seed in range(50):
        generator = np.random.default_rng(seed)
        one, other = ((generator.random(rows) < 51 / SLICES).astype(float) for _ in range(2))  # a step at a slice's end
        alarmed += bool(compare(*(profile(yes, yes, (0.5, 0.5), yes.astype(int)) for yes in (one, other))))
    assert alarmed <= 1


def test_rare_positives_in_few_rows_are_no_drift() -> None:
    assert not changed(0.0, 0.05, 20_000, 20)
    assert not changed(0.05, 0.0, 20, 20_000)
    assert changed(0.0, 0.3, 20_000, 20)
    assert not changed(0.0, 1.0, 0, 20)


def test_nothing_is_known_of_no_rows(before: Profile) -> None:
    none = np.zeros(0)
    empty = profile(none, none, (math.nan, math.nan), none.astype(int))
    assert compare(empty, before) == compare(before, empty) == ()
    assert moved(before.scores, before.scores, EARLIER, ROWS)[0] == 0


def test_rows_without_a_score_and_null_labels_are_left_out() -> None:
    made = profile(np.array([0.5, np.nan, 1.0, 0.0]), np.arange(4), (0.2, math.nan), np.array([1, -1, 0, 1]))
    assert (made.count, made.labels) == (3, 3)
    assert (made.delegated, made.positives) == pytest.approx((2 / 3, 2 / 3))
    assert made.scores[0] == -made.scores[-1] == pytest.approx(math.log(0.001 / 0.999), abs=1e-6)


def test_a_profile_is_kept_as_plain_values(before: Profile) -> None:
    text = json.dumps(before.to_dict())
    assert Profile.from_dict(json.loads(text)) == before
    assert len(text) < 3_000
    with pytest.raises(ValueError, match="slices"):
        Profile.from_dict(before.to_dict() | {"scores": [0.5]})
