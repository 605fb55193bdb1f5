"""Greedy texts on torch: chats in tokens become completions, in slots where the model's attention allows it.

Models that see a window only, or keep something else than keys and values, are run in static batches by transformers'
own `generate`: a mask of ours would widen the window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqluice.errors import ModelError
from sqluice.types import Completion
from sqluice.workers.protocol import Wave
from sqluice.workers.slots import Slots
from sqluice.workers.thinking import NO_ANSWER, Writing
from sqluice.workers.torch_slots import SlotDecoder, cells_of, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqluice.workers.thinking import Thinking
    from sqluice.workers.torch_lm import CausalLM

    Chat = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens of the model's context, of one micro-batch of prompts (padded), and of an answer."""

    context: int
    batch: int
    answer: int


def waves(
    lm: CausalLM, chats: dict[int, Chat], text_of: Callable[[list[int]], str], room: Room, thinking: Thinking | None
) -> Iterator[Wave]:
    """Completions of chats (tokens that rows share, tokens of the row) by their number, as they come."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, (shared, _) in chats.items():
        groups.setdefault(tuple(shared), []).append(row)
    for beginning, rows in groups.items():
        some = [chats[row][1] for row in rows]
        for wave in _group(lm, beginning, some, text_of, room, thinking):
            wave.completions = {rows[at]: one for at, one in wave.completions.items()}
            wave.errors = {rows[at]: one for at, one in wave.errors.items()}
            yield wave


def _group(
    lm: CausalLM,
    shared: tuple[int, ...],
    rows: Sequence[list[int]],
    text_of: Callable[[list[int]], str],
    room: Room,
    thinking: Thinking | None,
) -> Iterator[Wave]:
    """As `waves`, for rows behind one beginning; rows are numbered from 0."""
    lengths = [len(shared) + len(row) for row in rows]
    writings = [_writing(lm, row, room, length, thinking) for row, length in zip(rows, lengths, strict=True)]
    needs = [
        length + room.answer + (writing.thinking.budget if writing.thinking else 0)
        for length, writing in zip(lengths, writings, strict=True)
    ]
    decoder: Any
    if lm.windowed:
        decoder = _Static(lm, [[*shared, *row] for row in rows], writings)
        slots = Slots(decoder, needs, most_rows=slots_of(lm), most_tokens=room.batch)
    else:
        decoder = SlotDecoder(lm, shared, rows, writings, needs, room.batch)
        slots = Slots(decoder, needs, most_rows=slots_of(lm), most_tokens=cells_of(lm))
    for ended in slots.run():
        wave = Wave(errors=ended.failed, lost=ended.lost, error=ended.error)
        wave.pad_tokens, wave.max_tokens = decoder.take_padding()
        for row in ended.rows:
            writing = writings[row]
            if writing.opened and writing.finish == "stop":
                wave.errors[row] = ModelError(NO_ANSWER)
                continue
            finish: Any = writing.finish
            text = text_of(writing.answer).strip()
            wave.completions[row] = Completion(text, finish, lengths[row], len(writing.tokens))
        yield wave


def _writing(lm: CausalLM, row: list[int], room: Room, length: int, thinking: Thinking | None) -> Writing:
    """An empty answer; a model that thinks gets its budget, as far as the context reaches."""
    stops = frozenset(lm.stops)
    if thinking is None:
        return Writing(room.answer, stops)
    left = room.context - length - room.answer
    marks = [token for token in row if token in (thinking.opening, thinking.closing)]
    begun = marks[-1:] == [thinking.opening]
    return Writing(room.answer, stops, replace(thinking, budget=max(0, min(thinking.budget, left))), begun)


class _Static:
    """A decoder whose rows are written to their end as they enter, all together."""

    def __init__(self, lm: CausalLM, rows: Sequence[list[int]], writings: Sequence[Writing]) -> None:
        self._lm = lm
        self._rows = rows
        self._writings = writings
        self._padding = (0, 0)

    def admit(self, rows: Sequence[int]) -> list[int]:
        """Write all of `rows`."""
        some = [self._rows[row] for row in rows]
        most = max(one.most + (one.thinking.budget if one.thinking else 0) for one in self._writings)
        for row, tokens in zip(rows, self._lm.write(some, most), strict=True):
            self._writings[row].restart()
            any(self._writings[row].add(token) for token in tokens)
        longest = max(map(len, some))
        self._padding = (len(some) * longest - sum(map(len, some)), longest)
        return list(rows)

    def step(self) -> list[int]:
        """Never needed: no row stays."""
        raise AssertionError

    def release(self, rows: Sequence[int]) -> None:
        """Nothing is kept."""

    def take_padding(self) -> tuple[int, int]:
        """Padding and the longest prompt since the last call."""
        told, self._padding = self._padding, (0, 0)
        return told
