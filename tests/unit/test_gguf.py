"""GGUF in process. Needs xllamacpp and a small chat model's weights."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice import config
from sqluice.errors import InterruptedQueryError, WeightsError
from sqluice.types import Prompt
from sqluice.workers.pool import LocalPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice.workers.gguf import Gguf

pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")

YES_NO = ("yes", "no")


class Watch:
    def __init__(self, stop_after: float = 1e9) -> None:
        self.stop_at = time.monotonic() + stop_after

    def check(self) -> None:
        if time.monotonic() > self.stop_at:
            raise InterruptedQueryError("interrupted")

    def done(self, batch: object) -> None: ...


def weights() -> Path | None:
    """The file in SQLUICE_TEST_GGUF, else the smallest GGUF below SQLuice's own folder."""
    given = os.environ.get("SQLUICE_TEST_GGUF")
    if given:
        return Path(given)
    found = sorted(config.home().rglob("*.gguf"), key=lambda path: path.stat().st_size)
    return found[0] if found else None


@pytest.fixture(scope="module")
def model() -> Iterator[Gguf]:
    path = weights()
    if path is None:
        pytest.skip("no GGUF weights: `sqluice models fetch default`, or set SQLUICE_TEST_GGUF")
    from sqluice.workers.gguf import load

    loaded = load(path, threads=1)
    yield loaded
    loaded.close()


def ask(text: str, template: str = "Is this text about food? {0}") -> Prompt:
    return Prompt(template, (text,))


@pytest.mark.local
def test_scores_are_finite_calibrated_and_repeatable(model: Gguf) -> None:
    rows = [ask(text) for text in ("A ripe apple.", "The engine failed.", "", "日本語 🍎", "x" * 500)]
    asked = LocalPool().score(model, rows, YES_NO, Watch())
    assert asked.errors == {}
    assert np.isfinite(asked.values).all()
    assert asked.raw - asked.values == pytest.approx(np.tile(model.calibration(rows[0], YES_NO), (5, 1)), abs=1e-4)
    assert (asked.tokens_in > 0).all()
    again = LocalPool().score(model, rows[::-1], YES_NO, Watch())
    assert again.values[::-1] == pytest.approx(asked.values, abs=0.05)


@pytest.mark.local
def test_tokens_are_counted(model: Gguf) -> None:
    asked = LocalPool().score(model, [ask(""), ask("one two three four five six")], YES_NO, Watch())
    nothing, some = model.count_tokens(["", "one two three four five six"])
    assert nothing == 0
    assert asked.tokens_in[1] - asked.tokens_in[0] == some >= 6


@pytest.mark.local
def test_labels(model: Gguf) -> None:
    row = ask("The striker scored twice.", "What is this text about? {0}")
    found = model.score([row], ("sport", "space", "politics"))
    assert found.shape == (1, 3)
    assert np.isfinite(found).all()


@pytest.mark.local
def test_text_cannot_end_its_turn(model: Gguf) -> None:
    plain = len(model._tokens(ask(""), YES_NO))
    marked = len(model._tokens(ask("<|im_end|>"), YES_NO))
    assert marked - plain > 1  # read as characters, not as one special token


@pytest.mark.local
def test_a_long_text_is_a_context_overflow(model: Gguf) -> None:
    asked = LocalPool().score(model, [ask("word " * 20_000), ask("short")], YES_NO, Watch())
    assert set(asked.errors) == {0}
    assert asked.errors[0].startswith("context overflow:")


@pytest.mark.local
def test_generation_stops_at_its_limit_and_keeps_to_a_schema(model: Gguf) -> None:
    rows = [Prompt("{0}", ("Count from one to fifty.",), kind="complete")]
    cut = model.generate(rows, max_tokens=4)[0]
    assert (cut.finish_reason, cut.tokens_out) == ("length", 4)
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    kept = model.generate(rows, max_tokens=60, schema=schema)[0]
    assert "red" in kept.text or "blue" in kept.text


@pytest.mark.local
def test_a_row_with_a_lone_surrogate_costs_that_row(model: Gguf) -> None:
    asked = LocalPool().score(model, [ask("\ud800"), ask("fine")], YES_NO, Watch())
    assert 1 not in asked.errors
    assert np.isfinite(asked.values[1]).all()


@pytest.mark.local
def test_interruption_keeps_what_was_answered(model: Gguf) -> None:
    rows = [ask(f"row {at} " + "of some length " * 20) for at in range(200)]
    started = time.monotonic()
    with pytest.raises(InterruptedQueryError) as caught:
        LocalPool().score(model, rows, YES_NO, Watch(0.7))
    assert time.monotonic() - started < 4  # one row under way, on a busy machine
    asked = caught.value.asked  # type: ignore[attr-defined]
    assert 0 < len(asked.errors) < 200


@pytest.mark.local
def test_the_loopback_port_is_locked(model: Gguf) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(model._server.listening_address + "/props", timeout=5)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    from sqluice.workers.gguf import load

    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(WeightsError, match="not a GGUF file"):
        load(tmp_path / "text.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 100)
    with pytest.raises(WeightsError, match="damaged"):
        load(tmp_path / "short.gguf")


@pytest.mark.parametrize(
    ("written", "begins", "finish", "expected"),
    [
        ("<think>so</think> yes", False, "stop", ("yes", "stop")),
        ("so</think>\nyes", True, "stop", ("yes", "stop")),
        ("<think>so and so", False, "length", ("", "length")),
    ],
)
def test_thoughts_are_no_part_of_the_answer(
    model: Gguf, written: str, begins: bool, finish: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "choices": [{"text": written, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 7},
    }
    monkeypatch.setattr(model, "info", replace(model.info, reasoning=True))
    monkeypatch.setattr(model, "_begins", begins)
    monkeypatch.setattr(model, "_told", lambda *_: told)
    (said,) = model.generate([Prompt("Go: {0}", ("on",), kind="complete")], max_tokens=8)
    assert (said.text, said.finish_reason, said.tokens_out) == (*expected, 7)


def test_thinking_has_tokens_of_its_own(model: Gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Server:
        listening_address = model._server.listening_address

        def handle_completions(self, request: dict[str, Any]) -> dict[str, Any]:
            asked.append(request["n_predict"])
            return {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {}}

    monkeypatch.setattr(model, "_server", Server())
    monkeypatch.setattr(model, "_thinking", 100)
    prompt = Prompt("Go: {0}", ("on",), kind="complete")
    model._told(prompt, (), 8, None)
    model._told(prompt, ("yes", "no"), 8, None)
    assert asked == [108, 8]
