"""Activations, block by block: what each linear layer sees on calibration texts and on held-out ones."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.workers.quant.core import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice.workers.quant.checkpoint import Skeleton

HELD_OUT = 8
"""Every eighth text measures the error and calibrates nothing."""
BATCH_TOKENS = 4096


@dataclass(slots=True)
class Batch:
    """Padded rows: `ids` and `mask` [n, t]; then the hidden states [n, t, d] between blocks, and for each block the
    arguments it gets beside them. `width` is the precision whose errors it carries: 0 for the base model."""

    ids: Any
    mask: Any
    role: str
    width: int = 0
    hidden: Any = None
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


def tokenised(tokenizer: Any, texts: Sequence[str], longest: int, most: int) -> list[list[int]]:
    """Token ids of distinct texts, in their order, cut at `longest`, until `most` tokens are there."""
    distinct = list(dict.fromkeys(text for text in texts if text and text.strip()))
    found: list[list[int]] = []
    total = 0
    for at in range(0, len(distinct), 64):
        if total >= most:
            break
        heads = [text[: longest * 16] for text in distinct[at : at + 64]]
        for ids in tokenizer(heads, truncation=True, max_length=longest)["input_ids"]:
            if ids and total < most:
                found.append(list(ids))
                total += len(ids)
    return found


def check_enough(rows: Sequence[Sequence[int]], needed: int) -> None:
    """`DataError` when there is too little text to calibrate on."""
    total = sum(map(len, rows))
    if len(rows) < 2 or total < needed:
        raise DataError(
            f"too little calibration text: {len(rows)} distinct texts of {total} tokens;"
            f" at least 2 texts and {needed} tokens are needed, 15,000 are better"
        )


def fingerprint(rows: Sequence[Sequence[int]]) -> str:
    """Digest of the calibration tokens."""
    return hashlib.sha256(repr([list(row) for row in rows]).encode()).hexdigest()[:32]


def batches(rows: Sequence[list[int]], pad: int, role: str, device: str) -> Iterator[Batch]:
    """Rows sorted by length, padded on the right, `BATCH_TOKENS` at a time."""
    import torch

    ordered = sorted(rows, key=len)
    while ordered:
        size = max(1, BATCH_TOKENS // len(ordered[-1]))
        part, ordered = ordered[-size:], ordered[:-size]
        longest = len(part[-1])
        ids = torch.full((len(part), longest), pad, dtype=torch.long)
        mask = torch.zeros(len(part), longest, dtype=torch.long)
        for at, row in enumerate(part):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        yield Batch(ids.to(device), mask.to(device), role)


def enter(shape: Skeleton, held: Sequence[Batch]) -> None:
    """Run what comes before the blocks; each batch gets its hidden states and every block's other arguments."""
    import torch

    blocks = shape.blocks
    kept = list(blocks)
    try:
        for at, block in enumerate(kept):
            blocks[at] = _recorder(block)
        for batch in held:
            with torch.inference_mode():
                shape.base(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
            batch.hidden = blocks[0].hidden
            batch.arguments = [(one.args, one.kwargs) for one in blocks]
    finally:
        for at, block in enumerate(kept):
            blocks[at] = block


def _recorder(block: Any) -> Any:
    """A module in the place of `block` that notes its arguments and passes the hidden states on."""
    import torch

    class Recorder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden: Any = None
            self.args: tuple[Any, ...] = ()
            self.kwargs: dict[str, Any] = {}

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(block, name)

        def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self.hidden, self.args, self.kwargs = hidden, args, kwargs
            return hidden

    return Recorder()


def through(block: Any, batch: Batch, at: int) -> Any:
    """Hidden states after block number `at`."""
    import torch

    args, kwargs = batch.arguments[at]
    with torch.inference_mode():
        found = block(batch.hidden, *args, **kwargs)
    return found[0] if isinstance(found, tuple) else found


class _Enough(Exception):  # noqa: N818 - no error: the rest of a block need not run
    """The last watched layer has its inputs."""


class Watch:
    """Counts the inputs of linear layers while batches run; layers that take one tensor share their statistics.

    `last` names the layer after whose inputs a block may stop.
    """

    def __init__(self, linears: dict[str, Any], device: str, last: str = "") -> None:
        self._last = last
        self._found: dict[tuple[str, str], Statistics] = {}
        self._leader: dict[str, str] = {}
        self._device = device
        self._now: list[tuple[Any, str]] = []
        self._mask: Any = None
        self._role = ""
        self._handles = [
            one.register_forward_pre_hook(lambda _, given, name=name: self._seen(name, given[0]))
            for name, one in linears.items()
        ]

    def _seen(self, name: str, rows: Any) -> None:
        leader = next((first for tensor, first in self._now if tensor is rows), name)
        self._leader[name] = leader
        if leader == name:
            self._now.append((rows, name))
            key = (name, self._role)
            if key not in self._found:
                self._found[key] = Statistics(rows.shape[-1], self._device)
            self._found[key].add(rows[self._mask])
        if name == self._last:
            raise _Enough

    def run(self, block: Any, held: Sequence[Batch], at: int) -> None:
        """Send every batch through the block."""
        for batch in held:
            self._now, self._mask, self._role = [], batch.mask.bool(), batch.role
            with suppress(_Enough):
                through(block, batch, at)
        self._now = []

    def names(self) -> list[str]:
        """The layers that ran, in their order."""
        return list(self._leader)

    def leader(self, name: str) -> str:
        """The first layer that takes the same inputs as `name`."""
        return self._leader[name]

    def statistics(self, name: str, role: str) -> Any:
        """Float64 [in, in] of a layer on `calibration` or `held_out` rows."""
        return self._found[self._leader[name], role].value

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
