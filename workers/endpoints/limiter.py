"""How many requests an endpoint gets at once: as many as it takes without complaint.

Additive increase, multiplicative decrease (Chiu and Jain 1989, *Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks*; the rule of Jacobson's TCP, 1988): a complaint halves the limit, and each
round of answers without one raises it by one. Requests that were under way when the limit was halved do not halve it
again. Latency is no signal here: servers that batch answer later, and more, the more they are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Limiter:
    """At most `limit` requests at once, of at most `most`. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self._most = most
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._halved = 0.0

    async def acquire(self) -> None:
        """Wait for a place; first come, first served."""
        if self._running < int(self.limit) and not self._waiting:
            self._running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given in the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give the place back."""
        self._running -= 1
        self._admit()

    def answered(self) -> None:
        """A request was answered."""
        self.limit = min(float(self._most), self.limit + 1 / self.limit)
        self._admit()

    def overloaded(self, started: float) -> None:
        """The server complained about a request that was sent at `started` (of `time.monotonic`)."""
        if started >= self._halved:
            self.limit = max(1.0, self.limit / 2)
            self._halved = time.monotonic()

    def _admit(self) -> None:
        while self._waiting and self._running < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self._running += 1
                place.set_result(None)
