"""The in-process pool: order, failures, context, memory, interruption."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice.errors import InterruptedQueryError, ModelError
from sqluice.types import Completion, ModelInfo, Prompt
from sqluice.workers.pool import GIVE_UP_AFTER, LocalPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.workers.protocol import Asked, Batch

YES_NO = ("yes", "no")


class Watch:
    """A control that counts, and interrupts after some micro-batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.batches: list[Batch] = []
        self.stop_after = stop_after

    def check(self) -> None:
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise InterruptedQueryError("interrupted")

    def done(self, batch: Batch) -> None:
        self.batches.append(batch)


class Scripted:
    """Scores a prompt by the number its argument ends with; `spoil` may change or refuse an answer."""

    info = ModelInfo("scripted")
    batch_rows = 1024

    def __init__(self, spoil: Callable[[Sequence[Prompt], np.ndarray], Any] | None = None) -> None:
        self.spoil = spoil
        self.calls: list[int] = []

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> Any:
        self.calls.append(len(prompts))
        found = np.array([[float(p.args[0].split()[-1]), 0.0] for p in prompts], dtype=np.float32)
        return found if self.spoil is None else self.spoil(prompts, found)


class Tokens(Scripted):
    """The same, with lengths by words and a token budget."""

    token_budget = 64

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(p.args[0].split()) for p in prompts]


def prompts(n: int, word: str = "row") -> list[Prompt]:
    return [Prompt("Is it {0}?", (f"{word} {at}",)) for at in range(n)]


def lone(bad: set[int], fail: Callable[[], Any]) -> Callable[[Sequence[Prompt], np.ndarray], Any]:
    def spoil(asked: Sequence[Prompt], found: np.ndarray) -> Any:
        return fail() if any(int(p.args[0].split()[-1]) in bad for p in asked) else found

    return spoil


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def test_answers_come_back_in_order() -> None:
    watch = Watch()
    asked = LocalPool().score(Scripted(), prompts(2500), YES_NO, watch)
    assert asked.values[:, 0].tolist() == list(range(2500))
    assert asked.values is asked.raw
    assert asked.errors == {}
    assert [batch.rows for batch in watch.batches] == [1024, 1024, 452]
    assert not asked.tokens_in.any()


