"""What a session is given: tables of Python, parameters, stored definitions, and statements of every form."""

from __future__ import annotations

import datetime
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sqluice
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


# ---- tables of Python


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "batch"])
def test_registered_tables_are_read(con: Connection, kind: str) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    data = {"id": [1, 2, 3, 4], "s": ["good a", "bad b", None, "good a"]}
    table: Any = {
        "pandas": lambda: pd.DataFrame(data),
        "polars": lambda: pl.DataFrame(data),
        "arrow": lambda: pa.table(data),
        "batch": lambda: pa.RecordBatch.from_pydict(data),
    }[kind]()
    con.register("mine", table)
    assert rows(con, "SELECT id FROM mine WHERE AI_FILTER(s) ORDER BY id") == [(1,), (4,)]
    assert rows(con, "SELECT m.id FROM mine m JOIN t ON t.id = m.id AND AI_FILTER(t.s) ORDER BY 1") == [(2,), (4,)]
    con.execute("CREATE TABLE copied AS SELECT id, AI_FILTER(s) AS f FROM mine")
    assert rows(con, "SELECT f FROM copied ORDER BY id") == [(True,), (False,), (None,), (True,)]
    con.unregister("mine")
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("SELECT id FROM mine WHERE AI_FILTER(s)")


# ---- parameters


VALUES: list[Any] = [
    *("it's", "it's; DROP TABLE t; --", "雪🍎\"'", "", "\\n", "$1 ? {0} %s", "a\x00b", "line\nbreak"),
    *(1, -5, 2**40, 2**70, -(2**63), 1.5, -0.0, 1e300, float("inf"), float("nan"), True, False, None),
    *(datetime.date(2020, 1, 2), datetime.date(1, 1, 1), datetime.datetime(2020, 1, 2, 3, 4, 5, 678)),
    *(datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC), datetime.time(1, 2, 3), datetime.timedelta(1, 2, 3)),
    *(b"", b"\x00\xff'\\", [1, 2], [], ["it's", None], [[1], []], {"a": 1, "b c": "x"}, {"a": [{"b": None}]}),
    *(uuid.UUID(int=5), (1, 2), Decimal("-0.001")),
]
ODD_DECIMALS = [Decimal("1.50"), Decimal("1E+5"), Decimal("123456789012345678.9")]


@pytest.mark.parametrize(
    "value",
    [
        *VALUES,
        *ODD_DECIMALS,
    ],
    ids=repr,
)
def test_parameters_are_what_they_are_without_a_question(con: Connection, value: Any) -> None:
    plain = rows(con, "SELECT ? AS v, typeof(?) AS t", (value, value))
    beside = rows(con, "SELECT ? AS v, typeof(?) AS t, AI_FILTER('good')", (value, value))
    named = rows(con, "SELECT $v AS v, typeof($v) AS t, AI_FILTER('good')", {"v": value})
    assert repr([row[:2] for row in beside]) == repr([row[:2] for row in named]) == repr(plain)


def test_parameters_may_stand_wherever_a_value_may(con: Connection) -> None:
    text = "good'); DROP TABLE t; -- {0}"
    assert rows(con, "SELECT AI_FILTER(?)", (text,)) == [(True,)]
    assert rows(con, "SELECT AI_FILTER(PROMPT('{0}?', $x)) AS f, $x AS x", {"x": text}) == [(True, text)]
    assert rows(con, "SELECT AI_FILTER(PROMPT(?, s)) FROM t WHERE id = ?", ("Is it {0}?", 2)) == [(True,)]
    assert rows(con, "SELECT AI_CLASSIFY(s, ?) FROM t WHERE id = 2", (["b'ad", "good"],)) == [("good",)]
    assert rows(con, "SELECT id FROM t WHERE AI_FILTER(s) ORDER BY id LIMIT ?", (2,)) == [(0,), (2,)]
    assert rows(con, "SELECT AI_FILTER('good?'), '?', $1 -- ?", (5,)) == [(True, "?", 5)]
    assert count(con, "t") == 20


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT AI_FILTER(?), ?", ("a",)),
        ("SELECT AI_FILTER(?)", ("a", "b")),
        ("SELECT AI_FILTER(?)", None),
        ("SELECT AI_FILTER($a)", {"b": 1}),
        ("SELECT AI_FILTER($a)", {"a": "x", "b": 1}),
    ],
)
def test_wrong_parameters_are_refused(con: Connection, sql: str, params: Any) -> None:
    with pytest.raises(sqluice.ProgrammingError, match="parameter"):
        con.execute(sql, params)


