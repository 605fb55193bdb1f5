"""Semantic joins as SQL: which strategy takes them, what it asks, what it answers, what the trace holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sqluice
from sqluice.types import Completion, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqluice import Connection
    from sqluice.types import Prompt

YES_NO = ("yes", "no")
TOPICS = ["trade", "ships", "money", "grain", "crude", "earnings"]


class Pairwise:
    """Says yes to pairs by a rule; a label fits a text where the rule says so. Keeps what it was asked."""

    def __init__(self, rule: Callable[[str, str], bool]) -> None:
        self.info = ModelInfo("pairwise", revision="1")
        self.rule = rule
        self.asked: list[tuple[str, ...]] = []
        self.labelled = 0

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]."""
        found = np.full((len(prompts), len(choices)), -20.0, np.float32)
        for at, prompt in enumerate(prompts):
            if tuple(choices) == YES_NO:
                self.asked.append(tuple(prompt.args))
                found[at, 0 if self.rule(prompt.args[0], prompt.args[-1]) else 1] = 0.0
            else:
                self.labelled += 1
                found[at, [self.rule(prompt.args[0], choice) for choice in choices]] = 0.0
        return found


class NoLabels(Pairwise):
    """Knows pairs only."""

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, 2]."""
        if tuple(choices) != YES_NO:
            raise ValueError("yes or no")
        return super().score(prompts, choices)


class Letters:
    """Embeddings from counts of letters."""

    info = ModelInfo("letters", revision="1")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 26]."""
        found = np.array([[text.lower().count(chr(97 + at)) + 0.01 for at in range(26)] for text in texts], np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    with sqluice.connect(ai_cache="off", ai_mode="cascade", ai_embedder="letters", ai_oracle="oracle") as found:
        found.register_model("letters", Letters())
        yield found


def run(con: Connection, sql: str, params: Any = None) -> tuple[list[Any], Any]:
    """Rows, none where the statement has none, and the report."""
    cursor = con.cursor()
    cursor.execute(sql, *([] if params is None else [params]))
    return cursor.fetchall() if cursor.description else [], cursor.report


def table(con: Connection, name: str, values: Sequence[Any]) -> None:
    """A table with columns `i` and `s`."""
    run(con, f"CREATE TABLE {name} AS SELECT unnest(?) AS i, unnest(?) AS s", [list(range(len(values))), list(values)])


def scorer(report: Any) -> str | None:
    """The strategy that was taken."""
    return next((one.scorer for op in report.operators for one in op.cascades), None)


def shops(con: Connection) -> tuple[Pairwise, set[tuple[int, int]]]:
    """Two lists of things, of which the second names them otherwise; the pairs that are the same."""
    generator = np.random.default_rng(3)
    syllables = [a + b for a in "bdgklmnprst" for b in "aeiou"]
    words = ["".join(generator.choice(syllables, 3)) for _ in range(150)]
    left = [" ".join(generator.choice(words, 4)) + f" {at}" for at in range(120)]
    right = [" ".join([*name.split()[1:4], "new"]) for name in left[:90]]
    right += [" ".join(generator.choice(words, 4)) for _ in range(60)]
    same = {(left[at], right[at]) for at in range(90)}
    oracle = Pairwise(lambda a, b: (a, b) in same)
    con.register_model("oracle", oracle)
    table(con, "l", left)
    table(con, "r", right)
    return oracle, {(at, at) for at in range(90)}


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


def test_labels_that_differ_in_case_are_asked_about_once(con: Connection) -> None:
    seen = []

    class Watching(Pairwise):
        def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
            seen.append(tuple(choices))
            return super().score(prompts, choices)

    con.register_model("oracle", Watching(lambda text, topic: topic.lower().strip() in text))
    table(con, "l", [f"story {at} tells of {TOPICS[at % 6]}" for at in range(600)])
    table(con, "r", [*TOPICS, "Trade", "SHIPS "])
    rows, report = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('{0} is about {1}', l.s, r.s))")
    assert scorer(report) == "classify"
    assert {len(choices) for choices in seen} == {2, 6}
    assert len(rows) == 600 + 200


def test_a_model_that_knows_no_labels_is_ranked(con: Connection) -> None:
    con.register_model("oracle", NoLabels(lambda text, topic: text.endswith(topic)))
    table(con, "l", [f"story {at} tells of {'nothing' if at % 9 else TOPICS[at % 6]}" for at in range(500)])
    table(con, "r", TOPICS)
    rows, report = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('{0} is about {1}', l.s, r.s))")
    assert scorer(report) != "classify"
    assert report.warnings
    assert len(rows) >= 0.95 * 56


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


