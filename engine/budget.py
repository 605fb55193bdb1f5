"""What a statement, or one question of it, may spend on its oracle: a hard cap.

Calls count every attempt. Before each slice of rows the room that is left is found anew; a slice takes no more than
half of it, and ends when its attempts have used that half: the last micro-batch fits into the other one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqluice.errors import InterruptedQueryError, NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.engine.operators.watch import Meter
    from sqluice.workers.protocol import Batch

SPENT = "the budget is spent"
"""The error of an input that was not asked about."""


_JOULES = {"J": 1.0, "kJ": 1000.0}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class SpentError(InterruptedQueryError):
    """A slice has used up its part of a budget. It never leaves the engine."""


@dataclass(slots=True)
class Budget:
    """`amount` in `unit`: calls, usd, J, kJ, or s, min and h since it was made."""

    amount: float
    unit: str
    calls: int = 0
    usd: float = 0.0
    joules: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, text: str) -> Budget:
        """From `'500 calls'`."""
        amount, unit = text.split()
        return cls(float(amount), unit)

    def needs(self, meter: Meter, model: str) -> None:
        """`NotSupportedError` where joules are given and nobody counts those of `model`."""
        if self.unit in _JOULES and not meter.knows:
            raise NotSupportedError(
                f"a budget of {self.amount:g} {self.unit} needs the joules of {model}, and nothing tells them: no "
                "sensor (RAPL in /sys/class/powercap, which often only root may read; NVML for CUDA, with the package "
                "nvidia-ml-py), and no earlier run of this model that had one. Give calls, usd or time"
            )

    def charge(self, batches: Sequence[Batch], usd: float) -> None:
        """Count attempts at micro-batches and their price."""
        self.calls += sum(batch.rows for batch in batches)
        self.usd += usd
        self.joules += sum(batch.joules or 0.0 for batch in batches)

    def room(self, usd: float, seconds: float, joules: float) -> int:
        """Calls that still fit, at `usd`, `seconds` and `joules` each; 0 when none does."""
        if self.unit == "calls":
            return max(int(self.amount) - self.calls, 0)
        left, each = self.amount - self.usd, usd
        if self.unit in _JOULES:
            left, each = self.amount * _JOULES[self.unit] - self.joules, joules
        elif self.unit != "usd":
            left, each = self.amount * _SECONDS[self.unit] - (time.monotonic() - self.started), seconds
        return 0 if left <= 0 else math.floor(left / each) if each > 0 else 10**12
