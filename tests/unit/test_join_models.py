"""Semantic joins that ask a model something else than their question: labels, attributes, lists, maps."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice.optimizer.joins.equivalence import Equivalence
from sqluice.types import Completion
from support.pairs import TOPICS, NoLabels, Pairwise, Writing, joining, run, scorer, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqluice import Connection
    from sqluice.types import Prompt


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    with joining() as found:
        yield found


def test_an_attribute_that_the_question_names(con: Connection) -> None:
    """Too many kinds for anchors, but the model can name them; and what it names wrongly is repaired."""
    generator = np.random.default_rng(6)
    countries = [f"land{at}" for at in range(12)]
    of = generator.choice(countries, 240)

    oracle = Writing(
        lambda a, b: a.split()[-1] == b.split()[-1], lambda prompt: f" {prompt.args[0].split()[-1].upper()}."
    )
    con.register_model("oracle", oracle)
    table(con, "t", [f"firm {at} of {country}" for at, country in enumerate(of)])
    rows, report = run(
        con, "SELECT a.i, b.i FROM t a JOIN t b ON AI_FILTER(PROMPT('Are {0} and {1} in the same country?', a.s, b.s))"
    )
    assert scorer(report) == "factor by attribute"
    assert oracle.written == 240
    assert len(oracle.asked) < 240 * 240 / 20
    true = {(a, b) for a in range(240) for b in range(240) if of[a] == of[b]}
    assert len(set(rows) & true) >= 0.95 * max(len(true), len(set(rows)))


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


def chosen(a: str, b: str) -> bool:
    """Two pairs in five, without a pattern."""
    return zlib.crc32(f"{a}|{b}".encode()) % 5 < 2


class Cut(Writing):
    """A model that lists what matches; an answer about more than five lines is cut."""

    def __init__(self) -> None:
        super().__init__(chosen, lambda _: "")

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt."""
        self.written += len(prompts)
        return [self._listed(prompt) for prompt in prompts]

    def _listed(self, prompt: Prompt) -> Completion:
        lines = [line.split(". ", 1) for line in prompt.args[-1].splitlines()] if len(prompt.args) > 1 else []
        named = [number for number, text in lines if chosen(prompt.args[0], text)]
        return Completion(", ".join(named) or "none", "length" if len(lines) > 5 else "stop")


def noise(con: Connection) -> None:
    """Texts that tell nothing of what matches."""
    table(con, "l", [f"x {at}" for at in range(70)])
    table(con, "r", [f"y {at}" for at in range(60)])


LIKES = "SELECT l.s, r.s FROM l JOIN r ON AI_FILTER(PROMPT('Does {0} like {1}?', l.s, r.s))"


@pytest.mark.parametrize("said", ["", "all of them, I would say", "\N{SNOWMAN} 99"])
def test_a_model_that_writes_no_lists_is_given_up(con: Connection, said: str) -> None:
    oracle = Writing(chosen, lambda _: said)
    con.register_model("oracle", oracle)
    noise(con)
    run(con, LIKES)
    assert oracle.written <= 1 + 4  # the opinion about the question, and a few lists


def test_lists_are_as_long_as_the_model_can_write(con: Connection) -> None:
    oracle = Cut()
    con.register_model("oracle", oracle)
    noise(con)
    rows, report = run(con, LIKES)
    assert scorer(report) == "several"
    assert oracle.written <= 70 * 60 / 5 + 150
    assert len(oracle.asked) < 70 * 60 / 3
    true = {(f"x {a}", f"y {b}") for a in range(70) for b in range(60) if chosen(f"x {a}", f"y {b}")}
    assert len(set(rows) & true) >= 0.95 * max(len(true), len(rows))


def test_a_budget_ends_lists_too(con: Connection) -> None:
    """Answers about more than five texts are cut, so that lists take four times what they were expected to."""
    noise(con)
    for budget in (1000, 1300):
        oracle = Cut()
        con.register_model("oracle", oracle)
        run(con, f"SET ai_budget = '{budget} calls'")
        _, report = run(con, LIKES)
        assert oracle.written > 400
        assert oracle.written + len(oracle.asked) <= budget
        assert report.label == "uncertified(budget)"


def test_answers_that_contradict_an_equivalence() -> None:
    generator = np.random.default_rng(11)
    for _ in range(200):
        known = Equivalence(12)
        for a, b in generator.integers(0, 12, (60, 2)).tolist():
            before = known.follows(a, b)
            equal = bool(generator.random() < 0.3)
            assert known.learn(a, b, equal=equal) == (before is not None and before != equal)
            assert known.follows(a, b) == (True if before else equal)


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
        cursor = con.cursor()
        cursor.execute(sql)
        rows = cursor.fetchall()
        report: Any = cursor.report
        asked.append(len(oracle.asked))
        assert scorer(report) == "block"
        assert len(set(rows) & true) >= 0.95 * max(len(true), len(rows))
        assert not [said for _, said in cursor.messages if "contradict" in str(said)]
    assert "equivalence" in report.label
    assert asked[1] < 0.8 * asked[0]


@pytest.mark.parametrize("selfjoin", [True, False])
def test_answers_that_are_no_equivalence_are_reported(con: Connection, *, selfjoin: bool) -> None:
    """Each name equals the two after it and before it in its cluster, and no other; in a self join only those after."""
    near = range(0 if selfjoin else -2, 3)
    oracle = NoLabels(lambda a, b: a.split()[0] == b.split()[0] and int(b.split()[1]) - int(a.split()[1]) in near)
    con.register_model("oracle", oracle)
    generator = np.random.default_rng(8)
    words = ["".join(generator.choice(list("abcdefghij"), 8)) for _ in range(30)]
    table(con, "t", [f"{word} {at}" for word in words for at in range(6)])
    table(con, "u", [f"{word} {at} " for word in words for at in range(6)])
    cursor = con.cursor()
    other = "t" if selfjoin else "u"
    question = "AI_FILTER(PROMPT('{0} is {1}', a.s, b.s), {'equivalence': true})"
    cursor.execute(f"SELECT a.i, b.i FROM t a JOIN {other} b ON {question}")
    cursor.fetchall()
    assert [said for _, said in cursor.messages if "answers contradict" in str(said)]
    report: Any = cursor.report
    assert "equivalence" in report.label
    assert len(oracle.asked) == len(set(oracle.asked))


def test_a_model_that_knows_no_labels_is_ranked(con: Connection) -> None:
    con.register_model("oracle", NoLabels(lambda text, topic: text.endswith(topic)))
    table(con, "l", [f"story {at} tells of {'nothing' if at % 9 else TOPICS[at % 6]}" for at in range(500)])
    table(con, "r", TOPICS)
    rows, report = run(con, "SELECT l.i, r.i FROM l JOIN r ON AI_FILTER(PROMPT('{0} is about {1}', l.s, r.s))")
    assert scorer(report) != "classify"
    assert report.warnings
    assert len(rows) >= 0.95 * 56


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
