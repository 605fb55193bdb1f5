"""The learner of cascades and its parts: what they promise beside the contract, which tests/statistics replays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqluice.optimizer.cascade import head
from sqluice.optimizer.cascade.betting import Bet, Guess, Wealth, draw
from sqluice.optimizer.cascade.compose import Chain
from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.forecast import forecast
from sqluice.optimizer.cascade.learner import NULL, UNKNOWN, YES, Learner, Verdict
from sqluice.optimizer.cascade.rates import bins_of, rates
from sqluice.types import Contract

BOTH = Contract(0.9, 0.9)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are probabilities, and answers."""
    generator = np.random.default_rng(seed)
    scores = generator.beta(0.3, 0.5, n)
    return scores, (generator.random(n) < scores).astype(np.int8)


def finished(learner: Learner, labels: np.ndarray) -> tuple[Verdict, list[int]]:
    """The verdict, and the rows asked about in their order."""
    asked: list[int] = []
    while len(wanted := learner.wanted()):
        asked += wanted.tolist()
        learner.tell(labels[wanted])
    return learner.verdict(), asked


def learnt(scores: np.ndarray, labels: np.ndarray, seed: int = 0, **how: int) -> tuple[Verdict, list[int]]:
    """A learner that has seen all rows at once."""
    learner = Learner(BOTH, np.random.default_rng(seed), **how)  # type: ignore[arg-type]
    learner.add(scores)
    learner.close()
    return finished(learner, labels)


@settings(max_examples=40)
@given(
    n=st.integers(0, 700),
    kind=st.sampled_from(["random", "constant", "two", "nan", "all yes", "all no", "all null", "some null"]),
    seed=st.integers(0, 5),
)
def test_any_input_is_decided_without_asking_twice(n: int, kind: str, seed: int) -> None:
    scores, labels = drawn(n, seed)
    scores = {"constant": np.full(n, 0.4), "two": np.round(scores), "nan": np.full(n, np.nan)}.get(kind, scores)
    fixed = {"all yes": 1, "all no": 0, "all null": NULL}
    labels = np.full(n, fixed[kind], np.int8) if kind in fixed else labels
    if kind == "some null":
        labels[::7] = NULL
    verdict, asked = learnt(scores, labels, seed)
    assert len(asked) == len(set(asked)) == verdict.labels == verdict.labelled.sum() <= n
    assert verdict.certified
    assert (verdict.answers[verdict.labelled] == labels[verdict.labelled]).all()
    rest = ~verdict.labelled
    assert set(verdict.answers[rest].tolist()) <= {0, 1}
    assert (scores[rest & (verdict.answers == 1)] >= np.nan_to_num(verdict.tau_high, nan=2)).all()
    assert (scores[rest & (verdict.answers == 0)] <= np.nan_to_num(verdict.tau_low, nan=-1)).all()


def test_equal_scores_are_decided_alike() -> None:
    scores, labels = drawn(3000)
    scores = np.round(scores, 2)
    verdict, _ = learnt(scores, labels)
    rest = ~verdict.labelled
    assert rest.sum() > 500
    for score in np.unique(scores[rest]):
        assert len(set(verdict.answers[rest & (scores == score)].tolist())) == 1


@pytest.mark.parametrize("cap", [0, 1, 150, 260, 900])
def test_a_cap_is_never_exceeded(cap: int) -> None:
    scores, labels = drawn(3000)
    verdict, asked = learnt(scores, labels, most_labels=cap)
    assert len(asked) <= cap
    if not verdict.certified:
        assert verdict.reason == "budget"


def test_the_same_seed_asks_the_same() -> None:
    scores, labels = drawn(2000)
    assert learnt(scores, labels, 3)[1] == learnt(scores, labels, 3)[1] != learnt(scores, labels, 4)[1]


def test_rows_may_come_in_parts_and_labels_before_the_last() -> None:
    scores, labels = drawn(3000)
    learner = Learner(BOTH, np.random.default_rng(0))
    early = 0
    for start in range(0, 3000, 500):
        learner.add(scores[start : start + 500])
        while len(wanted := learner.wanted()):
            early += len(wanted)
            learner.tell(labels[wanted])
    learner.close()
    verdict, _ = finished(learner, labels)
    assert early > 0
    assert verdict.certified
    assert verdict.labels < 2000
    found, true = verdict.answers == YES, labels == YES
    assert (found & true).sum() >= 0.9 * true.sum()


def test_labels_from_elsewhere_cost_nothing() -> None:
    scores, labels = drawn(3000)
    learner = Learner(BOTH, np.random.default_rng(0))
    learner.add(scores)
    learner.close()
    known = np.arange(0, 3000, 3)
    learner.know(known, labels[known])
    verdict, asked = finished(learner, labels)
    assert not set(asked) & set(known.tolist())
    assert verdict.certified


