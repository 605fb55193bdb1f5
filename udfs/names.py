"""The names of AI functions, and the nearest of them to a misspelt one."""

from __future__ import annotations

import difflib

NAMES = (
    "AI_FILTER",
    "AI_CLASSIFY",
    "AI_SCORE",
    "AI_COMPLETE",
    "AI_EMBED",
    "AI_SIMILARITY",
    "AI_COUNT_TOKENS",
)

PLANNED = frozenset(
    {"AI_EXTRACT", "AI_SENTIMENT", "AI_AGG", "AI_SUMMARIZE_AGG", "AI_TRANSLATE", "AI_REDACT"},
)


def near(name: str, known: tuple[str, ...]) -> str:
    """`'; did you mean X or Y?'`, or the whole list when nothing in `known` is like `name`."""
    like = {one.lower(): one for one in known}
    found = [like[one] for one in difflib.get_close_matches(name.lower(), like, n=2, cutoff=0.7)]
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}"
