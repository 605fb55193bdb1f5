"""The pool for a value of `ai_workers`; pools are shared by the connections of a process."""

from __future__ import annotations

import threading

from sqluice.workers import where
from sqluice.workers.pool import LocalPool, Pool

_pools: dict[where.Where, Pool] = {}
_guard = threading.Lock()


def pool_of(ai_workers: str) -> Pool:
    """The pool; `ProgrammingError` when `ai_workers` is not a value of that setting. Nothing is started yet."""
    place = where.parse(ai_workers)
    with _guard:
        if place not in _pools:
            _pools[place] = LocalPool() if place.kind == "local" else _ray_pool(place)
        return _pools[place]


def _ray_pool(place: where.Where) -> Pool:
    from sqluice.workers.ray.pool import RayPool

    return RayPool(place)