def test_executemany_asks_for_each_set(con: Connection) -> None:
    asked = model(con)
    cursor = con.cursor().executemany("INSERT INTO done SELECT ?, AI_FILTER(?)", [(1, "good"), (2, "bad"), (3, None)])
    assert cursor.rowcount == 3
    assert rows(con, "SELECT * FROM done ORDER BY id") == [(1, True), (2, False), (3, None)]
    assert len(asked.counts.distinct) == 2
    with pytest.raises(sqluice.DataError):
        con.cursor().executemany("INSERT INTO done SELECT ?, AI_FILTER('good')", [(4,), ("x",)])
    assert count(con, "done") == 4  # each set is a statement that commits by itself


def test_a_constant_question_is_asked_once(con: Connection) -> None:
    asked = model(con)
    con.execute("INSERT INTO done SELECT 1, AI_FILTER('good')")
    assert asked.counts.prompts == 1


# ---- stored definitions


def stored(path: Path) -> None:
    """A file with views and macros that ask."""
    con = opened(path)
    con.execute(f"CREATE TABLE t AS {ROWS}")
    con.execute("CREATE VIEW v AS SELECT id FROM t WHERE AI_FILTER(s)")
    con.execute("CREATE VIEW renamed(a, b) AS SELECT id, AI_FILTER(s) FROM t")
    con.execute("CREATE MACRO nice(x) AS AI_FILTER(x)")
    con.execute("CREATE VIEW above AS SELECT * FROM v WHERE id < 10")
    con.execute("CREATE VIEW through AS SELECT id FROM t WHERE nice(s)")
    con.execute("CREATE MACRO found(k) AS TABLE SELECT id FROM t WHERE AI_FILTER(s) AND id < k")
    con.close()


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count(*) FROM v", 10),
        ("SELECT count(*) FROM renamed WHERE b AND a < 4", 2),
        ("SELECT count(*) FROM t WHERE nice(s)", 10),
        ("SELECT count(*) FROM v JOIN renamed ON id = a AND b", 10),
        ("SELECT count(*) FROM above", 5),
        ("SELECT count(*) FROM through", 10),
        ("SELECT count(*) FROM found(5)", 3),
    ],
)
def test_a_file_with_definitions_that_ask_is_opened_again(tmp_path: Path, sql: str, expected: int, plan: str) -> None:
    stored(tmp_path / "d.duckdb")
    con = opened(tmp_path / "d.duckdb", ai_plan=plan)
    assert rows(con, sql) == [(expected,)]
    con.close()


@pytest.mark.parametrize(
    "sql",
    [
        *("SHOW TABLES", "SHOW ALL TABLES", "DESCRIBE v", "PRAGMA table_info('v')", "SELECT sql FROM duckdb_views()"),
        *("SELECT count(*) FROM information_schema.columns", "EXPLAIN SELECT * FROM v", "SUMMARIZE t", "DROP VIEW v"),
    ],
)
def test_the_catalog_of_such_a_file_is_read_before_anything_is_asked(tmp_path: Path, sql: str) -> None:
    stored(tmp_path / "d.duckdb")
    con = opened(tmp_path / "d.duckdb")
    asked = model(con)
    con.execute(sql)
    assert asked.counts.prompts == 0
    con.close()


def test_a_definition_that_is_replaced_is_forgotten(con: Connection) -> None:
    con.execute("CREATE VIEW v AS SELECT id FROM t WHERE AI_FILTER(s)")
    assert count(con, "v") == 10
    con.execute("CREATE OR REPLACE VIEW v AS SELECT 1 AS x")
    assert rows(con, "SELECT * FROM v") == [(1,)]
    con.execute("BEGIN; CREATE OR REPLACE VIEW v AS SELECT AI_FILTER('good') AS x")
    assert rows(con, "SELECT * FROM v") == [(True,)]
    con.execute("ROLLBACK")
    assert rows(con, "SELECT * FROM v") == [(1,)]


def test_a_wrong_definition_is_refused_when_it_is_made(con: Connection) -> None:
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("CREATE VIEW v AS SELECT AI_FILTER(PROMPT('{1}', s)) FROM t")
    assert rows(con, "SELECT count(*) FROM duckdb_views() WHERE NOT internal AND view_name = 'v'") == [(0,)]


@pytest.mark.parametrize(
    ("make", "change", "query", "expected"),
    [
        ("CREATE TABLE g (s VARCHAR, f BOOLEAN AS (AI_FILTER(s)))", "INSERT INTO g VALUES ('good')", "f FROM g", True),
        (
            "CREATE TABLE g (s VARCHAR, f BOOLEAN DEFAULT (AI_FILTER('good')))",
            "INSERT INTO g(s) VALUES (1)",
            "f FROM g",
            True,
        ),
        ("CREATE TABLE g (s VARCHAR CHECK (AI_FILTER(s)))", "INSERT INTO g VALUES ('good')", "s FROM g", "good"),
    ],
    ids=["generated column", "default", "check"],
)
def test_columns_that_ask(con: Connection, make: str, change: str, query: str, expected: Any) -> None:
    con.execute(make)
    con.execute(change)
    assert rows(con, f"SELECT {query}") == [(expected,)]


