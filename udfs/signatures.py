"""The one table of AI functions that parser, planner, registration and docs read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.errors import NotSupportedError
from sqluice.udfs import ai_classify, ai_complete, ai_count_tokens, ai_embed, ai_filter, ai_score
from sqluice.udfs.function import Function
from sqluice.udfs.names import NAMES, PLANNED, near
from sqluice.udfs.spec import BindError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg, Bound

__all__ = ["FUNCTIONS", "PLANNED", "Function", "bind"]


def _bind_prompt(_: Sequence[Arg]) -> Bound:
    raise BindError("PROMPT(..) stands only as an argument of an AI function, such as AI_FILTER(PROMPT('..{0}..', a))")


_PROMPT = Function(
    "PROMPT",
    ("PROMPT('..{0}..', a, ..)",),
    "prompt",
    (),
    "a template and its arguments, for AI functions",
    _bind_prompt,
)

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        ai_filter.FUNCTION,
        ai_classify.FUNCTION,
        ai_score.FUNCTION,
        ai_complete.FUNCTION,
        ai_embed.FUNCTION,
        ai_embed.SIMILARITY_FUNCTION,
        ai_count_tokens.FUNCTION,
        _PROMPT,
    )
}


def bind(function: str, args: Sequence[Arg]) -> Bound:
    """A call of `function` (any case) with its constants taken out.

    `BindError` when there is no such function or the call is wrong; `NotSupportedError` for one in `PLANNED`.
    """
    name = function.upper()
    if name in FUNCTIONS:
        return FUNCTIONS[name].bind(args)
    if name in PLANNED:
        raise NotSupportedError(f"{name} is not in this version")
    raise BindError(f"no AI function {function.lower()}; {near(function, NAMES)}")
