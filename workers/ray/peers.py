"""The workers of one model as a driver sees them: how fast each is, how often it died, and which are slow or stuck.

A worker is judged by the time that its micro-batches were predicted to take, which is their padded tokens (rows, where
lengths are not known) times the pace of the other workers. A single late micro-batch makes no worker slow: its rows may
be hard, and would be hard for any other worker.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_REMEMBERED = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker is slow, stuck or lost. Seconds, and multiples of the predicted time."""

    in_flight: int = 2
    """Micro-batches that wait at a worker or are asked by it."""
    deaths: int = 4
    """Deaths and failed starts in a row, without an answer between them, after which a worker is given up. Those of a
    micro-batch that another one has died of are not its own."""
    kills: int = 2
    """Workers that may die of a micro-batch before it is split; a row alone then fails."""
    slow: float = 2.0
    """A worker is slow when its last micro-batches took so many times as long as predicted."""
    stalled: float = 10.0
    stalled_least: float = 2.0
    """A micro-batch that takes so much longer is asked elsewhere too, though its worker was not slow before."""
    hung: float = 30.0
    hung_least: float = 60.0
    hung_first: float = 900.0
    """A worker is stuck when a micro-batch takes so many times as long as predicted, and at least so long; where
    nothing can be predicted yet, when it takes `hung_first` seconds."""
    load: float = 1800.0
    silent: float = 20.0
    """Seconds that starting a worker and loading the model may take, and that a worker may not tell what it is at."""


@dataclass(eq=False, slots=True)
class Peer:
    """One worker. `paces` are seconds per unit of the last micro-batches, by operation."""

    name: str
    actor: Any
    deaths: int = 0
    life: int = 0
    """Counts deaths, so that several calls that one death ends count once."""
    said: str = ""
    """Why it died or could not start the last time."""
    paces: dict[str, deque[float]] = field(default_factory=dict)
    ping: Any = None
    """A call that is answered once the worker is up and has the model; None when it is."""
    down: float = 0.0
    pinged: float = 0.0

    def took(self, operation: str, units: float, seconds: float) -> None:
        """A micro-batch of so many units took so long."""
        self.deaths = 0
        self.paces.setdefault(operation, deque(maxlen=_REMEMBERED)).append(seconds / max(units, 1))

    def pace(self, operation: str) -> float | None:
        """Seconds a unit, the median of the last ones; None while there are none."""
        paces = self.paces.get(operation)
        return statistics.median(paces) if paces else None

    def died(self, life: int, said: str, *, blamed: bool = True) -> bool:
        """Note one death, and count it where the worker is `blamed` for it; False where it is noted already."""
        if life != self.life:
            return False
        self.life += 1
        self.deaths += blamed
        self.said = said
        self.paces.clear()
        return True


def predicted(peers: Sequence[Peer], operation: str, units: float, *, beside: Peer | None = None) -> float | None:
    """Seconds that so many units should take: at the median pace of the workers, `beside` not among them where there
    are others; None while nothing is known."""
    paces = [pace for peer in peers if peer is not beside and (pace := peer.pace(operation)) is not None]
    if not paces and beside is not None:
        own = beside.pace(operation)
        paces = [] if own is None else [own]
    return statistics.median(paces) * units if paces else None


def is_slow(peer: Peer, peers: Sequence[Peer], operation: str, limits: Limits) -> bool:
    """Whether a worker's last micro-batches took much longer than the others' would have."""
    own, others = peer.pace(operation), [one for one in peers if one is not peer]
    fair = predicted(others, operation, 1.0)
    return own is not None and fair is not None and own > limits.slow * fair


def wants_copy(seconds: float, fair: float | None, *, slow: bool, limits: Limits) -> bool:
    """Whether a micro-batch that has been asked for `seconds` and should take `fair` is to be asked elsewhere too: it
    is late and its worker is known to be slow, or it is so late that its worker must have stalled."""
    if fair is None:
        return False
    return (slow and seconds > fair) or seconds > max(limits.stalled * fair, limits.stalled_least)


def is_hung(seconds: float, fair: float | None, limits: Limits) -> bool:
    """Whether a worker that has asked one micro-batch for `seconds` will never answer."""
    return seconds > (limits.hung_first if fair is None else max(limits.hung * fair, limits.hung_least))
