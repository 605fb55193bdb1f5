"""The workers of one model: which there are, which are up, and what their model's own methods say."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any

from sqluice.errors import BrokenModelError, ModelError
from sqluice.workers.ray import cluster
from sqluice.workers.ray.peers import Peer
from sqluice.workers.ray.wire import Broken, Facts, why

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.workers.ray.peers import Limits
    from sqluice.workers.ray.worker import Descriptor
    from sqluice.workers.where import Shape

REFRESH = 2.0
"""Seconds between looks at which workers a model has."""

WAIT = 0.1
"""Seconds between looks at whether a query is to stop."""

AGAIN = 0.25
"""Seconds between questions whether a worker is up again."""


class Group:
    """The workers of one model. Those that are not up yet, or load the model, are asked nothing."""

    def __init__(self, ray: Any, manager: Any, key: str, descriptor: Descriptor, shape: Shape, limits: Limits) -> None:
        self.ray = ray
        self.limits = limits
        self.name = descriptor.name
        self._manager = manager
        self._key = key
        self._descriptor = descriptor
        self._shape = shape
        self._me = uuid.uuid4().hex
        self._peers: list[Peer] = []
        self._gone: set[str] = set()
        self._listing: Any = None
        self._refreshed = 0.0
        self.facts: Facts | None = None
        """What the first worker that was up has told."""

    def peers(self) -> list[Peer]:
        """The workers there are. `BrokenModelError` when the cluster is gone."""
        cluster.check()
        listing = self._listing
        if listing is not None and self.ray.wait([listing], timeout=0)[0]:
            self._listing = None
            self._update(self._got(listing))
        return self._peers

    def up(self) -> list[Peer]:
        """Those that have the model and can be asked. `BrokenModelError` when the last one had to be given up."""
        for peer in list(self.peers()):
            if peer.ping is not None:
                self._hear(peer)
        return [peer for peer in self._peers if peer.ping is None]

    def open(self, check: Callable[[], None]) -> Facts:
        """Have workers placed if there are none, and wait until one of them is up. `BrokenModelError` says what the
        cluster lacks, or why none can start."""
        if self._peers and time.monotonic() - self._refreshed > REFRESH:
            self._refreshed = time.monotonic()
            self._update(self._got(self._manager.workers.remote(self._key)))  # another model may have got some
        if not self._peers:
            found = self._got(self._manager.open.remote(self._key, self._descriptor, self._shape))
            if isinstance(found, Broken):
                raise BrokenModelError(found.said)
            self._gone.clear()
            self._update(found)
        while not self.up():
            check()
            self.ray.wait([peer.ping for peer in self._peers], timeout=WAIT)
        assert self.facts is not None
        return self.facts

    def ready(self) -> int:
        """Wait until every worker is up; how many there are."""
        while len(self.up()) < len(self._peers):
            time.sleep(WAIT)
        return len(self._peers)

    def lost(self, peer: Peer) -> None:
        """A worker is given up. `BrokenModelError` when it was the last one."""
        self._gone.add(peer.name)
        self._peers = [one for one in self._peers if one is not peer]
        self._manager.drop.remote(self._key, peer.name)
        if not self._peers:
            raise BrokenModelError(f"model {self.name} has no worker left; why the last one was given up: {peer.said}")

    def ping(self, peer: Peer) -> None:
        """A worker is down: it is asked nothing until it has loaded the model anew."""
        peer.pinged = time.monotonic()
        peer.ping = peer.actor.facts.options(concurrency_group="work").remote()

    def close(self) -> None:
        """End the workers, unless the cluster is gone and they with it."""
        self._peers = []
        with contextlib.suppress(BrokenModelError):
            cluster.check()
            self._got(self._manager.close.remote(self._key))

    def demand(self, seconds: float) -> None:
        """Tell the manager how many seconds of work are queued here; from time to time, or when it is none."""
        now = time.monotonic()
        if cluster.is_gone() or (seconds and now - self._refreshed < REFRESH):
            return
        self._refreshed = now
        load = 0.0 if self.facts is None else self.facts.seconds_load
        self._listing = self._manager.demand.remote(self._key, self._me, seconds, load)

    def call(self, check: Callable[[], None], method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What a method of the model says, for several calls at once that are spread over the workers; asked elsewhere
        where a worker dies. `ModelError` where the model refuses, `BrokenModelError` when no worker is left."""
        found: list[Any] = [None] * len(each)
        todo = list(range(len(each)))
        while todo:
            peers = self.up()
            if not peers:
                check()
                time.sleep(WAIT)
                continue
            out = [(at, peers[turn % len(peers)]) for turn, at in enumerate(todo)]
            flights = [
                (at, peer, peer.life, peer.actor.call.options(concurrency_group="work").remote(method, *each[at]))
                for at, peer in out
            ]
            todo = []
            for at, peer, life, ref in flights:
                said = self._waited(check, ref)
                if not isinstance(said, Broken):
                    found[at] = said
                elif said.model:
                    raise ModelError(f"model {self.name} gives no {method}: {said.said}")
                else:
                    self.failed(peer, life, said.said)
                    todo.append(at)
        return found

    def failed(self, peer: Peer, life: int, said: str, *, fatal: bool = False, blamed: bool = True) -> None:
        """A worker died in its `life`, or could not do what it was asked. It is given up after too many times in a row
        for which it is `blamed`, or at once where that is `fatal`."""
        first = peer.died(life, said, blamed=blamed)
        if fatal or peer.deaths >= self.limits.deaths:
            self.lost(peer)
        elif first:
            peer.down = time.monotonic()
            self.ping(peer)

    def _hear(self, peer: Peer) -> None:
        """Whether a worker that was down is up."""
        now = time.monotonic()
        if not self.ray.wait([peer.ping], timeout=0)[0]:
            if now - peer.down > self.limits.load:
                peer.said = f"it was not up within {self.limits.load:g} s"
                self.lost(peer)
            return
        try:
            said = self.ray.get(peer.ping)
        except self.ray.exceptions.ActorDiedError as error:
            self.failed(peer, peer.life, why(error), fatal=True)
        except self.ray.exceptions.RayError as error:
            if now - peer.pinged > 4 * AGAIN:  # it was up, and died of loading
                self.failed(peer, peer.life, why(error))
            elif now - peer.pinged > AGAIN:
                self.ping(peer)
        else:
            if isinstance(said, Broken):
                self.failed(peer, peer.life, said.said)
            else:
                peer.ping = None
                self.facts = self.facts or said

    def _waited(self, check: Callable[[], None], ref: Any) -> Any:
        """The result of a call, or why there is none."""
        try:
            while not self.ray.wait([ref], timeout=WAIT)[0]:
                check()
                cluster.check()
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return Broken(why(error))

    def _got(self, ref: Any) -> Any:
        """What the manager says."""
        try:
            while not self.ray.wait([ref], timeout=WAIT)[0]:
                cluster.check()
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise BrokenModelError(f"the Ray workers of {self.name} are gone: {why(error)}") from error

    def _update(self, listed: list[tuple[str, Any]]) -> None:
        known = {peer.name: peer for peer in self._peers}
        self._peers = []
        for name, actor in listed:
            if name in known:
                self._peers.append(known[name])
            elif name not in self._gone:
                peer = Peer(name, actor, down=time.monotonic())
                self.ping(peer)
                self._peers.append(peer)
