"""Several cascades whose predicates must all be true: errors of rows add up, targets do not.

A row of the result is wrong where some predicate wrongly accepted it; a row is missing where some predicate wrongly
rejected it. With a missed and b wrong rows of the earlier predicates, and FN and FP of the last one, whose output are
the M rows of the result: at least M - b - FP rows of the result are right, at most a + FN right ones are missing. So

    precision >= g  <=  FP <= (1 - g) M - b
    recall    >= g  <=  g FN + (1 - g) FP <= (1 - g) M - (1 - g) b - g a

which are constraints of the last cascade with something taken off their right side. An earlier cascade is given an
absolute number of rows that it may miss and add, its part of what the result is expected to allow. The expectation may
be wrong; the last cascade knows a, b and M, and certifies or not. `delta` is shared by all of them. A row that an
earlier score has accepted and whose oracle answer is NULL is in no exact result: it counts as wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqluice.optimizer.cascade.constraints import Constraint, constraints_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqluice.types import Contract

SAFETY = 0.8
"""The result is planned to be this much smaller than expected."""


@dataclass(slots=True)
class Chain:
    """Cascades, by number, whose predicates all have to be true for a row of the result, under one contract with recall
    and precision. `missed` and `wrong` are rows that those already decided may have lost and added; `proven` tells that
    the last one has proven the contract of all."""

    contract: Contract
    numbers: frozenset[int]
    missed: float = 0.0
    wrong: float = 0.0
    sound: bool = True
    proven: bool = False
    decided: set[int] = field(default_factory=set)

    def constraints(self, number: int, rows: float, shares: Mapping[int, float]) -> tuple[Constraint, ...]:
        """Those of the next cascade, on `rows` rows; `shares` are those of yes answers by number."""
        if number in self.decided:  # some of its rows came before the others: there is no proof for both parts
            self.sound = False
            return constraints_of(self.contract)
        recall, precision = self._targets
        delta = self.contract.delta / (2 * len(self.numbers))
        still_open = self.numbers - self.decided
        if still_open == {number}:
            exact = constraints_of(self.contract)
            taken = {"precision": self.wrong, "recall": (1 - recall) * self.wrong + recall * self.missed}
            return tuple(one.less(taken[one.name], delta) for one in exact)
        result = SAFETY * rows * math.prod(shares.get(one, 0.5) for one in still_open)
        missed = ((1 - recall) / recall * result - self.missed) / len(still_open)
        wrong = ((1 - precision) * result - self.wrong) / len(still_open)
        return (
            Constraint("missed", missed, 1.0, 0.0, 0.0, 0.0, delta, missed),
            Constraint("wrong", wrong, 0.0, 1.0, 0.0, 0.0, delta, wrong, null=1.0),
        )

    def settle(self, number: int, reached: Mapping[str, float], *, certified: bool) -> None:
        """A cascade is decided; `reached` is what it has proven of its constraints, nothing where the oracle answered
        all."""
        self.decided.add(number)
        self.sound &= certified
        self.proven = self.sound and "recall" in reached
        self.missed += reached.get("missed", 0.0)
        self.wrong += reached.get("wrong", 0.0)

    def holds(self, output: float) -> bool:
        """Whether a result of `output` rows keeps the contract, for sure but for `delta`."""
        recall, precision = self._targets
        right = output - self.wrong
        fits = self.wrong <= (1 - precision) * output and recall * self.missed <= (1 - recall) * right
        return self.proven or (self.sound and fits)

    @property
    def _targets(self) -> tuple[float, float]:
        assert self.contract.recall is not None
        assert self.contract.precision is not None
        return self.contract.recall, self.contract.precision
