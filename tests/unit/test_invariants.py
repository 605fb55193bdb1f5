"""What the trace of a run must satisfy, read back from the `ai` tables by SQL alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sqluice
from sqluice.engine.operators import filtering
from support.scripted import Faults, ScriptedModel, keyword

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice import Connection, Cursor
    from sqluice.types import Prompt

PRICE_IN, PRICE_OUT = 3.0, 11.0
SECRET = "sk-0123456789abcdefghij"
NO_FAULTS = Faults()

QUERIES = {
    "where": "SELECT id FROM t WHERE AI_FILTER(s)",
    "limit": "SELECT id FROM t WHERE AI_FILTER(s) LIMIT 3",
    "limit of none": "SELECT id FROM t WHERE AI_FILTER(s) LIMIT 0",
    "case guard": "SELECT id, CASE WHEN id > 30 THEN AI_FILTER(s) END FROM t",
    "or guard": "SELECT id FROM t WHERE id < 30 OR AI_FILTER(s)",
    "cheap conjunct": "SELECT id FROM t WHERE AI_FILTER(s) AND id % 3 = 0",
    "join": "SELECT a.id, b.id FROM t a JOIN u b ON a.id = b.id AND AI_FILTER(PROMPT('{0} or {1}', a.s, b.s))",
    "left join": "SELECT a.id, b.id FROM t a LEFT JOIN u b ON a.id = b.id AND AI_FILTER(b.s)",
    "one question twice": "SELECT id, AI_FILTER(s) FROM t WHERE id % 3 = 0 OR AI_FILTER(s)",
    "one question in two stages": "SELECT id FROM t WHERE AI_FILTER(s) UNION ALL SELECT id FROM u WHERE AI_FILTER(s)",
    "several questions": "SELECT AI_FILTER(s), AI_SCORE(s), AI_CLASSIFY(s, ['good', 'bad']), AI_COMPLETE(s) FROM t",
    "one after another": "SELECT id FROM t WHERE AI_FILTER(s) AND AI_SCORE(PROMPT('{0}?', s)) > 0.5",
    "grades": "SELECT AI_SCORE(s, {'scale': [1, 3]}) FROM t",
    "several labels": "SELECT AI_CLASSIFY(s, ['good', 'bad'], {'output_mode': 'multi'}) FROM t",
    "embeddings": "SELECT AI_EMBED(s), AI_SIMILARITY(s, s || '!') FROM t",
    "answers with errors": "SELECT AI_FILTER(PROMPT('{0}', s), {'errors': true}) FROM t",
    "group": "SELECT AI_FILTER(s) AS f, count(*) FROM t GROUP BY f HAVING AI_FILTER(max(s))",
    "subquery": "SELECT id FROM u WHERE id IN (SELECT id FROM t WHERE AI_FILTER(s))",
    "cte": "WITH w AS (SELECT id, AI_FILTER(s) AS f FROM t) SELECT a.id FROM w a JOIN w b USING (id) WHERE a.f AND b.f",
    "constant": "SELECT id, AI_FILTER('good day') FROM t WHERE id < 4",
    "no rows": "SELECT id FROM t WHERE AI_FILTER(s) AND id < 0",
    "only nulls": "SELECT AI_FILTER(s) FROM t WHERE s IS NULL",
    "create": "CREATE OR REPLACE TABLE made AS SELECT id FROM t WHERE AI_FILTER(s)",
    "update": "UPDATE u SET s = s WHERE AI_FILTER(s)",
}
"""None of them fails; rows repeat and some are NULL."""

FAULTS = {
    "all answered": NO_FAULTS,
    "one raises": Faults(raises="7"),
    "one is NaN": Faults(nan="7"),
    "one is cut": Faults(cut="7"),
    "the shape is wrong": Faults(shape="7"),
}

# Each finds rows that break the rule; none may be found.
RULES = {
    "one decision per input": """
        SELECT run_id, op, input_hash, count(*) FROM ai.decisions GROUP BY ALL HAVING count(*) > 1""",
    "rows in = decided + without input": """
        SELECT o.run_id, o.op, o.rows_in, o.nulls, coalesce(sum(d.n_rows), 0) AS decided
        FROM ai.ops o LEFT JOIN ai.decisions d USING (run_id, op)
        GROUP BY ALL HAVING o.rows_in <> decided + o.nulls""",
    "a filter says what its score says": """
        SELECT d.* FROM ai.decisions d JOIN ai.ops o USING (run_id, op)
        WHERE o.function = 'AI_FILTER' AND d.status = 'answered'
          AND (d.score IS NULL OR d.score NOT BETWEEN 0 AND 1 OR d.answer IS DISTINCT FROM (d.score > 0.5)::VARCHAR)""",
    "a score is its answer": """
        SELECT d.* FROM ai.decisions d JOIN ai.ops o USING (run_id, op)
        WHERE o.function = 'AI_SCORE' AND d.status = 'answered'
          AND TRY_CAST(d.answer AS DOUBLE) IS DISTINCT FROM d.score""",
    "status, answer, error and reason agree": """
        SELECT d.* FROM ai.decisions d JOIN ai.ops o USING (run_id, op)
        WHERE CASE d.status
            WHEN 'answered' THEN d.error IS NOT NULL
              OR d.reason IS DISTINCT FROM
                 CASE d.tier WHEN 'oracle' THEN 'exact' WHEN 'cache' THEN 'cache hit' WHEN 'rule' THEN 'rule' END
            WHEN 'failed' THEN d.error IS NULL OR d.reason <> 'failed' OR d.answer IS NOT NULL
            WHEN 'capped' THEN d.error IS NULL OR d.reason NOT IN ('budget', 'token limit') OR d.answer IS NOT NULL
            ELSE true END""",
    "every decision has a run and an operator": """
        SELECT d.run_id, d.op FROM ai.decisions d ANTI JOIN ai.ops o USING (run_id, op)
        UNION ALL SELECT b.run_id, b.op FROM ai.batches b ANTI JOIN ai.ops o USING (run_id, op)
        UNION ALL SELECT o.run_id, o.op FROM ai.ops o ANTI JOIN ai.runs r USING (run_id)""",
    "operators count what was decided": """
        SELECT o.*, d.* FROM ai.ops o LEFT JOIN (
            SELECT run_id, op, count(*) AS inputs, count(*) FILTER (tier = 'oracle') AS asked,
                   count(*) FILTER (tier = 'cache') AS hits,
                   coalesce(sum(n_rows) FILTER (status = 'failed'), 0) AS failed,
                   coalesce(sum(n_rows) FILTER (tier = 'oracle'), 0) AS oracle_rows,
                   coalesce(sum(n_rows) FILTER (tier = 'cache'), 0) AS cache_rows
            FROM ai.decisions GROUP BY run_id, op) d USING (run_id, op)
        WHERE (o.distinct_inputs, o.calls, o.cached, o.failed, o.rows_oracle, o.rows_cache)
           <> (coalesce(inputs, 0), coalesce(asked, 0), coalesce(hits, 0), coalesce(d.failed, 0),
               coalesce(oracle_rows, 0), coalesce(cache_rows, 0))""",
    "operators count what batches took": """
        SELECT o.*, b.* FROM ai.ops o LEFT JOIN (
            SELECT run_id, op, sum(tokens_in) AS ins, sum(tokens_out) AS outs, sum(pad_tokens) AS pads,
                   sum(seconds) AS s,
                   coalesce(sum(rows) FILTER (outcome = 'ok' OR rows = 1), 0) AS asked
            FROM ai.batches GROUP BY run_id, op) b USING (run_id, op)
        WHERE (o.tokens_in, o.tokens_out, o.pad_tokens, o.calls)
           <> (coalesce(ins, 0), coalesce(outs, 0), coalesce(pads, 0), coalesce(asked, 0))
           OR abs(o.seconds_busy - coalesce(s, 0)) > 1e-3""",
    "tokens of decisions are those of operators": """
        SELECT o.run_id, o.op, o.tokens_in, o.tokens_out, sum(d.tokens_in), sum(d.tokens_out)
        FROM ai.ops o LEFT JOIN ai.decisions d USING (run_id, op) GROUP BY ALL
        HAVING (o.tokens_in, o.tokens_out) <> (coalesce(sum(d.tokens_in), 0), coalesce(sum(d.tokens_out), 0))""",
    "cost is tokens times price": f"""
        SELECT run_id, op, cost_usd FROM ai.ops
        WHERE tokens_in > 0 -- a model that counts none is charged by an estimate
            AND abs(cost_usd - (tokens_in * {PRICE_IN} + tokens_out * {PRICE_OUT}) / 1e6) > 1e-9""",
    "runs add up their operators": """
        SELECT r.run_id FROM ai.runs r LEFT JOIN ai.ops o USING (run_id) GROUP BY ALL
        HAVING any_value(r.calls) <> coalesce(sum(o.calls), 0)
            OR abs(any_value(r.spent_usd) - coalesce(sum(o.cost_usd), 0)) > 1e-12""",
    "times are in order": """
        SELECT run_id FROM ai.runs WHERE started > ended
        UNION ALL SELECT b.run_id FROM ai.batches b JOIN ai.runs r USING (run_id)
        WHERE b.started > b.ended
           OR b.started < r.started - INTERVAL 1 SECOND OR b.ended > r.ended + INTERVAL 1 SECOND""",
}


class Priced(ScriptedModel):
    """A scripted model that knows its tokens."""

    def lengths(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """One token a word."""
        return np.array([len(prompt.text.split()) for prompt in prompts], dtype=np.int64)


def model(name: str, faults: Faults = NO_FAULTS) -> Priced:
    made = Priced(keyword("good"), name=name, revision=str(hash(faults)), faults=faults)
    made.info = dataclasses.replace(made.info, context_tokens=1000)
    return made


def opened(faults: Faults = NO_FAULTS, **settings: Any) -> Connection:
    con = sqluice.connect(**{"ai_cache": "off", "ai_mode": "exact", **settings})
    for name in ("oracle", "embedder"):
        con.register_model(name, model(name, faults), price=(PRICE_IN, PRICE_OUT))
        con.execute(f"SET ai_{name} = '{name}'")
    con.execute(
        "CREATE TABLE t AS SELECT i AS id, CASE WHEN i % 5 = 0 THEN NULL WHEN i % 2 = 0 THEN 'good ' || i % 20 "
        "ELSE 'bad ' || i % 20 END AS s FROM range(60) r(i)"
    )
    con.execute("CREATE TABLE u AS SELECT id, s FROM t WHERE id % 4 < 2")
    return con


def violations(con: Connection) -> dict[str, list[Any]]:
    return {rule: found for rule, sql in RULES.items() if (found := con.execute(sql).fetchall())}


@pytest.fixture(autouse=True)
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own trace folder and cache."""
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))


