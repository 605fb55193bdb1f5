"""Takes in the answers of a model that writes in slots: what is done after a slice of time counts as a micro-batch."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sqluice.errors import ModelError
from sqluice.workers.failures import describe
from sqluice.workers.protocol import Batch, Wave

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqluice.types import Completion, Prompt
    from sqluice.workers.protocol import Control

    Settle = Callable[[Batch, dict[int, Completion], dict[int, str]], None]

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


def written(
    model: Any,
    prompts: dict[int, Prompt],
    control: Control,
    settle: Settle,
    *,
    max_tokens: int,
    schema: dict[str, object] | None,
) -> None:
    """Ask `model` about `prompts`. `settle` takes each micro-batch with its completions, and each row that failed in
    one of its own; `control` is asked after every step of the model. Should the model itself break off, the rows it has
    not told about have that error."""
    rows, slice_ = list(prompts), _Slice(settle)
    todo = set(rows)
    waves = model.generate_in_slots(list(prompts.values()), max_tokens=max_tokens, schema=schema)
    with closing(cast("Generator[Wave]", waves)):
        try:
            while (wave := _next(waves, todo, rows)) is not None:
                slice_.done |= {rows[at]: completion for at, completion in wave.completions.items()}
                slice_.pad_tokens += wave.pad_tokens
                slice_.longest = max(slice_.longest, wave.max_tokens)
                if wave.errors or wave.lost or time.time() - slice_.started >= SLICE_SECONDS:
                    slice_.close()
                for at, error in wave.errors.items():
                    said = describe(error, prompts[rows[at]].args)
                    settle(slice_.batch(1, said), {}, {rows[at]: said})
                if wave.lost and wave.error is not None:
                    said = describe(wave.error, (arg for prompt in prompts.values() for arg in prompt.args))
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
