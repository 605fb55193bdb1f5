"""Continuous slots: rows of a generation enter and leave a running batch one by one.

A static batch decodes until its longest answer is done, and the slots of the others stand empty. Here a row that is
done leaves at once and one that waits takes its place (iteration-level scheduling: Yu et al., "Orca", OSDI 2022).
This file decides who enters, and what happens when a step fails; a `Decoder` does the arithmetic.

Rows enter longest first, so that the last ones to run are short. A row needs cells of key-value memory for its prompt
and all it may write; the rows in slots, padded to the neediest of them, never need more than the budget.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sqluice.workers.failures import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REFILL = 16
"""Rows enter when this part of the slots is free (or all are): reading one prompt alone costs as much as a step."""


class Decoder(Protocol):
    """What writes the answers. Rows are numbers of the caller's."""

    def admit(self, rows: Sequence[int]) -> list[int]:
        """Read the prompts of `rows` and write the first token of each; returns those that are done with it.
        When it raises, none of `rows` is admitted and the others are as they were."""
        ...

    def step(self) -> list[int]:
        """Write one more token of each admitted row; returns those that are done. When it raises, every row is lost."""
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Free the slots of `rows`: done, or lost. A row released may be admitted again and then starts anew."""
        ...


@dataclass(slots=True)
class Ended:
    """What one step brought: rows that are done, rows that failed alone, and how many lost their work by an error."""

    rows: list[int] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)
    lost: int = 0
    error: Exception | None = None


class Slots:
    """Runs n rows through `most_rows` slots.

    `needs` int [n] are cells of key-value memory that a row may come to need (tokens of prompt and answer),
    `most_tokens` the cells there are: rows x the largest need of them stays below it, but one row always may run.
    `predicted` [n] orders the rows, the largest first; without it `needs` does.

    What fails is halved: rows that fail together are asked again in halves down to one row, which then fails alone.
    Memory that ran out lowers the budget until a row alone has been the cause.
    """

    def __init__(
        self,
        decoder: Decoder,
        needs: Sequence[int],
        *,
        most_rows: int,
        most_tokens: int,
        predicted: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        self._decoder = decoder
        self._needs = [int(need) for need in needs]
        order = np.argsort(-np.asarray(needs if predicted is None else predicted), kind="stable")
        self._waiting: deque[int] = deque(order.tolist())
        self._active: list[int] = []
        self._offered = (max(1, most_rows), max(1, most_rows), max(1, most_tokens))
        self._most_rows, self._most_entering, self._most_tokens = self._offered
        self.steps = self.busy = 0

    @property
    def use(self) -> float:
        """Share of slots x steps in which a slot held a row."""
        return self.busy / (self.steps * self._offered[0]) if self.steps else 1.0

    def run(self) -> Iterator[Ended]:
        """One `Ended` an admission or step, often empty, until every row is done or has failed. Exceptions that are no
        `Exception` go through."""
        while self._waiting or self._active:
            yield self._admit(entering) if (entering := self._entering()) else self._step()

    def reserved(self) -> int:
        """Cells that the rows in slots may come to need."""
        return len(self._active) * max((self._needs[row] for row in self._active), default=0)

    def _entering(self) -> list[int]:
        """The rows that enter now: as many as there are slots and memory for."""
        free = self._most_rows - len(self._active)
        if self._active and free < min(max(1, self._offered[0] // REFILL), len(self._waiting) or 1):
            return []
        longest = max((self._needs[row] for row in self._active), default=0)
        count, limit = 0, min(free, self._most_entering, len(self._waiting))
        while count < limit:
            longest = max(longest, self._needs[self._waiting[count]])
            rows = len(self._active) + count + 1
            if rows > 1 and rows * longest > self._most_tokens:
                break
            count += 1
        return [self._waiting.popleft() for _ in range(count)]

    def _admit(self, rows: list[int]) -> Ended:
        try:
            done = self._decoder.admit(rows)
        except Exception as error:  # noqa: BLE001 - a model may raise anything; it costs the rows that cause it
            return self._refused(rows, error)
        self._active += rows
        return self._left(done)

    def _step(self) -> Ended:
        self.steps += 1
        self.busy += len(self._active)
        try:
            done = self._decoder.step()
        except Exception as error:  # noqa: BLE001
            return self._broken(error)
        return self._left(done)

    def _left(self, done: list[int]) -> Ended:
        if done:
            self._decoder.release(done)
            gone = set(done)
            self._active = [row for row in self._active if row not in gone]
        return Ended(done)

    def _refused(self, rows: list[int], error: Exception) -> Ended:
        """Rows that could not enter: fewer at once next time; a row alone waits for memory while others hold some."""
        if len(rows) > 1:
            self._most_entering = len(rows) // 2
        elif self._active and is_out_of_memory(error):
            self._most_tokens = self.reserved()
        else:
            return self._alone(rows[0], error)
        self._waiting.extendleft(reversed(rows))
        return Ended(lost=len(rows), error=error)

    def _broken(self, error: Exception) -> Ended:
        """A step failed: all its rows start again, half as many at once."""
        rows, reserved = self._active, self.reserved()
        self._active = []
        self._decoder.release(rows)
        if len(rows) == 1:
            return self._alone(rows[0], error)
        if is_out_of_memory(error):
            self._most_tokens = min(self._most_tokens, reserved) // 2
        else:
            self._most_rows = len(rows) // 2
        self._waiting.extendleft(reversed(rows))
        return Ended(lost=len(rows), error=error)

    def _alone(self, row: int, error: Exception) -> Ended:
        """A row that fails on its own was the cause: the others get their room back."""
        self._most_rows, self._most_entering, self._most_tokens = self._offered
        return Ended(failed={row: error}, error=error)
