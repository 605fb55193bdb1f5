"""A session from end to end: transactions, what stays behind, streams, interruption, settings, files."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

import sqluice
from sqluice.engine import execution
from support.scripted import Faults, ScriptedModel, scripted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice import Connection

TESTS = Path(__file__).parent.parent
ROWS = "SELECT i AS id, CASE WHEN i % 2 = 0 THEN 'good ' ELSE 'bad ' END || i AS s FROM range(20) r(i)"
BIG = "SELECT id, AI_FILTER(s) AS f FROM big"
GOOD = [(i,) for i in range(0, 20, 2)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own trace folder and cache."""
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))


def opened(database: str | Path = ":memory:", **options: Any) -> Connection:
    con = sqluice.connect(database, **{"ai_cache": "off", "ai_mode": "exact", **options})
    for name in ("oracle", "embedder"):
        con.register_model(name, scripted(name, "keyword good"))
        con.execute(f"SET ai_{name} = '{name}'")
    return con


def model(con: Connection, behaviour: str = "keyword good", faults: Faults | None = None) -> ScriptedModel:
    """Another oracle."""
    made = scripted("oracle", behaviour)
    made.faults = faults or made.faults
    con.register_model("oracle", made)
    return made


@pytest.fixture
def con() -> Iterator[Connection]:
    connection = opened()
    connection.execute(f"CREATE TABLE t AS {ROWS}")
    connection.execute("CREATE TABLE done (id INTEGER, f BOOLEAN)")
    connection.execute("SELECT AI_FILTER('warm')")
    yield connection
    connection.close()


def rows(con: Connection, sql: str, params: Any = None) -> list[Any]:
    return con.execute(sql, params).fetchall()


def left_over(con: Connection) -> list[Any]:
    """Objects of ours that are still in the database."""
    return rows(
        con,
        "SELECT table_name AS n FROM duckdb_tables() WHERE starts_with(n, '__s') UNION ALL "
        "SELECT view_name AS n FROM duckdb_views() WHERE starts_with(n, '__s')",
    )


def count(con: Connection, table: str) -> int:
    return int(rows(con, f"SELECT count(*) FROM {table}")[0][0])


# ---- transactions


def test_rows_that_are_not_committed_are_seen(con: Connection) -> None:
    con.execute("BEGIN")
    con.execute("INSERT INTO t VALUES (100, 'good news')")
    con.execute("CREATE TEMP TABLE own AS SELECT 'good temp' AS s")
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) AND id > 50") == [(100,)]
    assert rows(con, "SELECT s FROM own WHERE AI_FILTER(s)") == [("good temp",)]
    con.execute("ROLLBACK")
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) AND id > 50") == []


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_a_failing_insert_leaves_nothing(con: Connection, plan: str) -> None:
    con.execute(f"SET ai_plan = '{plan}'")
    con.execute("SET ai_on_error = 'raise'")
    model(con, faults=Faults(raises="17"))
    with pytest.raises(sqluice.OperationalError, match="AI_FILTER failed on a row"):
        con.execute("INSERT INTO done SELECT id, AI_FILTER(s) FROM t")
    assert count(con, "done") == 0
    assert left_over(con) == []
    assert not con.in_transaction
    con.execute("BEGIN")
    con.execute("INSERT INTO done VALUES (1, true)")
    con.commit()
    assert count(con, "done") == 1


def test_an_error_in_a_transaction_of_the_person_leaves_it_open(con: Connection) -> None:
    con.execute("SET ai_on_error = 'raise'")
    model(con, faults=Faults(raises="17"))
    con.execute("BEGIN")
    con.execute("INSERT INTO done VALUES (1, true)")
    with pytest.raises(sqluice.OperationalError):
        con.execute("INSERT INTO done SELECT id, AI_FILTER(s) FROM t")
    assert con.in_transaction
    assert left_over(con) == []
    assert count(con, "done") == 1
    con.execute("ROLLBACK")
    assert count(con, "done") == 0


@pytest.mark.parametrize("end", ["ROLLBACK", "rollback()"])
def test_an_aborted_transaction_can_be_rolled_back(con: Connection, end: str) -> None:
    con.execute("BEGIN")
    con.execute("INSERT INTO done VALUES (1, true)")
    with pytest.raises(sqluice.DataError, match="stop"):
        con.execute("SELECT error('stop') FROM t WHERE AI_FILTER(s)")
    with pytest.raises(sqluice.OperationalError, match="aborted"):
        con.execute("SELECT count(*) FROM t WHERE AI_FILTER(s)")
    con.rollback() if end == "rollback()" else con.execute(end)
    assert not con.in_transaction
    assert count(con, "done") == 0
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id") == GOOD
    assert left_over(con) == []


