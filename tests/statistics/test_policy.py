"""The proof of a job's cascade, replayed: it misses its targets at most as often as delta says."""

from __future__ import annotations

import numpy as np
import pytest

from sqluice.optimizer.cascade.head import Linear
from sqluice.optimizer.cascade.policy import (
    ACCEPTED,
    REJECTED,
    UNSEEN,
    Audit,
    Policy,
    drawn,
    prove,
    rate_for,
    tightened,
    upper,
)
from sqluice.types import Contract
from support.binomial import most_misses

RUNS = 1000
LINEAR = Linear(2, (0, 1), np.zeros((2, 1)), np.zeros(2), np.zeros(1), np.ones(1))


def policy(contract: Contract, low: float, high: float, rate: float) -> Policy:
    return Policy("head", LINEAR, low, high, contract, 0.0, rate)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["few", "many", "weighted"])
def test_the_bound_of_a_total_holds(rate: float, kind: str) -> None:
    generator = np.random.default_rng(3)
    values = {
        "few": np.ones(12),
        "many": np.ones(700),
        "weighted": generator.integers(1, 9, 300).astype(float),
    }[kind]
    misses = 0
    for _ in range(RUNS):
        seen = float(values[generator.random(len(values)) < rate].sum())
        misses += upper(seen, 0.05, rate, float(values.max())) < values.sum()
    assert misses <= most_misses(RUNS, 0.05)


def test_the_bound_is_what_poisson_says_where_nothing_is_seen() -> None:
    assert upper(0.0, 0.05, 0.01, 1.0) == pytest.approx(-np.log(0.05) / 0.01, rel=1e-6)
    assert upper(0.0, 0.05, 1.0, 1.0) == 0
    assert upper(5.0, 0.05, 0.5, 0.0) == 0


@pytest.mark.parametrize("recall", [0.945, 0.95, 0.97])
def test_a_contract_that_is_missed_is_seldom_called_proven(recall: float) -> None:
    """Populations whose recall is just below the target, at a rate that would prove half of what is allowed."""
    contract = Contract(recall=0.95, precision=0.9, delta=0.05)
    generator = np.random.default_rng(11)
    n, positives = 20_000, 4_000
    missed = round(positives * (1 - recall))
    allowed = 0.05 * positives
    rate = rate_for(allowed, 0.025)
    sides = np.full(n, REJECTED, np.int8)
    truth = np.zeros(n, np.int8)
    sides[: positives - missed] = ACCEPTED
    truth[:positives] = 1
    wrong = 0
    for run in range(RUNS):
        keys = generator.integers(0, 2**63, n).astype(np.uint64)
        labels = np.where(drawn(keys, run, rate), truth, UNSEEN).astype(np.int8)
        kept = (labels == 1) | ((labels == UNSEEN) & (sides == ACCEPTED))
        true_recall = float((kept & (truth == 1)).sum()) / positives
        proof = prove(policy(contract, 0.0, 1.0, rate), Audit(np.ones(n, np.int64), sides, labels))
        wrong += proof.holds and true_recall < 0.95
        if proof.holds:
            wrong += proof.reached["recall"] > true_recall + 1e-12
    assert wrong <= most_misses(RUNS, 0.05)


def test_good_thresholds_are_proven() -> None:
    contract = Contract(recall=0.95, precision=0.95, delta=0.05)
    generator = np.random.default_rng(5)
    n, positives = 50_000, 5_000
    rate = rate_for(0.05 * positives, 0.025)
    sides, truth = np.full(n, REJECTED, np.int8), np.zeros(n, np.int8)
    truth[:positives] = 1
    sides[: positives - 40] = ACCEPTED
    sides[positives : positives + 40] = ACCEPTED
    proofs = []
    for run in range(100):
        keys = generator.integers(0, 2**63, n).astype(np.uint64)
        labels = np.where(drawn(keys, run, rate), truth, UNSEEN).astype(np.int8)
        proofs.append(prove(policy(contract, 0.0, 1.0, rate), Audit(np.ones(n, np.int64), sides, labels)))
    assert np.mean([proof.holds for proof in proofs]) > 0.95
    assert np.mean([proof.labels for proof in proofs]) < 0.12 * n


def test_nulls_and_weights_count() -> None:
    contract = Contract(accuracy=0.9, delta=0.05)
    n_rows = np.array([1, 1, 10, 1])
    sides = np.full(4, ACCEPTED, np.int8)
    all_seen = prove(policy(contract, np.nan, 0.5, 1.0), Audit(n_rows, sides, np.array([1, -1, 1, 0], np.int8)))
    assert all_seen.holds
    heavy = prove(policy(contract, np.nan, 0.5, 0.1), Audit(n_rows, sides, np.array([1, -2, 1, -2], np.int8)))
    assert not heavy.holds, "one unseen row of ten may be wrong"


def test_draws_depend_on_key_and_seed_alone() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    one = drawn(keys, 7, 0.1)
    assert 0.095 < one.mean() < 0.105
    assert (drawn(keys[::-1], 7, 0.1)[::-1] == one).all()
    assert (drawn(keys, 8, 0.1) != one).any()
    assert (one <= drawn(keys, 7, 0.4)).all(), "a higher rate asks about the same inputs and more"


def test_tightened() -> None:
    assert tightened(Contract(recall=0.9, precision=0.8, delta=0.05), 0.5) == Contract(
        recall=0.95, precision=0.9, delta=0.05
    )
    assert tightened(Contract(accuracy=0.9, delta=0.1), 0.5).accuracy == pytest.approx(0.95)


def test_a_policy_survives_json() -> None:
    one = policy(Contract(accuracy=0.9, delta=0.05), np.nan, 0.75, 0.25)
    again = Policy.from_dict(one.to_dict())
    assert again.to_dict() == one.to_dict()
    assert again.sides(np.array([0.1, 0.75, np.nan, 0.9]), np.array([1, 1, 1, 99])).tolist() == [0, 1, 0, 0]
