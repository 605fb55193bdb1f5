"""AI_COMPLETE: a text written by the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.function import Function
from sqluice.udfs.prompts import modelled
from sqluice.udfs.spec import Bound, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

NAME = "AI_COMPLETE"
SIGNATURES = (
    "AI_COMPLETE(['model',] text [, options])",
    "AI_COMPLETE(['model',] PROMPT('..{0}..', a) [, options])",
)
OPTIONS = ("model", "max_tokens", "temperature", "response_format", "budget", "errors", "bits")


def bind(args: Sequence[Arg]) -> Bound:
    """The call as a text of at most `max_tokens` tokens."""
    prompt, options = modelled(NAME, SIGNATURES, OPTIONS, args)
    spec = Spec(
        NAME,
        "generate",
        "VARCHAR",
        kind="complete",
        template=prompt.template,
        model=options.model,
        max_tokens=options.max_tokens,
        errors=options.errors,
        options=options.named(),
    )
    return Bound(spec, prompt.args)


FUNCTION = Function(NAME, SIGNATURES, "VARCHAR", OPTIONS, "the model's text for a prompt", bind)
