"""Cascades from SQL: contracts kept, what is reported, what is never cascaded."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice.engine.running import contract_note
from sqluice.errors import Error
from sqluice.types import ModelInfo
from support.numbers import BLUR, POSITIVE, ROWS, Embedder, Model, Proxy, connected, exact, noise, quality, run, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqluice import Connection
    from sqluice.types import Prompt


@pytest.fixture
def oracle() -> Model:
    return Model()


@pytest.fixture
def con(oracle: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    connection = connected(oracle)
    yield connection
    connection.close()


def test_a_filter_keeps_its_contract_with_fewer_calls(con: Connection, oracle: Model) -> None:
    sql = f"SELECT id FROM t WHERE {POSITIVE}"
    rows, report = run(con, sql)
    assert len(oracle.asked) == len(set(oracle.asked)) == report.calls < 0.6 * ROWS
    recall, precision = quality(set(rows), exact(con, sql))
    assert recall >= 0.95
    assert precision >= 0.95
    assert re.fullmatch(r"certified\(recall >= 0.95, precision >= 0.95, delta 0.05, [\d,]+ labels\)", report.label)
    (cascade,) = report.operators[0].cascades
    assert cascade.scorer == "head"
    assert cascade.labels == report.calls
    assert cascade.tau_low < cascade.tau_high
    assert min(cascade.reached.values()) >= 0.95
    assert report.rows_by_tier["head"] + report.rows_by_tier["oracle"] == ROWS
    assert "delegation" in str(report)


def test_decisions_replay_to_the_answers(con: Connection) -> None:
    rows, report = run(con, f"SELECT id, {POSITIVE} AS yes FROM t")
    told = f"FROM ai.decisions WHERE run_id = '{report.run_id}' AND op = 0"
    counted, _ = run(con, f"SELECT tier, reason, sum(n_rows)::INTEGER {told} GROUP BY ALL")
    assert {tier for tier, _, _ in counted} == {"oracle", "head"}
    assert {reason for _, reason, _ in counted} == {"sample", "uncertain", "score"}
    assert sum(n for *_, n in counted) == ROWS
    wrong, _ = run(
        con,
        f"SELECT count(*) {told} AND tier = 'head' AND (answer = 'true') <> (score >= tau_high) "
        "OR NOT (score >= tau_high OR score <= tau_low)",
    )
    assert wrong == [(0,)]
    yes, _ = run(con, f"SELECT sum(n_rows)::INTEGER {told} AND answer = 'true'")
    assert yes == [(sum(1 for _, told_yes in rows if told_yes),)]


def test_one_label_of_several(con: Connection) -> None:
    sql = "SELECT id, AI_CLASSIFY(s, ['low', 'middle', 'high']) FROM t"
    rows, report = run(con, sql)
    true = exact(con, sql)
    assert len(set(rows) & true) / ROWS >= 0.95
    assert report.label.startswith("certified(accuracy >= 0.95")
    assert report.calls < 0.8 * ROWS


def test_targets_of_a_call(con: Connection) -> None:
    options = "{'recall': 0.8, 'precision': 0.7, 'delta': 0.1}"
    rows, report = run(con, f"SELECT id FROM t WHERE AI_FILTER(PROMPT('is {{0}} positive?', s), {options})")
    assert report.label.startswith("certified(recall >= 0.8, precision >= 0.7, delta 0.1")
    _, strict = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.calls < strict.calls
    assert rows


def test_accuracy_of_a_filter(con: Connection) -> None:
    sql = "SELECT id, AI_FILTER(PROMPT('is {0} positive?', s), {'accuracy': 0.9}) FROM t"
    rows, report = run(con, sql)
    assert report.label.startswith("certified(accuracy >= 0.9")
    assert len(set(rows) & exact(con, sql)) / ROWS >= 0.9


def test_the_order_of_rows_changes_nothing(con: Connection, tmp_path: Path) -> None:
    sql = f"SELECT id, {POSITIVE} FROM t"
    first, report = run(con, sql)
    run(con, "CREATE TABLE other AS SELECT * FROM t ORDER BY hash(id)")
    (tmp_path / "statistics.sqlite").unlink()  # or the second run would know more than the first
    again, report_again = run(con, sql.replace("FROM t", "FROM other"))
    assert set(first) == set(again)
    assert report.calls == report_again.calls


def test_rows_that_a_conflict_drops_have_no_contract(con: Connection) -> None:
    run(con, "CREATE TABLE kept (id BIGINT PRIMARY KEY)")
    _, report = run(con, f"INSERT INTO kept SELECT id FROM t WHERE {POSITIVE} ON CONFLICT DO NOTHING")
    assert report.label == "uncertified(composition)"


def test_multiplicities_count_as_rows(con: Connection) -> None:
    run(con, "CREATE TABLE many AS SELECT t.* FROM t, range(1 + (id % 50 == 0)::INT * 40)")
    sql = f"SELECT id FROM many WHERE {POSITIVE}"
    rows, report = run(con, sql)
    cursor = con.cursor()
    cursor.execute("SET ai_mode = 'exact'")
    true = cursor.execute(sql).fetchall()
    assert report.label.startswith("certified")
    both = sum(min(rows.count(one), true.count(one)) for one in set(true) & set(rows))
    assert both >= 0.95 * len(true)
    assert both >= 0.95 * len(rows)


def test_two_predicates_keep_one_contract_together(con: Connection) -> None:
    second = "AI_FILTER(PROMPT('is the second of {0} positive?', s), {'recall': 0.8, 'precision': 0.8})"
    first = "AI_FILTER(PROMPT('is {0} positive?', s), {'recall': 0.8, 'precision': 0.8})"
    sql = f"SELECT id FROM t WHERE {first} AND {second}"
    rows, report = run(con, sql)
    recall, precision = quality(set(rows), exact(con, sql))
    assert recall >= 0.8
    assert precision >= 0.8
    assert report.label.startswith("certified(recall >= 0.8, precision >= 0.8")
    assert report.calls < 1.6 * ROWS


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT count(*) FROM t WHERE {POSITIVE}",
        f"SELECT id FROM t WHERE NOT {POSITIVE}",
        f"SELECT DISTINCT id % 10 FROM t WHERE {POSITIVE}",
        f"SELECT id FROM t WHERE {POSITIVE} AND AI_SCORE(PROMPT('of {{0}}', s)) > 0.2",
        f"SELECT id, NOT {POSITIVE} FROM t",
    ],
)
def test_the_result_inherits_no_contract_that_does_not_compose(con: Connection, sql: str) -> None:
    _, report = run(con, sql)
    assert report.label == "uncertified(composition)"
    assert report.operators[0].cascades[0].label.startswith("certified")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT AI_SCORE(s) FROM t",
        f"SELECT id FROM t WHERE {POSITIVE} LIMIT 5",
        f"SELECT id FROM t WHERE id < 500 AND {POSITIVE}",
        f"SELECT list_filter([s], x -> {POSITIVE.replace('s)', 'x)')}) FROM t WHERE id < 50",
    ],
)
def test_what_is_not_cascaded_is_exact(con: Connection, sql: str) -> None:
    assert run(con, sql)[1].label == "exact"


def test_auto_asks_the_oracle_where_little_is_to_be_saved(con: Connection, oracle: Model) -> None:
    run(con, "SET ai_mode = 'auto'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.label == "exact"
    assert len(oracle.asked) == ROWS
    assert report.operators[0].cascades[0].label.startswith("exact (too little")


def test_auto_cascades_where_the_oracle_is_dear(con: Connection) -> None:
    con.register_model("oracle", Model(info=ModelInfo(name="oracle", revision="2", price_in=1000.0)))
    run(con, "SET ai_mode = 'auto'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.label.startswith("certified")
    assert report.operators[0].cascades[0].saving > 0.3


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (lambda _text: 0.5, 1.0),
        (lambda _text: float("nan"), 1.0),
        (lambda text: float(np.clip(1 - values(text)[0], 0.01, 0.99)), 1.0),
        (lambda text: (sum(map(ord, text)) % 97) / 100 + 0.01, 1.0),
    ],
    ids=["constant", "nan", "inverted", "noise"],
)
def test_a_proxy_that_is_no_good_costs_no_more_than_the_oracle(
    con: Connection, oracle: Model, rule: Callable[[str], float], most: float
) -> None:
    proxy = Proxy(rule)
    con.register_model("proxy", proxy)
    con.register_model("blind", Blind())
    run(con, "SET ai_proxy = 'proxy'")
    run(con, "SET ai_embedder = 'blind'")
    sql = f"SELECT id FROM t WHERE {POSITIVE}"
    rows, report = run(con, sql)
    assert report.calls <= most * ROWS
    recall, precision = quality(set(rows), exact(con, sql))
    assert min(recall, precision) >= 0.95
    if report.label == "exact":
        assert len(proxy.asked) <= 0.1 * ROWS


class Blind(Embedder):
    """Sees nothing in a text."""

    info = ModelInfo(name="blind", revision="1")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 8], all the same."""
        return np.full((len(texts), 8), 8**-0.5, np.float32)


