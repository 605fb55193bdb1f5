"""Scores of choices from what a text generator tells: its most likely tokens, or only its words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

UNSURE = 1e-3
"""Probability given to the choices that an answer without log-probabilities did not name."""

_DRESSING = " \t\r\n\"'`*.:([{<"


@dataclass(frozen=True, slots=True)
class Position:
    """One written token, and the most likely ones in its place with their log-probabilities."""

    token: str
    top: tuple[tuple[str, float], ...]


def tokens_needed(choices: Sequence[str]) -> int:
    """How many tokens tell `choices` apart, however short the tokens are."""
    words = sorted(_word(choice) for choice in choices)
    shared = max((_shared(a, b) for a, b in pairwise(words)), default=0)
    return 1 if shared == 0 else min(24, shared + 2)


def scores(positions: Sequence[Position], choices: Sequence[str]) -> np.ndarray | None:
    """Float32 [k] log-probabilities of `choices` as the answer, None when the tokens do not begin any.

    Follows the written tokens for as long as they leave several choices open. At each position, a choice that
    parts from the written text gets the probability of the tokens that begin it there. A choice that stands
    among none of the most likely tokens gets what probability they leave over.
    """
    words = [_word(choice) for choice in choices]
    found = np.full(len(words), np.nan, dtype=np.float64)
    written, base, is_open, matched = "", 0.0, list(range(len(words))), False
    for position in positions:
        if not written and not position.token.strip(_DRESSING):
            continue
        going_on, chance = _step(position, written, words, is_open)
        matched |= any(value is not None for value in chance.values())
        written += _ending(position.token)
        if not written.strip(_DRESSING):
            continue
        for choice in is_open:
            value = chance[choice]
            found[choice] = base + (value if value is not None else _left_over(position))
        base += dict(position.top).get(position.token, 0.0)
        is_open = going_on
        if len(is_open) < 2:
            break
    return found.astype(np.float32) if matched else None


def _step(
    position: Position, written: str, words: list[str], is_open: list[int]
) -> tuple[list[int], dict[int, float | None]]:
    """Choices that the written token keeps open, and the log-probability of each open choice from here."""
    masses: dict[int, list[float]] = {choice: [] for choice in is_open}
    for token, logprob in position.top:
        begun = _begun(written + _ending(token), words, is_open)
        for choice in begun:
            masses[choice].append(logprob - math.log(len(begun)))
    chance = {choice: _logsumexp(parts) for choice, parts in masses.items()}
    return _begun(written + _ending(position.token), words, is_open), chance


def _begun(text: str, words: list[str], is_open: list[int]) -> list[int]:
    """Open choices that `text` begins; failing those, the longest one that it has ended."""
    text = text.lstrip(_DRESSING)
    if not text:
        return []
    begun = [choice for choice in is_open if words[choice].startswith(text)]
    if begun:
        return begun
    ended = [choice for choice in is_open if _starts_word(text, words[choice])]
    return [max(ended, key=lambda choice: len(words[choice]))] if ended else []


def _word(choice: str) -> str:
    plain = choice.strip().lower()
    return plain.lstrip(_DRESSING) or plain


def _ending(token: str) -> str:
    """A token as it reads in the answer; an empty one is how servers write the end of the text."""
    return token.lower() or "\n"


def _starts_word(text: str, word: str) -> bool:
    """Whether `text` starts with `word` and the word ends there."""
    return text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()


def _left_over(position: Position) -> float:
    """Log of the probability that the listed tokens leave, at most that of the least likely of them."""
    rest = 1 - sum(math.exp(logprob) for _, logprob in position.top)
    least = min((logprob for _, logprob in position.top), default=0.0)
    return min(least, math.log(max(rest, 1e-9)))


def _logsumexp(parts: list[float]) -> float | None:
    if not parts:
        return None
    most = max(parts)
    return most + math.log(sum(math.exp(part - most) for part in parts)) if most > -math.inf else most


def _shared(a: str, b: str) -> int:
    """Length of the common beginning of two words."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def named(text: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer in words names: as its beginning, or as the only one that stands in it."""
    said = text.strip().lstrip(_DRESSING).lower()
    words = [_word(choice) for choice in choices]
    starts = [at for at, word in enumerate(words) if _starts_word(said, word)]
    if starts:
        return max(starts, key=lambda at: len(words[at]))
    inside = [at for at, word in enumerate(words) if f" {word} " in f" {_plain(said)} "]
    return inside[0] if len(inside) == 1 else None


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def certain(choice: int, k: int) -> np.ndarray:
    """Float32 [k]: the scores of an answer that names `choice` and tells no probabilities."""
    logs = np.full(k, math.log(UNSURE), dtype=np.float32)
    logs[choice] = math.log(1 - UNSURE)
    return logs
