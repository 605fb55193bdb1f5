"""A job whose process is killed at any point goes on, and every row is there once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.work import COUNT, FILTER, ROWS, Here, expected, make_input, request, rows, run, run_to_be_killed
from sqluice.engine.jobs.api import state_of
from sqluice.engine.jobs.driver import Job, JobState
from sqluice.errors import OperationalError
from sqluice.workers.ray.tasks import Tasks
from support.scale import repeats

KILLS = repeats(8, 20)


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


def run_on_ray(address: str, pattern: str, out: str, home: str) -> None:
    """What another process does until it is killed."""
    os.environ["SQLUICE_HOME"] = home
    job = request(pattern, FILTER, seconds=0.05, partitions=12, settings={"ai_workers": "ray"})
    Job(job, Path(out), lambda function: Tasks(function, address), resume=True).run()


@pytest.mark.long
def test_a_driver_killed_while_its_tasks_run_on_ray(cluster: str, tmp_path: Path, processes: Any) -> None:
    pattern, out, home = make_input(tmp_path / "in"), tmp_path / "out", str(tmp_path / "home")
    process = processes.Process(target=run_on_ray, args=(cluster, pattern, str(out), home))
    process.start()
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*.parquet"))) < 2 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode != 0, "it was to be killed before it was done"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 2 <= len(before) < 12
    again = processes.Process(target=run_on_ray, args=(cluster, pattern, str(out), home))
    again.start()
    again.join()
    assert again.exitcode == 0
    assert rows(out) == expected()
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert before.items() <= after.items(), "what was finished was done again"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are those of POSIX")
def test_a_disk_that_takes_no_more(tmp_path: Path, processes: Any) -> None:
    pattern, out = make_input(tmp_path / "in"), tmp_path / "out"
    process = processes.Process(target=run_short_of_disk, args=(pattern, str(out), str(tmp_path / "home")))
    process.start()
    process.join()
    assert process.exitcode == 3, "partitions that do not fit are reported"
    state = state_of(out)
    assert state.status in ("failed", "stopped"), "the state may not fit either"
    assert 0 < state.done < 6
    assert run(pattern, out, resume=True).done == 6
    assert rows(out) == expected()


def run_short_of_disk(pattern: str, out: str, home: str) -> None:
    """Files grow to some bytes and no further, from the third partition on."""
    import resource

    os.environ["SQLUICE_HOME"] = home
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(state: JobState) -> None:
        if state.done == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
        if state.status != "running" or len(state.error):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    try:
        Job(request(pattern, settings={"ai_cache": "off"}), Path(out), Here, on_state=limit).run()
    except OperationalError:
        sys.exit(3)


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
        state = run(pattern, out, sql, resume=True, partitions=4)
        assert state.status == "done"
        assert state.rows_in == ROWS
        assert rows(out) == wanted
        after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        assert before.items() <= after.items(), "what was finished was done again"
        assert not list((out / "_sqluice" / "rows").iterdir())
    assert killed >= KILLS // 4, "most of them were to be killed before they were done"
