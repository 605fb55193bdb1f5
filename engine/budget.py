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

    from sqluice.workers.protocol import Batch

SPENT = "the budget is spent"
"""The error of an input that was not asked about."""


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class SpentError(InterruptedQueryError):
    """A slice has used up its part of a budget. It never leaves the engine."""


@dataclass(slots=True)
class Budget:
    """`amount` in `unit`: calls, usd, or s, min and h since it was made."""

    amount: float
    unit: str
    calls: int = 0
    usd: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, text: str) -> Budget:
        """From `'500 calls'`; `NotSupportedError` for joules, which nothing here measures."""
        amount, unit = text.split()
        if unit in ("J", "kJ"):
            raise NotSupportedError(
                f"a budget of {text} needs a sensor of energy, and none is read here: give calls, usd or time"
            )
        return cls(float(amount), unit)

    def charge(self, batches: Sequence[Batch], usd: float) -> None:
        """Count attempts at micro-batches and their price."""
        self.calls += sum(batch.rows for batch in batches)
        self.usd += usd

    def room(self, usd: float, seconds: float) -> int:
        """Calls that still fit, at `usd` and `seconds` each; 0 when none does."""
        if self.unit == "calls":
            return max(int(self.amount) - self.calls, 0)
        left, each = self.amount - self.usd, usd
        if self.unit != "usd":
            left, each = self.amount * _SECONDS[self.unit] - (time.monotonic() - self.started), seconds
        return 0 if left <= 0 else math.floor(left / each) if each > 0 else 10**12
