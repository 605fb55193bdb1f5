"""What the partitions of a job share of its cascades: policies, and what was seen of their inputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqluice.optimizer.cascade.policy import SLACK, tightened

if TYPE_CHECKING:
    import numpy as np

    from sqluice.optimizer.cascade.policy import Policy
    from sqluice.types import Contract


@dataclass(frozen=True, slots=True)
class Seen:
    """Inputs of one question in one partition, arrays [n]: `keys` uint64, `n_rows`, `sides` and `labels` as in
    `optimizer.cascade.policy.Audit`."""

    question: str
    keys: np.ndarray
    n_rows: np.ndarray
    sides: np.ndarray
    labels: np.ndarray


@dataclass(slots=True)
class Shared:
    """Of one run. While a job `learns`, its rows are a sample, `scale` times fewer than all of them, and the policies
    of its cascades are `found`. Later runs apply `policies`, by question, and leave what they have `seen`; a question
    without one keeps its contract in each of `partitions` partitions."""

    policies: dict[str, Policy] = field(default_factory=dict)
    partitions: int = 1
    learns: bool = False
    scale: float = 1.0
    found: dict[str, Policy] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def is_job(self) -> bool:
        """Whether the run is a part of a job's cascade."""
        return self.learns or bool(self.policies)

    def contract(self, given: Contract) -> Contract:
        """The contract that a question keeps here."""
        if self.learns:
            return tightened(given, SLACK)
        return replace(given, delta=given.delta / self.partitions)
