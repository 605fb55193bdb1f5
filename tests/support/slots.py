"""A decoder of scripted answers, for what schedules them: lengths, memory and failures as a test wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class ScriptedDecoder:
    """Row i is done after `lengths[i]` tokens. `memory` is the cells there are, of which row i fills `prompts[i]` and
    one more a token; `fails` raises for rows at will."""

    def __init__(
        self,
        lengths: Sequence[int],
        prompts: Sequence[int] | None = None,
        memory: int = 1 << 60,
        fails: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> None:
        self.lengths = list(lengths)
        self.prompts = list(prompts) if prompts is not None else [1] * len(self.lengths)
        self.memory = memory
        self.fails = fails
        self.written: dict[int, int] = {}
        self.most_rows = self.most_cells = 0
        self.admissions: list[list[int]] = []

    def admit(self, rows: Sequence[int]) -> list[int]:
        self.admissions.append(list(rows))
        self._check([*self.written, *rows], {**self.written, **dict.fromkeys(rows, 1)}, rows)
        self.written |= dict.fromkeys(rows, 1)
        self.most_rows = max(self.most_rows, len(self.written))
        return self._done()

    def step(self) -> list[int]:
        grown = {row: count + 1 for row, count in self.written.items()}
        self._check(list(grown), grown, list(grown))
        self.written = grown
        return self._done()

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.written.pop(row, None)

    def _check(self, rows: Sequence[int], written: dict[int, int], at_fault: Sequence[int]) -> None:
        self.fails(at_fault)
        cells = len(rows) * max(self.prompts[row] + written[row] for row in rows)
        if cells > self.memory:
            raise OutOfMemoryError("out of memory")
        self.most_cells = max(self.most_cells, cells)

    def _done(self) -> list[int]:
        return [row for row, count in self.written.items() if count >= self.lengths[row]]


def heavy_tailed(n: int, seed: int = 0) -> np.ndarray:
    """Int64 [n] tokens of answers as reasoning models write them: lognormal, median 300, sigma 1.2, cut at 8,192."""
    drawn = np.random.default_rng(seed).lognormal(np.log(300), 1.2, n)
    return np.clip(drawn, 1, 8_192).astype(np.int64)


def static_use(lengths: np.ndarray, slots: int) -> float:
    """Share of slots x steps that hold a row when batches of `slots` rows run until their longest is done."""
    batches = [lengths[at : at + slots] for at in range(0, len(lengths), slots)]
    return float(lengths.sum() / sum(slots * int(batch.max()) for batch in batches))
