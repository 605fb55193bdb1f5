"""How alike two texts look on their surface: TF-IDF over words, trigrams of letters, and codes (words with digits).

Terms are hashed, so that no vocabulary has to be built; weights are 1 + log tf times the inverse document frequency of
both sides together (Salton and Buckley 1988), rows have unit length.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

BUCKETS = 1 << 20
LONGEST = 4000
"""Characters of a text that are looked at: one giant value must not hold up the others."""

_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*")
_LETTERS = re.compile(r"[^\W_]+")
_CODE = re.compile(r"[\w.\-]*\d[\w.\-]*")


@dataclass(frozen=True, slots=True)
class Terms:
    """Sparse matrices of both sides, [n, BUCKETS] and [m, BUCKETS]: `left` and `right` TF-IDF rows of unit length,
    `left_set` and `right_set` the square root of the IDF where a term is there. Their products give cosines, and the
    weight of the terms that two texts share. `weights`: the IDF of all terms of each text, float [n] and float [m]."""

    left: Any
    right: Any
    left_set: Any
    right_set: Any
    weights: tuple[np.ndarray, np.ndarray]


def words(text: str) -> list[str]:
    """Words and numbers, lower case."""
    return _WORD.findall(text[:LONGEST].lower())


def codes(text: str) -> list[str]:
    """Words with a digit in them: model numbers, years, versions, sizes."""
    return [code.strip(".-") for code in _CODE.findall(text[:LONGEST].lower())]


def trigrams(text: str) -> list[str]:
    """Three letters in a row, over word boundaries."""
    line = f" {' '.join(_LETTERS.findall(text[:LONGEST].lower()))} "
    return [line[at : at + 3] for at in range(len(line) - 2)]


def terms(left: Sequence[str], right: Sequence[str], split: Callable[[str], list[str]]) -> Terms:
    """Both sides by the terms that `split` finds."""
    from scipy import sparse

    counts = [_counts(side, split) for side in (left, right)]
    seen = sum(np.bincount(one.indices, minlength=BUCKETS) for one in counts)
    idf = np.log((len(left) + len(right) + 1) / (seen + 1.0))
    found = []
    for one in counts:
        weighted = one.copy()
        weighted.data = ((1 + np.log(one.data)) * idf[one.indices]).astype(np.float32)
        lengths = np.sqrt(_sums(weighted))
        weighted.data /= np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(one.indptr)).astype(np.float32)
        there = sparse.csr_matrix(
            (np.sqrt(idf[one.indices]).astype(np.float32), one.indices, one.indptr), shape=one.shape
        )
        found.append((weighted, there))
    (a, a_set), (b, b_set) = found
    return Terms(a, b, a_set, b_set, (_sums(a_set), _sums(b_set)))


def _counts(texts: Iterable[str], split: Callable[[str], list[str]]) -> Any:
    from scipy import sparse

    known: dict[str, int] = {}
    indices: list[int] = []
    ends = [0]
    for text in texts:
        for term in split(text):
            at = known.get(term)
            if at is None:
                at = known[term] = zlib.crc32(term.encode("utf-8", "surrogatepass")) % BUCKETS
            indices.append(at)
        ends.append(len(indices))
    data = np.ones(len(indices), np.float32)
    found = sparse.csr_matrix((data, np.array(indices, np.int32), np.array(ends)), shape=(len(ends) - 1, BUCKETS))
    found.sum_duplicates()
    return found


def _sums(matrix: Any) -> np.ndarray:
    """Of each row the sum of squares, float64 [n]."""
    return np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel()
