"""Models that write in slots, through the pool: answers as they come, what an error costs, interruption, give-up."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from sqluice.errors import InterruptedQueryError, ModelError
from sqluice.types import Completion, ModelInfo, Prompt
from sqluice.workers import streaming
from sqluice.workers.pool import GIVE_UP_AFTER, NOT_ASKED, LocalPool
from sqluice.workers.protocol import Wave

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice.workers.protocol import Asked, Batch


class Waves:
    """A model that tells `waves`, made from the prompts it is asked about."""

    info = ModelInfo("waves")

    def __init__(self, make: Any) -> None:
        self.make = make
        self.closed = False

    def generate(self, *_: Any, **__: Any) -> list[Completion]:
        raise AssertionError("asked in one go")

    def generate_in_slots(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> Iterator[Wave]:
        assert max_tokens == 9
        try:
            yield from self.make(prompts)
        finally:
            self.closed = True


class Watch:
    """Counts, and may interrupt."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self.batches: list[Batch] = []
        self.told: dict[int, Completion] = {}
        self.checks = 0
        self.stop_after = stop_after

    def check(self) -> None:
        self.checks += 1
        if self.checks > self.stop_after:
            raise InterruptedQueryError("interrupted")

    def done(self, batch: Batch) -> None:
        self.batches.append(batch)

    def answered(self, rows: list[int], values: list[Completion], _: Any) -> None:
        self.told |= dict(zip(rows, values, strict=True))


def one_by_one(prompts: Sequence[Prompt]) -> Iterator[Wave]:
    """Last rows first, a wave each, with an empty one between."""
    for row in reversed(range(len(prompts))):
        yield Wave(pad_tokens=1, max_tokens=row)
        yield Wave({row: Completion(prompts[row].args[0].upper(), "stop", 5, 2)})


def ask(model: Waves, n: int = 6, watch: Watch | None = None, word: str = "row") -> Asked:
    prompts = [Prompt("{0}?", (f"{word} {at}",)) for at in range(n)]
    return LocalPool().generate(model, prompts, max_tokens=9, schema=None, control=watch or Watch())


@pytest.fixture(params=[0.0, 1e9], ids=["at once", "at the end"])
def slice_seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(streaming, "SLICE_SECONDS", request.param)
    return float(request.param)


def test_answers_are_put_in_order_and_counted_once(slice_seconds: float) -> None:
    watch = Watch()
    asked = ask(Waves(one_by_one), watch=watch)
    assert [one.text for one in asked.values] == [f"ROW {at}" for at in range(6)]
    assert asked.tokens_in.tolist() == [5] * 6
    assert asked.tokens_out.tolist() == [2] * 6
    assert len(watch.batches) == (6 if slice_seconds == 0 else 1)
    assert watch.batches == asked.batches
    assert sum(batch.rows for batch in asked.batches) == 6
    assert sum(batch.tokens_in for batch in asked.batches) == 30
    assert sum(batch.tokens_out for batch in asked.batches) == 12
    assert sum(batch.pad_tokens for batch in asked.batches) == 6
    ends = [(batch.started, batch.ended) for batch in asked.batches]
    assert all(first[1] <= second[0] for first, second in pairwise(ends))
    assert watch.told == dict(enumerate(asked.values))
    assert watch.checks == 13


@pytest.mark.usefixtures("slice_seconds")
def test_a_failing_row_has_an_error_and_lost_work_is_told_apart() -> None:
    def make(prompts: Sequence[Prompt]) -> Iterator[Wave]:
        yield Wave({0: Completion("a")})
        yield Wave(lost=3, error=MemoryError("no room"))
        yield Wave(errors={1: ValueError("row 1 is bad: row 1")})
        yield Wave({row: Completion("b") for row in range(2, len(prompts))})

    watch = Watch()
    asked = ask(Waves(make), watch=watch)
    assert set(asked.errors) == {1}
    assert "ValueError" in asked.errors[1]
    assert [None if one is None else one.text for one in asked.values] == ["a", None, "b", "b", "b", "b"]
    failed = [batch for batch in watch.batches if batch.outcome == "error"]
    assert [(batch.rows, batch.tokens_in) for batch in failed] == [(3, 0), (1, 0)]
    assert failed[0].error == "MemoryError: no room"
    assert sum(batch.rows for batch in watch.batches if batch.outcome == "ok") == 5


@pytest.mark.usefixtures("slice_seconds")
def test_interruption_keeps_what_was_answered() -> None:
    model, watch = Waves(one_by_one), Watch(stop_after=5)
    with pytest.raises(InterruptedQueryError) as caught:
        ask(model, watch=watch)
    asked: Asked = vars(caught.value)["asked"]
    answered = [row for row, one in enumerate(asked.values) if one is not None]
    assert answered in ([4, 5], [3, 4, 5])
    assert {row for row, said in asked.errors.items() if said == NOT_ASKED} == set(range(6)) - set(answered)
    assert set(watch.told) == set(answered)
    assert sum(batch.tokens_out for batch in asked.batches) == 2 * len(answered)
    assert model.closed


def test_a_model_that_breaks_off_has_failed_on_the_rest() -> None:
    def make(prompts: Sequence[Prompt]) -> Iterator[Wave]:
        yield Wave({2: Completion("c")})
        raise RuntimeError("gone")

    asked = ask(Waves(make))
    assert asked.values[2] == Completion("c")
    assert asked.errors == dict.fromkeys((0, 1, 3, 4, 5), "RuntimeError: gone")


def test_a_model_that_answers_nothing_is_given_up() -> None:
    def make(prompts: Sequence[Prompt]) -> Iterator[Wave]:
        for row in range(len(prompts)):
            yield Wave(errors={row: ValueError("never")})

    watch = Watch()
    with pytest.raises(ModelError, match=f"none of its first {GIVE_UP_AFTER} rows"):
        ask(Waves(make), n=200, watch=watch)
    assert len(watch.batches) == GIVE_UP_AFTER


def test_rows_too_long_are_not_sent() -> None:
    class Short(Waves):
        info = ModelInfo("short", context_tokens=40)

        def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
            return [int(prompt.args[0].split()[1]) * 10 for prompt in prompts]

    seen: list[str] = []

    def make(prompts: Sequence[Prompt]) -> Iterator[Wave]:
        seen.extend(prompt.args[0] for prompt in prompts)
        yield from one_by_one(prompts)

    asked = ask(Short(make))
    assert seen == ["row 0", "row 1", "row 2", "row 3"]
    assert set(asked.errors) == {4, 5}
    assert [one.text for one in asked.values[:4]] == ["ROW 0", "ROW 1", "ROW 2", "ROW 3"]
