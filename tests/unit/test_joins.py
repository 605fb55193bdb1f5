"""Semantic joins as SQL: which strategy takes them, what it asks, what it answers, what the trace holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import sqluice
from support.pairs import TOPICS, NoLabels, Pairwise, joining, run, scorer, shops, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqluice import Connection


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    with joining() as found:
        yield found


SAME = "AI_FILTER(PROMPT('Are {0} and {1} the same?', l.s, r.s))"


def test_things_that_match_are_ranked(con: Connection) -> None:
    oracle, true = shops(con)
    rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    assert scorer(report) == "block"
    assert report.label.startswith("certified(")
    assert len(oracle.asked) == len(set(oracle.asked)) == report.calls < 120 * 150 / 7
    assert len(set(rows) & true) >= 0.95 * len(true)
    assert set(rows) <= true


def test_conditions_come_first(con: Connection) -> None:
    oracle, true = shops(con)
    rows, _ = run(con, f"SELECT l.i, r.i FROM l JOIN r ON l.i < r.i + 3 AND {SAME} WHERE r.i > 5")
    numbers = {text: at for at, (text,) in enumerate(run(con, "SELECT s FROM l ORDER BY i")[0])}
    places = {text: at for at, (text,) in enumerate(run(con, "SELECT s FROM r ORDER BY i")[0])}
    assert all(numbers[a] < places[b] + 3 and places[b] > 5 for a, b in oracle.asked)
    assert set(rows) <= {pair for pair in true if pair[1] > 5}


def test_a_key_leaves_pairs_to_a_strategy(con: Connection) -> None:
    """Of 6,000 pairs that a key leaves few are asked about; of 100 all, and none that it does not leave."""
    oracle, true = shops(con)
    texts = [dict(run(con, f"SELECT s, i FROM {name}")[0]) for name in "lr"]
    for keys, strategy in ((3, "block"), (300, None)):
        oracle.asked.clear()
        keyed = f"l.i % {keys} = r.i % {keys}"
        rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {keyed} AND {SAME}")
        assert scorer(report) == strategy
        assert all(texts[0][a] % keys == texts[1][b] % keys for a, b in oracle.asked)
        assert len(oracle.asked) == len(set(oracle.asked)) <= (6000 / 2 if strategy else 150)
        assert set(rows) <= true
        assert len(rows) >= 0.95 * len(true)
    run(con, "SET ai_mode = 'exact'")
    oracle.asked.clear()
    assert set(run(con, f"SELECT l.i, r.i FROM l JOIN r ON l.i % 3 = r.i % 3 AND {SAME}")[0]) == true
    assert len(oracle.asked) == 6000


def test_rows_without_a_partner_are_not_asked_about(con: Connection) -> None:
    """Neither by questions about one side, nor about pairs whose rows meet no common row of a third side."""
    oracle = Pairwise(lambda a, b: a.split()[-1] == b.split()[-1])
    con.register_model("oracle", oracle)
    for name in "abc":
        table(con, name, [f"{name} {at}" for at in range(12)])
    one = "AI_FILTER(PROMPT('Good: {0}', b.s))"
    both = "AI_FILTER(PROMPT('{0} {1}', a.s, b.s))"
    for mode in ("exact", "cascade"):
        run(con, f"SET ai_mode = '{mode}'")
        oracle.asked.clear()
        rows, _ = run(con, f"SELECT a.i, b.i FROM a, b WHERE a.i < b.i - 8 AND {one} AND {both}")
        assert rows == []
        assert sorted(oracle.asked) == sorted(
            [(f"b {at}",) for at in (9, 10, 11)]
            + [(f"a {at}", f"b {to}") for at in range(3) for to in range(9, 12) if at < to - 8]
        )
        oracle.asked.clear()
        tables = "FROM a, b, c WHERE a.i < c.i - 7 AND c.i < b.i"
        rows, _ = run(con, f"SELECT a.i, b.i, c.i {tables} AND {both}")
        assert rows == []
        assert sorted(oracle.asked) == run(con, f"SELECT DISTINCT a.s, b.s {tables} ORDER BY ALL")[0]
        assert len(oracle.asked) == 6
        oracle.asked.clear()
        run(con, f"SELECT a.i FROM a, b, c WHERE a.i > c.i + 20 AND {one}")
        assert oracle.asked == []


@pytest.mark.parametrize("kind", ["LEFT", "RIGHT", "FULL", "SEMI", "ANTI"])
def test_other_joins_are_made_of_the_same_pairs(con: Connection, kind: str) -> None:
    oracle, true = shops(con)
    shown = "l.i" if kind in ("SEMI", "ANTI") else "l.i, r.i"
    rows, report = run(con, f"SELECT {shown} FROM l {kind} JOIN r ON {SAME}")
    assert scorer(report) == "block"
    assert len(oracle.asked) < 120 * 150 / 7
    found = {row for row in rows if None not in row} if kind not in ("SEMI", "ANTI") else set()
    if kind in ("LEFT", "FULL"):
        assert {row[0] for row in rows if row[0] is not None} == set(range(120))
    if kind in ("RIGHT", "FULL"):
        assert {row[1] for row in rows if row[1] is not None} == set(range(150))
    if kind == "SEMI":
        assert len(rows) >= 0.95 * 90
        assert {at for (at,) in rows} <= set(range(90))
    elif kind == "ANTI":
        assert set(range(90, 120)) <= {at for (at,) in rows}
    else:
        assert found <= true
        assert len(found) >= 0.95 * len(true)


def test_limit_takes_the_best_candidates_first(con: Connection) -> None:
    oracle, true = shops(con)
    for mode in ("exact", "auto"):
        oracle.asked.clear()
        rows, _ = run(con, f"SET ai_mode = '{mode}'")
        rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME} LIMIT 12")
        assert len(rows) == 12
        assert set(rows) <= true
        assert report.label == "exact"
        assert len(oracle.asked) < 700
    rows, _ = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME} LIMIT 12 OFFSET 85")
    assert len(rows) == 5


def test_labels_are_asked_about_together(con: Connection) -> None:
    generator = np.random.default_rng(4)
    about = generator.choice(TOPICS, 900)
    texts = [f"story {at} tells of {topic}" for at, topic in enumerate(about)]
    oracle = Pairwise(lambda text, topic: topic in text)
    con.register_model("oracle", oracle)
    table(con, "l", texts)
    table(con, "r", TOPICS)
    for first, second in (("l", "r"), ("r", "l")):
        oracle.asked.clear()
        oracle.labelled = 0
        sql = f"SELECT l.i, r.i FROM {first} JOIN {second} ON AI_FILTER(PROMPT('{{0}} is about {{1}}', l.s, r.s))"
        rows, report = run(con, sql)
        assert scorer(report) == "classify"
        assert oracle.labelled == 900
        assert len(oracle.asked) < 700
        assert report.label.startswith("certified(recall")
        assert set(rows) == {(at, TOPICS.index(topic)) for at, topic in enumerate(about)}


def opposites(con: Connection, rule: Callable[[str, str], bool], n: int = 150) -> Pairwise:
    """A table of praise and blame."""
    oracle = Pairwise(rule)
    con.register_model("oracle", oracle)
    table(con, "t", [f"{'good' if at % 3 else 'bad'} thing {at}" for at in range(n)])
    return oracle


OPPOSITE = "FROM t a JOIN t b ON a.i <> b.i AND AI_FILTER(PROMPT('{0} and {1} differ', a.s, b.s))"


def test_kinds_of_rows_and_each_unordered_pair_once(con: Connection) -> None:
    oracle = opposites(con, lambda a, b: a.split()[0] != b.split()[0])
    rows, report = run(con, f"SELECT a.i, b.i {OPPOSITE}")
    assert scorer(report) == "factor"
    assert "symmetric question" in report.label
    assert len(oracle.asked) == len(set(oracle.asked)) <= 150 * 5
    assert set(rows) == {(a, b) for a in range(150) for b in range(150) if (a % 3 == 0) != (b % 3 == 0)}


def test_a_question_that_tells_its_sides_apart_is_asked_both_ways(con: Connection) -> None:
    """It looks symmetric on few pairs: one pair in nine is a match one way only."""
    opposites(con, lambda a, b: a.startswith("bad") and b.startswith("good"))
    rows, report = run(con, f"SELECT a.i, b.i {OPPOSITE}")
    true = {(a, b) for a in range(150) for b in range(150) if a % 3 == 0 and b % 3}
    assert len(set(rows) & true) >= 0.95 * len(true)
    assert len(set(rows) & true) >= 0.95 * len(set(rows))
    assert "symmetric" not in report.label


def test_a_join_as_written_is_the_last_resort(con: Connection) -> None:
    """No kinds, no labels, no likeness: the pairs are one population of a cascade, or refused."""
    generator = np.random.default_rng(5)
    noise = {(f"x {a}", f"x {b}") for a in range(40) for b in range(40) if generator.random() < 0.4}
    oracle = NoLabels(lambda a, b: (a, b) in noise)
    con.register_model("oracle", oracle)
    table(con, "t", [f"x {at}" for at in range(40)])
    sql = "SELECT a.i, b.i FROM t a JOIN t b ON AI_FILTER(PROMPT('{0} and {1}?', a.s, b.s))"
    rows, report = run(con, sql)
    assert report.calls == len(oracle.asked) == 1600
    assert {(f"x {a}", f"x {b}") for a, b in rows} == noise
    run(con, "SET ai_mode = 'exact'")
    run(con, "SET ai_max_cross_calls = 1000")
    with pytest.raises(sqluice.NotSupportedError, match=r"1,600 calls.*ai_max_cross_calls"):
        run(con, sql)


def test_an_embedder_that_is_not_there(con: Connection) -> None:
    oracle, true = shops(con)
    run(con, "SET ai_embedder = 'package:nothing'")
    cursor = con.cursor()
    cursor.execute(f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    rows = cursor.fetchall()
    assert any("without embeddings" in str(message) for _, message in cursor.messages)
    assert len(oracle.asked) < 120 * 150 / 7
    assert len(set(rows) & true) >= 0.95 * len(true)


def test_giant_values_nulls_and_empty_sides(con: Connection) -> None:
    oracle, true = shops(con)
    run(con, "INSERT INTO l VALUES (500, NULL), (501, repeat('giant ', 200000)), (502, '')")
    run(con, "INSERT INTO r VALUES (500, NULL), (501, '')")
    rows, _ = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    assert set(rows) <= true
    assert len(rows) >= 0.95 * len(true)
    oracle.asked.clear()
    for empty in ("l.i < 0", "l.s IS NULL"):
        assert run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME} WHERE {empty}")[0] == []
    assert oracle.asked == []


def test_a_budget_ends_a_join(con: Connection) -> None:
    oracle, true = shops(con)
    rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME.replace('))', chr(41) + chr(44) + BUDGET)}")
    assert report.label == "uncertified(budget)"
    assert len(oracle.asked) <= 300
    assert set(rows) <= true


def test_calls_for_labels_count_against_a_budget(con: Connection) -> None:
    about = [TOPICS[at * 7 % 6] for at in range(400)]
    oracle = Pairwise(lambda text, topic: topic in text)
    con.register_model("oracle", oracle)
    table(con, "l", [f"story {at} tells of {topic}" for at, topic in enumerate(about)])
    table(con, "r", TOPICS)
    for calls, strategy in ((650, "classify"), (300, "head")):
        oracle.asked.clear()
        oracle.labelled = 0
        run(con, f"SET ai_budget = '{calls} calls'")
        rows, report = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('{0} is about {1}', l.s, r.s))")
        assert scorer(report) == strategy
        assert report.label == "uncertified(budget)"
        assert len(oracle.asked) + oracle.labelled <= calls
    run(con, "SET ai_budget = '650 calls'")
    rows, _ = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('{0} is about {1}', l.s, r.s))")
    assert set(rows) == {(at, TOPICS.index(topic)) for at, topic in enumerate(about)}


BUDGET = " {'budget': '300 calls'})"


def test_every_pair_that_was_asked_about_is_in_the_trace(con: Connection) -> None:
    _, _ = shops(con)
    rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    found, _ = run(
        con,
        "SELECT tier, count(*), count(DISTINCT input_hash), sum(n_rows), count(*) FILTER (answer = 'true') "
        f"FROM ai.decisions WHERE run_id = '{report.run_id}' GROUP BY tier ORDER BY tier",
    )
    tiers = {tier: values for tier, *values in found}
    assert tiers["oracle"][0] == tiers["oracle"][1] == report.calls
    assert tiers["oracle"][3] == len(rows)
    assert sum(one[2] for one in tiers.values()) == 120 * 150
    wrong, _ = run(
        con,
        f"SELECT count(*) FROM ai.decisions WHERE run_id = '{report.run_id}' AND tier = 'head' "
        "AND NOT (score <= tau_low OR score >= tau_high)",
    )
    assert wrong == [(0,)]


def test_three_sides_are_never_multiplied(con: Connection) -> None:
    """The pairs of the first two that match, times the third: not all three."""
    oracle = Pairwise(lambda a, b: a.split()[-1] == b.split()[-1])
    con.register_model("oracle", oracle)
    for name, n in (("a", 12), ("b", 11), ("c", 10)):
        table(con, name, [f"{name} {at}" for at in range(n)])
    sql = (
        "SELECT a.i, b.i, c.i FROM a JOIN b ON AI_FILTER(PROMPT('{0} {1}', a.s, b.s)) "
        "JOIN c ON AI_FILTER(PROMPT('{0} {1}', b.s, c.s)) AND AI_FILTER(PROMPT('{0} {1}?', a.s, c.s))"
    )
    for mode in ("exact", "cascade"):
        oracle.asked.clear()
        run(con, f"SET ai_mode = '{mode}'")
        rows, _ = run(con, sql)
        assert sorted(rows) == [(at, at, at) for at in range(10)]
        assert len(oracle.asked) <= 12 * 11 + 11 * 10 + 12 * 10


def test_explain_lists_the_strategies(con: Connection) -> None:
    shops(con)
    ((text,),), _ = run(con, f"EXPLAIN SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    assert "150 x 120 rows" in text
    for strategy in ("classify", "factor", "block", "cross"):
        assert strategy in text
    assert "18,000 calls" in text
    run(con, "SET ai_mode = 'exact'")
    ((text,),), _ = run(con, f"EXPLAIN SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    assert "not possible: ai_mode = 'exact'" in text
    ((text,),), _ = run(con, f"EXPLAIN SELECT l.i, r.i FROM l JOIN r ON l.i = r.i AND {SAME}")
    assert "18,000 calls" not in text


def test_pairs_that_cannot_be_listed(con: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the most similar pairs of two large sides are looked at."""
    from sqluice.engine.operators import candidates, joining

    monkeypatch.setattr(joining, "MOST_LISTED", 2000)
    monkeypatch.setattr(candidates, "MOST_CANDIDATES", 6000)
    oracle, true = shops(con)
    for condition in ("", " AND l.i < r.i + 100"):
        oracle.asked.clear()
        rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}{condition}")
        assert scorer(report) == "block"
        assert len(set(rows) & true) >= 0.95 * len(true)
        assert set(rows) <= true
        assert len(oracle.asked) < 120 * 150 / 4
    run(con, "SET ai_mode = 'exact'")
    run(con, "SET ai_max_cross_calls = 5000")
    with pytest.raises(sqluice.NotSupportedError, match="18,000 calls"):
        run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")


