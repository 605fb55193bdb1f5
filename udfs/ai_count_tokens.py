"""AI_COUNT_TOKENS: how many tokens a text is to the model of an AI function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.function import Function
from sqluice.udfs.names import NAMES, near
from sqluice.udfs.options import constant_text, wrong_count
from sqluice.udfs.prompts import as_prompt
from sqluice.udfs.spec import BindError, Bound, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

NAME = "AI_COUNT_TOKENS"
SIGNATURES = ("AI_COUNT_TOKENS('ai_complete', ['model',] text)",)


def bind(args: Sequence[Arg]) -> Bound:
    """The call as a count. `spec.options` holds the function counted for, in upper case: it decides the model."""
    if not 2 <= len(args) <= 3:
        raise wrong_count(NAME, SIGNATURES, len(args))
    function = constant_text(f"the function of {NAME}", args[0], 0)
    if function.upper() not in NAMES:
        raise BindError(f"{NAME} counts for an AI function; {function!r} is none: {near(function, NAMES)}", 0)
    model = constant_text(f"the model of {NAME}", args[1], 1) if len(args) == 3 else None
    prompt = as_prompt(NAME, args[-1], len(args) - 1)
    spec = Spec(
        NAME,
        "count_tokens",
        "INTEGER",
        template=prompt.template,
        model=model,
        options=(("function", function.upper()),),
    )
    return Bound(spec, prompt.args)


FUNCTION = Function(NAME, SIGNATURES, "INTEGER", (), "tokens of a text, without a model call", bind)
