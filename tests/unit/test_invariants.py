"""What the trace of a run must satisfy, read back from the `ai` tables by SQL alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.scripted import Faults, ScriptedModel, keyword

import sqluice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice import Connection, Cursor
    from sqluice.types import Prompt

PRICE_IN, PRICE_OUT = 3.0, 11.0
SECRET = "sk-0123456789abcdefghij"

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
    "embeddings": "SELECT AI_EMBED(s), AI_SIMILARITY(s, 'good') FROM t",
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
    "all answered": Faults(),
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
        WHERE o.function = 'AI_SCORE' AND d.status = 'answered' AND TRY_CAST(d.answer AS DOUBLE) IS DISTINCT FROM d.score""",
    "status, answer, error and reason agree": """
        SELECT d.* FROM ai.decisions d JOIN ai.ops o USING (run_id, op)
        WHERE CASE d.status
            WHEN 'answered' THEN d.error IS NOT NULL
              OR d.reason IS DISTINCT FROM CASE d.tier WHEN 'oracle' THEN 'exact' WHEN 'cache' THEN 'cache hit' END
            WHEN 'failed' THEN d.error IS NULL OR d.reason <> 'failed' OR d.answer IS NOT NULL
            ELSE true END""",
    "every decision has a run and an operator": """
        SELECT d.run_id, d.op FROM ai.decisions d ANTI JOIN ai.ops o USING (run_id, op)
        UNION ALL SELECT b.run_id, b.op FROM ai.batches b ANTI JOIN ai.ops o USING (run_id, op)
        UNION ALL SELECT o.run_id, o.op FROM ai.ops o ANTI JOIN ai.runs r USING (run_id)""",
    "operators count what was decided": """
        SELECT o.*, d.* FROM ai.ops o LEFT JOIN (
            SELECT run_id, op, count(*) AS inputs, count(*) FILTER (tier = 'oracle') AS asked,
                   count(*) FILTER (tier = 'cache') AS hits, coalesce(sum(n_rows) FILTER (status = 'failed'), 0) AS failed,
                   coalesce(sum(n_rows) FILTER (tier = 'oracle'), 0) AS oracle_rows,
                   coalesce(sum(n_rows) FILTER (tier = 'cache'), 0) AS cache_rows
            FROM ai.decisions GROUP BY run_id, op) d USING (run_id, op)
        WHERE (o.distinct_inputs, o.calls, o.cached, o.failed, o.rows_oracle, o.rows_cache)
           <> (coalesce(inputs, 0), coalesce(asked, 0), coalesce(hits, 0), coalesce(d.failed, 0),
               coalesce(oracle_rows, 0), coalesce(cache_rows, 0))""",
    "operators count what batches took": """
        SELECT o.*, b.* FROM ai.ops o LEFT JOIN (
            SELECT run_id, op, sum(tokens_in) AS ins, sum(tokens_out) AS outs, sum(pad_tokens) AS pads, sum(seconds) AS s,
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
        WHERE abs(cost_usd - (tokens_in * {PRICE_IN} + tokens_out * {PRICE_OUT}) / 1e6) > 1e-9""",
    "runs add up their operators": """
        SELECT r.run_id FROM ai.runs r LEFT JOIN ai.ops o USING (run_id) GROUP BY ALL
        HAVING any_value(r.calls) <> coalesce(sum(o.calls), 0)
            OR abs(any_value(r.spent_usd) - coalesce(sum(o.cost_usd), 0)) > 1e-12""",
    "times are in order": """
        SELECT run_id FROM ai.runs WHERE started > ended
        UNION ALL SELECT b.run_id FROM ai.batches b JOIN ai.runs r USING (run_id)
        WHERE b.started > b.ended OR b.started < r.started - INTERVAL 1 SECOND OR b.ended > r.ended + INTERVAL 1 SECOND""",
}


class Priced(ScriptedModel):
    """A scripted model that knows its tokens."""

    def lengths(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """One token a word."""
        return np.array([len(prompt.text.split()) for prompt in prompts], dtype=np.int64)


def model(name: str, faults: Faults = Faults()) -> Priced:
    made = Priced(keyword("good"), name=name, revision=f"priced {faults}", faults=faults)
    made.info = dataclasses.replace(made.info, context_tokens=1000)
    return made


def opened(faults: Faults = Faults(), **settings: Any) -> Connection:
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


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
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
@pytest.mark.parametrize("faults", FAULTS)
def test_rows_that_fail_keep_the_rules(faults: str, plan: str) -> None:
    con = opened(FAULTS[faults], ai_plan=plan, ai_cache="memory")
    for sql in QUERIES.values():
        con.execute(sql)
        con.execute(sql)
    assert violations(con) == {}
    failed = con.execute("SELECT sum(failed) > 0 FROM ai.ops").fetchone()
    assert failed == (faults != "all answered",)
    con.close()
