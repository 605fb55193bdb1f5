"""The distinct inputs of a question, as a table that an operator can read in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice.engine.execution import Executor
    from sqluice.engine.run import Given
    from sqluice.optimizer.plan import Ask

WINDOW_ROWS = 4096


class Inputs:
    """Inputs numbered beyond a start, in an order that depends on a seed and on themselves, never on how they arrived:
    any beginning of it is a random sample. `n_rows` int64 [n] is how many rows each stands for, `keys` uint64 [n] tell
    them apart by their arguments alone."""

    def __init__(self, executor: Executor, ask: Ask, inputs: str, answers: str, seed: int, start: int) -> None:
        self._executor = executor
        self._arity = len(ask.args)
        self._table = inputs
        self._answers = answers
        order = f"md5_number(k::VARCHAR || ':{seed}'), k"
        low = "(k & 18446744073709551615)::UBIGINT"
        found = executor.columns(f'SELECT id, n, {low} AS key FROM "{inputs}" WHERE id > {start} ORDER BY {order}')
        self._ids = found["id"][0]
        self.keys = found["key"][0].astype(np.uint64)
        self.n_rows = found["n"][0].astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def texts(self, rows: np.ndarray) -> list[list[str]]:
        """The arguments of some inputs, one list an argument, in the order of `rows`."""
        return self._executor.texts_of(self._table, self._ids[rows], self._arity)

    def windows(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """`rows`, a bounded number at a time."""
        for start in range(0, len(rows), WINDOW_ROWS):
            yield rows[start : start + WINDOW_ROWS]

    def store(self, rows: np.ndarray, given: Given) -> None:
        """Keep the answers to some inputs."""
        self._executor.store(self._table, self._answers, self._ids[rows], given)
