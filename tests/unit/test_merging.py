"""Questions with the option `merge` are answered in one pass, and the answers are those of single questions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sqluice
from sqluice import errors
from sqluice.types import Prompt
from sqluice.workers.protocol import Asked, Batch
from sqluice.workers.together import Question, Together
from support.scripted import ScriptedModel, percent

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sqluice import Connection

TEXT = "a long text that is well worth being read once only, not once for each of the questions about it, number "


class Joint(ScriptedModel):
    """A scripted model that answers several questions in one pass; it counts passes and the texts read in them."""

    token_budget = 4096

    def __init__(self) -> None:
        super().__init__(percent("50"), name="oracle")
        self.passes: list[tuple[int, int]] = []

    def beginning(self, question: Question) -> Hashable | None:
        return "apart" in question.sample.template

    def question_tokens(self, question: Question) -> int:
        return len(question.sample.template) // 4

    def text_tokens(self, prompts: Sequence[Prompt], question: Question) -> list[int]:
        return [sum(map(len, prompt.args)) // 4 for prompt in prompts]

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(prompt.text) // 4 for prompt in prompts]

    def prefix_tokens(self, prompt: Prompt) -> int:
        return 3

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
        return np.zeros(len(choices), np.float32)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        self.counts.add([(prompt.text, tuple(choices)) for prompt in prompts])
        return np.array([self._scores(prompt.text, choices) for prompt in prompts], np.float32).reshape(
            len(prompts), -1
        )

    def score_all(self, prompts: Sequence[Prompt], questions: Sequence[Question]) -> np.ndarray:
        self.passes.append((len(prompts), len(questions)))
        alone = [
            np.array([self._scores(Prompt(one.sample.template, p.args).text, one.choices) for p in prompts])
            for one in questions
        ]
        return np.hstack(alone).astype(np.float32)


@pytest.fixture
def model() -> Joint:
    return Joint()


def opened(model: Joint, **settings: Any) -> Connection:
    con = sqluice.connect(**{"ai_cache": "off", "ai_mode": "exact", "ai_oracle": "oracle", **settings})
    con.register_model("oracle", model)
    con.execute(f"CREATE TABLE t AS SELECT i AS id, '{TEXT}' || (i % 40) AS s FROM range(50) r(i)")
    return con


def asked(con: Connection, query: str, *, merge: bool) -> list[tuple[Any, ...]]:
    options = ", {'merge': true}" if merge else ""
    found = con.execute(query.replace("{o}", options)).fetchall()
    return sorted(found)


SELECT = (
    "SELECT id, AI_FILTER(PROMPT('ripe? {0}', s){o}), AI_SCORE(PROMPT('red? {0}', s){o}),"
    " AI_CLASSIFY(s, ['once', 'number 7']{o}) FROM t"
)
WHERE = "SELECT id FROM t WHERE AI_FILTER(PROMPT('ripe? {0}', s){o}) AND AI_FILTER(PROMPT('red? {0}', s){o})"
OTHERS = (
    WHERE + " OR id = 3",
    WHERE + " AND id > 9 ORDER BY id LIMIT 3",
    "SELECT id, CASE WHEN AI_FILTER(PROMPT('ripe? {0}', s){o}) THEN AI_SCORE(PROMPT('red? {0}', s){o}) END FROM t",
    "SELECT id, AI_FILTER(PROMPT('ripe? {0}', s){o}), AI_FILTER(PROMPT('apart? {0}', s){o}) FROM t",
    "SELECT id, AI_FILTER(PROMPT('ripe? {0}', s){o}), AI_FILTER(PROMPT('red? {0}', left(s, 90)){o}) FROM t",
    "SELECT id, AI_FILTER(PROMPT('ripe? {0}', s){o}) FROM t WHERE AI_FILTER(PROMPT('red? {0}', s){o})",
    "SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id + 1 AND AI_FILTER(PROMPT('{0} {1}', a.s, b.s){o})"
    " AND AI_FILTER(PROMPT('red? {0} {1}', a.s, b.s){o})",
)


def test_a_select_list_reads_each_text_once(model: Joint) -> None:
    with opened(model) as con:
        alone = asked(con, SELECT, merge=False)
        assert not model.passes
        model.counts.reset()
        assert asked(con, SELECT, merge=True) == alone
    assert sum(rows for rows, _ in model.passes) == 40
    assert {questions for _, questions in model.passes} == {3}
    assert not model.counts.prompts


def test_where_answers_both_and_asks_nothing_twice(model: Joint) -> None:
    with opened(model) as con:
        alone = asked(con, WHERE, merge=False)
        model.counts.reset()
        assert asked(con, WHERE, merge=True) == alone
        assert con.execute("SELECT sum(n_rows) FROM ai.decisions GROUP BY run_id, op").fetchall()
    assert model.passes
    assert sum(rows for rows, _ in model.passes) <= 40
    assert not model.counts.prompts


@pytest.mark.parametrize("query", OTHERS)
@pytest.mark.parametrize("cache", ["off", "memory"])
def test_the_rows_are_those_of_single_questions(model: Joint, query: str, cache: str) -> None:
    with opened(model, ai_cache=cache) as con:
        merged = asked(con, query, merge=True)
        assert merged == asked(con, query, merge=False)


def test_where_beginnings_differ_each_is_asked_alone(model: Joint) -> None:
    with opened(model) as con:
        asked(con, OTHERS[3], merge=True)
    assert not model.passes


def test_a_short_text_is_not_worth_a_question_that_may_not_be_needed(model: Joint) -> None:
    with opened(model) as con:
        con.execute("UPDATE t SET s = id::VARCHAR")
        asked(con, WHERE.replace("red?", "red? " * 20), merge=True)
    assert not [rows for rows, _ in model.passes if rows > 16]


def test_the_trace_adds_up(model: Joint) -> None:
    with opened(model, ai_cache="memory") as con:
        con.execute(SELECT.replace("{o}", ", {'merge': true}")).fetchall()
        ops = con.execute(
            "SELECT rows_in, distinct_inputs, calls, cached, o.tokens_in, sum(b.tokens_in), sum(b.seconds)"
            " FROM ai.ops o JOIN ai.batches b USING (run_id, op) GROUP BY ALL"
        ).fetchall()
        read = con.execute("SELECT sum(n_rows), count(*), sum(tokens_in) FROM ai.decisions GROUP BY op").fetchall()
        model.passes.clear()
        again = con.execute(SELECT.replace("{o}", "")).report
    assert [row[:4] for row in ops] == [(50, 40, 40, 0)] * 3
    assert all(total == batches for *_, total, batches, _ in ops)
    assert [row[:2] for row in read] == [(50, 40)] * 3
    assert sum(row[2] for row in read) == sum(row[4] for row in ops)
    assert again is not None
    assert again.calls == 0
    assert again.cached == 120


def test_some_answers_in_the_cache_and_others_not(model: Joint) -> None:
    with opened(model, ai_cache="memory") as con:
        con.execute("SELECT AI_FILTER(PROMPT('ripe? {0}', s)) FROM t WHERE id < 9").fetchall()
        merged = asked(con, SELECT, merge=True)
        con.execute("SET ai_cache = 'off'")
        assert merged == asked(con, SELECT, merge=False)


def test_a_text_that_fits_with_one_question_alone(model: Joint) -> None:
    query = "SELECT id, AI_FILTER(PROMPT('ripe? {0}', s){o}), AI_FILTER(PROMPT('red? {0}', s){o}) FROM t"
    with opened(model) as con:
        alone = asked(con, query, merge=False)
        longest = max(len(row[0]) for row in con.execute("SELECT 'ripe? ' || s FROM t").fetchall()) // 4 + 3
        model.info = replace(model.info, context_tokens=longest)
        assert asked(con, query, merge=True) == alone
        said = con.execute("SELECT DISTINCT status FROM ai.decisions").fetchall()
    assert not model.passes
    assert said == [("answered",)]


def test_a_failure_that_is_not_needed_stops_nothing(model: Joint) -> None:
    with opened(model, ai_on_error="raise") as con:
        asked(con, WHERE, merge=True)
        assert not model.passes
        asked(con, SELECT, merge=True)
    assert model.passes


def test_a_budget_is_kept_by_single_questions(model: Joint) -> None:
    with opened(model) as con:
        con.execute("SET ai_budget = '30 calls'")
        con.execute(SELECT.replace("{o}", ", {'merge': true}")).fetchall()
    assert not model.passes
    assert model.counts.prompts <= 30


def test_explain_says_what_is_asked_together(model: Joint) -> None:
    with opened(model) as con:
        plan = "\n".join(row[-1] for row in con.execute("EXPLAIN " + WHERE.replace("{o}", ", {'merge': true}")))
    assert "in one pass with AI_FILTER 'red? {0}'" in plan


def test_merge_is_a_flag() -> None:
    with sqluice.connect() as con, pytest.raises(errors.ProgrammingError, match="option merge of AI_FILTER must be"):
        con.execute("SELECT AI_FILTER('a', {'merge': 1})")


def test_seconds_and_tokens_are_shared_out(model: Joint) -> None:
    questions = [Question(Prompt("a? {0}", ("x",)), ("yes", "no")), Question(Prompt("b?? {0}", ("x",)), ("yes", "no"))]
    together = Together(model, questions)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    batch = Batch(3, 10.0, 12.0, tokens_in=60, pad_tokens=4)
    first, second = together.apart(Asked(values, values, np.full(3, 20), np.zeros(3), {}, [batch]))
    assert first.values.tolist() == values[:, :2].tolist()
    assert second.values.tolist() == values[:, 2:].tolist()
    assert first.tokens_in.sum() + second.tokens_in.sum() == 60
    parts = [*first.batches, *second.batches]
    assert [(one.started, one.ended) for one in parts] == [(10.0, 11.0), (11.0, 12.0)]
    assert sum(one.tokens_in for one in parts) == 60
    assert sum(one.pad_tokens for one in parts) == 4
