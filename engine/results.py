"""DuckDB's answer to a statement as an `Outcome`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.engine.dbapi_types import exportable
from sqluice.engine.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    Params = Sequence[object] | Mapping[str, object] | None

FIRST_ROWS = 65_536
"""Rows read at once; a result of fewer rows is complete when `execute` returns."""

_COUNT, _NOTHING = ["Count"], ["Success"]


def outcome_of(
    con: Any,
    sql: str,
    params: Params = None,
    *,
    names: list[str] | None = None,
    on_done: Callable[[BaseException | None], None] | None = None,
    translate: Callable[[BaseException], Exception],
) -> Outcome:
    """Start `sql` on `con`. duckdb's errors reach the caller while it starts; later they go through `translate`.

    `names` replace the columns' names, whose text DuckDB made from the SQL it was given.
    """
    relation = con.sql(sql) if params is None else con.sql(sql, params=_plain(params))
    if relation is None:
        return _finished(Outcome(None, None, on_done=on_done))
    columns = list(relation.columns)
    if columns in (_COUNT, _NOTHING) and not _is_query(con, sql):
        rows = relation.fetchall()
        changed = int(rows[0][0]) if columns == _COUNT and rows else -1
        return _finished(Outcome(None, None, rowcount=changed, on_done=on_done))
    shown = names if names is not None and len(names) == len(columns) else columns

    described = list(zip(shown, relation.types, strict=True))
    source = exportable(relation)

    def read(rows: int) -> pa.RecordBatchReader:
        return _named(source.to_arrow_reader(rows), shown)

    return Outcome(described, read, on_done=on_done, translate=translate)


def peek(outcome: Outcome) -> Outcome:
    """Read the first rows, so that errors surface now and a small result lets go of DuckDB at once."""
    if outcome.columns is None:
        return outcome
    first = outcome.next_batch(FIRST_ROWS)
    if first is not None:
        second = outcome.next_batch()
        if second is not None:
            outcome.unread(second)
        outcome.unread(first)
    return outcome


def drain(outcome: Outcome) -> int:
    """Read every row and drop it; how many there were."""
    total = 0
    if outcome.columns is not None:
        while (batch := outcome.next_batch()) is not None:
            total += batch.num_rows
    return total


def rows_outcome(columns: Mapping[str, list[str]]) -> Outcome:
    """An outcome of text columns made by us."""
    import pyarrow as pa

    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Outcome([(name, "VARCHAR") for name in columns], table.to_reader)


def _finished(outcome: Outcome) -> Outcome:
    outcome.close()
    return outcome


def _plain(params: Sequence[object] | Mapping[str, object]) -> Any:
    return dict(params) if hasattr(params, "keys") else list(params)


def _is_query(con: Any, sql: str) -> bool:
    """Whether a statement whose one column is called Count or Success is a query all the same."""
    found = con.extract_statements(sql)
    return bool(found) and "SELECT" in str(found[-1].type)


def _named(reader: pa.RecordBatchReader, names: list[str]) -> pa.RecordBatchReader:
    import pyarrow as pa

    if reader.schema.names == names:
        return reader
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    return pa.RecordBatchReader.from_batches(
        schema, (pa.RecordBatch.from_arrays(b.columns, schema=schema) for b in reader)
    )