@pytest.fixture
def con() -> Iterator[Connection]:
    connection = opened()
    yield connection
    connection.close()


@pytest.mark.parametrize(("plan", "cache"), [("optimized", "off"), ("optimized", "disk"), ("rowwise", "memory")])
def test_every_run_keeps_the_rules(plan: str, cache: str) -> None:
    con = opened(ai_plan=plan, ai_cache=cache)
    for sql in QUERIES.values():
        con.execute(sql)
        con.execute(sql)
    assert violations(con) == {}
    asked, cached = con.execute("SELECT sum(calls), sum(cached) FROM ai.ops").fetchall()[0]
    assert asked > 0
    assert (cached > 0) == (cache != "off")
    con.close()


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_rows_that_fail_keep_the_rules(plan: str) -> None:
    con = opened(ai_plan=plan, ai_cache="memory")
    failed: dict[str, int] = {}
    for name, faults in FAULTS.items():
        for model_name in ("oracle", "embedder"):
            con.register_model(model_name, model(model_name, faults), price=(PRICE_IN, PRICE_OUT))
        reports = []
        queries = ["case guard", "several questions", "answers with errors", "join"]
        for query in [*queries, *(["embeddings"] if not faults.shape else [])]:
            reports += [con.execute(QUERIES[query]).report, con.execute(QUERIES[query]).report]
        failed[name] = sum(report.failed for report in reports if report is not None)
    assert violations(con) == {}
    assert [name for name, rows in failed.items() if not rows] == ["all answered", "one is cut"]
    cut = con.execute("SELECT count(*) FROM ai.decisions WHERE status = 'capped' AND reason = 'token limit'").fetchall()
    assert cut[0][0] > 0
    assert con.execute("SELECT sum(failed) FROM ai.ops").fetchall() == [(sum(failed.values()),)]
    con.close()


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_embeddings_of_a_wrong_length_cost_their_rows(con: Connection, plan: str) -> None:
    con.execute(f"SET ai_plan = '{plan}'")
    con.register_model("embedder", model("embedder", FAULTS["the shape is wrong"]))
    rows = con.execute("SELECT s, AI_EMBED(s) IS NULL FROM t WHERE s IS NOT NULL").fetchall()
    assert {s for s, is_null in rows if is_null} == {s for s, _ in rows if "7" in s}


