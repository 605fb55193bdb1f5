"""Recorded scores and answers as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqluice.errors import ModelError
from sqluice.types import Prompt
from sqluice.workers.pool import LocalPool
from sqluice.workers.replay import load, prompt_digest, prompt_hash, template_state

if TYPE_CHECKING:
    from pathlib import Path

YES_NO = ("yes", "no")


class Watch:
    def check(self) -> None: ...

    def done(self, batch: object) -> None: ...


def ask(text: str) -> Prompt:
    return Prompt("Is it good? {0}", (text,))


def recorded(path: Path, **columns: list[Any]) -> Any:
    pq.write_table(pa.table(columns), path / "run.parquet")
    return load(path / "run.parquet")


@pytest.mark.parametrize("column", ["prompt_hash", "input_hash"])
@pytest.mark.parametrize("binary", [False, True])
def test_scores_by_hash(tmp_path: Path, column: str, binary: bool) -> None:
    hashes: list[Any] = [prompt_hash(ask(text)) for text in "abc"]
    keys = [bytes.fromhex(key) for key in hashes] if binary else hashes
    model = recorded(tmp_path, **{column: keys, "score": [0.9, 0.2, None], "answer": ["true", "false", "true"]})
    asked = LocalPool().score(model, [ask(text) for text in "cbax"], YES_NO, Watch())
    assert np.exp(asked.values[:3, 0]) == pytest.approx([1.0, 0.2, 0.9], abs=1e-5)
    assert np.exp(asked.values[:3]).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert asked.errors == {3: "replay:run.parquet: this prompt is not in the recording"}


def test_answers_by_text(tmp_path: Path) -> None:
    model = recorded(
        tmp_path, text=["a", "Is it good? b", "c"], answer=["sport", "news", "tax"], score=[0.7, None, None]
    )
    rows = [ask(text) for text in "abcd"]
    asked = LocalPool().score(model, rows, ("sport", "news", "film"), Watch())
    assert np.exp(asked.values[0]) == pytest.approx([0.7, 0.15, 0.15], rel=1e-4)
    assert asked.values[1].argmax() == 1
    assert "none of the choices" in asked.errors[2]
    assert set(asked.errors) == {2, 3}
    said = LocalPool().generate(model, rows, max_tokens=5, schema=None, control=Watch())
    assert [one.text if one else None for one in said.values] == ["sport", "news", "tax", None]
    with pytest.raises(ModelError, match="gives no embeddings"):
        LocalPool().embed(model, ["a"], Watch())


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"score": [1.0]}, "needs a column"), ({"text": ["a"]}, "it has text"), ({"x": [1]}, "none of these")],
)
def test_columns_are_checked(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        recorded(tmp_path, **columns)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(ModelError, match="cannot be read as Parquet"):
        load(tmp_path / "x.parquet")


def test_the_revision_follows_the_content(tmp_path: Path) -> None:
    first = recorded(tmp_path, text=["a"], score=[0.1]).info.revision
    assert recorded(tmp_path, text=["a"], score=[0.1]).info.revision == first
    assert recorded(tmp_path, text=["a"], score=[0.2]).info.revision != first


parts = st.lists(st.text(max_size=6), max_size=4)


@given(st.text(max_size=8), parts, st.text(max_size=8), parts)
def test_the_hash_tells_prompts_apart(one: str, args: list[str], other: str, others: list[str]) -> None:
    first, second = Prompt(one, tuple(args)), Prompt(other, tuple(others))
    same = (one, args) == (other, others)
    assert (prompt_hash(first) == prompt_hash(second)) == same
    assert prompt_digest(template_state(one), args).hex() == prompt_hash(first)


def test_the_hash_is_stable() -> None:
    assert len(prompt_hash(ask("a"))) == 32
    assert prompt_hash(Prompt("{0}", ("a",))) == PINNED


PINNED = "7018e553292ee223121fe6554cc12e6c"
