"""What one statement left: rows that are read as they are asked for.

DuckDB keeps one open result a connection. An `Outcome` therefore knows how to step aside (`detach`: the rest goes
to memory), and tells the session once when its rows are no longer wanted (`on_done`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from sqluice.engine import duckdb_errors
from sqluice.engine.dbapi_types import row_reader
from sqluice.errors import InterfaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from sqluice.engine.dbapi_types import Row
    from sqluice.engine.report import Report

BATCH_ROWS = 8192


class Outcome:
    """What one statement left: lazily read rows, or none.

    `columns` are `(name, DuckDB type or its name)`, None for a statement without rows. `rowcount` is -1 where
    DuckDB tells no number of changed rows. `messages` and `report` may grow while rows are read.
    `make_reader(n)` starts the query and reads `n` rows a batch; it is called at most once.
    `rows_read` counts what DuckDB gave.
    `on_done(error)` is called exactly once: when the rows are drained, closed (both None) or failed.
    """

    def __init__(
        self,
        columns: list[tuple[str, object]] | None,
        make_reader: Callable[[int], pa.RecordBatchReader] | None,
        *,
        rowcount: int = -1,
        report: Report | None = None,
        messages: list[tuple[type, str]] | None = None,
        on_done: Callable[[BaseException | None], None] | None = None,
        translate: Callable[[BaseException], Exception] = duckdb_errors.translate,
    ) -> None:
        self.columns = columns
        self.rowcount = rowcount
        self.report = report
        self.messages: list[tuple[type, str]] = [] if messages is None else messages
        self.done = False
        self.drained = False
        self.handed_out = False
        self.rows_read = 0
        self._make_reader = make_reader
        self._on_done = on_done
        self._translate = translate
        self._source: pa.RecordBatchReader | None = None
        self._schema: pa.Schema | None = None
        self._kept: deque[pa.RecordBatch] = deque()
        self._failure: BaseException | None = None

    def schema(self, rows_per_batch: int = BATCH_ROWS) -> pa.Schema:
        """The rows' Arrow schema. The first call starts the query."""
        if self._schema is None:
            self._check_open()
            try:
                assert self._make_reader is not None, "the statement left no rows"
                self._source = self._make_reader(rows_per_batch)
                self._schema = self._source.schema
            except BaseException as error:
                self._fail(error)
                raise
        return self._schema

    def next_batch(self, rows_per_batch: int = BATCH_ROWS) -> pa.RecordBatch | None:
        """The next rows, at least one; None after the last. `rows_per_batch` counts for the first call alone."""
        if self._kept:
            return self._kept.popleft()
        if self._failure is not None:
            raise self._failure
        if self.drained:
            return None
        self.schema(rows_per_batch)
        self._check_open()
        return self._pull()

    def unread(self, batch: pa.RecordBatch) -> None:
        """Give back rows that were taken and not used; they come next."""
        if batch.num_rows:
            self._kept.appendleft(batch)

    def reader(self, rows_per_batch: int = BATCH_ROWS, *, keep: object = None) -> pa.RecordBatchReader:
        """The remaining rows, `rows_per_batch` at a time (the last batch has the rest), once.

        The reader owns the rows from here on: dropping it closes the outcome. `keep` lives as long as it.
        """
        import pyarrow as pa

        if rows_per_batch < 1:
            raise InterfaceError(f"rows_per_batch is at least 1, not {rows_per_batch}")
        if self.handed_out and not self.drained:
            raise InterfaceError("the rows were already handed out as an Arrow reader")
        schema = self.schema(rows_per_batch)
        self.handed_out = True
        return pa.RecordBatchReader.from_batches(schema, _Batches(self, rows_per_batch, keep))

    def detach(self) -> None:
        """Read the rest into memory: the DuckDB connection is wanted by another statement.

        A failure is kept for whoever reads these rows; it does not concern the other statement.
        """
        if self.done or self.columns is None:
            return
        batches: list[pa.RecordBatch] = list(self._kept)
        self._kept.clear()
        with contextlib.suppress(Exception):
            while (batch := self.next_batch()) is not None:
                batches.append(batch)
        self._kept.extend(batches)

    def close(self) -> None:
        """Drop the rows not read yet. Closing twice is harmless."""
        if self._kept:
            self.drained = False  # a reader that still asks must hear that rows are missing
            self._kept.clear()
        self._finish(None)

    def _pull(self) -> pa.RecordBatch | None:
        """One batch from DuckDB."""
        assert self._source is not None
        try:
            while True:
                batch = self._source.read_next_batch()
                if batch.num_rows:
                    self.rows_read += batch.num_rows
                    return batch
        except StopIteration:
            self.drained = True
        except BaseException as error:
            self._fail(error)
            raise
        self._finish(None)
        return None

    def _check_open(self) -> None:
        if self.done and not self.drained:
            raise InterfaceError(
                "these rows were closed: the cursor or connection was closed, or ran another statement"
            )

    def _fail(self, error: BaseException) -> None:
        """End with `error`: raises the translated error, unless `error` is none of Exception (Ctrl-C)."""
        failure = self._translate(error) if isinstance(error, Exception) else error
        self._failure = failure
        try:
            self._finish(failure)
        finally:
            if failure is not error:
                raise failure from error

    def _finish(self, error: BaseException | None) -> None:
        """Release DuckDB's result and tell the session, once."""
        if self.done:
            return
        self.done = True
        source, self._source, self._make_reader = self._source, None, None
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(error)


