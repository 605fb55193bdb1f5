"""`sqluice.run_job`, and where a job is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice import config
from sqluice.engine.budget import Budget
from sqluice.engine.jobs.driver import Job, JobState
from sqluice.engine.jobs.folder import JobFolder
from sqluice.engine.jobs.inputs import Input
from sqluice.engine.jobs.plan import Request
from sqluice.errors import ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqluice.config import Value


def run_job(
    sql: str,
    inputs: str | Sequence[str] | Mapping[str, str],
    output: str | Path,
    *,
    address: str | None = None,
    partitions: int | None = None,
    resume: bool = False,
    budget: str | None = None,
    models: Mapping[str, Any] | None = None,
    allow_models: Sequence[str] | None = None,
    on_state: Callable[[JobState], None] | None = None,
    **settings: Value,
) -> JobState:
    """Run one SELECT over Parquet files, partition by partition on Ray, into the folder `output`.

    `inputs` are paths or patterns: `'data/*.parquet'` is the table `input`; `'papers=p/*.parquet'`, or a mapping, gives
    other names. The first is cut into partitions, every partition sees all of the others. Statements before the SELECT
    run first in every partition. `address` is a Ray cluster's; Ray is started on this machine without one. `resume`
    goes on with what `output` holds. `models` are objects as for `register_model`, sent to the workers by pickle.
    `settings` are `ai_...` names; partitions share model workers (`ai_workers = 'ray'`) unless they say otherwise.

    Raises `ProgrammingError` and `NotSupportedError` for a wrong request, before anything is written;
    `OperationalError` when partitions fail (what is finished is kept) and `InterruptedQueryError` when the job was
    cancelled.
    """
    from sqluice.workers.ray.tasks import Tasks

    request = Request(
        sql,
        _inputs(inputs),
        partitions,
        {"ai_workers": "ray", **{name: config.parse(name, value) for name, value in settings.items()}},
        None if allow_models is None else tuple(allow_models),
        dict(models or {}),
        budget,
    )
    if budget is not None:
        Budget.of(str(config.parse("ai_budget", budget)))
    if partitions is not None and partitions < 1:
        raise ProgrammingError(f"partitions is at least 1, not {partitions}")
    return Job(request, Path(output), lambda function: Tasks(function, address), resume, on_state).run()


def _inputs(given: str | Sequence[str] | Mapping[str, str]) -> tuple[Input, ...]:
    if isinstance(given, str):
        given = [given]
    named = given.items() if hasattr(given, "items") else None
    found = tuple(Input(*one) for one in named) if named is not None else tuple(map(Input.parse, given))
    if not found:
        raise ProgrammingError("a job reads at least one input")
    names = [one.name.lower() for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ProgrammingError(f"two inputs are named {name}; name them: --input a=.. --input b=..")
    return found


def state_of(out: Path) -> JobState:
    """Where the job in a folder is. `OperationalError` where there is none."""
    folder = JobFolder(out)
    folder.job()
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in folder.state().items()
    }
    state = JobState(**told)
    if state.status == "running" and not folder.is_running():
        return replace(state, status="stopped", error="its process is gone")
    return state