def test_an_index_takes_the_place_of_the_product(con: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch.index", reason="the extra `index` is not installed")
    from sqluice.engine.operators import candidates, joining

    monkeypatch.setattr(joining, "MOST_LISTED", 2000)
    monkeypatch.setattr(candidates, "MOST_CANDIDATES", 6000)
    monkeypatch.setattr(candidates, "EXACT_INPUTS", 50)
    _, true = shops(con)
    rows, report = run(con, f"SELECT l.i, r.i FROM l JOIN r ON {SAME}")
    assert scorer(report) == "block"
    assert "no match beyond the most similar pairs" in report.label
    assert len(set(rows) & true) >= 0.95 * len(true)


def test_a_question_about_one_side_is_a_filter(con: Connection) -> None:
    oracle = Pairwise(lambda a, _: a.endswith("7"))
    con.register_model("oracle", oracle)
    table(con, "l", [f"x {at}" for at in range(400)])
    table(con, "r", [f"y {at}" for at in range(300)])
    sql = "SELECT count(*), count(DISTINCT l.i) FROM l JOIN r ON AI_FILTER(PROMPT('Is {0} a seven?', l.s))"
    for mode in ("exact", "cascade"):
        oracle.asked.clear()
        run(con, f"SET ai_mode = '{mode}'")
        rows, _ = run(con, sql)
        assert rows == [(40 * 300, 40)]
        assert len(oracle.asked) == 400
    ((text,),), _ = run(con, f"EXPLAIN {sql}")
    assert "the question is about one side" in text
    rows, _ = run(con, sql.replace("JOIN r ON", "LEFT JOIN r ON"))
    assert rows == [(40 * 300 + 360, 400)]


def test_a_subquery_that_looks_at_the_table_before_it(con: Connection) -> None:
    oracle = Pairwise(lambda a, _: a.endswith("7"))
    con.register_model("oracle", oracle)
    table(con, "l", [f"x {at}" for at in range(40)])
    for plan in ("rowwise", "optimized"):
        run(con, f"SET ai_plan = '{plan}'")
        rows, report = run(
            con, "SELECT l.i, w.c FROM l, (SELECT l.i AS c) w WHERE AI_FILTER(PROMPT('Seven? {0}', l.s))"
        )
        assert sorted(rows) == [(at, at) for at in (7, 17, 27, 37)]
        assert not report.warnings


def test_the_seed_decides_and_nothing_else(con: Connection) -> None:
    oracle, _ = shops(con)
    sql = f"SELECT l.i, r.i FROM l JOIN r ON {SAME}"
    first = run(con, sql)[0]
    asked = list(oracle.asked)
    oracle.asked.clear()
    assert run(con, sql)[0] == first
    assert oracle.asked == asked
    oracle.asked.clear()
    run(con, "CREATE TABLE turned AS SELECT * FROM l ORDER BY i DESC")
    again = run(con, sql.replace("FROM l JOIN", "FROM turned l JOIN"))[0]
    assert sorted(again) == sorted(first)
    assert set(oracle.asked) == set(asked)
