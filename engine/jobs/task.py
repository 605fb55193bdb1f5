"""One partition of a job, run in a worker process with a DuckDB of its own."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.engine.jobs.inputs import opens, text
from sqluice.engine.policies import Shared
from sqluice.errors import Error

if TYPE_CHECKING:
    from sqluice.config import Value
    from sqluice.engine.dbapi import Connection
    from sqluice.engine.report import Report
    from sqluice.optimizer.cascade.policy import Policy


@dataclass(frozen=True)
class Work:
    """`sql` over `views` (name to SELECT), written to a file in the folder `rows` that is named after `name` and the
    attempt. `before` are the statements that come first; `models` are registered objects by name. `policies` are those
    of the job's cascades."""

    name: str
    sql: str
    before: tuple[str, ...]
    views: dict[str, str]
    rows: str
    settings: dict[str, Value]
    allow_models: tuple[str, ...] | None = None
    models: dict[str, Any] = field(default_factory=dict)
    home: str | None = None
    threads: int = 1
    policies: dict[str, Policy] = field(default_factory=dict)
    partitions: int = 1


def run(work: Work) -> dict[str, Any]:
    """The record of a partition: its file and what it took. `{'failed': text}` where the query is at fault, which would
    fail again. What was written is gone then."""
    if work.home is not None:
        os.environ["SQLUICE_HOME"] = work.home
    path = Path(work.rows) / f"{work.name}-{uuid.uuid4().hex}.parquet"
    try:
        return written(work, path)
    except Error as error:
        path.unlink(missing_ok=True)
        return {"failed": f"{type(error).__name__}: {error}"}
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def written(work: Work, path: Path) -> dict[str, Any]:
    """The record of rows that are now in the file `path`."""
    shared = Shared(work.policies, work.partitions)
    with connected(work, shared) as con:
        cursor = con.execute(f"COPY ({work.sql}) TO {text(str(path))} (FORMAT parquet)")
        warnings = list(dict.fromkeys(str(text) for _, text in cursor.messages))
        record = {"file": path.name, "rows": cursor.rowcount, "warnings": warnings[:5], **spent(cursor.report)}
    if work.policies:
        from sqluice.engine.jobs.learning import write_seen

        record["seen"] = path.with_suffix(".seen.parquet").name
        write_seen(shared.seen, path.with_name(record["seen"]))
    return record


def connected(work: Work, shared: Shared | None = None) -> Connection:
    """A connection that sees the views of some work."""
    import sqluice

    allowed = None if work.allow_models is None else list(work.allow_models)
    con = sqluice.connect(config={"threads": work.threads}, allow_models=allowed, **work.settings)  # type: ignore[arg-type]
    if shared is not None:
        con._session.runner.shared = shared  # noqa: SLF001 - nobody else shares cascades
    for name, model in work.models.items():
        con.register_model(name, model)
    for statement in filter(opens, work.before):
        con.execute(statement)
    for name, select in work.views.items():
        con.execute(f'CREATE TEMP VIEW "{name}" AS {select}')
    for statement in work.before:
        if not opens(statement):
            con.execute(statement)
    return con


def spent(report: Report | None) -> dict[str, Any]:
    """What a run took, as numbers that add up."""
    if report is None:
        return {"calls": 0, "cached": 0, "failed_rows": 0, "tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}
    return {
        "calls": report.calls,
        "cached": report.cached,
        "failed_rows": report.failed,
        "tokens_in": report.tokens_in,
        "tokens_out": report.tokens_out,
        "cost_usd": report.cost_usd,
        "label": report.label,
    }
