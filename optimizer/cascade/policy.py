"""One cascade for many partitions: thresholds found on a sample of all rows, applied everywhere, proven once.

Each partition decides its inputs by the same scores and thresholds, asks the oracle about those between them, and about
some of the others too, drawn by a hash of the input at the same rate everywhere. Together these draws are a sample of
all inputs that a score decided, taken after the thresholds were fixed: one proof for all partitions.

The bound: with values v in [0, w], each seen with probability r independently of the others, the seen sum S of a total
T has E exp(-t S) <= exp(-r T / w (1 - exp(-t w))), since (1 - exp(-x)) / x falls in x. So S / w is as far below its
mean r T / w at most as often as Chernoff's bound says of a Poisson variable (Boucheron, Lugosi and Massart,
"Concentration Inequalities", 2013, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.optimizer.cascade.constraints import constraints_of
from sqluice.optimizer.cascade.head import Linear
from sqluice.types import Contract

if TYPE_CHECKING:
    from sqluice.optimizer.cascade.constraints import Constraint

REJECTED, ASKED, ACCEPTED = -1, 0, 1
"""What a policy does with an input."""

UNSEEN = -2
"""The label of an input that the oracle was not asked about."""

SLACK = 0.5
"""The share of what may be wrong that thresholds are chosen for: the rest is for the bound."""

HEAVY = 16
"""Rows from which the oracle answers an input whatever its score: one wrong answer would be as many wrong rows."""

_EXPECTED = 0.5
"""The share of what may be wrong that is expected to be, for the choice of a rate."""

_STEPS = 80


@dataclass(frozen=True, slots=True)
class Policy:
    """Scores by `model`, thresholds, and the `rate` at which inputs beyond them are asked about nevertheless. `name`
    says what the scores are made of; `allowed` is what may be wrong among the rows that it was found on."""

    name: str
    model: Linear
    tau_low: float
    tau_high: float
    contract: Contract
    allowed: float
    rate: float = 0.0

    def scaled(self, scale: float, share: float = 1.0) -> Policy:
        """With the rate that proves the contract on `scale` times as many rows, as far as can be foreseen, at a share
        of its delta."""
        parts = constraints_of(self.contract)
        return replace(self, rate=rate_for(self.allowed * scale, parts[0].delta * share))

    def sides(self, scores: np.ndarray, n_rows: np.ndarray) -> np.ndarray:
        """What to do with inputs by their scores, int8 [n]: those without one, and heavy ones, are asked about."""
        low = scores <= self.tau_low if not math.isnan(self.tau_low) else np.zeros(len(scores), bool)
        high = scores >= self.tau_high if not math.isnan(self.tau_high) else np.zeros(len(scores), bool)
        found = np.where(low, REJECTED, np.where(high, ACCEPTED, ASKED)).astype(np.int8)
        found[np.isnan(scores) | (n_rows >= HEAVY)] = ASKED
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        contract = {name: getattr(self.contract, name) for name in ("recall", "precision", "accuracy", "delta")}
        return {
            "name": self.name,
            "model": self.model.to_dict(),
            "tau": [None if math.isnan(tau) else tau for tau in (self.tau_low, self.tau_high)],
            "contract": contract,
            "allowed": self.allowed,
            "rate": self.rate,
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Policy:
        """From plain values."""
        low, high = (math.nan if tau is None else float(tau) for tau in found["tau"])
        model, contract = Linear.from_dict(found["model"]), Contract(**found["contract"])
        return cls(str(found["name"]), model, low, high, contract, float(found["allowed"]), float(found["rate"]))


@dataclass(frozen=True, slots=True)
class Audit:
    """Distinct inputs of all partitions: rows that each stands for, what the policy did, the oracle's label (-2 unseen,
    -1 NULL, 0 no, 1 yes). Arrays [n]."""

    n_rows: np.ndarray
    sides: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a contract holds, what is proven of each target, and labels bought."""

    holds: bool
    reached: dict[str, float]
    labels: int


def drawn(keys: np.ndarray, seed: int, rate: float) -> np.ndarray:
    """Which inputs are asked about nevertheless, bool [n], by uint64 `keys`: the same in whatever partition."""
    mixed = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray(mixed.astype(np.float64) / 2.0**64 < rate)


def upper(seen: float, delta: float, rate: float, largest: float) -> float:
    """A bound on a total that holds with probability 1 - `delta`: values of at most `largest` were seen at `rate`, and
    those seen sum up to `seen`."""
    if largest <= 0:
        return 0.0
    if rate >= 1:
        return seen
    count, wanted = seen / largest, math.log(1 / delta)

    def excess(mean: float) -> float:
        return mean - count + (count * math.log(count / mean) if count else 0.0) - wanted

    low, high = count, count + 2 * wanted + 2 * math.sqrt(2 * wanted * (count + 1)) + 1
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return high * largest / rate


def rate_for(allowed: float, delta: float) -> float:
    """The rate at which a total that is half of what is `allowed` can be proven to be allowed, in (0, 1]."""
    share = 1 - _EXPECTED + _EXPECTED * math.log(_EXPECTED)
    return min(1.0, math.log(1 / delta) / share / allowed) if allowed > 0 else 1.0


def tightened(contract: Contract, slack: float) -> Contract:
    """The contract with a share of what it lets be wrong."""
    less = {
        name: None if value is None else 1 - (1 - value) * slack
        for name, value in (
            ("recall", contract.recall),
            ("precision", contract.precision),
            ("accuracy", contract.accuracy),
        )
    }
    return Contract(**less, delta=contract.delta)


def prove(policy: Policy, audit: Audit, share: float = 1.0) -> Proof:
    """What the draws of all partitions together prove, at a share of the contract's delta: a proof that is tried
    several times has all of delta once."""
    unseen = audit.labels == UNSEEN
    beyond = audit.sides != ASKED
    rows = audit.n_rows.astype(float)
    output = float(rows[(audit.labels == 1) | (unseen & (audit.sides == ACCEPTED))].sum())
    total = float(rows[audit.labels != -1].sum())
    reached, holds = {}, True
    for one in constraints_of(replace(policy.contract, delta=policy.contract.delta * share)):
        left = _left(one, rows[beyond], audit.sides[beyond] == ACCEPTED, audit.labels[beyond], policy.rate)
        holds = holds and left <= one.allowed(output, total)
        reached[one.name] = max(0.0, one.reached(left, output, total))
    return Proof(holds, reached if holds else {}, int((~unseen).sum()))


def allowed(contract: Contract, answers: np.ndarray, n_rows: np.ndarray) -> float:
    """The least of what a contract lets be wrong, in rows, by answers (1 yes, 0 no, -1 NULL) to inputs, arrays [n]."""
    output, total = float(n_rows[answers == 1].sum()), float(n_rows[answers >= 0].sum())
    return float(min(one.allowed(output, total) for one in constraints_of(contract)))


def _left(one: Constraint, rows: np.ndarray, accepted: np.ndarray, labels: np.ndarray, rate: float) -> float:
    """A bound on the left side of a constraint over the inputs that kept the score's decision."""
    most = one.most(accepted) * rows
    if not len(most):
        return 0.0
    seen = labels != UNSEEN
    values = float((one.values(accepted[seen], labels[seen]) * rows[seen]).sum())
    return max(0.0, upper(values, one.delta, rate, float(most.max())) - values)