def test_commit_keeps(tmp_path: Path) -> None:
    con = opened(tmp_path / "d.duckdb")
    con.execute(f"CREATE TABLE t AS {ROWS}; SELECT AI_FILTER('warm')")
    con.execute("BEGIN")
    assert con.execute("CREATE TABLE kept AS SELECT id FROM t WHERE AI_FILTER(s)").rowcount in (-1, 10)
    con.execute("UPDATE t SET s = 'none' WHERE AI_FILTER(s)")
    con.commit()
    assert not con.in_transaction
    con.close()
    con = opened(tmp_path / "d.duckdb")
    assert (count(con, "kept"), rows(con, "SELECT count(*) FROM t WHERE s = 'none'")) == (10, [(10,)])
    con.close()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", ""])
def test_the_first_question_may_be_asked_inside_a_transaction(end: str) -> None:
    con = opened()
    con.execute("BEGIN")
    assert rows(con, "SELECT AI_FILTER('good')") == [(True,)]
    if end:
        con.execute(end)
    assert rows(con, "SELECT AI_FILTER('good')") == [(True,)]
    con.close()


def test_the_trace_may_be_read_first_inside_a_transaction(con: Connection) -> None:
    con.execute("BEGIN")
    assert count(con, "ai.runs") == 1
    con.execute("ROLLBACK")
    assert count(con, "ai.runs") == 1


@pytest.mark.parametrize("comment", ["/* why */ ", "-- why\n"])
@pytest.mark.parametrize(
    ("statements", "query", "expected"),
    [
        (["BEGIN", "INSERT INTO done VALUES (1, true)", "SELECT AI_FILTER('good')"], "SELECT 1", [(1,)]),
        (["SET ai_seed = 5"], "SELECT value FROM ai_settings() WHERE name = 'ai_seed'", [("5",)]),
        (["RESET ai_oracle"], "SELECT value FROM ai_settings() WHERE name = 'ai_oracle'", [("package:default",)]),
        (["CREATE VIEW v AS SELECT id FROM t WHERE AI_FILTER(s)"], "SELECT count(*) FROM v", [(10,)]),
        (["CREATE MACRO m(x) AS AI_FILTER(x)"], "SELECT m('good')", [(True,)]),
    ],
    ids=["begin", "set", "reset", "view", "macro"],
)
def test_comments_before_a_statement_change_nothing(
    con: Connection, comment: str, statements: list[str], query: str, expected: Any
) -> None:
    for statement in statements:
        con.execute(comment + statement)
    assert con.in_transaction == (statements[0] == "BEGIN")
    assert rows(con, query) == expected


@pytest.mark.parametrize("comment", ["/* why */ ", "-- why\n"])
def test_comments_before_explain_change_nothing(con: Connection, comment: str) -> None:
    found = con.execute(comment + "EXPLAIN SELECT id FROM t WHERE AI_FILTER(s)")
    assert [name for name, *_ in found.description or ()] == ["explain"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ai_oracle = 'x' -- why, it's clear", "x"),
        ("ai_oracle TO 'a;b';", "a;b"),
        ("ai_oracle = 'it''s'", "it's"),
        ("ai_oracle = './a--b.gguf'", "./a--b.gguf"),
        ("ai_oracle = 'x' /* why */", "x"),
        ("/* why */ ai_oracle = 'x'", "x"),
    ],
)
def test_a_setting_is_what_stands_in_its_quotes(con: Connection, setting: str, value: str) -> None:
    con.execute(f"SET {setting}")
    assert rows(con, "SELECT value FROM ai_settings() WHERE name = 'ai_oracle'") == [(value,)]


# ---- nothing stays behind