def test_the_rules_can_be_broken(con: Connection) -> None:
    con.execute("SELECT AI_FILTER(s) FROM t")
    con.execute("CREATE TABLE decisions AS SELECT * FROM ai.decisions")
    con.execute("INSERT INTO decisions SELECT * FROM decisions LIMIT 1")
    con.execute("UPDATE decisions SET answer = NOT answer::BOOLEAN WHERE score > 0.5")
    con.execute("UPDATE decisions SET tokens_in = tokens_in + 1, error = 'x' WHERE score < 0.5")
    broken = {rule for rule, sql in RULES.items() if con.execute(sql.replace("ai.decisions", "decisions")).fetchall()}
    assert broken == {
        "one decision per input",
        "rows in = decided + without input",
        "a filter says what its score says",
        "status, answer, error and reason agree",
        "operators count what was decided",
        "tokens of decisions are those of operators",
    }


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT AI_FILTER(s), list_transform([s], x -> AI_FILTER(x)) FROM t",
        "SELECT list_transform([s], x -> AI_FILTER(x)) FROM t WHERE AI_FILTER(s) UNION ALL "
        "SELECT list_transform([s], x -> NOT AI_FILTER(x)) FROM t WHERE NOT AI_FILTER(s)",
        "SELECT AI_EMBED(s), AI_SIMILARITY(s, 'good') FROM t",
    ],
)
def test_an_input_is_asked_once_in_a_run(con: Connection, sql: str) -> None:
    cursor = con.execute(sql)
    cursor.fetchall()
    report = cursor.report
    assert report is not None
    assert violations(con) == {}
    assert report.calls == con.execute("SELECT count(DISTINCT input_hash) FROM ai.decisions").fetchall()[0][0]


