"""Micro-batches: which rows one model call takes together.

Rows of one micro-batch are padded to its longest, so its cost is rows x longest. Sorting by length keeps the
padding small; closing a batch early keeps it smaller still, at the price of more calls. `pack` closes early
where rows differ much in length (the tail of long texts) and fills the budget everywhere else.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ROWS = 1024
MAX_WASTE = 0.05
SMALL_WINDOW = 1000
"""In windows of fewer rows, fewer calls are worth more padding."""

CHARS_PER_TOKEN = 6.0

FIRST_ROWS, MOST_ROWS, BATCH_SECONDS = 16, 1024, 0.25
"""Micro-batches of a model without sizes of its own: the first one, the largest, the time one should take."""

# A batch is closed for its padding only once it holds this share of the budget; tried from the left until
# the whole window keeps within the allowed waste.
_FLOORS = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.01)


def in_order(n: int, rows: int = MAX_ROWS) -> list[np.ndarray]:
    """Row numbers 0..n-1 in order of arrival, cut into pieces of at most `rows`."""
    every = np.arange(n)
    return [every[start : start + rows] for start in range(0, n, rows)]


def longest_first(lengths: np.ndarray, rows: int) -> list[np.ndarray]:
    """Row numbers by falling `lengths`, cut into pieces of at most `rows`."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def pack(lengths: np.ndarray, budget: int, *, extra: int = 0, waste: float = MAX_WASTE) -> list[np.ndarray]:
    """Micro-batches as arrays of row numbers, longest rows first.

    `lengths` int [n] are tokens; `budget` is the padded tokens (rows x longest) of one micro-batch; `extra`
    tokens are added to each row when the budget is counted (an answer still to be written), not when padding
    is. A row longer than the budget goes alone. Over windows of 1,000 rows and more, padding stays at or
    below `waste` of all tokens unless the budget holds only a few rows.
    """
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    total = np.concatenate(([0], np.cumsum(ordered)))
    cuts: list[int] = []
    for floor in _FLOORS if len(lengths) >= SMALL_WINDOW else _FLOORS[:2]:
        cuts = _cuts(ordered, total, budget, extra, waste, floor)
        if padding_share([ordered[a:b] for a, b in pairwise(cuts)]) <= waste:
            break
    return [order[a:b] for a, b in pairwise(cuts)]


def _cuts(ordered: np.ndarray, total: np.ndarray, budget: int, extra: int, waste: float, floor: float) -> list[int]:
    """Where batches start, and the end: `ordered` lengths fall, `total` is their running sum from 0."""
    n = len(ordered)
    cuts = [0]
    while cuts[-1] < n:
        start = cuts[-1]
        longest = int(ordered[start])
        room = min(MAX_ROWS, max(1, budget // (longest + extra)))
        stop = min(n, start + room)
        padded = longest * np.arange(1, stop - start + 1)
        filled = total[start + 1 : stop + 1] - total[start]
        over = (padded - filled > waste * padded) & (padded - longest > floor * budget)
        if over.any():
            stop = start + max(1, int(over.argmax()))
        cuts.append(stop)
    return cuts


class Growing:
    """Micro-batches for a model that says nothing of its size: as many rows as take `BATCH_SECONDS`, found by trying.
    Then progress is told and an interruption heard in time, and a fast model is asked in few calls."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._size = FIRST_ROWS
        self._least = 1

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        while len(self._rows):
            started = time.perf_counter()
            batch = self.take(len(self._rows))
            yield batch
            self.took(len(batch), time.perf_counter() - started)

    @property
    def size(self) -> int:
        """Rows of the next micro-batch, if there are so many."""
        return self._size

    def take(self, most: int) -> np.ndarray:
        """The next micro-batch, of at most so many rows where that is not too few to be worth a call."""
        taken, self._rows = np.split(self._rows, [min(self._size, max(most, self._least))])
        return taken

    def took(self, rows: int, seconds: float) -> None:
        """So many rows took so long."""
        fitting = rows * BATCH_SECONDS / max(seconds, 1e-9)
        self._size = int(min(4 * rows, MOST_ROWS, max(1, fitting)))
        self._least = int(min(MOST_ROWS, max(8, fitting)) / 8)


def padding_share(batches: Sequence[np.ndarray]) -> float:
    """Padding as a share of all padded tokens; `batches` are the lengths of each micro-batch's rows."""
    padded = sum(len(batch) * int(batch.max()) for batch in batches if len(batch))
    filled = sum(int(batch.sum()) for batch in batches)
    return 1 - filled / padded if padded else 0.0


def estimated_lengths(chars: np.ndarray) -> np.ndarray:
    """Int64 [n]: a low guess at tokens from characters, for models that do not count tokens."""
    return (chars / CHARS_PER_TOKEN).astype(np.int64) + 1