def test_a_model_without_sizes_is_asked_in_growing_batches_that_stay_short() -> None:
    class Slow:
        info = ModelInfo("slow")

        def score(self, asked: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
            time.sleep(0.004 * len(asked))
            return np.zeros((len(asked), 2), np.float32)

    watch = Watch()
    LocalPool().score(Slow(), prompts(200), YES_NO, watch)
    assert watch.batches[0].rows == 16
    assert watch.batches[1].rows > 16
    assert max(batch.ended - batch.started for batch in watch.batches) < 0.8


def test_sorted_micro_batches_restore_the_order_and_count_tokens() -> None:
    rng = np.random.default_rng(3)
    asked_for = [Prompt("{0}", ("w " * int(k) + str(at),)) for at, k in enumerate(rng.integers(0, 30, 300))]
    asked = LocalPool().score(Tokens(), asked_for, YES_NO, Watch())
    assert asked.values[:, 0].tolist() == list(range(300))
    assert asked.tokens_in.tolist() == [len(p.args[0].split()) for p in asked_for]
    assert sum(batch.tokens_in for batch in asked.batches) == asked.tokens_in.sum()
    assert all(batch.max_tokens * batch.rows == batch.tokens_in + batch.pad_tokens for batch in asked.batches)
    assert all(batch.max_tokens * batch.rows <= 64 for batch in asked.batches)


def test_no_prompts_no_call() -> None:
    model = Scripted()
    assert LocalPool().score(model, [], YES_NO, Watch()).values.shape == (0, 2)
    assert LocalPool().generate(NoInfo(), [], max_tokens=5, schema=None, control=Watch()).values == []
    assert model.calls == []


@pytest.mark.parametrize(
    "fail",
    [
        raising(ValueError("bad row")),
        lambda: np.zeros((1, 3), dtype=np.float32),
        lambda: np.zeros((7, 2), dtype=np.float32),
        lambda: np.zeros(2, dtype=np.float32),
        lambda: "scores",
        lambda: None,
        lambda: [["a", "b"]],
        lambda: [[1.0], [1.0, 2.0]],
    ],
)
def test_a_bad_row_costs_that_row_only(fail: Callable[[], Any]) -> None:
    model = Scripted(lone({7, 600}, fail))
    asked = LocalPool().score(model, prompts(1000), YES_NO, Watch())
    assert set(asked.errors) == {7, 600}
    good = [at for at in range(1000) if at not in asked.errors]
    assert asked.values[good, 0].tolist() == good
    assert len(model.calls) <= 45


def test_attempts_are_numbered_and_told() -> None:
    watch = Watch()
    LocalPool().score(Scripted(lone({1}, raising(ValueError("no")))), prompts(4), YES_NO, watch)
    told = [(b.rows, b.attempt, b.outcome) for b in watch.batches]
    assert told == [(4, 1, "error"), (2, 2, "error"), (1, 3, "ok"), (1, 3, "error"), (2, 2, "ok")]


def test_nan_costs_the_row_and_no_further_call() -> None:
    def spoil(asked: Sequence[Prompt], found: np.ndarray) -> np.ndarray:
        found[3] = np.nan, 0
        found[4] = -np.inf, 0
        found[5] = -np.inf, -np.inf
        found[6] = np.inf, 0
        return found

    model = Scripted(spoil)
    asked = LocalPool().score(model, prompts(10), YES_NO, Watch())
    assert set(asked.errors) == {3, 5, 6}
    assert asked.errors[3] == "model returned NaN"
    assert model.calls == [10]


def test_errors_tell_the_cause_and_not_the_row() -> None:
    secret = "patient Miller was admitted on Monday 3"

    def spoil(asked: Sequence[Prompt], found: np.ndarray) -> Any:
        raise ValueError(f"cannot parse {asked[0].args[0]!r} at 'patient Miller was'")

    asked = LocalPool().score(Scripted(spoil), [Prompt("{0}", (secret,))], YES_NO, Watch())
    assert asked.errors[0].startswith("ValueError: cannot parse")
    assert "Miller" not in asked.errors[0]


def test_a_broken_model_is_given_up_soon() -> None:
    model = Scripted(lambda asked, found: raising(RuntimeError("weights are gone"))())
    with pytest.raises(ModelError, match="weights are gone") as caught:
        LocalPool().score(model, prompts(4096), YES_NO, Watch())
    assert str(GIVE_UP_AFTER) in str(caught.value)
    assert len(model.calls) <= 2 * GIVE_UP_AFTER + 12


def test_few_broken_rows_are_errors_not_the_end() -> None:
    model = Scripted(lambda asked, found: raising(RuntimeError("no"))())
    asked = LocalPool().score(model, prompts(20), YES_NO, Watch())
    assert len(asked.errors) == 20
    assert len(model.calls) == 39


def test_out_of_memory_halves_and_stays_small() -> None:
    def spoil(asked: Sequence[Prompt], found: np.ndarray) -> Any:
        if len(asked) > 100:
            raise MemoryError
        return found

    model = Scripted(spoil)
    asked = LocalPool().score(model, prompts(4096), YES_NO, Watch())
    assert asked.errors == {}
    assert asked.values[:, 0].tolist() == list(range(4096))
    assert sum(size > 100 for size in model.calls) <= 4


@pytest.mark.parametrize("stop", [InterruptedQueryError("stop"), KeyboardInterrupt()])
def test_interruption_passes_and_carries_what_was_answered(stop: BaseException) -> None:
    model = Scripted(lone({1500}, raising(stop)))
    with pytest.raises(type(stop)) as caught:
        LocalPool().score(model, prompts(3000), YES_NO, Watch())
    asked: Asked = caught.value.asked  # type: ignore[attr-defined]
    assert asked.values[:1024, 0].tolist() == list(range(1024))
    assert set(asked.errors) == set(range(1024, 3000))
    assert set(asked.errors.values()) == {"not asked"}


def test_control_is_asked_before_every_micro_batch() -> None:
    model = Scripted()
    with pytest.raises(InterruptedQueryError):
        LocalPool().score(model, prompts(5000), YES_NO, Watch(stop_after=2))
    assert len(model.calls) == 2


class Small(Tokens):
    info = ModelInfo("small", context_tokens=20)
    prefix_tokens = 5


def test_context_overflow_names_tokens_limit_and_remedy() -> None:
    model = Small()
    asked = LocalPool().score(model, [Prompt("{0}", ("w " * 30 + "0",)), *prompts(2)], YES_NO, Watch())
    assert set(asked.errors) == {0}
    said = asked.errors[0]
    assert said.startswith("context overflow:")
    assert all(part in said for part in ("36 tokens", "takes 20", "left(col, "))
    assert asked.tokens_in.tolist() == [0, 7, 7]
    assert model.calls == [2]


def test_context_overflow_without_a_tokenizer_is_a_guess() -> None:
    class Short(Scripted):
        info = ModelInfo("short", context_tokens=100)

    asked = LocalPool().score(Short(), [Prompt("{0}", ("x" * 10_000_000 + " 1",)), *prompts(1)], YES_NO, Watch())
    assert "about" in asked.errors[0]
    assert set(asked.errors) == {0}


def test_calibration_is_subtracted_once() -> None:
    class Calibrated(Scripted):
        def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
            return np.array([2.0, -1.0], dtype=np.float32)

    asked = LocalPool().score(Calibrated(), prompts(3), YES_NO, Watch())
    assert asked.raw.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert asked.values.tolist() == [[-2, 1], [-1, 1], [0, 1]]


class NoInfo:
    """A generator and embedder with nothing else."""

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int, schema: Any = None) -> list[Any]:
        if any("bad" in p.args[0] for p in prompts):
            return [None] * len(prompts)
        return [Completion(p.args[0].upper(), "length", 3, 2) for p in prompts]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = np.ones((len(texts), 4), dtype=np.float64)
        found[[at for at, text in enumerate(texts) if text == "bad"]] = np.nan
        return found


