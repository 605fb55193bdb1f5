"""Alarms ring where scores or answers have changed, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sqluice.optimizer.cascade.drift import Profile, compare, profile

WINDOW = 2000


def window(seed: int, *, shift: float = 0.0, positives: float = 0.2, separation: float = 1.5) -> Profile:
    """Scores of two classes whose logits lie apart."""
    generator = np.random.default_rng(seed)
    truth = generator.random(WINDOW) < positives
    logits = generator.normal(np.where(truth, separation, -separation), 1) + shift
    return profile(1 / (1 + np.exp(-2 * separation * logits)), truth[:300].astype(int))


def rate(seeds: int, **change: float) -> float:
    """How often the scores raise an alarm."""
    before = window(10_000)
    return float(
        np.mean([any("log-odds" in one for one in compare(before, window(seed, **change))) for seed in range(seeds)])
    )


def test_no_alarm_where_nothing_has_changed() -> None:
    assert rate(100) <= 0.02


@pytest.mark.parametrize(
    "change",
    [{"shift": 0.25}, {"shift": 0.5}, {"positives": 0.3}, {"positives": 0.4}, {"separation": 1.2}, {"separation": 1.0}],
    ids=str,
)
def test_an_alarm_where_something_has(change: dict[str, float]) -> None:
    assert rate(30, **change) >= 0.95


def test_positives_of_the_sample() -> None:
    assert any("positives went from" in one for one in compare(window(1), window(2, positives=0.5)))
    assert not any("positives" in one for one in compare(window(1), window(2)))


def test_a_profile_is_kept_as_plain_values() -> None:
    one = window(1)
    again = Profile.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again.count == one.count
    assert np.allclose(again.quantiles, one.quantiles, atol=1e-6)
    assert not compare(one, again)
    with pytest.raises(ValueError, match="quantiles"):
        Profile.from_dict({"count": 1, "quantiles": [1], "positives": 0.5, "labels": 3})
