"""Jobs for tests: their input, a model that is quick, and a pool that runs tasks in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from sqluice.engine.jobs.driver import Job, JobState
from sqluice.engine.jobs.inputs import Input
from sqluice.engine.jobs.plan import Request
from support.scripted import Faults, scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 600
FILTER = "SELECT id, text FROM input WHERE AI_FILTER(text)"
COUNT = "SELECT kind, count(*) AS n FROM input WHERE AI_FILTER(text) GROUP BY kind ORDER BY kind"


class Here:
    """Runs one task at a time, here."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._waiting: list[tuple[str, Any]] = []

    def room(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, name: str, argument: Any) -> None:
        self._waiting.append((name, argument))

    def finished(self, _seconds: float) -> Iterator[tuple[str, Any]]:
        while self._waiting:
            name, argument = self._waiting.pop()
            yield name, self._function(argument)

    def stop(self) -> None:
        self._waiting.clear()


def make_input(path: Path, rows: int = ROWS, files: int = 3) -> str:
    """Parquet files below `path`; their pattern."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        first, last = rows * number // files, rows * (number + 1) // files
        duckdb.sql(
            "COPY (SELECT i AS id, CASE WHEN i % 3 = 0 THEN 'good ' ELSE 'bad ' END || i AS text, i % 5 AS kind"
            f" FROM range({first}, {last}) r(i)) TO '{path}/{number}.parquet' (FORMAT parquet)"
        )
    return f"{path}/*.parquet"


def request(pattern: str, sql: str = FILTER, *, partitions: int = 6, seconds: float = 0.0, **more: Any) -> Request:
    """A job on a scripted model that takes some seconds a micro-batch."""
    model = scripted("oracle", "keyword good")
    model.faults = Faults(seconds_per_batch=seconds)
    model.info = replace(model.info, revision=pattern)  # nothing in the cache from other tests
    settings = {"ai_oracle": "oracle", "ai_mode": "exact", "ai_cache": "disk", "ai_trace": "off"}
    return Request(
        sql,
        (Input.parse(pattern),),
        partitions,
        {**settings, **more.pop("settings", {})},
        models={"oracle": model},
        **more,
    )


def run(pattern: str, out: Path, sql: str = FILTER, *, resume: bool = False, **more: Any) -> JobState:
    """Run a job here."""
    return Job(request(pattern, sql, **more), out, Here, resume).run()


def run_to_be_killed(pattern: str, out: str, sql: str, home: str, ready: Any) -> None:
    """What another process does until it is killed; `ready` is set when it begins."""
    import os

    os.environ["SQLUICE_HOME"] = home
    ready.set()
    run(pattern, Path(out), sql, resume=True, seconds=0.005, partitions=4)


def rows(out: Path) -> list[tuple[Any, ...]]:
    """All rows of a job's output, in order."""
    return sorted(duckdb.sql(f"SELECT * FROM read_parquet('{out}/*.parquet')").fetchall())


def expected(total: int = ROWS) -> list[tuple[int, str]]:
    """The rows of `FILTER`."""
    return [(i, f"good {i}") for i in range(total) if i % 3 == 0]