def test_generate() -> None:
    rows = [Prompt("{0}", (text,)) for text in ("a", "bad", "c")]
    asked = LocalPool().generate(NoInfo(), rows, max_tokens=9, schema=None, control=Watch())
    assert asked.values == [Completion("A", "length", 3, 2), None, Completion("C", "length", 3, 2)]
    assert set(asked.errors) == {1}
    assert asked.tokens_in.tolist() == [3, 0, 3]
    assert asked.tokens_out.tolist() == [2, 0, 2]


def test_embed() -> None:
    asked = LocalPool().embed(NoInfo(), ["a", "bad", "c"], Watch())
    assert asked.values.shape == (3, 4)
    assert asked.values.dtype == np.float32
    assert asked.errors == {1: "model returned NaN"}


def test_a_missing_method_is_named() -> None:
    with pytest.raises(ModelError, match=r"gives no scores.*generate, embed"):
        LocalPool().score(NoInfo(), prompts(1), YES_NO, Watch())


def test_overhead_of_a_free_model_is_small() -> None:
    class Free:
        info = ModelInfo("free")
        zeros = np.zeros((1024, 2), dtype=np.float32)

        def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
            return self.zeros[: len(prompts)]

    rows = prompts(100_000)
    pool, watch = LocalPool(), Watch()
    started = time.process_time()
    pool.score(Free(), rows, YES_NO, watch)
    assert (time.process_time() - started) / len(rows) < 3e-6
