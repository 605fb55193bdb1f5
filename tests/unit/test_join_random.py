"""Random joins by questions: whatever the plan, the answers are those of the row-wise plan, and no question is asked
about a row or a pair that the conditions without questions leave without a partner."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest

from support.pairs import Writing, joining, run
from support.scale import repeats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from sqluice import Connection
    from sqluice.types import Prompt

SEEDS = repeats(20, 40)
WORDS = ["red", "blue", "green", "old", "new", "round"]
LINKS = ["{0}.k = {1}.k", "{0}.i < {1}.i", "{0}.k <> {1}.k", "abs({0}.i - {1}.i) < 3", "{0}.k + 1 = {1}.k"]
OUTER = ["LEFT", "RIGHT", "FULL", "SEMI", "ANTI"]


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    with joining() as found:
        yield found


class Noting(Writing):
    """Keeps what it was asked by the number that begins the question."""

    def __init__(self) -> None:
        super().__init__(share, lambda _: "none")
        self.noted: dict[str, set[tuple[str, ...]]] = {}

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """As the rule says."""
        for prompt in prompts:
            self.noted.setdefault(prompt.template.split()[0], set()).add(tuple(prompt.args))
        return super().score(prompts, choices)


def share(a: str, b: str) -> bool:
    """Whether two texts have a word in common."""
    return bool(set(a.split()) & set(b.split()))


def made(con: Connection, rng: Random) -> tuple[list[str], Noting]:
    """Two to four small tables, with NULLs and texts that come twice, and a model."""
    names = ["a", "b", "c", "d"][: rng.choice([2, 2, 3, 3, 4])]
    for name in names:
        rows = [
            (at, None if rng.random() < 0.1 else " ".join(rng.sample(WORDS, 2)), rng.choice([None, 1, 2, 3, 4]))
            for at in range(rng.choice([0, 3, 6, 6, 7]))
        ]
        run(con, f"CREATE OR REPLACE TABLE {name} (i INTEGER, s VARCHAR, k INTEGER)")
        for row in rows:
            run(con, f"INSERT INTO {name} VALUES (?, ?, ?)", row)
    oracle = Noting()
    con.register_model("oracle", oracle)
    return names, oracle


def conditions(rng: Random, names: list[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Conditions without questions, and questions with the columns that they are about."""
    links = [rng.choice(LINKS).format(*rng.sample(names, 2)) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    if len(names) > 2 and rng.random() < 0.2:
        links.append("{}.i + {}.i < {}.i + 4".format(*rng.sample(names, 3)))
    if rng.random() < 0.3:
        links.append(f"{rng.choice(names)}.i > 1")
    questions = []
    for at in range(rng.choice([1, 1, 2, 3])):
        about = [f"{name}.s" for name in rng.sample(names, rng.choice([1, 2, 2, 2]))]
        places = " ".join(f"{{{place}}}" for place in range(len(about)))
        questions.append((f"AI_FILTER(PROMPT('{at} {places}{' red' * (len(about) == 1)}', {', '.join(about)}))", about))
    return links, questions


@pytest.mark.parametrize("seed", range(SEEDS))
def test_inner_joins(con: Connection, seed: int) -> None:
    rng = Random(seed)
    names, oracle = made(con, rng)
    for _ in range(4):
        links, questions = conditions(rng, names)
        shown = ", ".join(f"{name}.i" for name in names)
        tables = ", ".join(names)
        parts = [*links, *(text for text, _ in questions)]
        rng.shuffle(parts)
        sql = f"SELECT {shown} FROM {tables} WHERE {' AND '.join(parts)}"
        run(con, "SET ai_mode = 'exact'")
        run(con, "SET ai_plan = 'rowwise'")
        oracle.noted.clear()
        true = Counter(run(con, sql)[0])
        n_row = sum(map(len, oracle.noted.values()))
        run(con, "SET ai_plan = 'optimized'")
        where = f" WHERE {' AND '.join(links)}" if links else ""
        for mode in ("exact", "cascade"):
            run(con, f"SET ai_mode = '{mode}'")
            oracle.noted.clear()
            assert Counter(run(con, sql)[0]) == true, (mode, sql)
            noted = dict(oracle.noted)
            piloted = mode == "exact" and len(names) == 2  # where rows are few, orders are tried on some of them
            assert sum(map(len, noted.values())) <= n_row + 2 * piloted, (mode, sql)
            for at, (_, about) in enumerate(questions):
                there = set(run(con, f"SELECT DISTINCT {', '.join(about)} FROM {tables}{where}")[0])
                assert noted.get(str(at), set()) <= there, (mode, sql)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_other_joins(con: Connection, seed: int) -> None:
    rng = Random(seed + 1000)
    names, _ = made(con, rng)
    for _ in range(4):
        kind = rng.choice(OUTER)
        links, questions = conditions(rng, names[:2])
        on = " AND ".join([*links, *(text for text, _ in questions)])
        shown = "a.i" if kind in ("SEMI", "ANTI") else "a.i, b.i"
        sql = f"SELECT {shown} FROM a {kind} JOIN b ON {on}"
        if len(names) > 2 and kind in ("LEFT", "SEMI", "ANTI") and rng.random() < 0.5:
            link, more = conditions(rng, ["a", "c"])
            sql = f"{sql} JOIN c ON {' AND '.join([*link, *(text for text, _ in more)])}"
        run(con, "SET ai_mode = 'exact'")
        run(con, "SET ai_plan = 'rowwise'")
        true = Counter(run(con, sql)[0])
        run(con, "SET ai_plan = 'optimized'")
        for mode in ("exact", "cascade"):
            run(con, f"SET ai_mode = '{mode}'")
            assert Counter(run(con, sql)[0]) == true, (mode, sql)
        run(con, f"{sql} LIMIT {rng.choice([0, 1, 3])}")
        limited = Counter(run(con, f"{sql} LIMIT 3")[0])
        assert not limited - true, sql
        assert limited.total() == min(3, true.total()), sql
