"""What the oracle of a semantic join says of one side's texts: how well labels fit, or an attribute. One call a text,
where the join itself would take one for each pair."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sqluice.engine.operators.beside import Beside
from sqluice.errors import ModelError
from sqluice.optimizer.joins.classify import chunks
from sqluice.optimizer.joins.detect import labels_of
from sqluice.types import Prompt
from sqluice.udfs.ai_classify import instruction
from sqluice.udfs.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.run import Run
    from sqluice.udfs.spec import Spec

MOST_TOKENS = 16
_WORDS = re.compile(r"\w+")


class Attributes(Beside):
    """An attribute of texts: one of its values where they are known, else whatever the model calls it."""

    def __init__(self, run: Run, spec: Spec, asker: Asker, attribute: str) -> None:
        self._values = labels_of(attribute)
        named = f"In one or two words, what is the {attribute} of this text? Answer with nothing else.\n{{0}}"
        template = instruction([(value, "") for value in self._values], Options()) + "{0}" if self._values else named
        asked = replace(
            spec,
            function="AI_CLASSIFY" if self._values else "AI_COMPLETE",
            operation="score" if self._values else "generate",
            kind="classify" if self._values else "complete",
            template=template,
        )
        super().__init__(run, asked, f"{spec.function} {attribute}", asker)
        self._numbers: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities of the known values, float64 [k, values], or the number of the value named, float64 [k, 1]; NaN
        where there is no answer."""
        prompts = [Prompt(self._spec.template, (text,), "", self._spec.kind) for text in texts]
        if self._values:
            return self._chances(prompts, self._values)
        found = np.full((len(prompts), 1), np.nan)
        for at, completion in enumerate(self._texts(prompts, MOST_TOKENS)):
            value = "" if completion is None else " ".join(_WORDS.findall(completion.text.casefold()))
            if value:
                found[at, 0] = self._numbers.setdefault(value, len(self._numbers))
        return found


class LabelScores(Beside):
    """Scores of `labels`, in chunks. Labels that differ in case alone are asked about once."""

    def __init__(self, run: Run, spec: Spec, asker: Asker, places: tuple[int, ...], labels: Sequence[str]) -> None:
        distinct: dict[str, int] = {}
        names: list[str] = []
        self._column = np.zeros(len(labels), np.int64)
        for at, label in enumerate(labels):
            mark = " ".join(label.split()).casefold()
            if mark not in distinct:
                distinct[mark] = len(names)
                names.append(label)
            self._column[at] = distinct[mark]
        size = -(-len(names) // chunks(len(names)))
        self._chunks = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
        body = "\n".join(f"{{{at}}}" for at in range(len(places)))
        asked = replace(
            spec,
            function="AI_CLASSIFY",
            kind="classify",
            template=instruction([(name, "") for name in names], Options(multi=True)) + body,
        )
        super().__init__(run, asked, f"{spec.function} labels", asker)

    def of(self, texts: list[list[str]], rows: np.ndarray) -> np.ndarray:
        """Probabilities of all labels, float64 [k, labels], NaN in rows without an answer. `ModelError` where the model
        does not score these labels."""
        prompts = [
            Prompt(self._spec.template, tuple(column[row] for column in texts), "", self._spec.kind)
            for row in rows.tolist()
        ]
        parts = []
        for chunk in self._chunks:
            choices = chunk if len(chunk) > 1 else (*chunk, "something else")
            parts.append(self._chances(prompts, choices))
            if len(self._errors) == len(prompts):
                raise ModelError(f"no label could be scored: {next(iter(self._errors.values()))}")
        return np.concatenate(parts, axis=1)[:, self._column]
