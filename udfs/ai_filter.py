"""AI_FILTER: a yes/no question about each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.function import Function
from sqluice.udfs.options import CONTRACT
from sqluice.udfs.prompts import question
from sqluice.udfs.spec import Bound, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

NAME = "AI_FILTER"
SIGNATURES = (
    "AI_FILTER(text [, options])",
    "AI_FILTER('instruction', column [, options])",
    "AI_FILTER(PROMPT('..{0}..', a) [, options])",
)
OPTIONS = ("model", *CONTRACT, "equivalence", "merge", "errors", "bits")

YES_NO = ("yes", "no")


def bind(args: Sequence[Arg]) -> Bound:
    """The call as a score of yes against no."""
    prompt, options = question(NAME, SIGNATURES, OPTIONS, args)
    spec = Spec(
        NAME,
        "score",
        "BOOLEAN",
        kind="filter",
        template=prompt.template,
        choices=YES_NO,
        model=options.model,
        errors=options.errors,
        options=options.named(),
    )
    return Bound(spec, prompt.args)


FUNCTION = Function(
    NAME, SIGNATURES, "BOOLEAN", OPTIONS, "whether the answer to a question about the text is yes", bind
)
