"""Outcomes: rows stream, step aside, end once, and are never cut silently."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest

from sqluice.engine.outcome import Outcome
from sqluice.errors import DataError, InterfaceError

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = pa.schema({"i": pa.int64()})


class Source:
    """Batches of `size` rows out of a generator that counts; row number `bad` fails."""

    def __init__(self, rows: int = 10_000, size: int = 10, bad: int | None = None) -> None:
        self.rows, self.size, self.bad = rows, size, bad
        self.read = 0
        self.made = 0
        self.done: list[BaseException | None] = []

    def reader(self, _rows_per_batch: int) -> pa.RecordBatchReader:
        self.made += 1
        return pa.RecordBatchReader.from_batches(SCHEMA, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.rows, self.size):
            if self.bad is not None and start >= self.bad:
                raise OSError("Conversion Error: bad value")
            stop = min(start + self.size, self.rows)
            self.read += stop - start
            yield pa.record_batch({"i": range(start, stop)}, schema=SCHEMA)

    def outcome(self) -> Outcome:
        return Outcome([("i", "BIGINT")], self.reader, on_done=self.done.append)


def numbers(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch["i"].to_pylist()]


def test_nothing_runs_before_the_first_read_and_rows_stream() -> None:
    source = Source()
    outcome = source.outcome()
    assert source.made == 0
    batch = outcome.next_batch()
    assert batch is not None
    assert batch.num_rows == 10
    assert source.read == 10
    assert source.done == []


@pytest.mark.parametrize("size", [1, 7, 10, 25, 10_000, 20_000])
def test_a_reader_has_batches_of_the_size_asked_for(size: int) -> None:
    source = Source(rows=1000)
    batches = list(source.outcome().reader(size))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert numbers(batches) == list(range(1000))
    assert source.done == [None]


def test_rows_given_back_come_next() -> None:
    outcome = Source(rows=30).outcome()
    first = outcome.next_batch()
    assert first is not None
    outcome.unread(first.slice(4))
    assert numbers(outcome.reader(5)) == list(range(4, 30))


def test_detach_reads_the_rest_and_ends() -> None:
    source = Source(rows=100)
    outcome = source.outcome()
    reader = outcome.reader(10)
    assert reader.read_next_batch()["i"].to_pylist() == list(range(10))
    outcome.detach()
    assert source.read == 100
    assert source.done == [None]
    assert numbers(reader) == list(range(10, 100))
    assert source.done == [None]


def test_detach_before_the_first_read() -> None:
    source = Source(rows=100)
    outcome = source.outcome()
    outcome.detach()
    outcome.detach()
    assert source.made == 1
    assert numbers(outcome.reader()) == list(range(100))


def test_a_failure_is_translated_told_once_and_raised_again() -> None:
    source = Source(bad=20)
    outcome = source.outcome()
    assert numbers([outcome.next_batch(), outcome.next_batch()]) == list(range(20))
    for _ in range(2):
        with pytest.raises(DataError, match="bad value"):
            outcome.next_batch()
    outcome.close()
    assert len(source.done) == 1
    assert isinstance(source.done[0], DataError)


def test_a_failure_while_detaching_belongs_to_the_reader_of_the_rows() -> None:
    outcome = Source(bad=20).outcome()
    outcome.detach()
    with pytest.raises(DataError, match="bad value"):
        numbers(outcome.reader(10))


def test_a_failure_crosses_an_arrow_reader_as_ours() -> None:
    with pytest.raises(DataError, match="bad value"):
        Source(bad=20).outcome().reader(10).read_all()


def test_a_failure_to_start_is_translated() -> None:
    def fail(_rows: int) -> pa.RecordBatchReader:
        raise OSError("Conversion Error: bad value")

    done: list[BaseException | None] = []
    outcome = Outcome([("i", "BIGINT")], fail, on_done=done.append)
    with pytest.raises(DataError):
        outcome.next_batch()
    assert len(done) == 1


def test_ctrl_c_passes_as_it_is() -> None:
    def fail(_rows: int) -> pa.RecordBatchReader:
        raise KeyboardInterrupt

    done: list[BaseException | None] = []
    outcome = Outcome([("i", "BIGINT")], fail, on_done=done.append)
    with pytest.raises(KeyboardInterrupt):
        outcome.next_batch()
    assert isinstance(done[0], KeyboardInterrupt)


@pytest.mark.parametrize("detached", [False, True])
def test_closing_under_a_reader_is_an_error_not_an_end(detached: bool) -> None:
    source = Source()
    outcome = source.outcome()
    reader = outcome.reader(10)
    reader.read_next_batch()
    if detached:
        outcome.detach()
    outcome.close()
    outcome.close()
    assert source.done == [None]
    with pytest.raises(InterfaceError, match="closed"):
        reader.read_next_batch()


def test_a_drained_outcome_gives_an_empty_reader() -> None:
    outcome = Source(rows=10).outcome()
    assert outcome.reader().read_all().num_rows == 10
    again = outcome.reader().read_all()
    assert again.num_rows == 0
    assert again.schema == SCHEMA


def test_rows_are_handed_out_once() -> None:
    outcome = Source().outcome()
    reader = outcome.reader(10)
    with pytest.raises(InterfaceError, match="already"):
        outcome.reader(10)
    assert reader.read_next_batch().num_rows == 10


def test_a_dropped_reader_closes_its_outcome() -> None:
    source = Source()
    reader = source.outcome().reader(10)
    del reader
    gc.collect()
    assert source.done == [None]


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InterfaceError, match="rows_per_batch"):
        Source().outcome().reader(0)


def test_duckdbs_connection_is_free_after_close() -> None:
    with duckdb.connect() as con:
        relation = con.sql("SELECT i FROM range(300000) r(i)")
        outcome = Outcome([("i", "BIGINT")], relation.to_arrow_reader)
        assert outcome.next_batch(100) is not None
        outcome.close()
        assert con.sql("SELECT 42").fetchall() == [(42,)]
