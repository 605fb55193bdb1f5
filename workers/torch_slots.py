"""Generation on torch in slots: keys and values of the running rows side by side, a step for all at once.

Slot i holds its row's keys and values from column 0; the next token goes to column `filled[i]`, and what lies beyond is
masked. So no row moves when another one comes or goes: a row that leaves is overwritten by the last one. Prompts are
read apart, a few rows of like length together, behind the shared beginning that is computed once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.workers.batching import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.workers.thinking import Writing
    from sqluice.workers.torch_lm import CausalLM, Ids

SLOTS, SLOTS_CUDA = 32, 256
CPU_BYTES = 2 << 30
_COLUMNS = 64  # memory grows by half, in steps of this many columns


def slots_of(lm: CausalLM) -> int:
    """How many rows run at once on the model's device."""
    return SLOTS_CUDA if lm.device.type == "cuda" else SLOTS


def cells_of(lm: CausalLM) -> int:
    """Tokens whose keys and values fit into memory: 80 % of what a GPU has free; on a CPU a quarter of what is free, at
    most 2 GB, since steps get slow long before."""
    import torch

    if lm.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(lm.device)[0] * 0.8)
    else:
        free = min(CPU_BYTES, _free_bytes() // 4)
    return max(1, free // lm.cell_bytes())


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # macOS has no such name
        return 4 * CPU_BYTES


class SlotDecoder:
    """Greedy answers of `rows` (prompts past `prefix`, at least one token each) into `writings`, one a row. `needs` are
    the cells a row may come to fill, `budget` the padded tokens of prompts read together."""

    def __init__(
        self,
        lm: CausalLM,
        prefix: Ids,
        rows: Sequence[Ids],
        writings: Sequence[Writing],
        needs: Sequence[int],
        budget: int,
    ) -> None:
        self._lm = lm
        self._prefix = prefix
        self._prompts = rows
        self._writings = writings
        self._needs = needs
        self._rows: list[int] = []
        self._filled: list[int] = []
        self._memory = _Memory()
        self._budget = budget
        self._padding = (0, 0)

    def admit(self, rows: Sequence[int]) -> list[int]:
        """Read the prompts of `rows`, in groups of like length."""
        import torch

        for row in rows:
            self._writings[row].restart()
        base = len(self._rows)
        most = max(self._needs[row] for row in [*self._rows, *rows])
        lengths = np.array([len(self._prompts[row]) for row in rows])
        entered: list[int] = []
        first: list[int] = []
        with torch.inference_mode():
            for group in pack(lengths, self._budget):
                some = [rows[at] for at in group.tolist()]
                past, tokens = self._lm.read(self._prefix, [self._prompts[row] for row in some])
                longest = int(lengths[group].max())
                self._memory.reserve_like(past, base + len(rows), len(self._prefix) + longest, most)
                self._memory.store(past, base + len(entered))
                entered += some
                first += tokens
                padding, widest = self._padding
                padding += len(some) * longest - int(lengths[group].sum())
                self._padding = (padding, max(widest, longest))
        self._rows += entered
        self._filled += [len(self._prefix) + len(self._prompts[row]) for row in entered]
        return [row for row, token in zip(entered, first, strict=True) if self._writings[row].add(token)]

    def step(self) -> list[int]:
        """One token more for each row in a slot."""
        import torch

        last = [self._writings[row].tokens[-1] for row in self._rows]
        with torch.inference_mode():
            self._memory.reserve(len(last), max(self._filled) + 1, max(self._needs[row] for row in self._rows))
            tokens = self._lm.next_tokens(last, self._filled, self._memory.layers)
        self._filled = [filled + 1 for filled in self._filled]
        return [row for row, token in zip(self._rows, tokens, strict=True) if self._writings[row].add(token)]

    def release(self, rows: Sequence[int]) -> None:
        """Fill the slots of `rows` with the last ones."""
        import torch

        moves: dict[int, int] = {}
        for row in rows:
            if row not in self._rows:
                continue
            slot, end = self._rows.index(row), len(self._rows) - 1
            source = moves.pop(end, end)
            if slot != end:
                moves[slot] = source
            for kept in (self._rows, self._filled):
                kept[slot] = kept[end]
                kept.pop()
        with torch.inference_mode():
            self._memory.move(moves, max(self._filled, default=0))
        if not self._rows:
            self._memory = _Memory()

    def take_padding(self) -> tuple[int, int]:
        """Padding of prompts and the longest of them (past the prefix) since the last call."""
        told, self._padding = self._padding, (0, 0)
        return told


class _Memory:
    """Keys and values of every layer, [slots, heads, columns, d] each."""

    def __init__(self) -> None:
        self.layers: list[list[Any]] = []

    def store(self, past: Sequence[tuple[Any, Any]], start: int) -> None:
        """Copy [n, heads, columns, d] of each layer into the slots from `start` on."""
        for own, new in zip(self.layers, past, strict=True):
            for mine, theirs in zip(own, new, strict=True):
                mine[start : start + len(theirs), :, : theirs.shape[2]] = theirs

    def reserve_like(self, past: Sequence[tuple[Any, Any]], slots: int, columns: int, most: int) -> None:
        """As `reserve`, with heads and widths of `past` where there is nothing yet."""
        if not self.layers:
            self.layers = [[keys[:0], values[:0]] for keys, values in past]
        self.reserve(slots, columns, most)

    def reserve(self, slots: int, columns: int, most: int) -> None:
        """Room for so many slots and columns, of which no row there is needs more than `most`: never more than slots x
        `most` when it is made anew. That happens a layer at a time, so that only one stands twice. Columns grow by
        half. What no row has filled is zero: masked cells must be numbers."""
        have, wide = self.layers[-1][-1].shape[0], self.layers[-1][-1].shape[2]
        if slots <= have and columns <= wide:
            return
        if columns > wide or not have:
            wide = -(-max(columns, wide * 3 // 2) // _COLUMNS) * _COLUMNS
        wide = max(columns, min(most, wide))
        for layer in self.layers:
            for at, old in enumerate(layer):
                new = old.new_zeros((slots, old.shape[1], wide, old.shape[3]))
                kept = new[: old.shape[0], :, : old.shape[2]]
                kept.copy_(old[:slots, :, :wide])
                layer[at] = new

    def move(self, moves: dict[int, int], columns: int) -> None:
        """Copy slots (to: from); none of them is both."""
        if not moves:
            return
        to, source = list(moves), list(moves.values())
        for layer in self.layers:
            for part in layer:
                part[to, :, :columns] = part[source, :, :columns]
