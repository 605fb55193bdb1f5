"""Contracts are kept: many replays of a cascade on made-up scores, misses counted against a binomial bound.

Each family is a population of scores and answers; each replay draws another one and other labels. A miss is a replay
that says `certified` and has missed a target. Were the misses as likely as `delta`, there would be more than the bound
once in a thousand such tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sqluice.optimizer.cascade import betting
from sqluice.optimizer.cascade.learner import NULL, YES, Learner
from sqluice.types import Contract
from support.binomial import most_misses
from support.scale import repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    Population = tuple[np.ndarray, np.ndarray, np.ndarray]
    Family = Callable[[np.random.Generator], Population]

REPLAYS = repeats(400, 1000)
DELTA = 0.05
TARGET = 0.9
BOTH = Contract(TARGET, TARGET, delta=DELTA)
ACCURACY = Contract(accuracy=TARGET, delta=DELTA)


def calibrated(generator: np.random.Generator) -> Population:
    """Scores that are probabilities."""
    scores = generator.beta(0.3, 0.5, 900)
    return scores, generator.random(900) < scores, np.ones(900)


def miscalibrated(generator: np.random.Generator) -> Population:
    """Scores that are far too low, and rise with the probability."""
    chance = generator.beta(0.3, 0.3, 900)
    return chance**4, generator.random(900) < chance, np.ones(900)


def rare(generator: np.random.Generator) -> Population:
    """One row in two hundred is a yes."""
    truth = generator.random(1200) < 0.005
    logits = generator.normal(truth * 4.0 - 4, 1)
    return 1 / (1 + np.exp(-logits)), truth, np.ones(1200)


def ties(generator: np.random.Generator) -> Population:
    """Five scores only."""
    scores = generator.choice([0.05, 0.2, 0.5, 0.8, 0.95], 1000, p=[0.4, 0.2, 0.1, 0.1, 0.2])
    return scores, generator.random(1000) < scores, np.ones(1000)


def hidden(generator: np.random.Generator) -> Population:
    """A good score, but for a cluster of yes at the very lowest ones, as many as may be missed."""
    scores = generator.beta(0.2, 0.4, 1000)
    truth = generator.random(1000) < scores
    lowest = np.argsort(scores)[:140]
    truth[generator.choice(lowest, 40, replace=False)] = True
    return scores, truth, np.ones(1000)


def inverted(generator: np.random.Generator) -> Population:
    """The higher the score, the surer a no."""
    scores = generator.beta(0.4, 0.4, 700)
    return scores, generator.random(700) > scores, np.ones(700)


def constant(generator: np.random.Generator) -> Population:
    """One score for all."""
    return np.full(500, 0.3), generator.random(500) < 0.3, np.ones(500)


def repeated(generator: np.random.Generator) -> Population:
    """Some inputs stand for very many rows."""
    scores = generator.beta(0.3, 0.5, 1000)
    return scores, generator.random(1000) < scores, np.ceil(generator.pareto(1.1, 1000) + 0.01)


FAMILIES: tuple[Family, ...] = (calibrated, miscalibrated, rare, ties, hidden, inverted, constant, repeated)
EACH = REPLAYS // len(FAMILIES)


def replay(family: Family, contract: Contract, seed: int, *, nulls: float = 0.0) -> tuple[bool, float]:
    """Whether it said certified and has missed, and the share of labels."""
    generator = np.random.default_rng(seed)
    scores, truth, mass = family(generator)
    labels = np.where(generator.random(len(truth)) < nulls, NULL, truth.astype(np.int8))
    learner = Learner(contract, generator)
    learner.add(scores, mass)
    learner.close()
    while len(wanted := learner.wanted()):
        learner.tell(labels[wanted])
    verdict = learner.verdict()
    answered = labels != NULL
    found, true = (verdict.answers == YES) & answered, (labels == YES) & answered
    both = (mass * (found & true)).sum()
    kept = [
        contract.recall is None or both >= contract.recall * (mass * true).sum() - 1e-9,
        contract.precision is None or both >= contract.precision * (mass * found).sum() - 1e-9,
        contract.accuracy is None
        or (mass * (found == true) * answered).sum() >= contract.accuracy * mass[answered].sum() - 1e-9,
    ]
    return verdict.certified and not all(kept), float(verdict.labelled.mean())


@pytest.mark.parametrize("contract", [BOTH, ACCURACY], ids=["recall and precision", "accuracy"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_misses_are_no_more_than_delta(family: Family, contract: Contract) -> None:
    found = [replay(family, contract, seed) for seed in range(EACH)]
    assert sum(missed for missed, _ in found) <= most_misses(EACH, DELTA)
    assert max(labels for _, labels in found) <= 1


@pytest.mark.parametrize("contract", [BOTH, ACCURACY], ids=["recall and precision", "accuracy"])
def test_rows_without_an_answer_leave_the_contract(contract: Contract) -> None:
    found = [replay(calibrated, contract, seed, nulls=0.1) for seed in range(EACH)]
    assert sum(missed for missed, _ in found) <= most_misses(EACH, DELTA)
    assert np.mean([labels for _, labels in found]) < 0.9


@pytest.mark.parametrize("family", [calibrated, hidden, repeated], ids=lambda family: family.__name__)
def test_the_proof_is_what_keeps_them(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(betting.Wealth, "missing", lambda _self, _allowed: -1.0)
    assert sum(replay(family, BOTH, seed)[0] for seed in range(60)) > most_misses(60, DELTA)


def test_a_larger_delta_costs_fewer_labels_and_is_kept_too() -> None:
    loose = [replay(calibrated, Contract(TARGET, TARGET, delta=0.4), seed) for seed in range(80)]
    strict = [replay(calibrated, BOTH, seed) for seed in range(80)]
    assert np.mean([labels for _, labels in loose]) < np.mean([labels for _, labels in strict])
    assert sum(missed for missed, _ in loose) <= most_misses(80, 0.4)