def test_a_good_proxy_decides(con: Connection) -> None:
    con.register_model("proxy", Proxy(lambda text: float(np.clip(values(text)[0], 0.01, 0.99))))
    con.register_model("blind", Blind())
    run(con, "SET ai_proxy = 'proxy'")
    run(con, "SET ai_embedder = 'blind'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.operators[0].cascades[0].scorer == "proxy"
    assert report.rows_by_tier["proxy"] > 0.4 * ROWS
    assert report.label.startswith("certified")


def test_rows_that_the_oracle_cannot_answer_are_null_and_counted(con: Connection) -> None:
    con.register_model("oracle", Model(fails=lambda text: text.endswith("7"), info=ModelInfo("oracle", revision="3")))
    rows, report = run(con, f"SELECT id, {POSITIVE} FROM t")
    (cascade,) = report.operators[0].cascades
    assert cascade.nulls > 0
    assert sum(answer is None for _, answer in rows) == cascade.nulls == report.failed
    assert "NULL answers left out" in str(report)


def test_an_embedder_that_cannot_be_had_is_an_error_or_no_cascade(con: Connection) -> None:
    run(con, "SET ai_embedder = 'package:nothing'")
    with pytest.raises(Error, match="nothing"):
        run(con, f"SELECT id FROM t WHERE {POSITIVE}")


def test_changes_of_rows_are_exact_unless_cascades_are_asked_for(con: Connection, oracle: Model) -> None:
    con.register_model("oracle", Model(info=ModelInfo(name="oracle", revision="2", price_in=1000.0)))
    run(con, "SET ai_mode = 'auto'")
    _, report = run(con, f"DELETE FROM t WHERE {POSITIVE}")
    assert report.label == "exact"


def test_a_head_is_remembered_and_certified_anew(con: Connection) -> None:
    sql = f"SELECT id FROM t WHERE {POSITIVE}"
    _, first = run(con, sql)
    rows, again = run(con, sql)
    (before,), (now,) = first.operators[0].cascades, again.operators[0].cascades
    assert (before.scorer, now.scorer) == ("head", "remembered head")
    assert now.labels < before.labels
    assert not now.drift
    assert again.label.startswith("certified")
    assert min(quality(set(rows), exact(con, sql))) >= 0.95


def test_rows_that_have_changed_are_noticed_and_the_contract_is_kept(con: Connection) -> None:
    run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    run(con, "CREATE TABLE later AS SELECT * FROM t WHERE substr(s, 6, 3) > '0.5' OR id % 7 = 0")
    sql = f"SELECT id FROM later WHERE {POSITIVE}"
    rows, report = run(con, sql)
    (cascade,) = report.operators[0].cascades
    assert any("positives went from" in one for one in cascade.drift)
    assert "positives went from" in str(report)
    assert min(quality(set(rows), exact(con, sql))) >= 0.95


def test_what_is_remembered_may_be_damaged(con: Connection, tmp_path: Path) -> None:
    run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    with contextlib.closing(sqlite3.connect(tmp_path / "statistics.sqlite")) as db, db:
        db.execute("UPDATE heads SET found = '{\"head\": 3}'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.operators[0].cascades[0].scorer == "head"


def test_pairs_of_a_join(con: Connection, oracle: Model) -> None:
    """The pairs are one population, whatever strategy finds those that match."""
    oracle.mark = 0.55
    embedder = Embedder()
    con.register_model("embedder", embedder)
    sides = "FROM (SELECT * FROM t WHERE id < 60) a JOIN (SELECT * FROM t WHERE id >= 3950) b"
    targets = "{'recall': 0.8, 'precision': 0.8}"
    sql = f"SELECT a.id, b.id {sides} ON AI_FILTER(PROMPT('is {{0}} as {{1}}?', a.s, b.s), {targets})"
    rows, report = run(con, sql)
    assert report.label.startswith("certified")
    assert report.operators[0].cascades[0].scorer == "factor"
    assert report.calls < 60 * 50 / 5
    assert min(quality(set(rows), exact(con, sql))) >= 0.8


def test_an_embedder_that_fails_costs_the_cascade_only(con: Connection) -> None:
    class Broken(Embedder):
        info = ModelInfo(name="broken", revision="1")

        def embed(self, texts: Sequence[str]) -> np.ndarray:
            raise RuntimeError("no memory")

    con.register_model("broken", Broken())
    con.register_model("oracle", Model(info=ModelInfo(name="oracle", revision="2", price_in=1000.0)))
    run(con, "SET ai_mode = 'auto'")
    run(con, "SET ai_embedder = 'broken'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.label == "exact"
    assert report.calls == ROWS
    assert report.warnings


def best(con: Connection, k: int) -> tuple[set[Any], Any]:
    """The best k rows, and the report."""
    score = "AI_SCORE(PROMPT('is {0} positive?', s))"
    rows, report = run(con, f"SELECT id, {score} AS x FROM t ORDER BY x DESC LIMIT {k}")
    assert len(rows) == k
    assert all(x is not None for _, x in rows)
    return {row for row, _ in rows}, report


class Graded(Model):
    """A probability for each text."""

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities that rise with the number."""
        self.asked += [prompt.args[0] for prompt in prompts]
        yes = [1 / (1 + np.exp(4 - 8 * (values(p.args[0])[0] + BLUR * noise(p.args[0])))) for p in prompts]
        return np.log(np.array([[one, 1 - one] for one in yes], np.float32))


def test_the_best_rows_are_found_without_a_score_for_each(con: Connection) -> None:
    oracle = Graded(info=ModelInfo(name="oracle", revision="6"))
    con.register_model("oracle", oracle)
    run(con, "SET ai_recall = 0.9")
    found, report = best(con, 200)
    assert report.calls == len(set(oracle.asked)) < 0.6 * ROWS
    assert report.label.startswith("certified(recall of the best 200 >= 0.9, delta 0.05")
    run(con, "SET ai_mode = 'exact'")
    true, _ = best(con, 200)
    assert len(found & true) >= 180


def test_a_few_best_rows_cannot_be_proven_without_all(con: Connection) -> None:
    con.register_model("oracle", Graded(info=ModelInfo(name="oracle", revision="6")))
    found, _ = best(con, 3)
    run(con, "SET ai_mode = 'exact'")
    assert found == best(con, 3)[0]


@pytest.mark.parametrize("end", ["x DESC, id LIMIT 200", "x DESC LIMIT 100 OFFSET 100"])
def test_ties_and_rows_in_front_that_matter_are_left_to_the_oracle(con: Connection, oracle: Model, end: str) -> None:
    """The oracle knows two scores: which of the rows with the same one are wanted is for the second key to say."""
    rows, report = run(con, f"SELECT id, AI_SCORE(PROMPT('is {{0}} positive?', s)) AS x FROM t ORDER BY {end}")
    assert report.label == "exact"
    assert report.calls == ROWS
    run(con, "SET ai_mode = 'exact'")
    assert rows == run(con, f"SELECT id, AI_SCORE(PROMPT('is {{0}} positive?', s)) AS x FROM t ORDER BY {end}")[0]


def test_one_question_about_two_columns_is_no_contract_of_the_result(con: Connection) -> None:
    """What the first predicate may miss can be all that the second one keeps."""
    run(con, "CREATE TABLE two AS SELECT id, s, 'item 0.9' || (id % 900) || ' and 0.1' AS z FROM t")
    targets = "{'recall': 0.7, 'precision': 0.7}"
    question = "AI_FILTER(PROMPT('is {{0}} positive?', {0}), {1})"
    both = f"{question.format('s', targets)} AND {question.format('z', targets)}"
    _, report = run(con, f"SELECT id FROM two WHERE {both}")
    assert report.label == "uncertified(composition)"
    _, report = run(con, f"SELECT id FROM t WHERE {question.format('s', targets)} AND {question.format('s', targets)}")
    assert report.label.startswith("certified(")


def test_the_best_rows_within_a_budget(con: Connection) -> None:
    oracle = Graded(info=ModelInfo(name="oracle", revision="6"))
    con.register_model("oracle", oracle)
    run(con, "SET ai_budget = '800 calls'")
    found, report = best(con, 20)
    assert len(oracle.asked) <= 800
    assert report.label == "uncertified(budget)"
    run(con, "RESET ai_budget")
    run(con, "SET ai_mode = 'exact'")
    assert len(found & best(con, 20)[0]) >= 17


def test_people_are_told_what_a_result_is_worth(con: Connection) -> None:
    cursor = con.cursor()
    cursor.execute(f"SELECT id FROM t WHERE {POSITIVE}")
    assert len(cursor.fetchall()) > 0
    assert contract_note(cursor).startswith("answers certified(recall >= 0.95")
    cursor.execute("SET ai_mode = 'exact'")
    cursor.execute("SELECT AI_FILTER(s) FROM t WHERE id < 3").fetchall()
    assert not contract_note(cursor)
