"""What is known of a pair before anybody is asked: numbers from which the score of a pair is learnt.

Cosine of embeddings, TF-IDF cosines over words and trigrams, shares of common words and codes, and of each
similarity how near the pair comes to the best one of its left and of its right input: a text that resembles everything
is no match of anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.optimizer.joins.lexical import Terms, codes, terms, trigrams, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.optimizer.joins.pairs import Pairs

BLOCK_CELLS = 8_000_000
"""Cells of the product of both sides that are held at once."""

_TINY = 1e-9


@dataclass(slots=True)
class Described:
    """Both sides of a join, described: embeddings of unit length, float32 [n, d] and [m, d] (None without an
    embedder), and their terms."""

    vectors: tuple[np.ndarray, np.ndarray] | None
    by_word: Terms
    by_trigram: Terms
    by_code: Terms

    @classmethod
    def of(
        cls, left: Sequence[str], right: Sequence[str], vectors: tuple[np.ndarray, np.ndarray] | None = None
    ) -> Described:
        """From texts, one a distinct input. Rows without an embedding (NaN) are like nothing."""
        if vectors is not None:
            vectors = (np.nan_to_num(vectors[0]), np.nan_to_num(vectors[1]))
        return cls(vectors, *(terms(left, right, split) for split in (words, trigrams, codes)))

    def of_pairs(self, pairs: Pairs, stop: Callable[[], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Features, float32 [n, d], and how similar each pair looks, float32 [n]. `stop` is called now and then."""
        sims = 2 if self.vectors is None else 3
        columns = sims + 4 + 3 + 2 * sims
        found = np.zeros((len(pairs), columns), np.float32)
        rows_at_once = max(1, BLOCK_CELLS // max(pairs.rights, 1))
        order = np.argsort(pairs.left, kind="stable") if np.any(np.diff(pairs.left) < 0) else np.arange(len(pairs))
        lefts = pairs.left[order]
        for start in range(0, pairs.lefts, rows_at_once):
            if stop is not None:
                stop()
            first, last = np.searchsorted(lefts, [start, start + rows_at_once])
            if first == last:
                continue
            rows = order[first:last]
            found[rows, : sims + 7] = self._block(start, start + rows_at_once, pairs, rows)
        for at in range(sims):
            near = found[:, at]
            for to, side, size in ((0, pairs.left, pairs.lefts), (1, pairs.right, pairs.rights)):
                best = np.full(size, _TINY, np.float32)
                np.maximum.at(best, side, near)
                found[:, sims + 7 + 2 * at + to] = near / best[side]
        return found, found[:, :sims].mean(axis=1)

    def _block(self, start: int, end: int, pairs: Pairs, rows: np.ndarray) -> np.ndarray:
        """Features of pairs whose left inputs are those from `start` to `end`."""
        left, right = pairs.left[rows] - start, pairs.right[rows]
        dense = len(rows) * 8 > (end - start) * pairs.rights

        def taken(a: Any, b: Any) -> np.ndarray:
            if dense:
                return np.asarray((a[start:end] @ b.T).toarray()[left, right])
            return np.asarray(a[pairs.left[rows]].multiply(b[right]).sum(axis=1)).ravel()

        parts = []
        if self.vectors is not None:
            a, b = self.vectors
            if dense:
                parts.append((a[start:end] @ b.T)[left, right])
            else:
                parts.append(np.einsum("nd,nd->n", a[pairs.left[rows]], b[right]))
        parts += [taken(one.left, one.right) for one in (self.by_word, self.by_trigram)]
        for one, both in ((self.by_word, True), (self.by_code, False)):
            common = taken(one.left_set, one.right_set)
            a_all, b_all = one.weights
            a_all, b_all = a_all[pairs.left[rows]], b_all[right]
            parts.append(common / np.maximum(a_all + b_all - common, _TINY))
            parts.append(common / np.maximum(np.minimum(a_all, b_all), _TINY))
            if both:
                parts.append(common / np.maximum(a_all, _TINY))
                parts.append(common / np.maximum(b_all, _TINY))
            else:
                parts.append(((a_all > 0) & (b_all > 0) & (common == 0)).astype(np.float32))
        return np.stack(parts, axis=1).astype(np.float32)
