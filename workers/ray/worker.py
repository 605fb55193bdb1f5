"""One Ray worker: holds a model, and runs micro-batches through the same machinery as the pool in process.

It has two groups of threads: `work`, of one thread, which loads the model and asks it, and `control`, which tells what
`work` is at even while that is busy or stuck.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import InterruptedQueryError, ModelError
from sqluice.types import ModelInfo
from sqluice.workers.failures import describe
from sqluice.workers.pool import Rows, Work, run
from sqluice.workers.ray.wire import Broken, Facts, Reply, from_table, pack_values

if TYPE_CHECKING:
    from collections.abc import Container

    import pyarrow as pa

    from sqluice.workers.pool import Question
    from sqluice.workers.protocol import Batch

GROUPS = {"work": 1, "control": 2}
_METHODS = ("score", "generate", "embed", "lengths", "calibration", "prefix_tokens", "count_tokens")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """How a worker comes by its model: what `cloudpickle` made of a `registry.Recipe` or of a registered object."""

    name: str
    pickled: bytes


@dataclass(frozen=True, slots=True)
class State:
    """What a worker is at: nothing (empty), `load` or a call by its number, and for how many seconds."""

    doing: str
    seconds: float


class Worker:
    """The class behind the actors. Methods return `Broken` instead of raising."""

    def __init__(self, descriptor: Descriptor, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._model: Any = None
        self._seconds_load = 0.0
        self._doing: tuple[str, float] = ("", time.monotonic())
        self._forgotten: deque[str] = deque(maxlen=1000)

    def forget(self, number: str) -> None:
        """A call is taken back: it is not begun, and not continued after the attempt that it is at."""
        self._forgotten.append(number)

    def state(self) -> State:
        """What the worker is at."""
        doing, since = self._doing
        return State(doing, time.monotonic() - since)

    def facts(self) -> Facts | Broken:
        """What the driver has to know of the model; loads it."""
        broken = self._loaded()
        if broken is not None:
            return broken
        model = self._model
        info = getattr(model, "info", None)
        prefix = getattr(model, "prefix_tokens", 0)
        return Facts(
            info if isinstance(info, ModelInfo) else ModelInfo(self._descriptor.name),
            tuple(name for name in _METHODS if callable(getattr(model, name, None))),
            token_budget=int(getattr(model, "token_budget", 0) or 0),
            slots=int(getattr(model, "slots", 0) or 0),
            batch_rows=int(getattr(model, "batch_rows", 0) or 0),
            prefix_tokens=0 if callable(prefix) else int(prefix or 0),
            seconds_load=self._seconds_load,
            pid=os.getpid(),
            host=socket.gethostname(),
        )

    def call(self, method: str, table: pa.Table, *rest: Any) -> Any:
        """What a method of the model says of all rows of a table; of the first one where `method` takes one prompt."""
        broken = self._loaded()
        if broken is not None:
            return broken
        items: Any = from_table(table)
        first = method in ("calibration", "prefix_tokens")
        self._doing = (method, time.monotonic())
        try:
            return np.asarray(getattr(self._model, method)(items[0] if first else items, *rest))
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            texts = [text for item in items for text in (item.args if hasattr(item, "args") else (item,))]
            return Broken(describe(error, texts), model=True)
        finally:
            self._doing = ("", time.monotonic())

    def answer(self, question: Question, table: pa.Table, terms: Terms) -> Reply | Broken:
        """Answers to one micro-batch."""
        if terms.number in self._forgotten:
            return Broken("taken back")
        broken = self._loaded()
        if broken is not None:
            return broken
        self._doing = (terms.number, time.monotonic())
        try:
            return self._answer(question, table, terms)
        except Exception as error:  # noqa: BLE001 - e.g. a model without the method
            return Broken(describe(error))
        finally:
            self._doing = ("", time.monotonic())

    def _answer(self, question: Question, table: pa.Table, terms: Terms) -> Reply:
        started = time.perf_counter()
        items: Any = from_table(table)
        told = Rows.of(question, len(items))
        control = _Control(terms, self._forgotten)
        work = Work.of(self._model, question, items, told, control)
        work.lengths, work.ceiling, work.succeeded = terms.lengths, terms.ceiling, terms.proven
        if terms.tokens is not None:
            told.tokens_in[:] = terms.tokens
        given_up = ""
        try:
            run(work, [np.arange(len(items))])
        except InterruptedQueryError as error:
            told.cut_short(error)
        except ModelError as error:
            given_up = str(error)
        batches = [replace(one, worker=self._name) for one in told.batches]
        values = pack_values(told.values)
        seconds = time.perf_counter() - started
        return Reply(values, told.tokens_in, told.tokens_out, told.errors, batches, seconds, given_up, work.ceiling)

    def _loaded(self) -> Broken | None:
        """None once the model is there."""
        if self._model is not None:
            return None
        from ray import cloudpickle

        self._doing = ("load", time.monotonic())
        started = time.perf_counter()
        try:
            found = cloudpickle.loads(self._descriptor.pickled)
            self._model = found.load() if type(found).__name__ == "Recipe" else found
        except Exception as error:  # noqa: BLE001 - whatever keeps a model from being loaded is told
            return Broken(f"{self._descriptor.name} cannot be loaded on {socket.gethostname()}: {describe(error)}")
        finally:
            self._doing = ("", time.monotonic())
            self._seconds_load = time.perf_counter() - started
        return None


@dataclass(frozen=True, slots=True)
class Terms:
    """What goes with a micro-batch: its number; lengths and tokens of its rows, int [n], where they are known; the
    padded tokens above which the model ran out of memory before (0: never); whether the model has answered any row
    yet; and how many rows may be asked in all attempts together."""

    number: str
    lengths: np.ndarray | None = None
    tokens: np.ndarray | None = None
    ceiling: int = 0
    proven: bool = False
    attempts: int | None = None


class _Control:
    """Stops when the caller has taken the call back, or its attempts are spent."""

    def __init__(self, terms: Terms, forgotten: Container[str]) -> None:
        self._number = terms.number
        self._forgotten = forgotten
        self._left = terms.attempts

    def check(self) -> None:
        """`InterruptedQueryError` when to stop."""
        if self._number in self._forgotten or (self._left is not None and self._left <= 0):
            raise InterruptedQueryError("interrupted")

    def done(self, batch: Batch) -> None:
        """Count an attempt."""
        if self._left is not None:
            self._left -= batch.rows
