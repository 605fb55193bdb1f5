"""SQL in Ray Data pipelines: `sqluice.ray.map_batches(dataset, "SELECT .. FROM input WHERE AI_FILTER(..)")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqluice.engine.jobs.ray_data import map_batches

__all__ = ["map_batches"]


def __getattr__(name: str) -> object:
    if name == "map_batches":
        from sqluice.engine.jobs import ray_data

        return ray_data.map_batches
    raise AttributeError(f"module 'sqluice.ray' has no attribute {name!r}")