@pytest.mark.parametrize("selfjoin", [True, False])
def test_equals_of_equals_are_equal_where_that_is_asked_for(con: Connection, *, selfjoin: bool) -> None:
    """Clusters of six names for the same thing."""
    oracle = NoLabels(lambda a, b: a.split()[0] == b.split()[0])
    con.register_model("oracle", oracle)
    generator = np.random.default_rng(8)
    words = ["".join(generator.choice(list("abcdefghij"), 8)) for _ in range(30)]
    table(con, "t", [f"{word} {at}" for word in words for at in range(6)])
    table(con, "u", [f"{word} {at}" for word in words for at in range(6, 12)])
    true = {(a, b) for a in range(180) for b in range(180) if a // 6 == b // 6}
    asked = []
    for option in ("", ", {'equivalence': true}"):
        oracle.asked.clear()
        question = f"AI_FILTER(PROMPT('{{0}} is {{1}}', a.s, b.s){option})"
        sql = f"SELECT a.i, b.i FROM t a JOIN {'t' if selfjoin else 'u'} b ON {question}"
        rows, report = run(con, sql)
        asked.append(len(oracle.asked))
        assert scorer(report) == "block"
        assert len(set(rows) & true) >= 0.95 * max(len(true), len(rows))
    assert "equivalence" in report.label
    assert asked[1] < 0.8 * asked[0]


def test_an_attribute_that_the_question_names(con: Connection) -> None:
    """Too many kinds for anchors, but the model can name them; and what it names wrongly is repaired."""
    generator = np.random.default_rng(6)
    countries = [f"land{at}" for at in range(12)]
    of = generator.choice(countries, 240)

    class Naming(NoLabels):
        named = 0

        def generate(
            self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
        ) -> list[Completion]:
            self.named += len(prompts)
            return [Completion(f" {prompt.args[0].split()[-1].upper()}.", "stop") for prompt in prompts]

    oracle = Naming(lambda a, b: a.split()[-1] == b.split()[-1])
    con.register_model("oracle", oracle)
    table(con, "t", [f"firm {at} of {country}" for at, country in enumerate(of)])
    rows, report = run(
        con, "SELECT a.i, b.i FROM t a JOIN t b ON AI_FILTER(PROMPT('Are {0} and {1} in the same country?', a.s, b.s))"
    )
    assert scorer(report) == "factor by attribute"
    assert oracle.named == 240
    assert len(oracle.asked) < 240 * 240 / 20
    true = {(a, b) for a in range(240) for b in range(240) if of[a] == of[b]}
    assert len(set(rows) & true) >= 0.95 * max(len(true), len(set(rows)))


class Writing(NoLabels):
    """Writes an answer by a rule from the prompt's arguments."""

    def __init__(self, rule: Callable[[str, str], bool], write: Callable[[Prompt], str]) -> None:
        super().__init__(rule)
        self.write = write
        self.written = 0

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One text a prompt."""
        self.written += len(prompts)
        return [Completion(self.write(prompt), "stop") for prompt in prompts]


def test_what_a_match_looks_like_is_written_where_texts_are_not_alike(con: Connection) -> None:
    """Each country has its capital, which shares no letters with it."""
    generator = np.random.default_rng(9)
    words = ["".join(generator.choice(list("abcdefghijklmnop"), 7)) for _ in range(240)]
    capital = dict(zip(words[:120], words[120:], strict=True))
    oracle = Writing(lambda a, b: capital.get(a) == b, lambda prompt: capital.get(prompt.args[0], "no idea"))
    con.register_model("oracle", oracle)
    table(con, "l", words[:120])
    table(con, "r", words[120:])
    rows, report = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('The seat of {0} is {1}', l.s, r.s))")
    assert scorer(report) == "map then block"
    assert oracle.written <= 120 + 32 + 1  # the lists that were tried, and the opinion about the question
    assert len(set(rows) & {(at, at) for at in range(120)}) >= 114
    assert len(rows) <= 120
    assert len(oracle.asked) < 120 * 120 / 3


def test_several_pairs_in_one_prompt(con: Connection) -> None:
    """No kinds, no labels, no likeness; a model that is right about lists, and fails on those with a long text."""
    generator = np.random.default_rng(10)
    likes = {(f"x {a}", f"y {b}") for a in range(70) for b in range(60) if generator.random() < 0.4}

    def write(prompt: Prompt) -> str:
        if len(prompt.args) < 2:
            return "who knows"
        lines = prompt.args[1].splitlines()
        named = [line.split(". ", 1) for line in lines]
        return ", ".join(number for number, text in named if (prompt.args[0], text) in likes) or "none"

    oracle = Writing(lambda a, b: (a, b) in likes, write)
    con.register_model("oracle", oracle)
    table(con, "l", [f"x {at}" for at in range(70)])
    table(con, "r", [f"y {at}" for at in range(60)])
    rows, report = run(con, "SELECT l.s, r.s FROM l JOIN r ON AI_FILTER(PROMPT('Does {0} like {1}?', l.s, r.s))")
    assert scorer(report) == "several"
    assert oracle.written < 70 * 60 / 10
    assert len(oracle.asked) < 70 * 60 / 3
    assert len(set(rows) & likes) >= 0.95 * max(len(likes), len(rows))


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
