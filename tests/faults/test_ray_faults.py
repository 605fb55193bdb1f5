"""Faults of Ray workers, as they happen: killed, stuck, slow, out of memory, unable to start. The answer is that of a
run without faults, every input is decided once, and what was spent in vain is counted apart."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqluice.errors import BrokenModelError, InterruptedQueryError, ModelError
from sqluice.workers.pools import pool_of
from sqluice.workers.ray.peers import Limits
from support.workers import Plan, Worked, asked, processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice import Connection

    Connect = Callable[..., Connection]

pytestmark = pytest.mark.ray

WHERE = "ray?workers=2&cpus=0.5"
FILTER = "SELECT i FROM range({}) t(i) WHERE AI_FILTER(PROMPT('Is it {{0}}?', 'row ' || i || '.')) ORDER BY i"
IMPATIENT = Limits(hung=5, hung_least=1, hung_first=3, silent=2, stalled_least=60)


def run(connection: Connection, n: int) -> tuple[list[Any], Any]:
    cursor = connection.cursor()
    found = cursor.execute(FILTER.format(n)).fetchall()
    return found, cursor.report


def both_up(connection: Connection) -> Connection:
    """The same, once both workers have the model."""
    run(connection, 1)
    pool: Any = pool_of(WHERE)
    assert pool.ready() == 2
    return connection


def expected(on_workers: Connect, tmp_path: Path, n: int) -> list[Any]:
    """What a run without faults answers, in process."""
    folder = tmp_path / "sound"
    folder.mkdir()
    return run(on_workers(Worked(folder), "local"), n)[0]


def check_trace(connection: Connection, report: Any, n: int) -> dict[str, int]:
    """One decision an input, and sums that agree; rows by outcome of the attempts."""
    cursor = connection.cursor()
    mark = f"run_id = '{report.run_id}'"
    decisions = cursor.execute(
        f"SELECT count(*), count(DISTINCT input_hash), sum(n_rows), sum(tokens_in) FROM ai.decisions WHERE {mark}"
    ).fetchone()
    assert decisions is not None
    assert tuple(decisions[:3]) == (n, n, n)
    tokens = cursor.execute(f"SELECT sum(tokens_in) FROM ai.batches WHERE {mark} AND outcome <> 'wasted'").fetchone()
    assert tokens is not None
    assert tokens[0] == decisions[3] == report.tokens_in > 0
    outcomes = cursor.execute(f"SELECT outcome, sum(rows) FROM ai.batches WHERE {mark} GROUP BY 1").fetchall()
    return {outcome: int(rows) for outcome, rows in outcomes}


def test_a_worker_killed_in_a_micro_batch_is_replaced(on_workers: Connect, tmp_path: Path) -> None:
    model = Worked(tmp_path, Plan(dies_once="row 90.", seconds_a_row=0.001, batch_rows=20))
    connection = on_workers(model)
    found, report = run(connection, 200)
    assert found == expected(on_workers, tmp_path, 200)
    assert (tmp_path / "died").exists()
    outcomes = check_trace(connection, report, 200)
    assert outcomes["ok"] == 200
    assert 20 <= outcomes["wasted"] <= 40  # what it was at, and what waited behind
    assert report.calls == 200
    time.sleep(3)
    run(connection, 200)
    assert len(processes(tmp_path)) == 3


def test_a_row_that_kills_workers_fails_alone(on_workers: Connect, tmp_path: Path) -> None:
    connection = on_workers(Worked(tmp_path, Plan(dies="row 13.", batch_rows=4)))
    found, report = run(connection, 40)
    assert found == [row for row in expected(on_workers, tmp_path, 40) if row != (13,)]
    assert report.failed == 1
    assert check_trace(connection, report, 40)["ok"] == 39
    said = connection.cursor().execute(
        f"SELECT error FROM ai.decisions WHERE run_id = '{report.run_id}' AND status = 'failed'"
    )
    assert "its worker died 2 times" in said.fetchall()[0][0]


def test_a_worker_that_hangs_is_replaced(on_workers: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_of(WHERE), "limits", IMPATIENT)
    connection = on_workers(Worked(tmp_path, Plan(hangs_once="row 90.", seconds_a_row=0.001, batch_rows=20)))
    started = time.monotonic()
    found, report = run(connection, 200)
    assert time.monotonic() - started < 30
    assert (tmp_path / "hung").exists()
    assert found == expected(on_workers, tmp_path, 200)
    assert check_trace(connection, report, 200)["ok"] == 200


def test_a_slow_worker_gets_little_and_hard_rows_are_asked_once(on_workers: Connect, tmp_path: Path) -> None:
    connection = both_up(on_workers(Worked(tmp_path, Plan(slow=5, seconds_a_row=0.005, batch_rows=10))))
    found, report = run(connection, 400)
    assert found == expected(on_workers, tmp_path, 400)
    check_trace(connection, report, 400)
    shares = connection.cursor().execute(
        f"SELECT worker, sum(rows) FROM ai.batches WHERE run_id = '{report.run_id}' AND outcome = 'ok' GROUP BY 1"
    )
    slow, fast = sorted(int(rows) for _, rows in shares.fetchall())
    assert slow * 3 < fast
    folder = tmp_path / "hard"
    folder.mkdir()
    hard = Worked(folder, Plan(hard="7.", seconds_a_row=0.002, batch_rows=10))
    found, report = run(on_workers(hard), 200)
    assert set(asked(folder).values()) == {1}


def test_memory_that_runs_out_halves_micro_batches(on_workers: Connect, tmp_path: Path) -> None:
    connection = on_workers(Worked(tmp_path, Plan(memory=8, batch_rows=64)))
    found, report = run(connection, 640)
    assert found == expected(on_workers, tmp_path, 640)
    outcomes = check_trace(connection, report, 640)
    assert outcomes["ok"] == 640
    assert outcomes["error"] < 640  # later micro-batches are not tried whole again


def test_workers_that_cannot_start(on_workers: Connect, tmp_path: Path) -> None:
    found, _ = run(on_workers(Worked(tmp_path, Plan(fails_start=1))), 50)
    assert found == expected(on_workers, tmp_path, 50)
    folder = tmp_path / "broken"
    folder.mkdir()
    with pytest.raises(BrokenModelError, match=r"oracle cannot be loaded on .*scripted: start"):
        run(on_workers(Worked(folder, Plan(fails_start=100))), 50)


def cascade(on_workers: Connect, oracle: Worked, proxy: Worked, folder: Path) -> Connection:
    """A cascade that is asked for by its targets."""
    connection = on_workers(oracle, ai_mode="cascade", ai_proxy="proxy", ai_embedder="embedder")
    connection.register_model("proxy", proxy)
    connection.register_model("embedder", Worked(folder, name="embedder"))
    return connection


@pytest.mark.parametrize("fault", [Plan(fails_start=1000), Plan(memory=-1)], ids=["start", "answers nothing"])
def test_a_broken_proxy_leaves_everything_to_the_oracle(on_workers: Connect, tmp_path: Path, fault: Plan) -> None:
    oracle, proxy = tmp_path / "oracle", tmp_path / "proxy"
    oracle.mkdir()
    proxy.mkdir()
    connection = cascade(on_workers, Worked(oracle), Worked(proxy, fault, "proxy"), tmp_path)
    found, report = run(connection, 1500)
    assert found == expected(on_workers, tmp_path, 1500)
    assert report.degraded
    assert check_trace(connection, report, 1500)["ok"] >= 1500
    assert set(asked(oracle).values()) == {1}
    warned = connection.cursor().execute(f"SELECT degraded FROM ai.runs WHERE run_id = '{report.run_id}'").fetchall()
    assert warned == [(True,)]


def test_a_broken_oracle_stops_the_query_and_keeps_what_is_done(on_workers: Connect, tmp_path: Path) -> None:
    import ray

    connection = both_up(on_workers(Worked(tmp_path, Plan(seconds_a_row=0.01, batch_rows=10)), ai_cache="memory"))
    pool: Any = pool_of(WHERE)
    (model,) = pool._models.values()

    def end_all() -> None:
        while len(asked(tmp_path)) < 60:
            time.sleep(0.05)
        for peer in model.group.peers():
            ray.kill(peer.actor)  # for good, as when their machines are gone

    thread = threading.Thread(target=end_all)
    thread.start()
    with pytest.raises(BrokenModelError, match="has no worker left"):
        run(connection, 1000)
    thread.join()
    found, report = run(connection, 80)
    assert found == expected(on_workers, tmp_path, 80)
    assert report.cached >= 20


def test_a_model_that_answers_nothing_is_given_up_as_in_process(on_workers: Connect, tmp_path: Path) -> None:
    said = []
    for where in ("local", WHERE):
        with pytest.raises(ModelError) as caught:
            run(on_workers(Worked(tmp_path, Plan(memory=-1, batch_rows=50)), where), 300)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "answered none of its first 64 rows" in said[0]


def test_an_interruption_is_heard_while_workers_are_busy(on_workers: Connect, tmp_path: Path) -> None:
    model = Worked(tmp_path, Plan(seconds_a_row=0.05, batch_rows=40))
    connection = on_workers(model, ai_cache="memory")
    run(connection, 1)
    stopped: list[float] = []

    def stop() -> None:
        while len(asked(tmp_path)) < 160:
            time.sleep(0.05)
        stopped.append(time.monotonic())
        connection.interrupt()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedQueryError):
        run(connection, 400)
    assert time.monotonic() - stopped[0] < 1
    thread.join()
    found, report = run(connection, 200)
    assert found == expected(on_workers, tmp_path, 200)
    assert report.cached >= 40


def test_a_full_object_store_spills(on_workers: Connect, tmp_path: Path) -> None:
    import numpy as np
    import ray

    connection = on_workers(Worked(tmp_path, Plan(batch_rows=50)))
    run(connection, 1)
    held = [ray.put(np.full(40_000_000, at, np.uint8)) for at in range(8)]
    sql = "SELECT count(*) FROM range(400) t(i) WHERE AI_FILTER(PROMPT('Is it {0}?', repeat('long ', 4000) || i))"
    found = connection.cursor().execute(sql).fetchall()
    folder = tmp_path / "local"
    folder.mkdir()
    assert found == on_workers(Worked(folder), "local").cursor().execute(sql).fetchall()
    assert int(ray.get(held[0])[0]) == 0


HEAD = """
import os, sys, threading, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from support.workers import Plan, Worked, asked

