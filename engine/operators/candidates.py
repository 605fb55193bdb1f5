"""The most similar pairs of two large sides, where not all pairs can be listed: for each input its nearest ones of the
other side, by embeddings and by trigrams of letters.

Exact, block by block: a product of matrices and a partial sort. With the extra `index` (usearch, an HNSW graph: Malkov
and Yashunin 2018) an approximate index takes the place of the embeddings' product where a side has more than 100,000
inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.optimizer.joins.features import Described

MOST_CANDIDATES = 4_000_000
MOST_EACH, LEAST_EACH = 100, 10

EXACT_INPUTS = 100_000
"""Inputs of a side from which on an index is used, where there is one."""

BOTH_WAYS = 4_000_000_000
"""Pairs up to which the nearest are found for both sides."""

_CELLS = 32_000_000
_COMMON = 0.02
"""Trigrams in more of the texts than this tell little and cost most."""


def nearest(described: Described, stop: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
    """Left and right inputs, int32 [k], of the most similar pairs, in order and each once."""
    n, m = described.by_trigram.left.shape[0], described.by_trigram.right.shape[0]
    ways = 2 if n * m <= BOTH_WAYS else 1
    each = int(np.clip(MOST_CANDIDATES // (n + (m if ways > 1 else 0)), LEAST_EACH, MOST_EACH))
    vectors = described.vectors or (None, None)
    grams = _telling(described.by_trigram.left, described.by_trigram.right)
    keys = [_nearest(vectors[0], vectors[1], *grams, min(each, m), stop)]
    keys[0] = _as_keys(keys[0], m, swapped=False)
    if ways > 1:
        back = _nearest(vectors[1], vectors[0], grams[1], grams[0], min(each, n), stop)
        keys.append(_as_keys(back, m, swapped=True))
    whole = np.unique(np.concatenate(keys))
    return (whole // m).astype(np.int32), (whole % m).astype(np.int32)


def _as_keys(found: np.ndarray, m: int, *, swapped: bool) -> np.ndarray:
    rows = np.repeat(np.arange(len(found), dtype=np.int64), found.shape[1])
    others = found.ravel().astype(np.int64)
    keys = others * m + rows if swapped else rows * m + others
    return keys[others >= 0]


def _telling(left: Any, right: Any) -> tuple[Any, Any]:
    """Both matrices without the terms that many texts have."""
    from scipy import sparse

    seen = np.bincount(left.indices, minlength=left.shape[1]) + np.bincount(right.indices, minlength=left.shape[1])
    most = max(_COMMON * (left.shape[0] + right.shape[0]), 50)
    keep = sparse.diags((seen <= most).astype(np.float32))
    return (left @ keep).tocsr(), (right @ keep).tocsr()


def _nearest(
    a: np.ndarray | None, b: np.ndarray | None, a_terms: Any, b_terms: Any, k: int, stop: Callable[[], None]
) -> np.ndarray:
    """For each row of the first side the k nearest of the second, int [n, k]; -1 where there are none left."""
    n, m = a_terms.shape[0], b_terms.shape[0]
    index = _index(b) if b is not None and m > EXACT_INPUTS else None
    if index is not None:
        return _by_index(index, a, a_terms, b_terms, k, stop)
    found = np.empty((n, k), np.int32)
    step = max(1, _CELLS // m)
    for start in range(0, n, step):
        stop()
        near = np.asarray((a_terms[start : start + step] @ b_terms.T).toarray(), np.float32)
        if a is not None and b is not None:
            near += a[start : start + step] @ b.T
        found[start : start + step] = np.argpartition(near, m - k, axis=1)[:, m - k :]
    return found


def _index(vectors: np.ndarray) -> Any:
    """An approximate index of some vectors; None where usearch is not installed."""
    try:
        from usearch.index import Index
    except ImportError:
        return None
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(vectors)), vectors)
    return index


def _by_index(
    index: Any, a: np.ndarray | None, a_terms: Any, b_terms: Any, k: int, stop: Callable[[], None]
) -> np.ndarray:
    """Half of the nearest by the index, half by terms."""
    assert a is not None
    half = max(k // 2, 1)
    found = np.full((len(a), 2 * half), -1, np.int64)
    step = max(1, _CELLS // b_terms.shape[0])
    for start in range(0, len(a), step):
        stop()
        part = slice(start, start + step)
        matches = index.search(a[part], half)
        keys = np.atleast_2d(matches.keys).astype(np.int64)
        found[part, : keys.shape[1]] = keys
        near = np.asarray((a_terms[part] @ b_terms.T).toarray(), np.float32)
        best = np.argpartition(near, near.shape[1] - half, axis=1)[:, near.shape[1] - half :]
        found[part, half:] = np.where(np.take_along_axis(near, best, axis=1) > 0, best, -1)
    return found
