"""AI_EMBED and AI_SIMILARITY: the vector of a text, and how near two texts are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.function import Function
from sqluice.udfs.options import parse, shown, wrong_count
from sqluice.udfs.prompts import modelled
from sqluice.udfs.spec import BindError, Bound, Const, PromptValue, Row, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

EMBED = "AI_EMBED"
EMBED_SIGNATURES = ("AI_EMBED(['model',] text [, options])",)
SIMILARITY = "AI_SIMILARITY"
SIMILARITY_SIGNATURES = ("AI_SIMILARITY(a, b [, {'model': '...'}])",)
OPTIONS = ("model",)


def embedding(model: str | None = None, template: str = "{0}") -> Spec:
    """The spec of AI_EMBED; AI_SIMILARITY asks it about both of its sides."""
    return Spec(EMBED, "embed", "FLOAT[]", template=template, model=model)


def bind_embed(args: Sequence[Arg]) -> Bound:
    """The call as an embedding of the rendered prompt."""
    prompt, options = modelled(EMBED, EMBED_SIGNATURES, OPTIONS, args)
    return Bound(embedding(options.model, prompt.template), prompt.args)


def similarity_model(args: Sequence[Arg]) -> str | None:
    """The model that AI_SIMILARITY names, None for the session's; `BindError` for a wrong count or options."""
    if not 2 <= len(args) <= 3:
        raise wrong_count(SIMILARITY, SIMILARITY_SIGNATURES, len(args))
    return parse(SIMILARITY, OPTIONS, args[2], 2).model if len(args) == 3 else None


def bind_similarity(args: Sequence[Arg]) -> Bound:
    """Both sides as `args`. The template is that of one side: each is embedded alone."""
    model = similarity_model(args)
    sides = (_side(args[0], 0), _side(args[1], 1))
    return Bound(Spec(SIMILARITY, "embed", "DOUBLE", model=model), sides)


def _side(arg: Arg, at: int) -> Const | Row:
    if isinstance(arg, PromptValue):
        raise BindError(f"{SIMILARITY} compares two texts, not PROMPT(..): join strings with ||", at)
    if isinstance(arg, Const) and isinstance(arg.value, dict | list | tuple):
        raise BindError(f"{SIMILARITY} compares two texts; not {shown(arg.value)}", at)
    return arg


FUNCTION = Function(EMBED, EMBED_SIGNATURES, "FLOAT[]", OPTIONS, "the embedding of a text", bind_embed)
SIMILARITY_FUNCTION = Function(
    SIMILARITY, SIMILARITY_SIGNATURES, "DOUBLE", OPTIONS, "cosine of two texts' embeddings, -1 to 1", bind_similarity
)