def test_rows_of_a_first_try_do_not_count(con: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "FIRST_SPOOL", 20)
    rows = con.execute("SELECT id FROM t WHERE AI_FILTER(s) AND AI_FILTER(PROMPT('{0}?', s)) LIMIT 1000").fetchall()
    assert len(rows) > 10
    everything = con.execute("SELECT count(*) FROM t").fetchall()
    assert con.execute("SELECT rows_in FROM ai.ops WHERE op = 0").fetchall() == everything
    assert violations(con) == {}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT AI_FILTER('good day')",
        "SELECT id FROM t WHERE AI_FILTER('good day')",
        "SELECT AI_SIMILARITY(s, 'good') FROM t",
        "CREATE TABLE new AS SELECT id FROM t WHERE AI_FILTER('good day')",
    ],
)
def test_planning_asks_nothing(con: Connection, sql: str) -> None:
    con.execute("SELECT AI_SIMILARITY('a', 'b')")  # from here on the length of embeddings is known
    models = [model("oracle"), model("embedder")]
    for one in models:
        con.register_model(one.info.name, one)
    con.execute("SELECT AI_EMBED('c')")
    models[1].counts.reset()
    con.execute(f"EXPLAIN {sql}")
    assert [one.counts.prompts for one in models] == [0, 0]


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_the_report_says_what_the_tables_say(plan: str) -> None:
    con = opened(Faults(nan="7"), ai_plan=plan)
    for sql in ("SELECT AI_FILTER(s), AI_COMPLETE(s) FROM t", QUERIES["one after another"], "SELECT AI_FILTER(NULL)"):
        cursor = con.execute(sql)
        _same_numbers(con, cursor)
    con.close()