@pytest.mark.parametrize(
    "make",
    [
        "CREATE TABLE g (s VARCHAR, f BOOLEAN AS (AI_FILTER(s)))",
        "CREATE TABLE g (s VARCHAR, f BOOLEAN DEFAULT (AI_FILTER('good')))",
        "CREATE TABLE g (s VARCHAR CHECK (AI_FILTER(s)))",
        "CREATE TABLE g (s VARCHAR); ALTER TABLE g ADD COLUMN f BOOLEAN DEFAULT (AI_FILTER('good'))",
    ],
    ids=["generated column", "default", "check", "alter"],
)
def test_columns_that_ask_are_stored_as_they_were_written(con: Connection, make: str) -> None:
    con.execute(make)
    ((sql,),) = rows(con, "SELECT sql FROM duckdb_tables() WHERE table_name = 'g'")
    assert "__ai_" not in sql
    assert "ai_filter" in sql.lower()


@pytest.mark.parametrize(
    ("prepare", "execute", "expected"),
    [
        ("SELECT id FROM t WHERE AI_FILTER(s) AND id < $1", "EXECUTE p(5)", [(0,), (2,), (4,)]),
        ("SELECT AI_FILTER($x)", "EXECUTE p(x := 'good')", [(True,)]),
    ],
)
def test_prepared_statements(con: Connection, prepare: str, execute: str, expected: Any) -> None:
    con.execute(f"PREPARE p AS {prepare}")
    assert rows(con, execute) == expected
    assert rows(con, execute) == expected
    con.execute("DEALLOCATE p")


def test_nothing_is_logged(con: Connection, caplog: pytest.LogCaptureFixture) -> None:
    con.execute("PREPARE p AS SELECT id FROM t WHERE AI_FILTER(s) AND s <> 'private'")
    assert [record.getMessage() for record in caplog.records] == []


# ---- other forms of statements


EXPLAINS = [
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "EXPLAIN (ANALYZE)",
    "EXPLAIN (FORMAT JSON)",
    "EXPLAIN (ANALYZE, FORMAT JSON)",
]


@pytest.mark.parametrize("explain", [*EXPLAINS, "EXPLAIN ANALYZE (FORMAT JSON)"])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM t WHERE AI_FILTER(s)",
        "INSERT INTO done SELECT id, AI_FILTER(s) FROM t",
        "WITH w AS (SELECT * FROM t WHERE AI_FILTER(s)) SELECT AI_SCORE(s) FROM w",
    ],
)
def test_explain(con: Connection, explain: str, sql: str) -> None:
    asked = model(con)
    found = con.execute(f"{explain} {sql}")
    assert [name for name, *_ in found.description or ()] == ["explain"]
    ((text,),) = found.fetchall()
    analyzed = "ANALYZE" in explain
    assert (asked.counts.prompts > 0) == analyzed
    assert (found.report is not None) == analyzed
    assert count(con, "done") == (20 if analyzed and "INSERT" in sql else 0)
    if "JSON" in explain:
        plan = json.loads(text)
        assert {step for stage in plan["stages"] for one in stage["steps"] for step in one} & {"ask", "function"}
        assert ("measured" in plan) == analyzed
    else:
        assert "AI_FILTER" in text
    assert left_over(con) == []


def test_explain_of_plain_statements_is_duckdbs(con: Connection) -> None:
    assert len(con.execute("EXPLAIN SELECT 1").description or ()) == 2
    assert json.loads(rows(con, "EXPLAIN (FORMAT JSON) SELECT 1")[0][1])


def test_several_statements_in_one_text(con: Connection) -> None:
    assert rows(con, "SELECT 1; SELECT id FROM t WHERE AI_FILTER(s) AND id < 3 ORDER BY id; -- that; was it") == [
        (0,),
        (2,),
    ]
    text = "BEGIN; INSERT INTO done SELECT 9, AI_FILTER(';'); ROLLBACK; SELECT count(*) FROM done"
    assert rows(con, text) == [(0,)]
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("CREATE TABLE one (a INTEGER); SELECT nothing WHERE AI_FILTER('x'); CREATE TABLE two (a INTEGER)")
    assert rows(con, "SELECT table_name FROM duckdb_tables() WHERE table_name IN ('one', 'two')") == [("one",)]
    with pytest.raises(sqluice.ProgrammingError, match="several"):
        con.execute("SELECT 1; SELECT AI_FILTER(?)", ("x",))
    with pytest.raises(sqluice.ProgrammingError, match="empty"):
        con.execute("; -- nothing")
