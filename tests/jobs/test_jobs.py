"""Batch jobs: what they write, what they refuse, and what is kept when something goes wrong."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

import sqluice
import sqluice.ray
from jobs.work import COUNT, FILTER, ROWS, Here, expected, make_input, request, rows, run
from sqluice.engine.cli import main
from sqluice.engine.jobs.api import run_job, state_of
from sqluice.engine.jobs.driver import Job, JobState
from sqluice.engine.jobs.folder import JobFolder
from sqluice.engine.jobs.inputs import opens

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    return make_input(tmp_path / "in")


def test_every_partition_becomes_a_file(pattern: str, tmp_path: Path) -> None:
    state = run(pattern, tmp_path / "out")
    assert rows(tmp_path / "out") == expected()
    assert (state.status, state.done, state.rows_in, state.rows, state.calls) == ("done", 6, ROWS, ROWS // 3, ROWS)
    assert state.label == "exact"
    assert len(state.output) == 6
    assert state_of(tmp_path / "out").status == "done"


@pytest.mark.parametrize("partitions", [1, 2, 13])
def test_the_number_of_partitions_changes_nothing(pattern: str, tmp_path: Path, partitions: int) -> None:
    run(pattern, tmp_path / "out", partitions=partitions)
    run(pattern, tmp_path / "counted", COUNT, partitions=partitions)
    assert rows(tmp_path / "out") == expected()
    assert rows(tmp_path / "counted") == [(kind, ROWS // 15) for kind in range(5)]
    assert [path.name for path in (tmp_path / "counted").glob("*.parquet")] == ["result.parquet"]


def test_a_query_that_cannot_be_split_runs_as_one_partition_or_not_at_all(pattern: str, tmp_path: Path) -> None:
    sql = "SELECT count(*) AS n FROM input a JOIN input b ON a.id = b.id WHERE AI_FILTER(a.text)"
    with pytest.raises(sqluice.NotSupportedError, match=r"reads input 2 times.*--partitions 1"):
        run(pattern, tmp_path / "out", sql)
    assert not (tmp_path / "out").exists()
    run(pattern, tmp_path / "out", sql, partitions=1)
    assert rows(tmp_path / "out") == [(ROWS // 3,)]


def test_other_inputs_are_seen_by_every_partition(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("kind,name\n0,zero\n1,one\n")
    both = replace(
        request(
            pattern, "SELECT name, count(*) FROM input JOIN names USING (kind) WHERE AI_FILTER(text) GROUP BY name"
        ),
        inputs=(*request(pattern).inputs, sqluice.engine.jobs.inputs.Input("names", f"{tmp_path}/names.csv")),
    )
    Job(both, tmp_path / "out", Here).run()
    assert rows(tmp_path / "out") == [("one", 40), ("zero", 40)]


def test_a_limit_needs_no_more_than_the_first_partitions(pattern: str, tmp_path: Path) -> None:
    state = run(pattern, tmp_path / "out", FILTER + " LIMIT 40")
    assert rows(tmp_path / "out") == expected()[:40]
    assert state.done == 2


def test_statements_before_the_query_run_in_every_partition(pattern: str, tmp_path: Path) -> None:
    sql = "CREATE MACRO twice(x) AS x * 2; SELECT twice(id) AS id FROM input WHERE AI_FILTER(text)"
    run(pattern, tmp_path / "out", sql)
    assert rows(tmp_path / "out") == [(2 * i,) for i, _ in expected()]


def test_statements_that_say_which_files_can_be_read_run_before_files_are_looked_for(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, names = pattern.rpartition("/")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sqluice.OperationalError, match=r"no file|cannot be read"):
        run(names, tmp_path / "nowhere")
    sql = f"SET file_search_path = '{folder}'; SET ai_seed = 3; {FILTER}"
    assert run(names, tmp_path / "out", sql).status == "done"
    assert rows(tmp_path / "out") == expected()
    with pytest.raises(sqluice.Error, match="no_such_setting"):
        run(names, tmp_path / "wrong", f"SET no_such_setting = 1; {FILTER}")


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("CREATE SECRET s (TYPE s3)", True),
        ("create or replace persistent secret (TYPE s3)", True),
        ("LOAD httpfs", True),
        ("SET s3_region = 'x'", True),
        ("SET ai_seed = 1", False),
        ("CREATE TABLE secret (i INT)", False),
        ("CREATE MACRO twice(x) AS 2 * x", False),
    ],
)
def test_which_statements_these_are(statement: str, first: bool) -> None:
    assert opens(statement) is first


def test_a_partition_that_fails_leaves_the_others(pattern: str, tmp_path: Path) -> None:
    broken = tmp_path / "in" / "1.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:4] + b"\xff" * 300 + whole[304:])
    with pytest.raises(
        sqluice.OperationalError, match=r"partitions failed, \d+ are finished and kept; partition 0000\d"
    ):
        run(pattern, tmp_path / "out")
    state = state_of(tmp_path / "out")
    assert state.status == "failed"
    assert 0 < state.done < 6
    kept = {path.name for path in (tmp_path / "out").glob("part-*.parquet")}
    assert len(kept) == state.done
    changed = broken.stat()
    broken.write_bytes(whole)
    os.utime(broken, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    assert run(pattern, tmp_path / "out", resume=True).done == 6
    assert rows(tmp_path / "out") == expected()


def test_an_input_that_changes_is_noticed(pattern: str, tmp_path: Path) -> None:
    calls: list[JobState] = []

    def stop(state: JobState) -> None:
        calls.append(state)
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Job(request(pattern), tmp_path / "out", Here, on_state=stop).run()
    assert state_of(tmp_path / "out").status == "interrupted"
    make_input(tmp_path / "in", ROWS + 3)
    with pytest.raises(sqluice.OperationalError, match="has changed since the job began"):
        run(pattern, tmp_path / "out", resume=True)
    make_input(tmp_path / "in")
    (tmp_path / "in" / "9.parquet").write_bytes((tmp_path / "in" / "0.parquet").read_bytes())
    with pytest.raises(sqluice.OperationalError, match="input input has changed"):
        run(pattern, tmp_path / "out", resume=True)


def test_what_is_finished_is_not_done_again(pattern: str, tmp_path: Path) -> None:
    def stop(state: JobState) -> None:
        if state.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Job(request(pattern), tmp_path / "out", Here, on_state=stop).run()
    with pytest.raises(sqluice.ProgrammingError, match="3 of 6 partitions finished: --resume goes on"):
        run(pattern, tmp_path / "out")
    with pytest.raises(sqluice.ProgrammingError, match="another query"):
        run(pattern, tmp_path / "out", COUNT, resume=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    state = run(pattern, tmp_path / "out", resume=True, partitions=99)
    assert (state.done, state.rows_in, state.calls) == (6, ROWS, ROWS)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert rows(tmp_path / "out") == expected()
    assert run(pattern, tmp_path / "out", resume=True).status == "done", "a finished job has nothing left to do"


def test_rows_that_are_gone_are_made_again(pattern: str, tmp_path: Path) -> None:
    run(pattern, tmp_path / "out")
    (tmp_path / "out" / "part-00002.parquet").unlink()
    (tmp_path / "out" / "_sqluice" / "rows" / "00002-left-behind.parquet").write_bytes(b"half")
    run(pattern, tmp_path / "out", resume=True)
    assert rows(tmp_path / "out") == expected()
    assert not list((tmp_path / "out" / "_sqluice" / "rows").iterdir())


def test_a_budget_is_shared_by_all_partitions(pattern: str, tmp_path: Path) -> None:
    state = run(pattern, tmp_path / "out", budget="250 calls", settings={"ai_cache": "off"})
    assert 150 <= state.calls <= 250
    assert state.label is not None and "budget" in state.label


def test_cancel(pattern: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failure: list[BaseException] = []

    def go() -> None:
        try:
            run(pattern, out, seconds=0.1, partitions=30)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failure.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    deadline = time.monotonic() + 30
    while not list(out.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state_of(out).status == "running"
    with pytest.raises(sqluice.OperationalError, match="is running"):
        run(pattern, out, resume=True)
    assert main(["job", "cancel", str(out)]) == 0
    thread.join(30)
    assert isinstance(failure[0], sqluice.errors.InterruptedQueryError)
    state = state_of(out)
    assert (state.status, state.done < 30) == ("cancelled", True)
    assert main(["job", "cancel", str(out)]) == 1, "it is over"
    run(pattern, out, resume=True)
    assert rows(out) == expected()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sql": "SELECT 1"}, "does not read input"),
        ({"sql": ""}, "the SQL of the job is empty"),
        ({"sql": "DELETE FROM input"}, "not a SELECT|syntax|DESCRIBE"),
        ({"sql": "SELECT nothing FROM input WHERE AI_FILTER(text)"}, "nothing"),
        ({"inputs": "missing/*.parquet"}, "no file is named missing"),
        ({"inputs": "x.xlsx"}, "ends in .parquet"),
        ({"inputs": "nowhere://bucket/x.parquet"}, "no file is named|cannot be read"),
        ({"inputs": ["a.parquet", "b.parquet"]}, "two inputs are named input"),
        ({"inputs": []}, "at least one input"),
        ({"budget": "5 apples"}, "budget"),
        ({"partitions": 0}, "at least 1"),
        ({"output": "s3://bucket/out"}, "jobs write to a folder"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    pattern: str, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    args: dict[str, Any] = {"sql": FILTER, "inputs": pattern, "output": tmp_path / "out", **given}
    model = request(pattern).models
    with pytest.raises(sqluice.Error, match=said):
        run_job(args.pop("sql"), args.pop("inputs"), args.pop("output"), models=model, ai_oracle="oracle", **args)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(sqluice.ProgrammingError, match=r"is not empty \(mine.txt\)"):
        run(pattern, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_status_of_no_job_and_of_a_dead_one(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "status", str(tmp_path)]) == 1
    assert "holds no job" in capsys.readouterr().err
    run(pattern, tmp_path / "out")
    folder = JobFolder(tmp_path / "out")
    folder.tell({**folder.state(), "status": "running"})
    assert main(["job", "status", str(tmp_path / "out"), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["status"], state["error"]) == ("stopped", "its process is gone")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_step_of_a_ray_data_pipeline(cluster: str, pattern: str) -> None:
    data = pytest.importorskip("ray.data", reason="needs ray[data]")
    assert cluster
    dataset = data.read_parquet(pattern.removesuffix("/*.parquet"))
    given: dict[str, Any] = {
        "models": request(pattern).models,
        "ai_oracle": "oracle",
        "ai_mode": "exact",
        "batch_rows": 100,
    }
    found = sqluice.ray.map_batches(dataset, FILTER, **given)
    assert sorted((row["id"], row["text"]) for row in found.take_all()) == expected()
    with pytest.raises(sqluice.NotSupportedError, match="looks at more than one batch: it aggregates"):
        sqluice.ray.map_batches(dataset, COUNT, **given)


def test_on_ray_from_the_command_line(cluster: str, pattern: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = request(pattern).models
    state = run_job(
        FILTER, pattern, out, address=cluster, partitions=4, models=model, ai_oracle="oracle", ai_mode="exact"
    )
    assert (state.status, state.calls) == ("done", ROWS)
    assert rows(out) == expected()
    assert [column[0] for column in duckdb.sql(f"DESCRIBE SELECT * FROM '{out}/*.parquet'").fetchall()] == [
        "id",
        "text",
    ]