def _same_numbers(con: Connection, cursor: Cursor) -> None:
    report = cursor.report
    assert report is not None
    assert report.recorded
    columns = "run_id, sql, status, seconds, label, calls, warnings, spent_usd"
    run = con.execute(f"SELECT {columns} FROM ai.runs WHERE run_id = ?", [report.run_id]).fetchall()
    same = (report.run_id, report.sql, report.status, report.seconds, report.label, report.calls, report.warnings)
    assert run == [(*same, report.cost_usd)]
    assert report.warnings == len(cursor.messages)
    names = "function, model, rows_in, rows_out, distinct_inputs, calls, cached, failed, tokens_in, tokens_out, padding"
    ops = con.execute(f"SELECT {names} FROM ai.ops WHERE run_id = ? ORDER BY op", [report.run_id]).fetchall()
    found = [tuple(getattr(op, name) for name in names.split(", ")) for op in report.operators]
    assert found == ops
    for name in ("calls", "cached", "failed", "tokens_in", "tokens_out"):
        assert getattr(report, name) == sum(getattr(op, name) for op in report.operators)
    tiers = con.execute("SELECT sum(rows_oracle), sum(rows_cache) FROM ai.ops WHERE run_id = ?", [report.run_id])
    assert tiers.fetchall() == [(report.rows_by_tier.get("oracle", 0), report.rows_by_tier.get("cache", 0))] or not ops


def test_counted_tokens_are_no_cache_hits(con: Connection) -> None:
    report = con.execute("SELECT AI_COUNT_TOKENS('AI_FILTER', s) FROM t").report
    assert report is not None
    assert (report.calls, report.cached) == (0, 0)
    assert violations(con) == {}


# ---- what is stored


def test_no_text_of_a_row_is_stored_unless_asked_for(con: Connection) -> None:
    con.execute("CREATE TABLE private AS SELECT 'good xyzzy' AS s UNION ALL SELECT 'bad xyzzy'")
    everything = (
        "SELECT AI_FILTER(s), AI_SCORE(s), AI_COMPLETE(s), AI_EMBED(s), AI_CLASSIFY(s, ['a', 'b']) FROM private"
    )
    con.register_model("oracle", model("oracle", Faults(raises="bad")))
    con.execute(everything)
    texts = (
        "SELECT count(*) FROM (SELECT d::VARCHAR AS row FROM ai.{} d) WHERE row LIKE '%xyzzy%' OR row LIKE '%XYZZY%'"
    )
    for table in ("decisions", "batches", "ops", "runs"):
        assert con.execute(texts.format(table)).fetchall() == [(0,)], table
    con.execute("SET ai_trace = 'text'")
    con.execute(everything)
    stored = con.execute(
        "SELECT DISTINCT text, function FROM ai.decisions JOIN ai.ops USING (run_id, op) WHERE text > ''"
    )
    assert sorted(stored.fetchall()) == sorted(
        (text, f"AI_{name}")
        for text in ("good xyzzy", "bad xyzzy")
        for name in ("FILTER", "SCORE", "COMPLETE", "EMBED", "CLASSIFY")
    )


def test_two_arguments_are_stored_as_two_lines(con: Connection) -> None:
    con.execute("SET ai_trace = 'text'")
    con.execute("SELECT AI_FILTER(PROMPT('{0} and {1}', s, id)) FROM t WHERE id = 2")
    assert con.execute("SELECT text FROM ai.decisions").fetchall() == [("good 2\n2",)]


def test_off_writes_nothing_and_still_reports(con: Connection, tmp_path: Any) -> None:
    con.execute("SET ai_trace = 'off'")
    report = con.execute("SELECT AI_FILTER(s) FROM t").report
    assert report is not None
    assert (report.recorded, report.calls > 0, report.status) == (False, True, "ok")
    assert not list((tmp_path / "home").rglob("*.parquet*"))
    assert con.execute("SELECT count(*) FROM ai.runs").fetchall() == [(0,)]


