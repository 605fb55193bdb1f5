"""Generation in slots on torch, with small models of random weights: the texts are those of one row at a time.

Skipped without torch. With CUDA everything runs there too.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice.workers import torch_load, torch_slots, torch_writing
from sqluice.workers.thinking import Thinking
from sqluice.workers.torch_lm import CausalLM
from sqluice.workers.torch_writing import Room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Completion
    from sqluice.workers.protocol import Wave

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
STOPS = [1, 2, 3, 4]
SHARED = [40, 41, 42]
ROOM = Room(context=256, batch=512, answer=24)


def language_model(device: str = "cpu", dtype: str = "float32", **settings: Any) -> CausalLM:
    """Two layers, 96 words, grouped-query attention."""
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    kind = settings.pop("kind", transformers.LlamaConfig)
    config = kind(vocab_size=96, initializer_range=0.6, pad_token_id=0, **shape, **heads, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return CausalLM(model.to(device, torch_load.dtype_of(dtype, device)).eval(), 0, STOPS)


def chats(n: int, seed: int = 1) -> dict[int, tuple[list[int], list[int]]]:
    """Rows of 1 to 40 tokens behind three that they share."""
    rng = np.random.default_rng(seed)
    return {row: (SHARED, rng.integers(5, 96, rng.integers(1, 41)).tolist()) for row in range(n)}


def text_of(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def written(waves: Sequence[Wave]) -> dict[int, Completion]:
    return {row: one for wave in waves for row, one in wave.completions.items()}


def alone(lm: CausalLM, asked: dict[int, tuple[list[int], list[int]]], most: int) -> dict[int, str]:
    """What transformers writes, a row at a time."""
    found = {}
    for row, (shared, own) in asked.items():
        tokens = lm.write([[*shared, *own]], most)[0]
        found[row] = text_of([token for token in tokens if token not in STOPS])
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_slots_write_what_transformers_writes_alone(device: str, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_slots, "SLOTS", slots)
    monkeypatch.setattr(torch_slots, "SLOTS_CUDA", slots)
    lm, asked = language_model(device), chats(40)
    told = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    expected = alone(lm, asked, ROOM.answer)
    assert {row: one.text for row, one in told.items()} == expected
    ends = {one.finish_reason for one in told.values()}
    lengths = {one.tokens_out for one in told.values()}
    assert ends == {"stop", "length"}, "the models of this test are to end in both ways"
    assert len(lengths) > 4
    for row, one in told.items():
        assert one.tokens_in == 3 + len(asked[row][1])
        assert one.finish_reason == "stop" or one.tokens_out == ROOM.answer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_writes_nearly_the_same(device: str, dtype: str) -> None:
    lm, asked = language_model(device, dtype), chats(40)
    told = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    expected = alone(lm, asked, ROOM.answer)
    flips = sum(told[row].text != text for row, text in expected.items())
    print(f"{dtype} on {device}: {flips} of {len(expected)} texts differ")
    assert flips <= 8


def test_rows_do_not_depend_on_their_neighbours() -> None:
    lm, asked = language_model(), chats(30)
    together = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    few = {row: asked[row] for row in (3, 29, 11)}
    assert {row: together[row] for row in few} == written(list(torch_writing.waves(lm, few, text_of, ROOM, None)))


def test_rows_without_a_shared_beginning() -> None:
    lm = language_model()
    asked: dict[int, tuple[list[int], list[int]]] = {row: ([], own) for row, (_, own) in chats(9).items()}
    told = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    assert {row: one.text for row, one in told.items()} == alone(lm, asked, ROOM.answer)


@pytest.mark.parametrize("most_rows", [1, 4])
def test_out_of_memory_costs_time_and_no_answer(most_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = language_model(), chats(20)
    expected = alone(lm, asked, ROOM.answer)
    forward, tried = lm.body.forward, []

    def small(**inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(lm.body, "forward", small)
    waves = list(torch_writing.waves(lm, asked, text_of, ROOM, None))
    assert {row: one.text for row, one in written(waves).items()} == expected
    assert max(tried) > most_rows
    assert sum(wave.lost for wave in waves) > 0


def test_a_row_alone_that_does_not_fit_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = language_model(), chats(12)
    asked[5] = (SHARED, [7] * 90)
    forward = lm.body.forward

    def small(**inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(lm.body, "forward", small)
    waves = list(torch_writing.waves(lm, asked, text_of, ROOM, None))
    assert {row for wave in waves for row in wave.errors} == {5}
    assert set(written(waves)) == set(range(12)) - {5}


def test_memory_holds_no_more_than_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = language_model(), chats(40)
    cells = 150
    monkeypatch.setattr(torch_writing, "cells_of", lambda _: cells)
    held = []
    reserve = torch_slots._Memory.reserve

    def watched(memory: Any, slots: int, columns: int, most: int) -> None:
        reserve(memory, slots, columns, most)
        held.append(memory.layers[0][0].shape[0] * memory.layers[0][0].shape[2])

    monkeypatch.setattr(torch_slots._Memory, "reserve", watched)
    told = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    assert {row: one.text for row, one in told.items()} == alone(lm, asked, ROOM.answer)
    assert max(held) <= cells


def test_prompts_read_together_have_like_lengths() -> None:
    lm = language_model()
    drawn = np.clip(np.random.default_rng(3).lognormal(np.log(20), 0.9, 300), 1, 200).astype(int)
    asked = {row: (SHARED, [7 + row % 80] * int(length)) for row, length in enumerate(drawn)}
    waves = list(torch_writing.waves(lm, asked, text_of, Room(context=256, batch=512, answer=3), None))
    padding = sum(wave.pad_tokens for wave in waves)
    assert max(wave.max_tokens for wave in waves) == int(drawn.max())
    assert 0 < padding <= 0.05 * (padding + int(drawn.sum()))


def test_bytes_of_a_token() -> None:
    assert language_model().cell_bytes() == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    assert language_model(dtype="bfloat16").cell_bytes() == 2 * 2 * 2 * 8 * 2


def test_models_with_windows_are_written_by_transformers() -> None:
    lm = language_model(kind=transformers.Gemma3TextConfig, head_dim=8, sliding_window=8, layer_types=None)
    assert lm.windowed
    asked = chats(12)
    told = written(list(torch_writing.waves(lm, asked, text_of, ROOM, None)))
    assert {row: one.text for row, one in told.items()} == alone(lm, asked, ROOM.answer)


def test_thoughts_have_a_budget_and_are_not_part_of_the_answer() -> None:
    lm, asked = language_model(), chats(40)
    open_, budget = 90, 50
    begun = {row: (shared, [*own, open_]) for row, (shared, own) in asked.items()}
    whole = alone(lm, begun, budget + ROOM.answer)
    count = Counter(token for text in whole.values() for token in set(text.split()[:budget]))
    close = next(int(token) for token, rows in count.most_common() if rows < 30 and token != str(open_))
    waves = list(torch_writing.waves(lm, begun, text_of, ROOM, Thinking(open_, close, budget)))
    told = written(waves)
    unanswered = {row for wave in waves for row in wave.errors}
    closed = 0
    for row, text in whole.items():
        tokens = text.split()
        if str(close) not in tokens[:budget]:
            assert row in unanswered or (told[row].text, told[row].finish_reason) == ("", "length")
        elif tokens.count(str(close)) == 1:
            closed += 1
            answer = tokens[tokens.index(str(close)) + 1 :][: ROOM.answer]
            assert told[row].text.split() == answer
            assert told[row].tokens_out >= tokens.index(str(close)) + 1 + len(answer)
    assert closed
    assert unanswered
