"""Semantic joins as SQL keep what their labels say: random joins with models that err.

A miss is a result with the label certified, or exact, that is not what the label says of the oracle's own answers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sqluice.types import Completion, ModelInfo
from support.binomial import most_misses
from support.pairs import TOPICS, YES_NO, Pairwise, joining, run, scorer
from support.scale import repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqluice import Connection
    from sqluice.types import Prompt

SEEDS = repeats(6, 12)
TARGET, DELTA = 0.9, 0.05


def luck(*parts: str) -> float:
    """A number in [0, 1) that texts decide."""
    return zlib.crc32("|".join(parts).encode()) / 2**32


class Erring(Pairwise):
    """An oracle that is wrong about some pairs, and wrong more often where it scores labels or writes."""

    def __init__(self, rule: Callable[[str, str], bool], noise: float, labels: float) -> None:
        super().__init__(lambda a, b: rule(a, b) != (luck(a, b) < noise))
        self.info = ModelInfo("erring", revision="1")
        self.plain, self.labels = rule, labels

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]."""
        if tuple(choices) == YES_NO:
            return super().score(prompts, choices)
        self.labelled += len(prompts)
        found = np.empty((len(prompts), len(choices)), np.float32)
        for at, prompt in enumerate(prompts):
            for to, choice in enumerate(choices):
                fits = self.plain(prompt.args[0], choice) != (luck("label", prompt.args[0], choice) < self.labels)
                found[at, to] = (0.0 if fits else -4.0) + luck("score", prompt.args[0], choice)
        return found


class ErringWriter(Erring):
    """The same, which writes lists as well."""

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """Numbers of what matches; "perhaps" to all else."""
        return [Completion(self._said(prompt)[: 4 * max_tokens], "stop") for prompt in prompts]

    def _said(self, prompt: Prompt) -> str:
        if len(prompt.args) < 2:
            return "perhaps"
        named = []
        for line in prompt.args[1].splitlines():
            number, _, text = line.partition(". ")
            if self.plain(prompt.args[0], text) != (luck("list", prompt.args[0], text) < self.labels):
                named.append(number)
        return ", ".join(named) or "none"


def topics(generator: np.random.Generator) -> tuple[list[str], list[str], Callable[[str, str], bool]]:
    """Texts and labels."""
    texts = [f"story {at} of {' and '.join(generator.choice(TOPICS, 1 + (at % 7 == 0)))}" for at in range(400)]
    return texts, list(TOPICS), lambda a, b: b in a


def things(generator: np.random.Generator) -> tuple[list[str], list[str], Callable[[str, str], bool]]:
    """Things with two names each, of which most are alike."""
    words = ["".join(generator.choice(list("abcdefghijklmnop"), 6)) for _ in range(120)]
    left = [f"{' '.join(generator.choice(words, 3))} {at}" for at in range(100)]
    right = [
        f"{' '.join(name.split()[:2])} new" if generator.random() < 0.9 else f"other {name.split()[-1]}"
        for name in left[:80]
    ]
    same = dict(zip(left, right, strict=False))
    return left, right, lambda a, b: same.get(a) == b


def kinds(generator: np.random.Generator) -> tuple[list[str], list[str], Callable[[str, str], bool]]:
    """Praise and blame."""
    left, right = (
        [f"{generator.choice(['good', 'bad', 'bad'])} {side} {at}" for at in range(n)]
        for side, n in (("x", 80), ("y", 60))
    )
    return left, right, lambda a, b: a.split()[0] != b.split()[0]


def shapeless(generator: np.random.Generator) -> tuple[list[str], list[str], Callable[[str, str], bool]]:
    """Pairs that nothing tells."""
    share = float(generator.choice([0.05, 0.3]))
    return [f"x {at}" for at in range(60)], [f"y {at}" for at in range(50)], lambda a, b: luck("pair", a, b) < share


FAMILIES = [topics, things, kinds, shapeless]


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    with joining() as found:
        yield found


def kept(label: str, found: list[tuple[int, int]], true: set[tuple[int, int]]) -> bool:
    """Whether the rows are what the label says."""
    if label.startswith("exact"):
        return sorted(found) == sorted(true)
    if not label.startswith("certified"):
        return True
    both = len(set(found) & true)
    return both >= TARGET * len(true) and both >= TARGET * len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_kept(
    con: Connection, family: Callable[..., tuple[list[str], list[str], Callable[..., bool]]]
) -> None:
    misses, seen = 0, set()
    for seed in range(SEEDS):
        generator = np.random.default_rng([23, seed])
        left, right, rule = family(generator)
        kind = (Erring, ErringWriter)[seed % 2]
        oracle = kind(rule, float(generator.choice([0.0, 0.01])), float(generator.choice([0.0, 0.05, 0.3])))
        con.register_model("oracle", oracle)
        for name, texts in (("l", left), ("r", right)):
            rows = [None if generator.random() < 0.02 else text for text in texts]
            rows += list(generator.choice(texts, 8))  # some come twice
            source = "SELECT i, s, i % 2 AS k FROM (SELECT unnest(?) AS i, unnest(?) AS s)"
            run(con, f"CREATE OR REPLACE TABLE {name} AS {source}", [list(range(len(rows))), rows])
        condition = generator.choice(["", "", "l.k = r.k AND ", "l.i <> r.i AND "])
        sql = f"SELECT l.i, r.i FROM l JOIN r ON {condition}AI_FILTER(PROMPT('{{0}} fits {{1}}', l.s, r.s))"
        for name, value in (("recall", TARGET), ("precision", TARGET), ("delta", DELTA), ("seed", seed)):
            run(con, f"SET ai_{name} = {value}")
        found, report = run(con, sql)
        pairs, _ = run(con, sql.replace("AI_FILTER(PROMPT('{0} fits {1}', l.s, r.s))", "true"))
        a_texts, b_texts = (dict(run(con, f"SELECT i, s FROM {name}")[0]) for name in "lr")
        true = {
            (a, b)
            for a, b in pairs
            if a_texts[a] is not None and b_texts[b] is not None and oracle.rule(a_texts[a], b_texts[b])
        }
        assert len(set(found)) == len(found)
        assert set(found) <= set(pairs)
        seen.add(scorer(report))
        misses += not kept(report.label, found, true)
        limited, short = run(con, f"{sql} LIMIT 5")
        assert set(limited) <= true
        assert len(set(limited)) == min(5, len(true))
        assert short.label == "exact"
    assert misses <= most_misses(SEEDS, DELTA)
    assert len(seen) > 1  # more than one strategy was met