import sqluice
from sqluice.errors import BrokenModelError

folder = Path(sys.argv[2])
settings = dict(ai_cache="memory", ai_mode="exact", ai_oracle="oracle", ai_workers="ray?workers=2&cpus=0.5")
connection = sqluice.connect(**settings)
connection.register_model("oracle", Worked(folder, Plan(seconds_a_row=0.01, batch_rows=10)))
cursor = connection.cursor()
sql = "SELECT count(*) FROM range({}) t(i) WHERE AI_FILTER(PROMPT('Is it {{0}}?', 'row ' || i))"
cursor.execute(sql.format(1)).fetchall()

import psutil  # Ray brings it

heads = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("gcs_server")]


def kill():
    while len(asked(folder)) < 60:
        time.sleep(0.05)
    heads[0].kill()


threading.Thread(target=kill).start()
try:
    cursor.execute(sql.format(3000)).fetchall()
except BrokenModelError as error:
    print("said:", error)
cursor.execute(sql.format(50)).fetchall()
print("cached:", cursor.report.cached)
"""


@pytest.mark.slow
def test_the_head_is_killed(tmp_path: Path) -> None:
    """Ray would end the process a minute later. In a process of its own, so that the session's Ray stays."""
    pytest.importorskip("ray")
    command = [sys.executable, "-c", HEAD, str(Path(__file__).parents[1]), str(tmp_path)]
    env = {**os.environ, "SQLUICE_HOME": str(tmp_path / "home")}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, cwd=Path.cwd())
    assert "said: the head of the Ray cluster is gone" in ran.stdout, ran.stderr
    cached = int(ran.stdout.rpartition("cached: ")[2])
    assert cached == 50
    assert ran.returncode == 0
