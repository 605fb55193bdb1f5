"""Ray workers answer as the pool in process does: same rows, same errors, same counts, at any number of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sqluice
from sqluice.errors import BrokenModelError, ModelError, OperationalError
from sqluice.workers.pools import pool_of
from sqluice.workers.ray import cluster
from support.scripted import scripted
from support.workers import Plan, Worked, asked, processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqluice import Connection

    Connect = Callable[..., Connection]

pytestmark = pytest.mark.ray

TWO = "ray?workers=2&cpus=0.5"
FILTER = "SELECT i FROM range(600) t(i) WHERE AI_FILTER(PROMPT('Is it {0}?', 'row ' || i)) ORDER BY i"
QUERIES = (
    FILTER,
    "SELECT i, AI_SCORE(PROMPT('How good is {0}?', 'row ' || i)) FROM range(90) t(i) ORDER BY i",
    "SELECT i, AI_CLASSIFY('row ' || i || (CASE i % 3 WHEN 0 THEN ' sport' ELSE ' news' END), ['sport', 'news']) "
    "FROM range(90) t(i) ORDER BY i",
    "SELECT i, AI_COMPLETE('row ' || i) FROM range(90) t(i) ORDER BY i",
    "SELECT i, AI_EMBED('oracle', 'row ' || i) FROM range(90) t(i) ORDER BY i",
    "SELECT a.i, b.i FROM range(8) a(i) JOIN range(9) b(i) "
    "ON AI_FILTER(PROMPT('Do {0} and {1} fit?', 'left ' || a.i, 'right ' || b.i)) ORDER BY ALL",
)


def rows(connection: Connection, sql: str) -> Any:
    return connection.cursor().execute(sql).fetchall()


def both_up(connection: Connection) -> Connection:
    """The same, once both workers have the model."""
    rows(connection, "SELECT AI_FILTER(PROMPT('Is it {0}?', 'first'))")
    pool: Any = pool_of(TWO)
    assert pool.ready() == 2
    return connection


def test_a_filter_on_two_workers_equals_the_one_in_process(on_workers: Connect, tmp_path: Path) -> None:
    model = Worked(tmp_path, Plan(seconds_a_row=0.001, batch_rows=20))
    there = both_up(on_workers(model)).cursor()
    found = there.execute(FILTER).fetchall()
    assert len(processes(tmp_path)) == 2
    assert {one for text, one in asked(tmp_path).items() if text != "first"} == {1}
    assert there.report is not None
    assert there.report.calls == 600
    assert found == rows(on_workers(scripted("oracle", "percent 40"), "local"), FILTER)


def test_every_function_answers_the_same_at_any_number_of_workers(on_workers: Connect) -> None:
    model = scripted("oracle", "percent 40 nan=13 raises=37 cut=71")
    answers = {
        where: [rows(on_workers(model, where), sql) for sql in QUERIES]
        for where in ("local", "ray?workers=1&cpus=0.5", TWO, "ray?workers=4&cpus=0.25")
    }
    assert answers.pop("local") == (first := answers.popitem()[1])
    assert all(one == first for one in answers.values())


def test_a_cascade_is_the_same_on_workers(on_workers: Connect, tmp_path: Path) -> None:
    found = []
    for where in ("local", TWO):
        connection = on_workers(
            scripted("oracle", "percent 40"), where, ai_mode="cascade", ai_proxy="proxy", ai_embedder="oracle"
        )
        connection.register_model("proxy", scripted("proxy", "percent 40"))
        cursor = connection.cursor()
        sql = "SELECT i FROM range(4000) t(i) WHERE AI_FILTER(PROMPT('Is it {0}?', 'row ' || i)) ORDER BY i"
        answers = cursor.execute(sql).fetchall()
        assert cursor.report is not None
        found.append((answers, cursor.report.rows_by_tier, cursor.report.label))
    assert found[0] == found[1]
    assert found[0][1]["oracle"] < 4000


def test_failing_rows_have_the_same_errors(on_workers: Connect) -> None:
    told = []
    for where in ("local", TWO):
        connection = on_workers(scripted("oracle", "percent 40 nan=13 raises=37"), where)
        cursor = connection.cursor()
        cursor.execute(FILTER)
        assert cursor.report is not None
        run = f"run_id = '{cursor.report.run_id}'"
        errors = f"SELECT input_hash, error, score FROM ai.decisions WHERE {run} ORDER BY 1"
        told.append((rows(connection, errors), cursor.messages, cursor.report.failed))
    assert told[0] == told[1]
    assert told[0][2] > 20


def test_workers_stay_for_the_next_query_and_for_other_connections(on_workers: Connect, tmp_path: Path) -> None:
    model = Worked(tmp_path, Plan(seconds_a_row=0.001, batch_rows=20))
    first = both_up(on_workers(model))
    rows(first, FILTER)
    before = processes(tmp_path)
    first.close()
    rows(on_workers(model), FILTER)
    assert processes(tmp_path) == before


def test_tasks_of_the_same_job_ask_the_same_workers(on_workers: Connect, tmp_path: Path) -> None:
    import ray

    model = Worked(tmp_path, Plan(seconds_a_row=0.001, batch_rows=20))
    found = rows(both_up(on_workers(model)), FILTER)
    before = processes(tmp_path)

    def task(model: object, sql: str) -> list[Any]:
        connection = sqluice.connect(ai_workers=TWO, ai_cache="off", ai_mode="exact", ai_oracle="oracle")
        connection.register_model("oracle", model)
        with connection:
            return list(connection.cursor().execute(sql).fetchall())

    from ray import cloudpickle

    import support

    cloudpickle.register_pickle_by_value(support)
    try:
        remote = ray.remote(num_cpus=0.25)(task)
        assert ray.get([remote.remote(model, FILTER) for _ in range(2)]) == [found, found]
    finally:
        cloudpickle.unregister_pickle_by_value(support)
    assert processes(tmp_path) == before


def test_a_model_that_does_not_pickle_is_refused(on_workers: Connect) -> None:
    import threading

    model = scripted("oracle", "percent 40")
    model.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"cannot be sent to Ray workers: .*SET ai_workers = 'local'"):
        rows(on_workers(model), FILTER)


def test_what_a_cluster_lacks_is_said(on_workers: Connect) -> None:
    with pytest.raises(BrokenModelError) as caught:
        rows(on_workers(scripted("oracle", "percent 40"), "ray?workers=3&gpus=1&timeout=0.5"), FILTER)
    said = str(caught.value)
    assert "no room for 3 workers of 1 CPU and 1 GPU for oracle within 0.5 s" in said
    assert "0 GPU (0 free); it lacks 3 GPU" in said


def test_models_make_room_for_each_other(on_workers: Connect, tmp_path: Path) -> None:
    """With workers that hold every CPU, another model still gets some."""
    import ray

    rows(on_workers(scripted("oracle", "percent 40")), FILTER)
    each = int(ray.cluster_resources()["CPU"]) // 4
    where = f"ray?workers=4&cpus={each}&timeout=20"
    first, second = (on_workers(scripted("oracle", f"percent {share}"), where) for share in (30, 60))
    expected = [rows(on_workers(scripted("oracle", f"percent {share}"), "local"), FILTER) for share in (30, 60)]
    assert rows(first, FILTER) == expected[0]
    assert rows(second, FILTER) == expected[1]
    assert rows(first, FILTER) == expected[0]


def test_no_cluster_no_answer() -> None:
    connection = sqluice.connect(ai_workers="ray://127.0.0.1:9", ai_cache="off")
    connection.register_model("oracle", scripted("oracle", "percent 40"))
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        with pytest.raises(OperationalError, match=r"no Ray cluster answers at ray://127.0.0.1:9"):
            cluster._reach("ray://127.0.0.1:9")
        return
    with pytest.raises(OperationalError, match=r"no Ray cluster answers at ray://127.0.0.1:9"):
        connection.cursor().execute("SET ai_oracle = 'oracle'").execute(FILTER)


def test_a_budget_of_calls_is_kept(on_workers: Connect, tmp_path: Path) -> None:
    connection = on_workers(Worked(tmp_path, Plan(batch_rows=20)), ai_budget="100 calls")
    cursor = connection.cursor()
    cursor.execute(FILTER)
    assert cursor.report is not None
    assert 50 < sum(asked(tmp_path).values()) <= 100
    assert cursor.report.label == "uncertified(budget)"