def test_keys_are_redacted_in_every_table(con: Connection) -> None:
    con.register_model("leaky", model("leaky", Faults(raises=SECRET)))
    con.execute(f"SELECT AI_FILTER(PROMPT('{{0}} api_key={SECRET}', s)) FROM t")
    con.execute(f"SELECT AI_FILTER(PROMPT('{{0}}', '{SECRET}'), {{'model': 'leaky'}})")
    with pytest.raises(sqluice.Error):
        con.execute(f"SELECT error('Authorization: Bearer {SECRET}') FROM t WHERE AI_FILTER(s)")
    for table in ("decisions", "batches", "ops", "runs"):
        rows = con.execute(f"SELECT x::VARCHAR FROM ai.{table} x").fetchall()
        assert rows
        assert not [row for (row,) in rows if SECRET in row], table


# ---- runs that do not end well


def test_a_run_that_fails_is_there_with_its_error(con: Connection) -> None:
    con.execute("SET ai_on_error = 'raise'")
    con.register_model("oracle", model("oracle", Faults(raises="7")), price=(PRICE_IN, PRICE_OUT))
    with pytest.raises(sqluice.OperationalError):
        con.execute("SELECT AI_FILTER(s) FROM t")
    with pytest.raises(sqluice.DataError):
        con.execute("SELECT error('stop') FROM t WHERE AI_FILTER('good')")
    runs = con.execute("SELECT status, error, label FROM ai.runs ORDER BY run_id").fetchall()
    assert [(status, label) for status, _, label in runs] == [("error", None), ("error", None)]
    assert "AI_FILTER failed on a row" in runs[0][1]
    assert "stop" in runs[1][1]


def test_a_statement_that_cannot_be_planned_is_a_run_too(con: Connection) -> None:
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("SELECT nothing FROM t WHERE AI_FILTER(s)")
    assert con.execute("SELECT status, calls FROM ai.runs").fetchall() == [("error", 0)]


def test_calls_of_a_run_that_fails_are_counted(con: Connection) -> None:
    with pytest.raises(sqluice.DataError):
        con.execute("SELECT AI_FILTER(s), CASE WHEN id = 59 THEN error('late') END FROM t")
    assert con.execute(RULES["operators count what batches took"]).fetchall() == []


def test_decisions_of_a_run_that_fails_are_kept(con: Connection) -> None:
    with pytest.raises(sqluice.DataError):
        con.execute("SELECT AI_FILTER(s), CASE WHEN id = 59 THEN error('late') END FROM t")
    assert violations(con) == {}


def interrupted(con: Connection, plan: str) -> None:
    """Run a query that is stopped while its model has answered a part."""
    slow = model("oracle", Faults(seconds_per_batch=0.05))
    slow.batch_rows = 2  # type: ignore[attr-defined]
    con.register_model("oracle", slow, price=(PRICE_IN, PRICE_OUT))
    con.execute(f"SET ai_plan = '{plan}'")
    timer = threading.Timer(0.3, con.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(sqluice.Error, match="interrupted"):
        con.execute("SELECT AI_FILTER(PROMPT('{0} {1}', s, id)) FROM t")
    timer.join()
    assert time.monotonic() - started < 1.3
    assert slow.counts.prompts


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
def test_a_run_that_is_interrupted_is_there(con: Connection, plan: str) -> None:
    interrupted(con, plan)
    assert con.execute("SELECT status, error LIKE 'interrupted%' FROM ai.runs").fetchall() == [("interrupted", True)]
    assert con.execute("SELECT sum(rows) > 0 FROM ai.batches").fetchall() == [(True,)]
    assert con.execute(RULES["one decision per input"]).fetchall() == []


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
@pytest.mark.parametrize(
    "rule",
    [
        "cost is tokens times price",
        "operators count what batches took",
        "tokens of decisions are those of operators",
        "runs add up their operators",
    ],
)
def test_a_run_that_is_interrupted_keeps_the_rules(con: Connection, plan: str, rule: str) -> None:
    interrupted(con, plan)
    assert con.execute(RULES[rule]).fetchall() == []
