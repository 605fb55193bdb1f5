"""A contract as inequalities between what is wrong among the rows without a label and what may be.

Rows that keep no label are accepted or rejected by their score. With FP wrong ones among the accepted, FN missed ones
among the rejected and M rows in the output (accepted, or labelled yes), all three in rows of the input:

    precision >= g  <=>  FP <= (1 - g) M
    recall    >= g  <=>  g FN + (1 - g) FP <= (1 - g) M
    accuracy  >= g  <=>  FN + FP <= (1 - g) N

M is known without asking: only the left sides need a bound. Rows whose oracle answer is NULL leave both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sqluice.types import Contract


@dataclass(frozen=True, slots=True)
class Constraint:
    """`missed` FN + `wrong` FP <= `per_output` M + `per_input` N + `fixed`, to hold with probability 1 - `delta`. An
    accepted row whose oracle answer is NULL counts `null` on the left side, besides leaving both."""

    name: str
    target: float
    missed: float
    wrong: float
    per_output: float
    per_input: float
    delta: float
    fixed: float = 0.0
    null: float = 0.0

    def less(self, taken: float, delta: float) -> Constraint:
        """The same with `taken` rows less on the right side."""
        return replace(self, fixed=self.fixed - taken, delta=delta)

    def weights(self, accepted: np.ndarray) -> np.ndarray:
        """What an error counts, float; `accepted` bool, any shape."""
        return np.asarray(np.where(accepted, self.wrong, self.missed))

    def values(self, accepted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What each row adds to the left side, float [n], once its label (1 yes, 0 no, -1 NULL) is known."""
        error = np.where(accepted, labels == 0, labels == 1) * self.weights(accepted)
        return np.where(labels < 0, self._nulls(accepted), error)

    def most(self, accepted: np.ndarray) -> np.ndarray:
        """The greatest of `values`, whatever the label."""
        return np.asarray(np.maximum(self.weights(accepted), self._nulls(accepted)))

    def _nulls(self, accepted: np.ndarray) -> np.ndarray:
        return np.where(accepted, self.per_output + self.null, 0.0) + self.per_input

    def allowed(self, output: Any, total: float) -> Any:
        """The right side for M = `output` (a number or an array) and N = `total` rows."""
        return self.per_output * output + self.per_input * total + self.fixed

    def reached(self, left: float, output: float, total: float) -> float:
        """The value of the target that a bound `left` on the left side proves, where it is at most what is allowed; the
        bound itself where the target is a number of rows."""
        if self.name in ("missed", "wrong"):
            return left
        left -= min(self.fixed, 0.0)
        if self.name == "precision":
            return 1 - left / output if output else 1.0
        if self.name == "recall":
            # Worst where nothing among the accepted is wrong: g FN <= left, and recall = M / (M + FN).
            return output / (output + left / self.target) if output else 1.0 if left <= 0 else 0.0
        return 1 - left / total if total else 1.0


def constraints_of(contract: Contract) -> tuple[Constraint, ...]:
    """The inequalities of a contract; `delta` is shared equally, since any of them may be the one that fails."""
    named: list[tuple[str, float]] = [
        (name, target)
        for name, target in (
            ("precision", contract.precision),
            ("recall", contract.recall),
            ("accuracy", contract.accuracy),
        )
        if target is not None
    ]
    made = []
    for name, target in named:
        slack, delta = 1 - target, contract.delta / len(named)
        if name == "precision":
            made.append(Constraint(name, target, 0.0, 1.0, slack, 0.0, delta))
        elif name == "recall":
            made.append(Constraint(name, target, target, slack, slack, 0.0, delta))
        else:
            made.append(Constraint(name, target, 1.0, 1.0, 0.0, slack, delta))
    return tuple(made)


def told(contract: Contract) -> str:
    """A contract in words: `recall >= 0.95, precision >= 0.95, delta 0.05`."""
    targets = [
        f"{name} >= {value:.12g}"
        for name in ("recall", "precision", "accuracy")
        if (value := getattr(contract, name)) is not None
    ]
    return ", ".join([*targets, f"delta {contract.delta:g}"])