def test_answers_do_not_pile_up_beside_duckdb(con: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB keeps what is registered within a transaction until it ends; 2,000 answers of 10 KB would show."""
    monkeypatch.setattr(execution, "WINDOW_ROWS", 100)
    oracle = model(con)
    held: list[int] = []
    generate = oracle.generate

    def watched(*args: Any, **options: Any) -> Any:
        held.append(pa.total_allocated_bytes())
        return generate(*args, **options)

    monkeypatch.setattr(oracle, "generate", watched)
    before = pa.total_allocated_bytes()
    query = "SELECT count(AI_COMPLETE(repeat('x', 10000) || i)) FROM range(2000) r(i)"
    assert rows(con, query) == [(2000,)]
    assert len(held) >= 20
    assert max(held) - before < 5_000_000


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_nothing_is_left_over(con: Connection, plan: str) -> None:
    con.execute(f"SET ai_plan = '{plan}'")
    con.execute("CREATE TABLE big AS SELECT i AS id, 'good ' || i % 5 AS s FROM range(150000) r(i)")
    assert len(rows(con, BIG)) == 150_000
    assert left_over(con) == []
    cursor = con.execute(BIG)
    assert len(cursor.fetchmany(5)) == 5
    cursor.close()
    assert left_over(con) == []
    cursor = con.execute(BIG)
    cursor.fetchone()
    del cursor
    gc.collect()
    assert left_over(con) == []
    reader = con.execute(BIG).fetch_record_batch(1000)
    reader.read_next_batch()
    del reader
    gc.collect()
    assert left_over(con) == []
    for late in ("error('late')", "'x'::INTEGER"):
        with pytest.raises(sqluice.DataError):
            rows(con, f"SELECT id, AI_FILTER(s), CASE WHEN id = 149999 THEN {late} END FROM big")
        assert left_over(con) == []
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("SELECT nothing FROM big WHERE AI_FILTER(s)")
    assert left_over(con) == []
    assert not con.in_transaction
    con.execute("BEGIN")
    con.rollback()


def test_a_late_error_is_the_status_of_its_run(con: Connection) -> None:
    con.execute("CREATE TABLE big AS SELECT i AS id, 'good ' || i % 5 AS s FROM range(150000) r(i)")
    with pytest.raises(sqluice.DataError):
        rows(con, "SELECT id, AI_FILTER(s), CASE WHEN id = 149999 THEN error('late') END FROM big")
    assert rows(con, "SELECT status FROM ai.runs WHERE sql LIKE '%late%'") == [("error",)]


def test_a_second_statement_while_a_large_result_is_read(con: Connection) -> None:
    con.execute("CREATE TABLE big AS SELECT i AS id, 'good ' || i % 5 AS s FROM range(150000) r(i)")
    first = con.execute(BIG + " ORDER BY id")
    assert first.fetchmany(3) == [(0, True), (1, True), (2, True)]
    assert (first.report, first.rownumber) == (None, 3)
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id") == GOOD
    assert len(first.fetchall()) == 149_997
    assert first.report is not None
    assert (first.report.status, first.report.calls) == ("ok", 5)
    assert left_over(con) == []


def test_a_large_result_and_a_transaction(con: Connection) -> None:
    con.execute("CREATE TABLE big AS SELECT i AS id, 'good ' || i % 5 AS s FROM range(150000) r(i)")
    first = con.execute(BIG)
    first.fetchone()
    con.execute("BEGIN")
    con.execute("DELETE FROM big")
    assert len(first.fetchall()) == 149_999
    con.rollback()
    assert count(con, "big") == 150_000


def test_two_cursors_are_read_in_turns(con: Connection) -> None:
    one = con.execute("SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id")
    two = con.execute("SELECT id FROM t WHERE NOT AI_FILTER(s) ORDER BY id")
    assert [(one.fetchone(), two.fetchone()) for _ in range(2)] == [((0,), (1,)), ((2,), (3,))]
    assert len(one.fetchall()) == len(two.fetchall()) == 8
    assert one.report is not two.report


# ---- interruption


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_interrupt_keeps_the_answers_so_far(con: Connection, plan: str) -> None:
    con.execute(f"SET ai_plan = '{plan}'")
    con.execute("SET ai_cache = 'memory'")
    con.execute("CREATE TABLE many AS SELECT 'good ' || i AS s FROM range(600) r(i)")
    slow = model(con, faults=Faults(seconds_per_batch=0.05))
    slow.batch_rows = 8  # type: ignore[attr-defined]
    timer = threading.Timer(0.4, con.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(sqluice.Error, match="interrupted") as caught:
        con.execute("SELECT count(*) FROM many WHERE AI_FILTER(s)")
    assert time.monotonic() - started < 1.4
    assert type(caught.value).__name__ == "InterruptedQueryError"
    assert left_over(con) == []
    done, slow.faults = slow.counts.prompts, Faults()
    assert 0 < done < 600
    slow.counts.reset()
    assert rows(con, "SELECT count(*) FROM many WHERE AI_FILTER(s)") == [(600,)]
    assert slow.counts.prompts == 600 - done


def test_an_idle_interrupt_does_not_hurt_the_next_statement(con: Connection) -> None:
    con.interrupt()
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id") == GOOD


# ---- settings


def test_settings_hold_for_the_session(con: Connection) -> None:
    con.execute("SET ai_plan = 'rowwise'; SET ai_seed TO 7;")
    assert rows(con, "SELECT name, value FROM ai_settings() WHERE name IN ('ai_plan', 'ai_seed') ORDER BY 1") == [
        ("ai_plan", "rowwise"),
        ("ai_seed", "7"),
    ]
    other = opened()
    assert rows(other, "SELECT value FROM ai_settings() WHERE name = 'ai_plan'") == [("optimized",)]
    other.close()
    con.execute("RESET ai_plan")
    assert rows(con, "SELECT value FROM ai_settings() WHERE name = 'ai_plan'") == [("optimized",)]


def test_raise_stops_at_the_row(con: Connection) -> None:
    asked = model(con, faults=Faults(nan="3"))
    assert rows(con, "SELECT count(*) FROM t WHERE AI_FILTER(s) IS NULL") == [(2,)]
    con.execute("SET ai_on_error = 'raise'")
    with pytest.raises(sqluice.OperationalError, match="NaN"):
        con.execute("SELECT AI_FILTER(s) FROM t")
    assert asked.counts.prompts
    assert rows(con, "SELECT AI_FILTER(s) FROM t WHERE id = 2") == [(True,)]


def test_a_join_may_not_ask_more_than_it_may(con: Connection) -> None:
    asked = model(con)
    con.execute("SET ai_max_cross_calls = 50")
    with pytest.raises(sqluice.NotSupportedError, match="ai_max_cross_calls"):
        con.execute("SELECT count(*) FROM t a JOIN t b ON AI_FILTER(PROMPT('{0} {1}', a.s, b.s))")
    assert asked.counts.prompts == 0
    assert left_over(con) == []
    found = rows(con, "SELECT count(*) FROM t a JOIN t b ON a.id = b.id AND AI_FILTER(PROMPT('{0} {1}', a.s, b.s))")
    assert found == [(10,)]


# ---- the trace beside other things


def test_a_schema_called_ai_is_the_persons(con: Connection) -> None:
    con.execute("CREATE SCHEMA ai; CREATE TABLE ai.runs AS SELECT 42 AS mine")
    assert rows(con, "SELECT * FROM ai.runs WHERE AI_FILTER('good')") == [(42,)]
    assert rows(con, "SELECT * FROM ai.runs") == [(42,)]
    con.execute("DROP SCHEMA ai CASCADE")
    assert count(con, "ai.runs") > 1


def test_a_table_called_ai_is_no_trace(con: Connection) -> None:
    con.execute("CREATE TABLE r AS SELECT 7 AS runs")
    assert rows(con, "SELECT ai.runs FROM r AS ai WHERE AI_FILTER('good')") == [(7,)]


def test_a_database_file_has_its_trace_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "my 'own' db.duckdb"
    con = opened(path)
    con.execute(f"CREATE TABLE t AS {ROWS}")
    con.execute("SELECT count(*) FROM t WHERE AI_FILTER(s)")
    assert count(con, "ai.runs") == 1
    con.close()
    beside = sorted(file.name for file in tmp_path.iterdir() if file.name != "home")
    assert beside == ["my 'own' db.duckdb", "my 'own' db.duckdb.ai"]
    con = opened(path)
    assert rows(con, "SELECT status FROM ai.runs") == [("ok",)]
    con.close()


def test_a_database_that_may_only_be_read(tmp_path: Path) -> None:
    path = tmp_path / "d.duckdb"
    con = opened(path)
    con.execute(f"CREATE TABLE t AS {ROWS}; CREATE VIEW v AS SELECT id FROM t WHERE AI_FILTER(s)")
    con.close()
    con = opened(path, read_only=True)
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id") == GOOD
    assert rows(con, "SELECT count(*) FROM v") == [(10,)]
    con.execute("CREATE TEMP TABLE own AS SELECT id FROM t WHERE AI_FILTER(s)")
    assert count(con, "own") == 10
    with pytest.raises(sqluice.OperationalError, match="read-only"):
        con.execute("INSERT INTO t SELECT id, s FROM t WHERE AI_FILTER(s)")
    assert left_over(con) == []
    con.close()


def test_the_trace_of_a_database_that_may_only_be_read(tmp_path: Path) -> None:
    path = tmp_path / "d.duckdb"
    opened(path).close()
    con = opened(path, read_only=True)
    con.execute("SELECT AI_FILTER('good')")
    assert count(con, "ai.runs") == 1
    con.close()


OTHER = """
import sys
import sqluice
from support.scripted import scripted
con = sqluice.connect(sys.argv[1], read_only=True, ai_cache="off", ai_mode="exact")
con.register_model("oracle", scripted("oracle", "keyword good"))
print(con.execute("SELECT count(*) FROM t WHERE AI_FILTER(PROMPT('{0}', s), {'model': 'oracle'})").fetchall())
"""


def test_a_second_process_writes_runs_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "d.duckdb"
    con = opened(path)
    con.execute(f"CREATE TABLE t AS {ROWS}")
    con.execute("SELECT AI_FILTER('good')")
    con.close()
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=TESTS,
            env={"PYTHONPATH": str(TESTS), "SQLUICE_HOME": str(tmp_path / "home"), "PATH": ""},
        )
        for _ in range(2)
    ]
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert (out, err) == ("[(10,)]\n", "")
    con = opened(path)
    assert rows(con, "SELECT count(*), count(DISTINCT run_id), sum(calls) FROM ai.runs") == [(3, 3, 41)]
    con.close()
