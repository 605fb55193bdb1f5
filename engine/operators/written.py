"""What the oracle of a semantic join writes, where it writes texts: which of several right texts match a left one, and
what a match of a left text would look like."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from sqluice.engine.operators.beside import Beside
from sqluice.optimizer.joins.several import AT_ONCE
from sqluice.types import Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.run import Run
    from sqluice.udfs.spec import Spec

MOST_CHARACTERS = 12_000
"""Of the right texts of one prompt."""

FEW = 4
"""Prompts that tell whether a model lists what it is told to."""

LEAST_AT_ONCE = 5
"""Texts in a prompt without which lists are not worth their calls."""

LIKELY = 0.98
LIST_TOKENS, TEXT_TOKENS = 96, 64

_TASK = "A statement or question about two texts: {task}\n\n"
_LISTED = _TASK + (
    "{one}:\n{{0}}\n\n{other}, one of these:\n{{1}}\n\n"
    'Answer with the numbers of those for which it is true, separated by commas, or with "none".'
)
_MAPPED = _TASK + (
    "{one}:\n{{0}}\n\nWrite what {other} could be so that it is true, as short as may be. Write nothing else."
)
_NAMES = ("[TEXT A]", "[TEXT B]")


class _Writer(Beside):
    """A model that writes about the question of a join; `left` is the placeholder of the left side."""

    def __init__(self, run: Run, spec: Spec, asker: Asker, left: int, form: str, tokens: int, name: str) -> None:
        task = spec.template.replace("{0}", _NAMES[0]).replace("{1}", _NAMES[1]).replace("{", "(").replace("}", ")")
        template = form.format(task=task, one=_NAMES[left], other=_NAMES[1 - left])
        asked = replace(spec, function="AI_COMPLETE", operation="generate", kind="complete", template=template)
        super().__init__(run, asked, f"{spec.function} {name}", asker)
        self._tokens = tokens

    def _written(self, rows: Sequence[tuple[str, ...]]) -> list[str | None]:
        """What is written about some rows; None where nothing is, or it is cut."""
        prompts = [Prompt(self._spec.template, row, "", self._spec.kind) for row in rows]
        said = self._texts(prompts, self._tokens)
        return [None if one is None or one.finish_reason == "length" else one.text for one in said]


class Together(_Writer):
    """Which of several right texts match a left one."""

    def __init__(self, run: Run, spec: Spec, asker: Asker, left: int) -> None:
        super().__init__(run, spec, asker, left, _LISTED, LIST_TOKENS, "lists")
        self._at_once = AT_ONCE
        self._is_able = False
        """Whether some prompt was answered as it was to be."""

    def of(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """How likely each pair is a match, float64 [n], NaN where there is no answer. A prompt that is too long, or
        whose answer is, is halved. A few prompts tell first how many texts the model can list."""
        found = np.full(len(left), np.nan)
        while True:
            packs = list(_packed(left, right, self._at_once))
            first = packs if self._is_able else packs[:FEW]
            halves = self._judge(first, left, right, found)
            if self._is_able:
                break
            if not halves or self._at_once // 2 < LEAST_AT_ONCE:
                return found
            self._at_once //= 2
        todo = [*packs[len(first) :], *halves]
        while todo:
            todo = self._judge(todo, left, right, found)
        return found

    def _judge(
        self, packs: list[list[int]], left: Sequence[str], right: Sequence[str], found: np.ndarray
    ) -> list[list[int]]:
        """Put what is said of some packs into `found`; the halves of those that have no answer."""
        said = self._written([(left[rows[0]], _numbered([right[row] for row in rows])) for rows in packs])
        halves: list[list[int]] = []
        for rows, answer in zip(packs, said, strict=True):
            chances = None if answer is None else _judged(answer, len(rows))
            if chances is not None:
                found[rows] = chances
                self._is_able = True
            elif answer is None and len(rows) > 1:
                middle = len(rows) // 2
                halves += [rows[:middle], rows[middle:]]
        return halves


class Mapped(_Writer):
    """What a match of a left text would look like."""

    def __init__(self, run: Run, spec: Spec, asker: Asker, left: int) -> None:
        super().__init__(run, spec, asker, left, _MAPPED, TEXT_TOKENS, "map")

    def of(self, left: Sequence[str]) -> list[str]:
        """A text for each left one; empty where nothing was written."""
        return [said or "" for said in self._written([(text,) for text in left])]


def _packed(left: Sequence[str], right: Sequence[str], at_once: int) -> Iterator[list[int]]:
    """Pairs of one left text each, a bounded number and length of right texts at a time."""
    order = sorted(range(len(left)), key=lambda row: left[row])
    for _, group in groupby(order, key=lambda row: left[row]):
        pack: list[int] = []
        size = 0
        for row in group:
            if pack and (len(pack) == at_once or size + len(right[row]) > MOST_CHARACTERS):
                yield pack
                pack, size = [], 0
            pack.append(row)
            size += len(right[row])
        yield pack


def _numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{at}. {' '.join(text.split())}" for at, text in enumerate(texts, 1))


def _judged(answer: str, n: int) -> np.ndarray | None:
    """How likely each of `n` texts is a match, float64 [n]; None where the answer is no list of their numbers."""
    named = {int(one) for one in re.findall(r"\d{1,9}", answer)} & set(range(1, n + 1))
    if not named and "none" not in answer.lower():
        return None
    return np.array([LIKELY if at in named else 1 - LIKELY for at in range(1, n + 1)])
