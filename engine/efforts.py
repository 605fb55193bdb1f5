"""Seconds and joules of models: what a statement's micro-batches are measured with, and what earlier ones took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.engine.operators.watch import Meter
from sqluice.workers import energy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.statistics import Statistics
    from sqluice.types import ModelInfo
    from sqluice.workers.protocol import Batch


class Efforts:
    """Of the models of one statement; `statistics` holds earlier ones, None where nothing is kept."""

    def __init__(self, statistics: Statistics | None) -> None:
        self._statistics = statistics
        self._seconds: dict[str, float] = {}

    def meter(self, model: Any) -> Meter:
        """Who tells the joules of a model: a sensor, or what one has told earlier."""
        mark, device = _with_device(model.info)
        found = energy.sensor(device)
        if found is not None or self._statistics is None:
            return Meter(found)
        return Meter(None, *self._statistics.effort(mark, "joules"))

    def usual_seconds(self, model: Any) -> float:
        """Seconds that an answer of a model takes, whatever the question; 0 where nobody knows."""
        if self._statistics is None:
            return 0.0
        mark, _ = _with_device(model.info)
        if mark not in self._seconds:
            found, _ = self._statistics.effort(mark, "seconds")
            self._seconds[mark] = 0.0 if found is None else found.usual()
        return self._seconds[mark]


Row = tuple[str, int, int, int, float, float | None, str]
"""Model, rows, tokens in and out, seconds, joules and who counted them."""


def samples(askers: Iterable[Asker]) -> list[Row]:
    """What micro-batches took, for later runs; of models that have a revision to know them by."""
    found: list[Row] = []
    for asker in askers:
        if asker.op.revision:
            mark, _ = _with_device(asker.model.info)
            for one in asker.samples:
                seconds = one.ended - one.started
                found.append((mark, one.rows, one.tokens_in, one.tokens_out, seconds, *_counted(one)))
    return found


def _with_device(info: ModelInfo) -> tuple[str, str]:
    """What the statistics of a model are kept under, and where it runs."""
    device = str(getattr(info, "device", ""))
    return f"{getattr(info, 'revision', '')} {device}", device


def _counted(batch: Batch) -> tuple[float | None, str]:
    """Joules that a sensor counted, and which one."""
    modelled = batch.joules_source.startswith("modelled")
    return (None, "") if batch.joules is None or modelled else (batch.joules, batch.joules_source)
