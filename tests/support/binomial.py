"""What chance allows."""

from __future__ import annotations

import math


def most_misses(replays: int, delta: float) -> int:
    """The 99.9 % quantile of a binomial."""
    total = 0.0
    for misses in range(replays + 1):
        total += math.comb(replays, misses) * delta**misses * (1 - delta) ** (replays - misses)
        if total >= 0.999:
            return misses
    return replays
