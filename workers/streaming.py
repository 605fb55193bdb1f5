"""Takes in the answers of a model that writes in slots: what is done after a slice of time counts as a micro-batch."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sqluice.errors import ModelError
from sqluice.workers.failures import describe
from sqluice.workers.protocol import Batch, Wave

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import numpy as np

    from sqluice.types import Completion
    from sqluice.workers.pool import Question
    from sqluice.workers.protocol import Control

Waves: TypeAlias = "Callable[[Sequence[int]], Generator[Wave]]"
Settle: TypeAlias = "Callable[[Batch, dict[int, Completion], dict[int, str]], None]"

SLICE_SECONDS = 0.25

NOTHING_TOLD = "the model ended without a word about this row"


@dataclass(slots=True)
class _Slice:
    """What was done since the last micro-batch."""

    settle: Settle
    started: float = field(default_factory=time.time)
    done: dict[int, Completion] = field(default_factory=dict)
    pad_tokens: int = 0
    longest: int = 0

    def batch(self, rows: int, error: str = "") -> Batch:
        """The time since the last one, and no tokens yet."""
        start, self.started = self.started, time.time()
        return Batch(rows, start, self.started, outcome="error" if error else "ok", error=error)

    def close(self) -> None:
        """Settle what is done, if anything is."""
        done, self.done = self.done, {}
        if not done:
            return
        batch = self.batch(len(done))
        batch.tokens_in = sum(one.tokens_in for one in done.values())
        batch.tokens_out = sum(one.tokens_out for one in done.values())
        batch.pad_tokens, batch.max_tokens = self.pad_tokens, self.longest
        self.pad_tokens = self.longest = 0
        self.settle(batch, done, {})


def waves_of(model: Any, question: Question, items: Sequence[Any]) -> Waves | None:
    """How a model that writes in slots is asked; None for the others, and for other questions."""
    if question.operation != "generate" or not callable(getattr(model, "generate_in_slots", None)):
        return None

    def waves(rows: Sequence[int]) -> Generator[Wave]:
        some = [items[row] for row in rows]
        found: Generator[Wave] = model.generate_in_slots(some, **question.options())
        return found

    return waves


def written(
    waves: Waves, batch: np.ndarray, texts: Callable[[int], Sequence[str]], control: Control, settle: Settle
) -> None:
    """Have the rows of `batch` written. `settle` takes each micro-batch with its completions, and each row that failed
    in one of its own; `control` is asked after every step of the model. Should the model itself break off, the rows it
    has not told about have that error. `texts` of rows are not repeated in errors."""
    rows, slice_ = batch.tolist(), _Slice(settle)
    todo = set(rows)
    control.check()
    with closing(waves(rows)) as told:
        try:
            while (wave := _next(told, todo, rows)) is not None:
                slice_.done |= {rows[at]: completion for at, completion in wave.completions.items()}
                slice_.pad_tokens += wave.pad_tokens
                slice_.longest = max(slice_.longest, wave.max_tokens)
                if wave.errors or wave.lost or time.time() - slice_.started >= SLICE_SECONDS:
                    slice_.close()
                for at, error in wave.errors.items():
                    said = describe(error, texts(rows[at]))
                    settle(slice_.batch(1, said), {}, {rows[at]: said})
                if wave.lost and wave.error is not None:
                    said = describe(wave.error, (text for row in rows for text in texts(row)))
                    settle(slice_.batch(wave.lost, said), {}, {})
                todo -= {rows[at] for at in (*wave.completions, *wave.errors)}
                control.check()
        finally:
            slice_.close()


def _next(waves: Any, todo: set[int], rows: list[int]) -> Wave | None:
    """The next wave; None after the last. A model that breaks off has failed on all rows in `todo`."""
    try:
        wave: Wave | None = next(waves, None)
        if wave is None and todo:
            raise ModelError(NOTHING_TOLD)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; it costs the rows it has not told about
        return Wave(errors={at: error for at, row in enumerate(rows) if row in todo})
    return wave
