"""What is remembered of predicates, and for how long."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import sqlglot

import sqluice
from sqluice.engine.statistics import MOST_INPUTS, Statistics
from sqluice.optimizer.statistics import HALF_LIFE_DAYS, MOST_REMEMBERED, Remembered, Share, prior
from support.scripted import scripted

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0


@pytest.mark.parametrize(
    ("sql", "mean"),
    [("f", 0.5), ("f = 'x'", 0.3), ("f > 0.9", 0.1), ("f < 0.2", 0.2), ("f >= 3", 0.5), ("f IS NULL", 0.5)],
)
def test_a_prior_is_what_the_form_tells(sql: str, mean: float) -> None:
    assert prior(sqlglot.parse_one(sql, dialect="duckdb")).mean == pytest.approx(mean)


def test_what_is_remembered_fades() -> None:
    kept = Remembered(Share(300, 1000), rows=5000, updated=0.0)
    fresh = kept.now(5000, 0.0)
    assert (fresh.inputs, fresh.mean) == (MOST_REMEMBERED, 0.3)
    assert kept.now(5000, HALF_LIFE_DAYS * DAY).inputs == pytest.approx(MOST_REMEMBERED / 2)
    assert kept.now(20_000, 0.0).inputs == pytest.approx(MOST_REMEMBERED / 2)
    assert Remembered(Share(), 10, 0.0).now(10, 0.0) == Share()


def test_runs_add_up_until_the_model_changes(tmp_path: Path) -> None:
    kept = Statistics(tmp_path / "new" / "statistics.sqlite")
    assert kept.shares(["a"]) == {}
    kept.learn({"a": (Share(3, 10), 100.0, "r1")}, {"q": (2.0, 0.2, 4)}, {"q": {"k": 2}})
    kept.learn({"a": (Share(1, 10), 200.0, "r1")}, {"q": (1.0, 0.4, 2)}, {})
    found = kept.shares(["a", "b"])
    assert found.keys() == {"a"}
    assert (found["a"].share, found["a"].rows, found["a"].revision) == (Share(4, 20), 200.0, "r1")
    assert (kept.head("q"), kept.head("r")) == ({"k": 2}, None)
    costs = kept.costs(["q", "r"])
    assert costs.keys() == {"q"}
    assert costs["q"] == pytest.approx((0.5, 0.125))
    kept.learn({"a": (Share(9, 10), 200.0, "r2")}, {}, {})
    assert kept.shares(["a"])["a"].share == Share(9, 10)
    kept.learn({"a": (Share(0, 10 * MOST_INPUTS), 200.0, "r2")}, {}, {})
    assert kept.shares(["a"])["a"].share.inputs == pytest.approx(MOST_INPUTS)


def test_a_file_that_cannot_be_used_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "statistics.sqlite"
    path.write_text("no database")
    kept = Statistics(path)
    kept.learn({"a": (Share(3, 10), 100.0, "")}, {}, {})
    assert kept.shares(["a"]) == {}
    path.unlink()
    kept.learn({"a": (Share(3, 10), 100.0, "")}, {}, {})
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        kept.learn({"a": (Share(3, 10), 100.0, "")}, {}, {})
        assert kept.shares(["a"]) == {}
    other.close()
    assert kept.shares(["a"])["a"].share == Share(3, 10)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    return tmp_path


def opened(revision: str = "1") -> Any:
    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle="oracle")
    model = scripted("oracle", "percent 50")
    model.info = type(model.info)("oracle", revision=revision)
    con.register_model("oracle", model)
    con.execute("CREATE TABLE t AS SELECT 'row ' || i AS s FROM range(300) r(i)")
    return con


SQL = "SELECT count(*) FROM t WHERE AI_SCORE(PROMPT('a {0}', s)) >= 0 AND AI_FILTER(PROMPT('b {0}', s))"


@pytest.mark.usefixtures("home")
def test_a_second_run_needs_no_pilot() -> None:
    con = opened()
    ((passing,),) = con.execute("SELECT count(*) FROM t WHERE AI_FILTER(PROMPT('b {0}', s))").fetchall()
    con.execute("SELECT 1 FROM t WHERE AI_FILTER(PROMPT('c {0}', s))").fetchall()  # says nothing of the others
    for _ in range(2):
        con.execute(SQL).fetchall()
    *_, first, second = (row[0] for row in con.execute("SELECT calls FROM ai.runs ORDER BY started").fetchall())
    foreseen = con.execute(
        "SELECT rows_in, est_rows, calls, est_calls FROM ai.ops "
        "WHERE run_id = (SELECT run_id FROM ai.runs WHERE sql LIKE '%AI_SCORE%' ORDER BY started DESC LIMIT 1)"
    ).fetchall()
    con.close()
    assert second == 300 + passing < first
    assert {rows for rows, *_ in foreseen} == {300, passing}
    for rows, est_rows, calls, est_calls in foreseen:
        assert (est_rows, est_calls) == (pytest.approx(rows, rel=0.2), pytest.approx(calls, rel=0.2))


@pytest.mark.usefixtures("home")
def test_another_revision_starts_anew() -> None:
    first, second = opened("1"), opened("2")
    for con in (first, second):
        con.execute(SQL).fetchall()
    runs = [con.execute("SELECT calls FROM ai.runs").fetchall() for con in (first, second)]
    assert runs[0] == runs[1]
    for con in (first, second):
        con.close()


def test_the_same_statistics_give_the_same_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for number in range(2):
        monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / str(number)))
        con = opened()
        con.execute(SQL).fetchall()
        seen.append(con.execute("SELECT op, input_hash, n_rows FROM ai.decisions ORDER BY ALL").fetchall())
        con.close()
    assert seen[0] == seen[1]


@pytest.mark.usefixtures("home")
def test_explain_tells_what_earlier_calls_have_cost() -> None:
    con = opened()
    model = scripted("priced", "percent 50")
    model.info = type(model.info)("priced", revision="1", price_in=1000.0)
    con.register_model("priced", model)
    con.execute("SET ai_oracle = 'priced'")
    ((before,),) = con.execute(f"EXPLAIN {SQL}").fetchall()
    assert "as measured before" not in before
    con.execute(SQL).fetchall()
    ((spent, calls),) = con.execute("SELECT spent_usd, calls FROM ai.runs WHERE status = 'ok' AND calls > 0").fetchall()
    ((after,),) = con.execute(f"EXPLAIN (FORMAT JSON) {SQL}").fetchall()
    con.close()
    filters = json.loads(after)["stages"][0]["filters"]
    assert sum(one["usd"] for one in filters) == pytest.approx(
        spent / calls * sum(one["calls"] for one in filters), rel=0.1
    )
    assert all(one["seconds"] >= 0 for one in filters)
