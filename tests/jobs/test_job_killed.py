"""A job whose process is killed at any point goes on, and every row is there once."""

from __future__ import annotations

import multiprocessing
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from jobs.work import COUNT, FILTER, ROWS, expected, make_input, rows, run, run_to_be_killed

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 20


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobs.work", "sqluice.engine.session", "sqluice.engine.statement", "pandas"])
    return context


def start(processes: Any, *args: str) -> Any:
    ready = processes.Event()
    process = processes.Process(target=run_to_be_killed, args=(*args, ready))
    process.start()
    assert ready.wait(60)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("sql", [FILTER, COUNT], ids=["filter", "count"])
def test_kill_9_at_random_points(tmp_path: Path, processes: Any, sql: str) -> None:
    pattern = make_input(tmp_path / "in")
    first = time.monotonic()
    process = start(processes, pattern, str(tmp_path / "whole"), sql, str(tmp_path / "home-whole"))
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    whole = time.monotonic() - began
    assert first <= began
    wanted = rows(tmp_path / "whole")
    assert wanted == (expected() if sql == FILTER else [(kind, ROWS // 15) for kind in range(5)])
    generator, killed = random.Random(7), 0
    for number in range(KILLS // 2):
        out, home = tmp_path / str(number), tmp_path / f"home-{number}"
        process = start(processes, pattern, str(out), sql, str(home))
        process.join(generator.uniform(0, whole))
        process.kill()
        process.join()
        killed += process.exitcode != 0
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        state = run(pattern, out, sql, resume=True)
        assert state.status == "done"
        assert state.rows_in == ROWS
        assert rows(out) == wanted
        after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        assert before.items() <= after.items(), "what was finished was done again"
        assert not list((out / "_sqluice" / "rows").iterdir())
    assert killed >= KILLS // 4, "most of them were to be killed before they were done"
