"""One actor a job that places the workers of all models, so that everybody in the job asks the same workers.

Workers of one model are placed all or none. Where a cluster has no room left, models that have more than one worker
give some up (`sizing`), by what is queued for them. Workers belong to this actor and end with it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqluice.workers.ray.sizing import Tier, donors, first_size, missing, transfer
from sqluice.workers.ray.wire import Broken
from sqluice.workers.ray.worker import GROUPS, Worker

if TYPE_CHECKING:
    from sqluice.workers.ray.worker import Descriptor
    from sqluice.workers.where import Shape

NAME = "sqluice-manager"
"""Of the actor, in the namespace of a Ray job."""

MOVE_EVERY = 2.0
"""Seconds between looks at whether one model starves another."""


@dataclass(slots=True)
class _Placed:
    name: str
    actor: Any
    room: Any


@dataclass(slots=True)
class _Group:
    descriptor: Descriptor
    shape: Shape
    workers: list[_Placed] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What is queued, by who queued it."""
    seconds_load: float = 0.0
    used: float = field(default_factory=time.monotonic)
    count: int = 0


class Manager:
    """The class behind the actor. Methods return `Broken` instead of raising."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._lock = threading.RLock()
        self._moved = time.monotonic()

    def open(self, key: str, descriptor: Descriptor, shape: Shape) -> list[tuple[str, Any]] | Broken:
        """The workers of a model, by name; placed now if they are not."""
        with self._lock:
            group = self._groups.get(key)
            if group is None or not group.workers:
                group = _Group(descriptor, shape)
                broken = self._fill(group)
                if broken is not None:
                    return broken
                self._groups[key] = group
            group.used = time.monotonic()
            return _listed(group)

    def workers(self, key: str) -> list[tuple[str, Any]]:
        """The workers that a model has now."""
        with self._lock:
            group = self._groups.get(key)
            return [] if group is None else _listed(group)

    def demand(self, key: str, who: str, seconds: float, seconds_load: float) -> list[tuple[str, Any]]:
        """`who` has so many seconds of work queued for a model (0: none any more), whose workers took `seconds_load` to
        load it. Returns the workers that it has after that."""
        with self._lock:
            group = self._groups.get(key)
            if group is None:
                return []
            group.used = time.monotonic()
            group.seconds_load = seconds_load
            group.seconds.pop(who, None)
            if seconds > 0:
                group.seconds[who] = seconds
            if time.monotonic() - self._moved >= MOVE_EVERY:
                self._moved = time.monotonic()
                self._rebalance()
            return _listed(group)

    def drop(self, key: str, name: str) -> None:
        """End one worker, that somebody has given up."""
        with self._lock:
            group = self._groups.get(key)
            if group is None:
                return
            for worker in [one for one in group.workers if one.name == name]:
                group.workers.remove(worker)
                _end(worker)

    def close(self, key: str) -> None:
        """End the workers of a model."""
        with self._lock:
            group = self._groups.pop(key, None)
            while group is not None and group.workers:
                _end(group.workers.pop())

    def _fill(self, group: _Group) -> Broken | None:
        """Place all of a new group's workers, or none."""
        import ray

        shape, tiers = group.shape, self._tiers()
        total, free = ray.cluster_resources(), ray.available_resources()
        count = first_size(shape, total, free, tiers)
        needs = missing(shape, count, free)
        for other in donors(tiers, needs):
            self._take_from(other)
        rooms = [_room(shape) for _ in range(count)]
        deadline = time.monotonic() + shape.timeout
        if all(room is None or room.wait(max(deadline - time.monotonic(), 0.01)) for room in rooms):
            group.workers = [self._worker(group, room) for room in rooms]
            return None
        free = ray.available_resources()
        for room in rooms:
            _leave(room)
        return Broken(_lacking(group, count, total, free))

    def _tiers(self) -> dict[str, Tier]:
        now = time.monotonic()
        return {
            key: Tier(len(one.workers), one.shape, sum(one.seconds.values()), one.seconds_load, now - one.used)
            for key, one in self._groups.items()
        }

    def _take_from(self, key: str) -> None:
        group = self._groups[key]
        _end(group.workers.pop())
        if not group.workers:
            del self._groups[key]

    def _rebalance(self) -> None:
        """Move one worker from the model with the least queued to the one that starves, where that pays."""
        found = transfer(self._tiers())
        if found is None:
            return
        giver, taker = found
        self._take_from(giver)
        group = self._groups[taker]
        room = _room(group.shape)
        if room is None or room.wait(group.shape.timeout):
            group.workers.append(self._worker(group, room))
        else:
            _leave(room)

    def _worker(self, group: _Group, room: Any) -> _Placed:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = f"{group.descriptor.name} worker {group.count}"
        group.count += 1
        made = ray.remote(
            max_restarts=-1, concurrency_groups=GROUPS, num_cpus=group.shape.cpus, num_gpus=group.shape.gpus
        )(Worker)
        if room is not None:
            made = made.options(scheduling_strategy=PlacementGroupSchedulingStrategy(room))
        return _Placed(name, made.remote(group.descriptor, name), room)


def manager_of(ray: Any) -> Any:
    """The manager of this Ray job, made now if there is none. It ends with the process that made it: a driver calls
    this before its tasks do."""
    return ray.remote(Manager).options(name=NAME, get_if_exists=True, num_cpus=0, max_concurrency=8).remote()


def _room(shape: Shape) -> Any:
    """Room for one worker; None where it holds nothing."""
    from ray.util.placement_group import placement_group

    bundle = {name: number for name, number in (("CPU", shape.cpus), ("GPU", shape.gpus)) if number}
    return placement_group([bundle]) if bundle else None


def _leave(room: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    if room is not None:
        remove_placement_group(room)


def _end(worker: _Placed) -> None:
    import ray

    ray.kill(worker.actor)
    _leave(worker.room)


def _listed(group: _Group) -> list[tuple[str, Any]]:
    return [(worker.name, worker.actor) for worker in group.workers]


def _lacking(group: _Group, count: int, total: dict[str, float], free: dict[str, float]) -> str:
    shape = group.shape
    asked = f"{count} worker{'s' if count > 1 else ''} of {shape.each()}"
    has = ", ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))
    lack = " and ".join(f"{number:g} {name}" for name, number in missing(shape, count, free).items() if number > 0)
    lacks = f"it lacks {lack}" if lack else "no single node has room for one of them"
    return (
        f"no room for {asked} for {group.descriptor.name} within {shape.timeout:g} s: the Ray cluster has {has};"
        f" {lacks}. Ask for fewer or smaller workers, e.g. ai_workers = 'ray?workers=1&cpus=0.5'"
    )
