"""How well each of some labels fits a text, from the model that is the oracle of a semantic join: one call for many
labels, where the join itself would take one for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sqluice.engine.operators.scoring import Source
from sqluice.errors import ModelError
from sqluice.optimizer.joins.classify import LABELS_AT_ONCE
from sqluice.types import Prompt
from sqluice.udfs.ai_classify import instruction
from sqluice.udfs.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.engine.run import Run
    from sqluice.udfs.spec import Spec


class LabelScores(Source):
    """Scores of `labels`, in chunks. Labels that differ in case alone are asked about once."""

    def __init__(self, run: Run, spec: Spec, places: tuple[int, ...], labels: Sequence[str]) -> None:
        distinct: dict[str, int] = {}
        names: list[str] = []
        self._column = np.zeros(len(labels), np.int64)
        for at, label in enumerate(labels):
            mark = " ".join(label.split()).casefold()
            if mark not in distinct:
                distinct[mark] = len(names)
                names.append(label)
            self._column[at] = distinct[mark]
        size = -(-len(names) // -(-len(names) // LABELS_AT_ONCE))
        self._chunks = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
        body = "\n".join(f"{{{at}}}" for at in range(len(places)))
        asked = replace(
            spec,
            function="AI_CLASSIFY",
            kind="classify",
            template=instruction([(name, "") for name in names], Options(multi=True)) + body,
        )
        super().__init__(run, asked, f"{spec.function} labels")

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._rows

    def of(self, texts: list[list[str]], rows: np.ndarray) -> np.ndarray:
        """Probabilities of all labels, float64 [k, labels], NaN in rows without an answer. `ModelError` where the model
        does not score these labels."""
        model, _ = self._started()
        prompts = [
            Prompt(self._spec.template, tuple(column[row] for column in texts), "", self._spec.kind)
            for row in rows.tolist()
        ]
        parts = []
        for chunk in self._chunks:
            choices = chunk if len(chunk) > 1 else (*chunk, "something else")
            asked = self._run.runner.pool.score(model, prompts, choices, self._watch())
            self._charge(asked, model)
            if len(asked.errors) == len(prompts):
                raise ModelError(f"no label could be scored: {next(iter(asked.errors.values()))}")
            logs = np.asarray(asked.values, np.float64)
            with np.errstate(invalid="ignore"):
                weights = np.exp(logs - logs.max(axis=1, keepdims=True))
                parts.append(weights / weights.sum(axis=1, keepdims=True))
        return np.concatenate(parts, axis=1)[:, self._column]