def test_scores_in_the_band_around_the_split_get_labels() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.uniform(0, 0.1, 2000), generator.uniform(0.9, 1, 2000)])
    scores[::400] = 0.5 + generator.uniform(-5e-5, 5e-5, 10)
    labels = (scores > 0.5).astype(np.int8)
    verdict, _ = learnt(scores, labels)
    assert verdict.certified
    assert verdict.labels < 1000
    moved = scores + generator.uniform(-1e-6, 1e-6, len(scores))
    again, _ = learnt(moved, labels)
    assert (verdict.answers == again.answers).all()


def test_misuse_is_refused() -> None:
    learner = Learner(BOTH, np.random.default_rng(0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        learner.add(np.array([0.5, 1.5]))
    learner.add(np.full(10, 0.5))
    learner.close()
    with pytest.raises(ValueError, match="closed"):
        learner.add(np.array([0.5]))
    with pytest.raises(ValueError, match="one label for each"):
        learner.tell(np.array([1]))
    assert (learner.labels == UNKNOWN).all()


def test_wealth_does_not_grow_where_there_is_nothing_to_win() -> None:
    ends = []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        values = (generator.random(300) < 0.1).astype(float)
        wealth = Wealth(0.05)
        rest = np.arange(300)
        weights = np.linspace(1, 4, 300)
        for _ in range(4):
            taken, left = draw(weights[rest], 40, generator)
            most = left / weights[rest].min()
            wealth.draw(Bet(weights[rest][taken] / left, most, Guess(15.0, 5000.0, 30.0)), values[rest[taken]])
            rest = np.delete(rest, taken)
        ends.append(math.exp(wealth.log_wealth(float(values.sum()))))
        assert wealth.log_wealth(values.sum() + 5) >= wealth.log_wealth(float(values.sum()))
    assert np.mean(ends) <= 1 + 3 * np.std(ends) / 20


def test_draws_are_likelier_where_weights_are_higher() -> None:
    weights = np.array([1.0, 2.0, 4.0])
    first = [int(draw(weights, 2, np.random.default_rng(seed))[0][0]) for seed in range(3000)]
    shares = np.bincount(first) / 3000
    assert shares == pytest.approx(weights / 7, abs=0.03)
    taken, left = draw(weights, 3, np.random.default_rng(0))
    assert sorted(taken.tolist()) == [0, 1, 2]
    assert left[0] == 7
    assert left[1] == 7 - weights[taken[0]]


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), target=st.sampled_from([0.6, 0.8, 0.9]), nulls=st.booleans())
def test_constraints_say_what_the_targets_say(seed: int, target: float, nulls: bool) -> None:
    generator = np.random.default_rng(seed)
    n = 40
    labels = generator.integers(NULL if nulls else 0, 2, n)
    labelled, accepted = generator.random(n) < 0.4, generator.random(n) < 0.5
    mass = generator.integers(1, 5, n).astype(float)
    answers = np.where(labelled, labels, accepted)
    known = labels != NULL
    found, true = (answers == YES) & known, (labels == YES) & known
    both = (mass * (found & true)).sum()
    truth = {
        "precision": both - target * (mass * found).sum(),
        "recall": both - target * (mass * true).sum(),
        "accuracy": (mass * (found == true) * known).sum() - target * (mass * known).sum(),
    }
    output = (mass * np.where(labelled, labels == YES, accepted)).sum()
    total = (mass * ~(labelled & ~known)).sum()
    for contract in (Contract(target, target), Contract(accuracy=target)):
        for one in constraints_of(contract):
            left = (one.values(accepted, labels) * mass)[~labelled].sum()
            slack = one.allowed(output, total) - left
            if abs(slack) > 1e-9:
                assert (slack > 0) == (truth[one.name] > 0)
            assert (one.values(accepted, labels) <= one.most(accepted) + 1e-12).all()


def test_rates_rise_and_stay_inside() -> None:
    scores, labels = drawn(500)
    bins, means = bins_of(scores, 30)
    n = len(means)
    found = rates(means, np.bincount(bins, labels, minlength=n), np.bincount(bins, minlength=n).astype(float))
    assert (np.diff(found) >= 0).all()
    assert ((found > 0) & (found < 1)).all()
    assert np.abs(found - means).mean() < 0.1


def test_a_forecast_is_near_what_it_costs() -> None:
    scores, labels = drawn(8000, 1)
    verdict, _ = learnt(scores, labels)
    guess = forecast(scores[:400], labels[:400], constraints_of(BOTH), 7600)
    assert guess == pytest.approx(verdict.labels, rel=0.4)
    noise = np.random.default_rng(0).random(400)
    assert forecast(noise, labels[:400], constraints_of(BOTH), 7600) > 6000


