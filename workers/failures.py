"""What a failure may say: its cause, without any row's text and without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST = 300
_RUN = 12
_SEARCHED = 200_000


def describe(error: BaseException, texts: Iterable[str] = (), secrets: Iterable[str] = ()) -> str:
    """One line about `error`. Our own errors speak for themselves; others get their type in front."""
    said = str(error).strip().partition("\n")[0]
    name = "" if isinstance(error, Error) else type(error).__name__
    line = f"{name}: {said}" if name and said else name or said or type(error).__name__
    return clean(line, texts, secrets)


def clean(message: str, texts: Iterable[str] = (), secrets: Iterable[str] = ()) -> str:
    """`message` cut to a line's length, with `...` for every run of 12 or more characters that also stands in
    one of `texts` (for a shorter text: for the whole text, from 3 characters on), and `***` for `secrets`."""
    for secret in secrets:
        if secret:
            message = message.replace(secret, "***")
    message = message[:_LONGEST]
    for text in texts:
        message = _without(message, text[:_SEARCHED])
        escaped = repr(text[:_SEARCHED])[1:-1]
        if escaped != text[:_SEARCHED]:
            message = _without(message, escaped)
    return message


def _without(message: str, text: str) -> str:
    """`message` with the pieces it shares with `text` replaced."""
    run = min(_RUN, len(text))
    if run < 3:
        return message
    pieces: list[str] = []
    at = kept = 0
    while at + run <= len(message):
        if message[at : at + run] not in text:
            at += 1
            continue
        end = at + run
        while end < len(message) and message[at : end + 1] in text:
            end += 1
        pieces += [message[kept:at], "..."]
        at = kept = end
    return "".join([*pieces, message[kept:]])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or CUDA ran out of memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())
    )


def overflow(about: str, tokens: int, limit: int, name: str, chars: int, max_tokens: int) -> str:
    """The error of a row of `chars` characters whose `tokens` (answer included) exceed the context."""
    keep = max(1, int(chars * max(1, limit - max_tokens) / tokens * 0.9))
    answer = f" ({max_tokens} of them for the answer)" if max_tokens else ""
    return (
        f"context overflow: {about}{tokens} tokens{answer}, and {name} takes {limit}; shorten the text,"
        f" e.g. left(col, {keep}), or use a model with a longer context"
    )
