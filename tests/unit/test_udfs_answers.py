"""From scores, completions and vectors to answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from sqluice.types import Completion
from sqluice.udfs.answers import Decoded, answer_text, arrow_type, cosine, decode, sql_type
from sqluice.udfs.signatures import bind
from sqluice.udfs.spec import Const, Row

if TYPE_CHECKING:
    from sqluice.udfs.spec import Spec

A = Row("a")
INF, NAN = np.inf, np.nan


def spec(function: str, *args: object, **options: object) -> Spec:
    tail = [Const(options)] if options else []
    return bind(function, [A, *(Const(arg) for arg in args), *tail]).spec


FILTER = spec("AI_FILTER")
CLASSIFY = spec("AI_CLASSIFY", ["a", "b", "c"])
MULTI = spec("AI_CLASSIFY", ["a", "b", "c"], output_mode="multi")
GRADES = spec("AI_SCORE", scale=[1, 3])


def logs(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


def test_filter() -> None:
    values = logs([0.9, 0.1], [0.2, 0.6], [0.3, 0.3], [NAN, NAN], [1, 0], [0, 1], [0, 0], [NAN, 0.5])
    found = decode(FILTER, values, values - np.float32(1))
    assert found.answers.to_pylist() == [True, False, False, None, True, False, None, None]
    assert found.answers.type == arrow_type(FILTER) == pa.bool_()
    np.testing.assert_allclose(found.scores, [0.9, 0.25, 0.5, NAN, 1, 0, NAN, NAN], rtol=1e-6)
    np.testing.assert_allclose(found.raw, [np.log(9), -np.log(3), 0, NAN, INF, -INF, NAN, NAN], rtol=1e-5)
    assert found.errors == {}
    assert answer_text(found.answers).to_pylist() == ["true", "false", "false", None, "true", "false", None, None]


def test_filter_answers_from_calibrated_scores_and_reports_raw_ones() -> None:
    found = decode(FILTER, logs([0.9, 0.1]), logs([0.1, 0.9]))
    assert found.answers.to_pylist() == [True]
    assert found.raw[0] == pytest.approx(-np.log(9), rel=1e-5)


def test_scores_need_not_be_normalised() -> None:
    found = decode(FILTER, np.array([[-1000, -1001], [900, 899]], np.float32))
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-1)))


def test_score() -> None:
    found = decode(spec("AI_SCORE"), logs([0.9, 0.1], [NAN, NAN]))
    assert found.answers.type == pa.float64()
    assert found.answers.to_pylist() == [pytest.approx(0.9), None]
    assert answer_text(found.answers)[0].as_py() == str(found.scores[0])


def test_grades() -> None:
    found = decode(GRADES, logs([0.5, 0, 0.5], [0, 0, 1], [0.25, 0.25, 0], [NAN] * 3))
    assert found.answers.to_pylist() == [pytest.approx(2), pytest.approx(3), pytest.approx(1.5), None]
    np.testing.assert_allclose(found.scores, [2, 3, 1.5, NAN])
    assert np.isnan(found.raw).all()


def test_classify() -> None:
    values = logs([0.1, 0.6, 0.1], [0.4, 0.4, 0.2], [NAN] * 3, [0, 0, 0.1])
    found = decode(CLASSIFY, values, values - np.float32(1))
    assert found.answers.to_pylist() == ["b", "a", None, "c"]
    np.testing.assert_allclose(found.scores, [0.75, 0.4, NAN, 1], rtol=1e-6)
    np.testing.assert_allclose(found.raw, np.log([0.6, 0.4, NAN, 0.1]) - 1, rtol=1e-6)
    assert answer_text(found.answers).to_pylist() == ["b", "a", None, "c"]


def test_several_labels() -> None:
    values = logs([0.2, 0.4, 0.1], [0.3, 0.3, 0.3], [NAN] * 3, [0, 0, 1])
    found = decode(MULTI, values)
    assert found.answers.to_pylist() == [["a", "b"], ["a", "b", "c"], None, ["c"]]
    assert found.answers.type == arrow_type(MULTI) == pa.list_(pa.string())
    np.testing.assert_allclose(found.scores, [4 / 7, 1 / 3, NAN, 1], rtol=1e-6)
    assert json.loads(answer_text(found.answers)[0].as_py()) == ["a", "b"]
    assert answer_text(found.answers)[2].as_py() is None


def test_a_cut_completion_is_no_answer() -> None:
    found = decode(
        spec("AI_COMPLETE", max_tokens=9), [Completion("well"), Completion("half a th", "length"), None, Completion("")]
    )
    assert found.answers.to_pylist() == ["well", None, None, ""]
    assert found.errors == {1: "cut by the token limit of 9 tokens: raise max_tokens"}
    assert np.isnan(found.scores).all()
    assert answer_text(found.answers).to_pylist() == ["well", None, None, ""]


def test_vectors() -> None:
    embed = spec("AI_EMBED")
    found = decode(embed, np.array([[1, 0], [NAN, NAN], [0.5, 2]], np.float32))
    assert found.answers.to_pylist() == [[1, 0], None, [0.5, 2]]
    assert found.answers.type == arrow_type(embed, 2) == pa.list_(pa.float32(), 2)
    assert answer_text(found.answers).to_pylist() == [None, None, None]
    assert (sql_type(embed), sql_type(embed, 384), sql_type(MULTI, 384)) == ("FLOAT[]", "FLOAT[384]", "VARCHAR[]")
    nothing = decode(embed, np.zeros((2, 0), np.float32))
    assert nothing.answers.to_pylist() == [None, None]
    assert answer_text(nothing.answers).to_pylist() == [None, None]


def test_counts() -> None:
    count = bind("AI_COUNT_TOKENS", [Const("ai_complete"), A]).spec
    found = decode(count, np.array([3, -1, 0]))
    assert found.answers.to_pylist() == [3, None, 0]
    assert found.answers.type == arrow_type(count) == pa.int32()
    assert answer_text(found.answers).to_pylist() == ["3", None, "0"]


def test_cosine() -> None:
    kind = pa.list_(pa.float32(), 2)
    left = pa.array([[1, 0], [1, 0], [2, 0], None, [0, 0]], kind)
    right = pa.array([[1, 0], [0, 3], [-1, 0], [1, 0], [1, 0]], kind)
    assert cosine(left, right).to_pylist() == [1, 0, -1, None, None]
    assert cosine(pa.nulls(1, kind), pa.nulls(1, kind)).to_pylist() == [None]


@pytest.mark.parametrize("asked", [FILTER, CLASSIFY, MULTI, GRADES, spec("AI_SCORE")])
def test_no_rows(asked: Spec) -> None:
    found = decode(asked, np.zeros((0, len(asked.choices)), np.float32))
    assert (len(found.answers), len(found.scores), found.answers.type) == (0, 0, arrow_type(asked))


@pytest.mark.parametrize("asked", [FILTER, CLASSIFY, MULTI, GRADES])
def test_a_million_rows(asked: Spec) -> None:
    values = np.random.default_rng(0).normal(size=(1_000_000, len(asked.choices))).astype(np.float32)
    values[::7] = NAN
    began = time.process_time()
    found: Decoded = decode(asked, values)
    assert time.process_time() - began < 2
    assert found.answers.null_count == len(values[::7])