def test_errors_of_a_chain_add_up() -> None:
    chain = Chain(Contract(0.9, 0.9, delta=0.08), frozenset({1, 2}))
    first = chain.constraints(1, 1000, {1: 0.5, 2: 0.5})
    assert [(one.name, one.delta) for one in first] == [("missed", 0.02), ("wrong", 0.02)]
    assert first[1].allowed(0, 0) == pytest.approx(0.1 * 0.8 * 250 / 2)
    chain.settle(1, {"missed": 4, "wrong": 6}, certified=True)
    last = {one.name: one for one in chain.constraints(2, 500, {2: 0.5})}
    assert last["precision"].allowed(250, 500) == pytest.approx(0.1 * 250 - 6)
    assert last["recall"].allowed(250, 500) == pytest.approx(0.1 * 250 - 0.1 * 6 - 0.9 * 4)
    assert not Chain(chain.contract, chain.numbers, missed=30).holds(100)
    chain.settle(2, {"precision": 0.91, "recall": 0.9}, certified=True)
    assert chain.holds(250)
    chain.constraints(2, 500, {})  # more rows for a predicate that was decided
    chain.settle(2, {"precision": 0.91, "recall": 0.9}, certified=True)
    assert not chain.holds(250)


def test_null_answers_to_an_earlier_predicate_count_as_wrong() -> None:
    """The first score accepts 6,000 rows whose answer is NULL: none of them is right, and M has them."""
    null, yes, no = 6000, 2000, 4000
    scores = np.concatenate([np.full(null + yes, 0.9), np.full(no, 0.1)])
    first = np.concatenate([np.full(null, NULL), np.ones(yes), np.zeros(no)]).astype(np.int8)
    second = np.concatenate([np.ones(null), np.arange(yes) >= 400, np.zeros(no)]).astype(np.int8)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        chain = Chain(Contract(0.9, 0.9), frozenset({1, 2}))
        accepted = np.arange(len(scores))
        for number, labels in ((1, first), (2, second)):
            promised = chain.constraints(number, float(len(accepted)), {1: 0.3, 2: 0.8})
            learner = Learner(promised, generator)
            learner.add(np.clip(scores[accepted] + generator.normal(0, 0.02, len(accepted)), 0, 1))
            learner.close()
            verdict, _ = finished(learner, labels[accepted])
            chain.settle(number, verdict.reached, certified=verdict.certified)
            accepted = accepted[verdict.answers == YES]
        there = accepted[first[accepted] != NULL]
        right = (first[there] == YES) & (second[there] == YES)
        assert not chain.holds(len(accepted)) or right.mean() >= 0.9


def test_nothing_is_proven_where_the_contract_is_not() -> None:
    scores, labels = drawn(4000, 3)
    verdict, _ = learnt(scores, labels, most_labels=400)
    assert not verdict.certified
    assert verdict.reached == {}


def embedded(n: int, seed: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell the classes apart as far as `shift` goes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    return generator.normal(size=(n, 40)) + shift * labels[:, None] * (np.arange(40) < 4), labels


def test_a_head_learns_what_there_is_and_no_more() -> None:
    features, labels = embedded(400, 0, 2.0)
    good = head.fit(features, labels, 2, proxy=None, generator=np.random.default_rng(0))
    assert (good.scores.argmax(axis=1) == labels).mean() > 0.93
    others, true = embedded(400, 1, 2.0)
    assert (good.predict(others, None).argmax(axis=1) == true).mean() > 0.93
    blind = head.fit(
        features, np.random.default_rng(3).permutation(labels), 2, proxy=None, generator=np.random.default_rng(0)
    )
    assert blind.log_loss > math.log(2) - 0.02


def test_a_head_takes_a_proxy_too_and_leaves_what_is_missing() -> None:
    features, labels = embedded(300, 0, 0.5)
    proxy = np.stack([np.where(labels == 0, 0.8, 0.2), np.where(labels == 0, 0.2, 0.8)], axis=1)
    proxy[:5] = np.nan
    both = head.fit(features, labels, 2, proxy=proxy, generator=np.random.default_rng(0))
    assert np.isnan(both.scores[:5]).all()
    assert (both.scores[5:].argmax(axis=1) == labels[5:]).mean() > 0.98
    assert np.isnan(both.predict(features[:1], proxy[:1])).all()


@pytest.mark.parametrize("labels", [[0] * 30, [0] * 29 + [2], [0, 1, 2] * 10])
def test_a_head_gives_chances_whatever_the_labels(labels: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(30, 5))
    fitted = head.fit(features, np.array(labels), 3, proxy=None, generator=np.random.default_rng(0))
    assert fitted.scores.sum(axis=1) == pytest.approx(1)
    assert (fitted.scores > 0).all()
