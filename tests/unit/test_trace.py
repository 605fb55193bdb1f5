"""The trace tables and the report: what is written, what is not, and that nothing there fails a query."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqluice.engine import trace_schema
from sqluice.engine.trace import RunTrace, TraceFolder
from sqluice.engine.trace_schema import TABLES
from sqluice.workers.protocol import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqluice.engine.trace import OpTrace

SETTINGS: dict[str, Any] = {"ai_mode": "exact", "ai_oracle": "package:default", "ai_seed": 0}


@pytest.fixture
def folder(tmp_path: Path) -> TraceFolder:
    return TraceFolder(tmp_path / "state" / "trace")


def select(folder: TraceFolder, sql: str) -> list[tuple[Any, ...]]:
    """What a connection of another person would see."""
    with duckdb.connect() as con:
        con.execute("ATTACH ':memory:' AS ai")
        for statement in folder.views():
            con.execute(statement)
        rows: list[tuple[Any, ...]] = con.execute(sql).fetchall()
        return rows


def one(run: RunTrace, **options: Any) -> OpTrace:
    return run.operator("AI_FILTER", "package:default", "rev1", "tpl1", **options)


def digests(n: int, start: int = 0) -> list[bytes]:
    return [(start + row).to_bytes(16, "big") for row in range(n)]


def decide(op: OpTrace, n: int = 4, **changes: Any) -> None:
    columns: dict[str, Any] = {
        "n_rows": np.arange(1, n + 1),
        "tier": ["oracle", "cache"] * (n // 2),
        "scores": np.linspace(0.1, 0.9, n),
        "answers": pa.array(["true", "false"] * (n // 2)),
        "tokens_in": np.array([10, 0] * (n // 2), dtype=np.int32),
        "tokens_out": np.array([1, 0] * (n // 2), dtype=np.int32),
    }
    op.add_decisions(digests(n), **{**columns, **changes})


def files(folder: TraceFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


def test_every_column_of_every_table_is_there_with_its_type(folder: TraceFolder) -> None:
    assert folder.prepare() is None
    for table, columns in TABLES.items():
        described = select(folder, f"DESCRIBE ai.{table}")
        assert {row[0]: row[1] for row in described} == columns
        assert select(folder, f"SELECT count(*) FROM ai.{table}") == [(0,)]


def test_views_of_a_folder_that_does_not_exist_are_empty_and_typed(folder: TraceFolder) -> None:
    for table, columns in TABLES.items():
        assert {row[0]: row[1] for row in select(folder, f"DESCRIBE ai.{table}")} == columns
    assert not folder.path.exists()


@pytest.mark.parametrize("name", ["it's", "a[b]c", "s*t", "w?x", "year=2026", "sp ace", "über", "back\\slash"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "axc").mkdir()  # what a pattern would also match
    folder = TraceFolder(tmp_path / name)
    decoy = TraceFolder(tmp_path / "sXt").begin("decoy", SETTINGS)
    decoy.finish("ok")
    run = folder.begin("SELECT 1", SETTINGS)
    decide(one(run))
    assert run.finish("ok").recorded
    found = select(folder, "SELECT sql FROM ai.runs")
    assert found == ([] if "\\" in name else [("SELECT 1",)])
    assert len(select(folder, "DESCRIBE ai.runs")) == len(TABLES["runs"])


def test_a_run_is_read_back(folder: TraceFolder) -> None:
    run = folder.begin("SELECT AI_FILTER('good?', t) FROM x", SETTINGS)
    op = one(run, estimates={"rows": 12.0, "calls": 3.0})
    op.rows_in, op.rows_out, op.nulls, op.seconds_load, op.cost_usd = 12, 4, 2, 0.5, 0.25
    op.add_batches([Batch(2, 1e9, 1e9 + 0.5, tokens_in=20, tokens_out=2, pad_tokens=5, max_tokens=12)])
    op.add_batches([Batch(1, 1e9 + 1, 1e9 + 1.25, attempt=2, outcome="error", error="boom", worker="w1")])
    decide(op, raw_scores=np.array([0.5, np.nan, 0.25, 0.125]), scores=np.array([0.5, np.nan, 0.25, 0.75]))
    run.rows = 4
    run.warn("odd")
    run.warn("odd")
    report = run.finish("ok")
    [row] = select(
        folder,
        "SELECT run_id, sql, status, seconds = epoch(ended - started), spent_usd, contract, label, degraded, calls,"
        " rows, warnings, error, versions->>'duckdb', settings->>'ai_oracle' FROM ai.runs",
    )
    facts = (run.run_id, "SELECT AI_FILTER('good?', t) FROM x", "ok")
    assert row[:3] == facts
    assert row[4:] == (0.25, None, "exact", False, 2, 4, 2, None, duckdb.__version__, "package:default")
    [row] = select(
        folder,
        "SELECT op, function, model, revision, template_digest, rows_in, rows_out, distinct_inputs, calls, cached,"
        " rows_oracle, rows_cache, rows_proxy, nulls, failed, tokens_in, tokens_out, pad_tokens, padding,"
        " seconds_busy, seconds_load, joules, cost_usd, bytes, bound, est_rows, est_calls FROM ai.ops",
    )
    assert row[:5] == (0, "AI_FILTER", "package:default", "rev1", "tpl1")
    assert row[5:18] == (12, 4, 4, 2, 2, 4, 6, 0, 2, 0, 20, 2, 5)
    assert row[18:] == (0.2, 0.75, 0.5, None, 0.25, None, "unknown", 12.0, 3.0)
    assert select(folder, "SELECT batch, attempt, rows, outcome, worker, error, epoch(started) FROM ai.batches") == [
        (0, 1, 2, "ok", "local", None, 1e9),
        (1, 2, 1, "error", "w1", "boom", 1e9 + 1),
    ]
    rows = select(
        folder, "SELECT input_hash, n_rows, tier, score, raw_score, tau_low, reason, answer, status FROM ai.decisions"
    )
    assert rows[0] == (f"{0:032x}", 1, "oracle", 0.5, 0.5, None, "exact", "true", "answered")
    assert rows[1] == (f"{1:032x}", 2, "cache", None, None, None, "cache hit", "false", "answered")
    assert report.rows_by_tier == {"oracle": 4, "cache": 6}
    assert (report.calls, report.cached, report.tokens_in, report.warnings) == (2, 2, 20, 2)


def test_started_is_utc(folder: TraceFolder) -> None:
    folder.begin("SELECT 1", SETTINGS).finish("ok")
    [(age,)] = select(folder, "SELECT epoch(now()) - epoch(started) FROM ai.runs")
    assert 0 <= age < 60


def test_sums_agree_across_the_tables(folder: TraceFolder) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        run = folder.begin(f"SELECT {seed}", SETTINGS)
        for _ in range(2):
            op = one(run)
            for start in range(0, 900, 300):
                tier = rng.choice(["oracle", "cache"], 300).tolist()
                status = rng.choice(["answered", "failed"], 300).tolist()
                tokens = np.where(np.array(tier) == "oracle", rng.integers(1, 50, 300), 0).astype(np.int32)
                n_rows = rng.integers(1, 9, 300)
                op.rows_in += int(n_rows.sum())
                op.add_batches([Batch(300, 1.0, 2.0, tokens_in=int(tokens.sum()))])
                op.add_decisions(digests(300, start), n_rows, tier=tier, status=status, tokens_in=tokens)
        run.finish("ok")
    disagree = """
        SELECT o.run_id FROM ai.ops o
        JOIN (SELECT run_id, op, count(*) AS n, count(DISTINCT input_hash) AS inputs, sum(n_rows) AS rows,
                     sum(tokens_in) AS tokens, count(*) FILTER (tier = 'oracle') AS calls,
                     sum(n_rows) FILTER (tier = 'oracle') AS oracle, sum(n_rows) FILTER (tier = 'cache') AS cache,
                     coalesce(sum(n_rows) FILTER (status = 'failed'), 0) AS failed
              FROM ai.decisions GROUP BY ALL) d USING (run_id, op)
        JOIN (SELECT run_id, op, sum(tokens_in) AS tokens, sum(seconds) AS seconds FROM ai.batches GROUP BY ALL) b
          USING (run_id, op)
        WHERE NOT (n = inputs AND n = distinct_inputs AND d.rows = rows_in AND d.calls = o.calls
                   AND oracle = rows_oracle AND cache = rows_cache AND rows_in = rows_oracle + rows_cache
                   AND d.failed = o.failed AND d.tokens = o.tokens_in AND b.tokens = o.tokens_in
                   AND abs(seconds - seconds_busy) < 1e-6)"""
    assert select(folder, "SELECT count(*), count(DISTINCT run_id) FROM ai.ops") == [(4, 2)]
    assert select(folder, disagree) == []
    assert select(folder, "SELECT count(*) FROM ai.decisions") == [(3600,)]
    sums = "SELECT r.calls = sum(o.calls) FROM ai.runs r JOIN ai.ops o USING (run_id) GROUP BY r.run_id, r.calls"
    assert select(folder, sums) == [(True,), (True,)]


def test_reasons_follow_tier_and_status(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS)
    op = one(run)
    decide(op, status=["answered", "answered", "failed", "capped"], tier=["oracle", "cache", "oracle", "oracle"])
    decide(op, n=2, tier="oracle", status="failed", errors={1: "too long"})
    run.finish("ok")
    rows = select(folder, "SELECT reason, status, error FROM ai.decisions")
    assert [row[0] for row in rows] == ["exact", "cache hit", "failed", "budget", "failed", "failed"]
    assert [row[2] for row in rows] == [None, None, None, None, None, "too long"]
    assert (op.calls, op.failed) == (4, 6)


@pytest.mark.parametrize("as_array", [False, True])
def test_hashes_of_any_form(folder: TraceFolder, as_array: bool) -> None:
    hashes = [b"\x00\xff", b"\xab\xcd", b"\x01"]
    for some in (hashes, hashes[:2], hashes[1:2]):
        given = pa.array([b"?", *some], pa.binary())[1:] if as_array else some
        run = folder.begin("SELECT 1", SETTINGS)
        one(run).add_decisions(given, np.ones(len(some), np.int64), tier="oracle")
        run.finish("ok")
        found = select(folder, f"SELECT input_hash FROM ai.decisions WHERE run_id = '{run.run_id}'")
        assert found == [(digest.hex(),) for digest in some]


@pytest.mark.parametrize(("mode", "free_text", "expected"), [
    ("on", False, ("true", None)),
    ("on", True, (None, None)),
    ("text", True, ("true", "row text")),
])  # fmt: skip
def test_text_is_stored_only_when_asked_for(folder: TraceFolder, mode: Any, free_text: bool, expected: Any) -> None:
    run = folder.begin("SELECT 1", SETTINGS, mode=mode)
    decide(one(run, free_text=free_text), texts=["row text"] * 4)
    run.finish("ok")
    assert select(folder, "SELECT answer, text FROM ai.decisions LIMIT 1") == [expected]
    if mode == "on":
        assert not any(b"row text" in path.read_bytes() for path in folder.path.rglob("*.parquet"))


def test_off_writes_nothing_and_counts(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS, mode="off")
    decide(one(run))
    report = run.finish("ok")
    assert not folder.path.exists()
    assert (report.calls, report.recorded) == (2, False)
    assert "ai.decisions" not in str(report)


def test_finish_counts_once(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS)
    op = one(run)
    decide(op)
    report = run.finish("interrupted", "Ctrl-C")
    decide(op)
    assert run.finish("ok") is report
    assert report.status == "interrupted"
    assert select(folder, "SELECT status, error, label FROM ai.runs") == [("interrupted", "Ctrl-C", None)]
    assert select(folder, "SELECT count(*) FROM ai.decisions") == [(4,)]


def test_a_run_shows_only_when_it_is_over(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_schema, "GROUP_ROWS", 4)
    run = folder.begin("SELECT 1", SETTINGS)
    decide(one(run))
    assert f"decisions/{run.run_id}.parquet.partial" in files(folder)
    assert select(folder, "SELECT count(*) FROM ai.decisions") == [(0,)]
    run.finish("ok")
    assert select(folder, "SELECT count(*) FROM ai.decisions") == [(4,)]
    assert not [name for name in files(folder) if name.endswith(".partial")]


def test_row_groups_stream(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_schema, "GROUP_ROWS", 1000)
    run = folder.begin("SELECT 1", SETTINGS)
    op = one(run)
    for _ in range(10):
        decide(op, n=500)
    run.finish("ok")
    with pq.ParquetFile(folder.path / "decisions" / f"{run.run_id}.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [1000] * 5


def test_run_ids_are_distinct_and_sort_by_time(folder: TraceFolder) -> None:
    ids = [folder.begin("SELECT 1", SETTINGS, mode="off").run_id for _ in range(200)]
    assert len(set(ids)) == 200
    assert [name[:22] for name in ids] == sorted(name[:22] for name in ids)
    assert all(name.split("-")[1] == str(os.getpid()) for name in ids)


def _record(path: Path, runs: int) -> None:
    folder = TraceFolder(path)
    for _ in range(runs):
        run = folder.begin("SELECT 1", SETTINGS)
        decide(one(run))
        assert run.finish("ok").recorded


def test_two_processes_in_one_folder(folder: TraceFolder) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record, args=(folder.path, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert select(folder, "SELECT count(*), count(DISTINCT run_id) FROM ai.runs") == [(20, 20)]
    assert select(folder, "SELECT count(*) FROM ai.decisions") == [(80,)]


def test_several_threads_in_one_run(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS)
    threads = [threading.Thread(target=decide, args=(one(run),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.finish("ok").calls == 16
    assert select(folder, "SELECT op, count(*) FROM ai.decisions GROUP BY op ORDER BY op") == [
        (op, 4) for op in range(8)
    ]


@pytest.mark.parametrize("group_rows", [1, 6, 1_000_000])
def test_rows_that_come_again_are_added(folder: TraceFolder, group_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_schema, "GROUP_ROWS", group_rows)
    run = folder.begin("SELECT 1", SETTINGS)
    first, second = one(run), one(run)
    ones = np.ones(4, dtype=np.int64)
    for start in (0, 4, 8):
        for op in (first, second):
            assert op.add_decisions(digests(4, start), ones, tier="oracle") == start
    first.add_rows(
        np.array([11, 0, 5]), np.array([7, 1, 2]), ["cache", "oracle", "oracle"], np.array([True, False, True])
    )
    first.add_rows(np.array([0, 5]), np.array([10, -3]), "oracle", np.array([False, False]))
    assert run.finish("ok").recorded
    assert (first.rows_by_tier, first.failed) == ({"oracle": 22, "cache": 7}, 9)
    found = select(folder, "SELECT op, list(n_rows ORDER BY input_hash) FROM ai.decisions GROUP BY op ORDER BY op")
    assert found == [(0, [12, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 8]), (1, [1] * 12)]
    assert [name for name in files(folder) if name.startswith("decisions/")] == [
        "decisions/0.parquet",
        f"decisions/{run.run_id}.parquet",
    ]


KILLED = """
import os, signal
from pathlib import Path
import numpy as np
from sqluice.engine import trace_schema
from sqluice.engine.trace import TraceFolder
trace_schema.GROUP_ROWS = 1
run = TraceFolder(Path({path!r})).begin("SELECT 1", {{}})
run.operator("AI_FILTER", "m", "r", "t").add_decisions([b"x" * 16], np.ones(1, np.int64), tier="oracle")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_dead_processes_left_is_swept(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    script = KILLED.format(path=str(folder.path))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    monkeypatch.setattr(trace_schema, "GROUP_ROWS", 1)
    dead = [name for name in files(folder) if name.endswith(".partial")]
    assert len(dead) == 1
    run = RunTrace(folder.path, "SELECT 2", SETTINGS, "on")
    decide(one(run))
    (folder.path / "runs" / "20260101T000000.000000-1-1.parquet").write_bytes(b"")  # as a power cut leaves it
    assert folder.prepare() is None
    assert [name for name in files(folder) if name.endswith(".partial")] == [f"decisions/{run.run_id}.parquet.partial"]
    run.finish("ok")
    assert select(folder, "SELECT sql FROM ai.runs") == [("SELECT 2",)]


def test_a_locked_file_is_not_swept(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_schema, "GROUP_ROWS", 1)
    run = folder.begin("SELECT 1", SETTINGS)
    decide(one(run))
    with monkeypatch.context() as patch:
        patch.setattr(trace_schema, "_is_free", lambda path: True)  # as where files cannot be locked
        assert folder.prepare() is None
    monkeypatch.setattr(trace_schema, "_is_alive", lambda pid: False)  # as from another container
    assert folder.prepare() is None
    assert run.finish("ok").recorded


@contextmanager
def small_files() -> Iterator[None]:
    """Files may not grow past 2 KB: what a full disk does, at a known place.

    Not a fixture: pytest writes its own progress before a fixture is torn down, and that may go to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("when", ["begin", "decisions", "finish"])
def test_a_trace_that_cannot_be_written_is_one_warning(
    folder: TraceFolder, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "begin":
        folder.path.parent.mkdir()
        folder.path.write_text("a file where the folder should be")
    else:
        folder.prepare()
    if when == "decisions":
        monkeypatch.setattr(trace_schema, "GROUP_ROWS", 1)
    with nullcontext() if when == "begin" else small_files():
        run = folder.begin("SELECT 1", SETTINGS)
        op = one(run)
        for _ in range(3):
            decide(op, n=400, scores=np.random.default_rng(0).random(400))
        report = run.finish("ok")
    assert (report.status, report.calls, report.recorded, report.warnings) == ("ok", 600, False, 1)
    [warning] = run.warnings
    assert warning.startswith("the trace could not be written: ")
    if when != "begin":
        assert files(folder) == [f"{table}/0.parquet" for table in sorted(TABLES)]
    else:
        assert select(folder, "SELECT * FROM ai.runs") == []


def test_half_a_run_is_never_shown(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    run = folder.begin("SELECT 1", SETTINGS)
    decide(one(run))
    monkeypatch.setattr(run._streams["runs"], "publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.finish("ok")
    assert not run.finish("ok").recorded
    assert files(folder) == [f"{table}/0.parquet" for table in sorted(TABLES)]


def test_the_run_shows_last(folder: TraceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    publish = trace_schema.Stream.publish

    def watched(stream: Any) -> None:
        publish(stream)
        shown.append(stream._table)

    monkeypatch.setattr(trace_schema.Stream, "publish", watched)
    run = folder.begin("SELECT 1", SETTINGS)
    decide(one(run))
    run.finish("ok")
    assert shown[-2:] == ["ops", "runs"]


def test_what_arrow_refuses_is_a_warning(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS)
    op = one(run)
    run._streams["decisions"].append = _refuse  # type: ignore[method-assign]
    decide(op)
    assert run.finish("ok").warnings == 1


def _refuse(rows: Any) -> None:
    raise pa.ArrowInvalid("no")


def test_text_that_is_not_unicode_does_not_fail(folder: TraceFolder) -> None:
    run = folder.begin("SELECT '\ud800'", SETTINGS, mode="text")
    op = one(run)
    decide(op, texts=["a\udc80"] * 4, errors={0: "bad \ud800"}, status="failed")
    op.add_batches([Batch(1, 1.0, 2.0, error="\ud800")])
    assert run.finish("error", "no \ud800").recorded
    assert select(folder, "SELECT r.sql, r.error, d.text FROM ai.runs r, ai.decisions d LIMIT 1") == [
        ("SELECT '?'", "no ?", "a?")
    ]


def test_an_older_file_without_a_column_reads_as_null(folder: TraceFolder) -> None:
    folder.begin("SELECT 1", SETTINGS).finish("ok")
    [path] = [path for path in (folder.path / "runs").iterdir() if path.name != "0.parquet"]
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)
    (folder.path / "runs" / "0.parquet").unlink()
    pq.write_table(pa.table({"run_id": pa.array([], pa.string())}), folder.path / "runs" / "0.parquet")
    assert TraceFolder(folder.path).prepare() is None
    assert select(folder, "SELECT sql, label FROM ai.runs") == [("SELECT 1", None)]


def test_the_report_in_words(folder: TraceFolder) -> None:
    run = folder.begin("SELECT 1", SETTINGS)
    op = one(run)
    op.rows_in = 12
    op.rows_out = 1234
    decide(op, status=["answered", "answered", "failed", "answered"])
    one(run).add_batches([Batch(2, 1.0, 2.5, tokens_in=1500, tokens_out=2, pad_tokens=500, max_tokens=12)])
    report = run.finish("ok")
    lines = str(report).splitlines()
    assert lines[0].startswith(f"run {run.run_id}: ok in 0.") and lines[0].endswith("s, exact")
    assert lines[1:5] == [
        "  rows      4 oracle, 6 cache",
        "  calls     2 (2 more answered by the cache)",
        "  tokens    1,500 in, 2 out",
        "  failed    3 rows",
    ]
    heads, first, second = lines[6:9]
    assert heads.index("busy s") + 6 == len(heads) == len(first) == len(second)
    assert second.split() == ["AI_FILTER", "package:default", *"000000", "1,502", "25.0%", "1.50"]
    assert lines[-2] == f"SELECT * FROM ai.decisions WHERE run_id = '{run.run_id}'"
    assert len(select(folder, lines[-2])) == 4
    assert len(select(folder, lines[-1])) == 1
    plain = report.to_dict()
    assert plain["rows_by_tier"] == {"oracle": 4, "cache": 6}
    assert plain["operators"][1]["padding"] == 0.25  # type: ignore[index]
