"""How a pool's work is watched: progress, interruption, limits, and what each micro-batch draws."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqluice.engine.budget import SPENT, SpentError
from sqluice.types import Progress
from sqluice.workers.protocol import RETRY, WASTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.optimizer.effort import Effort
    from sqluice.workers.energy import Sensor
    from sqluice.workers.protocol import Batch

HERE = "local"
"""The worker of micro-batches that ran in this process: only of those the sensor knows anything."""


@dataclass(slots=True)
class Meter:
    """Joules of micro-batches: what `sensor` counts between their begin and end, else what `modelled` expects, from
    what a sensor of the name `measured_by` has counted of the same model earlier."""

    sensor: Sensor | None = None
    modelled: Effort | None = None
    measured_by: str = ""
    before: float | None = None
    sources: set[str] = field(default_factory=set)

    @property
    def knows(self) -> bool:
        """Whether there is any number of joules."""
        return self.sensor is not None or self.modelled is not None

    def usual(self) -> float:
        """Joules of a call, before any was made; 0 where only measuring will tell."""
        return 0.0 if self.modelled is None else self.modelled.usual()

    def begin(self) -> None:
        """A micro-batch is about to run."""
        self.before = self._read()

    def end(self, batch: Batch) -> None:
        """A micro-batch has run; it gets its joules, if there are any."""
        now = self._read() if batch.worker == HERE else None
        if now is not None and self.before is not None:
            batch.joules, batch.joules_source = max(now - self.before, 0.0), self.sensor.source if self.sensor else ""
        elif self.modelled is not None and batch.tokens_in:
            batch.joules = self.modelled.of(batch.rows, batch.tokens_in, batch.tokens_out)
            batch.joules_source = f"modelled ({self.measured_by})"
        self.before = now

    def _read(self) -> float | None:
        try:
            return None if self.sensor is None else self.sensor.joules()
        except (OSError, ValueError):
            self.sensor = None
            return None


@dataclass(slots=True)
class Watch:
    """`stop` tells whether to end the work, `report` takes progress."""

    stop: Callable[[], None]
    report: Callable[[Progress], None] | None
    operator: str
    total: int | None = None
    done_rows: int = 0
    calls: int = 0
    cached: int = 0
    started: float = field(default_factory=time.monotonic)
    keep: Callable[[list[int], Any, Any], None] | None = None
    limit: int | None = None
    """Attempts, in rows, that a slice may still make."""
    meter: Meter = field(default_factory=Meter)

    def check(self) -> None:
        """Raises when the query is to stop."""
        self.stop()
        if self.limit is not None and self.limit <= 0:
            raise SpentError(SPENT)
        self.meter.begin()

    def done(self, batch: Batch) -> None:
        """One attempt at a micro-batch is over."""
        self.meter.end(batch)
        self.count(batch)

    def count(self, batch: Batch) -> None:
        """Progress by one attempt."""
        if self.limit is not None:
            self.limit -= batch.rows
        if batch.outcome == "ok" or (batch.rows == 1 and batch.outcome not in (RETRY, WASTED)):
            self.done_rows += batch.rows
            self.calls += batch.rows
        self.tell()

    def under_way(self, rows: int) -> None:
        """Rows that have been answered somewhere, and whose answers are still to come."""
        self.tell(rows)

    def answered(self, rows: list[int], values: Any, raw: Any) -> None:
        """Rows of a micro-batch that have answers: calibrated and raw scores, embeddings or completions."""
        if self.keep is not None and rows:
            self.keep(rows, values, raw)

    def tell(self, more: int = 0) -> None:
        """Report where the operator is; `more` rows are done that are not counted yet."""
        if self.report is not None:
            seconds, done = time.monotonic() - self.started, self.done_rows + more
            self.report(Progress(self.operator, done, self.total, self.calls, self.cached, seconds))
