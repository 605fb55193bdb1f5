"""SQL as a step of a Ray Data pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice import config
from sqluice.engine.jobs.inputs import DRIVING
from sqluice.engine.jobs.plan import same_rows
from sqluice.engine.jobs.task import Work, connected
from sqluice.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.engine.dbapi import Connection

BATCH_ROWS = 4096


def map_batches(
    dataset: Any,
    sql: str,
    *,
    batch_rows: int = BATCH_ROWS,
    models: Mapping[str, Any] | None = None,
    allow_models: Sequence[str] | None = None,
    **settings: Value,
) -> Any:
    """A `ray.data.Dataset` with the rows that `sql` makes of each batch of `dataset`, which it reads as table `input`.

    Every row of the result has to come from one row of the batch: filters and columns, no aggregates. Batches share
    model workers (`ai_workers = 'ray'`), and ask for no CPU of their own: they wait for models, and would otherwise
    keep those from starting. A cascade's contract is kept in each batch. `NotSupportedError` for any other query.
    """
    given: dict[str, Value] = {"ai_workers": "ray", **{name: config.parse(name, one) for name, one in settings.items()}}
    work = Work(
        DRIVING, sql, (), {}, "", given, None if allow_models is None else tuple(allow_models), dict(models or {})
    )
    schema = dataset.schema(fetch_if_missing=True)
    _check(work, schema.base_schema)
    return dataset.map_batches(_Step(work), batch_size=batch_rows, batch_format="pyarrow", num_cpus=0)


def _check(work: Work, schema: pa.Schema) -> None:
    with connected(work) as con:
        con.register(DRIVING, schema.empty_table())
        why = same_rows(con, work.sql, DRIVING)
    if why:
        raise NotSupportedError(f"the query looks at more than one batch: {why}; use sqluice job")


class _Step:
    """What runs on each batch: a function to Ray, with a connection in each process that it comes to."""

    __name__ = "sqluice"

    def __init__(self, work: Work) -> None:
        self._work = work
        self._con: Connection | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._con is None:
            self._con = connected(self._work)
        self._con.register(DRIVING, batch)
        try:
            return self._con.execute(self._work.sql).fetch_arrow_table()
        finally:
            self._con.unregister(DRIVING)

    def __getstate__(self) -> dict[str, Any]:
        return {"_work": self._work, "_con": None}
