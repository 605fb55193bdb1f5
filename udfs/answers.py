"""From what a model returned to the answers of an AI expression, as Arrow. Vectorised: no loop over scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from sqluice.types import Completion
    from sqluice.udfs.spec import Spec

CUT = "cut by the token limit"
"""How the error of an answer begins that a token limit cut."""

# Scores are float32: a label at exactly half of the best one's probability may come out a hair below.
_HALF = 0.5 - 1e-6


@dataclass(slots=True)
class Decoded:
    """Answers to n inputs.

    `answers` has type `arrow_type(spec, d)`, null where there is none. `scores` float64 [n]: probability of yes,
    of the chosen (for several: the best) label, or the expected grade. `raw` float64 [n]: raw log-odds of yes
    over no, or the raw log score of the chosen label. Both are NaN where there is none. `errors` says why a
    completion is no answer, by its number.
    """

    answers: pa.Array
    scores: np.ndarray
    raw: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)


def arrow_type(spec: Spec, dimension: int | None = None) -> pa.DataType:
    """The Arrow type of an answer (of the value alone where `spec.errors`); embeddings are lists of any length
    until their dimension is known."""
    import pyarrow as pa

    if spec.returns == "FLOAT[]":
        return pa.list_(pa.float32()) if dimension is None else pa.list_(pa.float32(), dimension)
    return {
        "BOOLEAN": pa.bool_(),
        "VARCHAR": pa.string(),
        "VARCHAR[]": pa.list_(pa.string()),
        "DOUBLE": pa.float64(),
        "INTEGER": pa.int32(),
    }[spec.returns]


def sql_type(spec: Spec, dimension: int | None = None) -> str:
    """The SQL type of an answer (of the value alone where `spec.errors`): `FLOAT[384]` once 384 is known."""
    return spec.returns if dimension is None or spec.returns != "FLOAT[]" else f"FLOAT[{dimension}]"


def decode(spec: Spec, values: Any, raw: Any = None) -> Decoded:
    """Answers from `values`, what a model returned for `spec.operation`.

    score: float32 [n, k] calibrated log scores, `raw` the same before calibration (None: there is none). embed:
    float32 [n, d]. generate: a list of `Completion | None`. count_tokens: integers [n], below 0 for none. A row
    with a NaN has no answer.
    """
    if spec.operation == "generate":
        return _texts(spec, values)
    if spec.operation == "embed":
        return _vectors(np.asarray(values, np.float32))
    if spec.operation == "count_tokens":
        return _counts(np.asarray(values))
    scores = np.asarray(values, np.float32)
    before = scores if raw is None else np.asarray(raw, np.float32)
    if spec.function == "AI_CLASSIFY":
        return _labels(spec, scores, before)
    if spec.grades is not None:
        return _grades(spec, scores)
    return _yes(spec, scores, before)


def _weights(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities over the best one's, float64 [n, k], and bool [n]: which rows have an answer."""
    log = scores.astype(np.float64)
    best = log.max(axis=1, keepdims=True)
    known = np.isfinite(best[:, 0])
    log -= np.where(known[:, None], best, 0.0)
    log[~known] = 0.0
    return np.exp(log, out=log), known


def _yes(spec: Spec, scores: np.ndarray, raw: np.ndarray) -> Decoded:
    import pyarrow as pa

    weights, known = _weights(scores)
    chance = _only(weights[:, 0] / weights.sum(axis=1), known)
    with np.errstate(invalid="ignore"):
        odds = _only(raw[:, 0].astype(np.float64) - raw[:, 1], known)
    answers = chance > 0.5 if spec.returns == "BOOLEAN" else chance
    return Decoded(pa.array(answers, arrow_type(spec), mask=~known), chance, odds)


def _grades(spec: Spec, scores: np.ndarray) -> Decoded:
    import pyarrow as pa

    weights, known = _weights(scores)
    grades = np.array([int(choice) for choice in spec.choices], np.float64)
    grade = _only(weights @ grades / weights.sum(axis=1), known)
    return Decoded(pa.array(grade, arrow_type(spec), mask=~known), grade, np.full(len(grade), np.nan))


def _labels(spec: Spec, scores: np.ndarray, raw: np.ndarray) -> Decoded:
    import pyarrow as pa

    weights, known = _weights(scores)
    best = weights.argmax(axis=1)
    rows = np.arange(len(best))
    chance = _only(weights[rows, best] / weights.sum(axis=1), known)
    told = _only(raw[rows, best].astype(np.float64), known)
    names = pa.array(spec.choices, pa.string())
    if not spec.multi:
        return Decoded(names.take(pa.array(best, pa.int32(), mask=~known)), chance, told)
    fits = (weights >= _HALF) & known[:, None]
    ends = np.concatenate(([0], np.cumsum(fits.sum(axis=1))))
    flat = names.take(pa.array(np.nonzero(fits)[1], pa.int32()))
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat, mask=pa.array(~known))
    return Decoded(lists.cast(arrow_type(spec)), chance, told)


def _texts(spec: Spec, values: Sequence[Completion | None]) -> Decoded:
    import pyarrow as pa

    errors = {
        row: f"{CUT} of {spec.max_tokens} tokens: raise max_tokens"
        for row, value in enumerate(values)
        if value is not None and value.finish_reason == "length"
    }
    texts = [None if value is None or row in errors else value.text for row, value in enumerate(values)]
    return Decoded(pa.array(texts, pa.string()), _none(len(texts)), _none(len(texts)), errors)


def _vectors(values: np.ndarray) -> Decoded:
    import pyarrow as pa

    count = len(values)
    dimension = values.shape[1] if values.ndim == 2 else 0
    if not dimension:
        return Decoded(pa.nulls(count, pa.list_(pa.float32())), _none(count), _none(count))
    lost = pa.array(np.isnan(values).any(axis=1))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.float32(), dimension), mask=lost)
    return Decoded(vectors, _none(count), _none(count))


def _counts(values: np.ndarray) -> Decoded:
    import pyarrow as pa

    lost = ~(values >= 0)
    counts = pa.array(np.where(lost, 0, values).astype(np.int32), mask=lost)
    return Decoded(counts, _none(len(values)), _none(len(values)))


def _only(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Float64 [n]: `values`, NaN where not `known`."""
    return np.where(known, values, np.nan)


def _none(count: int) -> np.ndarray:
    return np.full(count, np.nan)


def cosine(left: pa.Array, right: pa.Array) -> pa.Array:
    """Float64 [n] cosines of two arrays of embeddings (as `decode` gives them), null where either is null."""
    import pyarrow as pa

    found = np.full(len(left), np.nan)
    both = np.flatnonzero(np.asarray(left.is_valid()) & np.asarray(right.is_valid()))
    if len(both):
        one, other = (np.array(side.take(pa.array(both)).to_pylist(), np.float64) for side in (left, right))
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        dot = np.einsum("ij,ij->i", one, other)
        found[both] = np.clip(np.divide(dot, size, out=np.full(len(both), np.nan), where=size > 0), -1, 1)
    return pa.array(found, mask=np.isnan(found))


def answer_text(answers: pa.Array) -> pa.Array:
    """Each answer as a string for the trace: true/false, a label, a JSON list, a number; null for embeddings."""
    import pyarrow as pa

    kind = answers.type
    if pa.types.is_fixed_size_list(kind) or kind == pa.list_(pa.float32()):
        return pa.nulls(len(answers), pa.string())
    if pa.types.is_list(kind):
        lists = answers.to_pylist()
        return pa.array([None if one is None else json.dumps(one, ensure_ascii=False) for one in lists], pa.string())
    return answers.cast(pa.string())
