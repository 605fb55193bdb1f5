"""How many workers a model gets, and which model gives one up for another: plain arithmetic on plain data.

The measure is queue seconds: what is queued for a model, in seconds of one worker. A model starves when its queue takes
each of its workers much longer than another model's takes its.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqluice.workers.where import Shape

STARVES = 2.0
"""A model starves when its queue takes its workers so many times as long as another's takes its."""

_NOTHING = 1e-9

PAYS = 2.0
"""A worker moves when that saves so many times the seconds that the model takes to load."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A model's workers: how many, what each holds, the seconds of work queued for them, the seconds a worker takes to
    load the model, and for how long nobody has asked it anything."""

    size: int
    shape: Shape
    seconds: float
    seconds_load: float
    idle: float = 0.0


def holds(shape: Shape) -> dict[str, float]:
    """What one worker holds, by Ray's names of resources."""
    return {name: number for name, number in (("CPU", shape.cpus), ("GPU", shape.gpus)) if number}


def missing(shape: Shape, count: int, free: Mapping[str, float]) -> dict[str, float]:
    """What `free` lacks for so many workers."""
    return {name: count * each - free.get(name, 0.0) for name, each in holds(shape).items()}


def fitting(shape: Shape, room: Mapping[str, float]) -> int:
    """How many workers have room."""
    return min((int(room.get(name, 0.0) / each + _NOTHING) for name, each in holds(shape).items()), default=1)


def first_size(shape: Shape, total: Mapping[str, float], free: Mapping[str, float], others: Mapping[str, Tier]) -> int:
    """Workers of a model that nothing is known of yet, beside `others`.

    What was asked for, where it has room or there is nobody to take it from: it is placed whole or not at all. Else an
    equal share of the workers that it and those who hold what it lacks could have, at least one. Where no number was
    asked for, half of the cluster, so that there is room for one more model.
    """
    if not shape.workers:
        return max(1, min(fitting(shape, free), fitting(shape, total) // 2))
    lacks = {name for name, number in missing(shape, shape.workers, free).items() if number > _NOTHING}
    rivals = [tier for tier in others.values() if lacks & set(holds(tier.shape))]
    if not rivals:
        return shape.workers
    return max(1, min(shape.workers, (fitting(shape, free) + sum(tier.size for tier in rivals)) // (len(rivals) + 1)))


def donors(tiers: Mapping[str, Tier], lacks: Mapping[str, float]) -> list[str]:
    """Who gives up a worker each time, until nothing is lacking: whoever has the most workers for what is queued, and
    last workers only of models that nobody asks, those first that rested longest. Empty where that is not enough."""
    left = {name: number for name, number in lacks.items() if number > _NOTHING}
    sizes = {key: tier.size for key, tier in tiers.items() if set(holds(tier.shape)) & set(left)}
    taken: list[str] = []
    while left:
        spare = [key for key, size in sizes.items() if size > 1]
        resting = [key for key, size in sizes.items() if size == 1 and not tiers[key].seconds]
        if spare:
            giver = min(spare, key=lambda key: (tiers[key].seconds / sizes[key], -sizes[key]))
        elif resting:
            giver = max(resting, key=lambda key: tiers[key].idle)
        else:
            return []
        sizes[giver] -= 1
        taken.append(giver)
        for name, number in holds(tiers[giver].shape).items():
            if name in left:
                left[name] -= number
        left = {name: number for name, number in left.items() if number > _NOTHING}
    return taken


def transfer(tiers: Mapping[str, Tier]) -> tuple[str, str] | None:
    """(giver, taker) of one worker: from the model whose queue is shortest for its workers to the one whose queue is
    longest, where that one starves, the room of one fits the other, and what is saved pays for loading."""
    takers = [key for key, tier in tiers.items() if tier.seconds > 0 and not 0 < tier.shape.workers <= tier.size]
    if not takers:
        return None
    taker = max(takers, key=lambda key: tiers[key].seconds / max(tiers[key].size, 1))
    starving = tiers[taker]
    wait = starving.seconds / max(starving.size, 1)
    saved = wait - starving.seconds / (starving.size + 1)
    givers = [
        key
        for key, tier in tiers.items()
        if key != taker
        and tier.size > 1
        and all(holds(tier.shape).get(name, 0.0) >= number for name, number in holds(starving.shape).items())
        and wait > STARVES * tier.seconds / (tier.size - 1)
    ]
    if not givers or saved <= PAYS * starving.seconds_load:
        return None
    return min(givers, key=lambda key: tiers[key].seconds / tiers[key].size), taker
