"""The oracle's model, asked something else than the question of a join: labels, attributes, lists, maps.

Its prompts count against the budgets of the question, and end with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.engine.budget import SpentError
from sqluice.engine.operators.scoring import Source, chances_of
from sqluice.workers.pool import NOT_ASKED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.operators.watch import Watch
    from sqluice.engine.run import Run
    from sqluice.types import Completion, Prompt
    from sqluice.udfs.spec import Spec
    from sqluice.workers.protocol import Asked


class Beside(Source):
    """Prompts of `spec`, whose calls `asker`, that of the question, is charged with."""

    def __init__(self, run: Run, spec: Spec, function: str, asker: Asker) -> None:
        super().__init__(run, spec, function)
        self._asker = asker
        self._errors: dict[int, str] = {}
        """Of the prompts asked last, those that failed."""

    def _chances(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Probabilities of choices, float64 [n, k], NaN in rows without an answer."""
        model, _ = self._started()
        said = self._said(prompts, lambda part, watch: self._run.runner.pool.score(model, part, choices, watch))
        none = np.full(len(choices), np.nan)
        rows = [none if one is None else one for one in said]
        return chances_of(np.array(rows).reshape(len(prompts), len(choices)))

    def _texts(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Completion | None]:
        """Completions, None where there is none."""
        model, _ = self._started()
        pool = self._run.runner.pool
        return self._said(
            prompts,
            lambda part, watch: pool.generate(model, part, max_tokens=max_tokens, schema=None, control=watch),
        )

    def _said(self, prompts: Sequence[Prompt], ask: Callable[[Sequence[Prompt], Watch], Asked]) -> list[Any]:
        """What the model says, one value a prompt; None beyond the end of a budget. Slices are what `Asker` makes: half
        of the room that is left, since batches that fail are tried again."""
        model, _ = self._started()
        self._errors = {}
        said: list[Any] = []
        while len(said) < len(prompts) and (room := self._asker.room()) != 0:
            start, watch = len(said), self._watch(model)
            part = prompts[start:] if room is None else prompts[start : start + max(room // 2, 1)]
            watch.limit = None if room is None else len(part)
            try:
                asked = ask(part, watch)
            except SpentError as error:
                asked = vars(error)["asked"]
            self._asker.charge(asked.batches, self._charge(asked, model, part))
            said += list(asked.values)
            self._errors.update({start + at: text for at, text in asked.errors.items() if text != NOT_ASKED})
        return said + [None] * (len(prompts) - len(said))
