"""How many workers a model gets, and who gives one up: arithmetic that needs no Ray."""

from __future__ import annotations

from sqluice.workers.ray.sizing import Tier, donors, first_size, fitting, missing, transfer
from sqluice.workers.where import Shape

ONE = Shape(cpus=1.0)
TOTAL = {"CPU": 8.0}


def held(*sizes: int) -> dict[str, Tier]:
    """Models that have so many workers."""
    return {str(at): Tier(size, ONE, 0.0, 1.0) for at, size in enumerate(sizes)}


def test_a_number_asked_for_is_placed_whole_where_nobody_else_is() -> None:
    assert first_size(Shape(workers=12), TOTAL, TOTAL, {}) == 12  # the caller waits for room, and fails
    assert first_size(Shape(workers=4), TOTAL, TOTAL, {}) == 4
    assert first_size(Shape(workers=4), TOTAL, {"CPU": 6.0}, held(2)) == 4
    assert first_size(Shape(workers=3, gpus=1.0), TOTAL, {"CPU": 3.0}, held(5)) == 3  # nobody has a GPU to give


def test_beside_others_it_is_an_equal_share_and_never_none() -> None:
    assert first_size(Shape(workers=8), TOTAL, {"CPU": 0.0}, held(8)) == 4
    assert first_size(Shape(workers=8), TOTAL, {"CPU": 0.0}, held(4, 4)) == 2
    assert first_size(Shape(workers=2), {"CPU": 2.0}, {"CPU": 0.0}, held(1, 1)) == 1


def test_without_a_number_there_is_room_for_one_more_model() -> None:
    assert first_size(ONE, TOTAL, TOTAL, {}) == 4
    assert first_size(ONE, {"CPU": 1.0}, {"CPU": 1.0}, {}) == 1
    assert first_size(Shape(gpus=0.25), {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {}) == 2


def test_what_is_missing_and_what_fits() -> None:
    assert missing(Shape(cpus=1, gpus=0.5), 4, {"CPU": 2.0, "GPU": 1.0}) == {"CPU": 2.0, "GPU": 1.0}
    assert fitting(Shape(cpus=0.5, gpus=0.25), {"CPU": 8.0, "GPU": 1.0}) == 4
    assert fitting(Shape(cpus=0), {}) == 1


def test_those_with_the_most_for_their_queue_give_first() -> None:
    tiers = {"busy": Tier(4, ONE, 100.0, 1.0), "idle": Tier(3, ONE, 0.0, 1.0, idle=9.0)}
    assert donors(tiers, {"CPU": 2.0}) == ["idle", "idle"]
    assert donors(tiers, {"CPU": 4.0}) == ["idle", "idle", "busy", "busy"]
    assert donors(tiers, {"CPU": -1.0}) == []


def test_a_last_worker_goes_only_where_nobody_asks_it() -> None:
    old, new = Tier(1, ONE, 0.0, 1.0, idle=50.0), Tier(1, ONE, 0.0, 1.0, idle=5.0)
    assert donors({"new": new, "old": old}, {"CPU": 1.0}) == ["old"]
    assert donors({"busy": Tier(1, ONE, 3.0, 1.0)}, {"CPU": 1.0}) == []
    assert donors({"cpu": Tier(4, ONE, 0.0, 1.0)}, {"GPU": 1.0}) == []  # it has no GPU to give


def test_a_worker_moves_to_the_model_that_starves_when_that_pays() -> None:
    idle, starving = Tier(3, ONE, 1.0, 5.0), Tier(1, ONE, 100.0, 5.0)
    assert transfer({"proxy": idle, "oracle": starving}) == ("proxy", "oracle")
    assert transfer({"proxy": Tier(1, ONE, 1.0, 5.0), "oracle": starving}) is None  # it is the last one
    assert transfer({"proxy": idle, "oracle": Tier(1, ONE, 100.0, 40.0)}) is None  # loading takes longer
    assert transfer({"proxy": Tier(3, ONE, 120.0, 5.0), "oracle": starving}) is None  # it starves no less
    assert transfer({"proxy": idle, "oracle": Tier(1, Shape(gpus=1.0), 100.0, 5.0)}) is None  # no GPU to move
    assert transfer({"proxy": idle, "oracle": Tier(1, Shape(workers=1), 100.0, 5.0)}) is None  # all it asked for
