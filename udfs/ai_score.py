"""AI_SCORE: how much the answer is yes, or the expected grade on a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.ai_filter import YES_NO
from sqluice.udfs.function import Function
from sqluice.udfs.prompts import question
from sqluice.udfs.spec import Bound, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

NAME = "AI_SCORE"
SIGNATURES = (
    "AI_SCORE(text [, options])",
    "AI_SCORE('instruction', column [, options])",
    "AI_SCORE(PROMPT('..{0}..', a) [, options])",
)
OPTIONS = ("model", "scale", "accuracy", "delta", "budget", "merge", "errors", "bits")


def bind(args: Sequence[Arg]) -> Bound:
    """The call as a score of yes against no, or of the grades of a scale."""
    prompt, options = question(NAME, SIGNATURES, OPTIONS, args)
    scale = options.scale
    spec = Spec(
        NAME,
        "score",
        "DOUBLE",
        kind="score",
        template=prompt.template,
        choices=YES_NO if scale is None else tuple(str(grade) for grade in range(scale[0], scale[1] + 1)),
        model=options.model,
        grades=scale,
        errors=options.errors,
        options=options.named(),
    )
    return Bound(spec, prompt.args)


FUNCTION = Function(
    NAME, SIGNATURES, "DOUBLE", OPTIONS, "probability of yes, or with {'scale': [1, 5]} the expected grade", bind
)