class Rows:
    """An outcome's rows as tuples of Python values, a batch turned into rows at a time."""

    def __init__(self, outcome: Outcome) -> None:
        assert outcome.columns is not None
        self.taken = 0
        self._outcome = outcome
        self._columns = outcome.columns
        self._rows_of: Callable[[pa.RecordBatch], list[Row]] | None = None
        self._batch: pa.RecordBatch | None = None
        self._rows: list[Row] = []
        self._at = 0

    def take(self, count: int | None) -> list[Row]:
        """The next `count` rows, all when None."""
        found: list[Row] = []
        while (count is None or len(found) < count) and (self._at < len(self._rows) or self._refill()):
            end = len(self._rows) if count is None else min(len(self._rows), self._at + count - len(found))
            found += self._rows[self._at : end]
            self._at = end
        self.taken += len(found)
        return found

    def reader(self, rows_per_batch: int, *, keep: object) -> pa.RecordBatchReader:
        """The rows not taken, as Arrow."""
        if self._batch is not None:
            self._outcome.unread(self._batch.slice(self._at))
            self._batch, self._rows, self._at = None, [], 0
        return self._outcome.reader(rows_per_batch, keep=keep)

    def _refill(self) -> bool:
        if self._outcome.handed_out and not self._outcome.drained:
            raise InterfaceError("the rows were handed out as Arrow")
        self._batch, self._rows, self._at = self._outcome.next_batch(), [], 0
        if self._batch is None:
            return False
        self._rows_of = self._rows_of or row_reader(self._columns)
        self._rows = self._rows_of(self._batch)
        return True


class _Batches:
    """An outcome's rows as an iterator of batches of one size; closes the outcome when it is dropped."""

    def __init__(self, outcome: Outcome, size: int, keep: object) -> None:
        self._outcome = outcome
        self._size = size
        self._keep = keep
        self._ready: deque[pa.RecordBatch] = deque()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        parts: list[pa.RecordBatch] = []
        missing = self._size
        while missing and (batch := self._outcome.next_batch(self._size)) is not None:
            part = batch.slice(0, missing)
            self._outcome.unread(batch.slice(part.num_rows))
            parts.append(part)
            missing -= part.num_rows
        if not parts:
            raise StopIteration
        return parts[0] if len(parts) == 1 else _joined(parts)

    def __del__(self) -> None:
        # Nobody can receive an error here; at exit the session may be half gone.
        with contextlib.suppress(Exception):
            self._outcome.close()


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
