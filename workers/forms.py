"""From a prompt and its choices to the tokens of a model: fixed pieces around the arguments, and endings.

The words here were chosen by measurement (docs/models.md). `Chat` holds what a model's own chat format puts
before and after a user's text; a model without one gets plain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqluice.workers.prompting import OPPOSITES, Statement, endings, instruction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

VERSION = "1"

Threshold = Literal["mean", "outlier"]

YES_NO = ("yes", "no")

_MIDDLING = (
    "neutral",
    "mixed",
    "average",
    "okay",
    "fair",
    "other",
    "unknown",
    "unclear",
    "none",
    "yes",
    "no",
)


@dataclass(frozen=True, slots=True)
class Chat:
    """Text before a user's message and from its end to the start of the answer."""

    before: str = ""
    after: str = "\n\n"


PLAIN = Chat()


@dataclass(frozen=True, slots=True)
class Form:
    """A prompt ready for tokens: fixed text around the arguments, and an ending for each choice.

    `pieces` has one more entry than `slots`; argument number `slots[i]` stands between pieces i and i + 1. A
    choice has one or more endings, whose log-probabilities are averaged; a choice without one scores 0.
    `threshold` tells how calibration sets the point between the choices, `even` whether the choices are
    brought to the same spread.
    """

    pieces: tuple[str, ...]
    slots: tuple[int, ...]
    tails: tuple[tuple[str, ...], ...]
    threshold: Threshold = "mean"
    even: bool = False


def framed(chat: Chat, slots: tuple[int, ...], after: str) -> tuple[str, ...]:
    """Fixed text around the arguments: a title before each, then `after` where the answer begins."""
    titles = ["Text: "] if len(slots) == 1 else [f"Text {at + 1}: " for at in range(len(slots))]
    between = [chat.before + titles[0], *(f"\n\n{title}" for title in titles[1:])] if slots else []
    return (*between, (chat.after if slots else chat.before + chat.after) + after)


def statement_form(statement: Statement, slots: tuple[int, ...], chat: Chat) -> Form:
    """Choices yes and no, as endings of `statement`."""
    yes, no = (_spaced(ways) for ways in endings(statement.predicate))
    if no:
        return Form(framed(chat, slots, f"In short: {statement.start}"), slots, (yes, no))
    after = f"Overall, {statement.start[:1].lower()}{statement.start[1:]}"
    return Form(framed(PLAIN, slots, after), slots, (yes, no), "outlier")


def _spaced(ways: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {way}" for way in ways)


def question_form(question: str, slots: tuple[int, ...]) -> Form:
    """Choices yes and no, asked outright: for questions that are no statement turned round."""
    return Form(framed(PLAIN, slots, f"Question: {question}\nAnswer:"), slots, ((" yes",), (" no",)))


def grade_form(prompt: Prompt, choices: Sequence[str]) -> Form:
    """One grade out of `choices`."""
    question, slots = instruction(prompt.prefix + prompt.template)
    after = f"{question}\nGrade from {choices[0]} to {choices[-1]}:"
    return Form(framed(PLAIN, slots, after), slots, tuple((f" {choice}",) for choice in choices))


def label_form(prompt: Prompt, choices: Sequence[str]) -> Form:
    """One label out of `choices`; a label that the template describes is scored by its description."""
    _, slots = instruction(prompt.prefix + prompt.template)
    described = descriptions(prompt.prefix + prompt.template, choices)
    words = [described.get(choice, choice).strip().lower() for choice in choices]
    opinion = all(word in OPPOSITES or word in _MIDDLING for word in words)
    after = "Summary in one word:" if opinion else "Summary: This text is about"
    return Form(framed(PLAIN, slots, after), slots, tuple((f" {word}",) for word in words), even=True)


def descriptions(template: str, choices: Sequence[str]) -> dict[str, str]:
    """What the template's lines `label: description` say about `choices`."""
    found: dict[str, str] = {}
    for choice in choices:
        line = re.search(rf"(?m)^[\s\-*]*{re.escape(choice)}\s*[:=-]\s+(\S.*?)[.;,]?\s*$", template)
        if line and "{" not in line.group(1):
            found[choice] = line.group(1)
    return found


def is_yes_no(choices: Sequence[str]) -> bool:
    """Whether `choices` are yes and no, in this order."""
    return tuple(choice.strip().lower() for choice in choices) == YES_NO


def is_grades(choices: Sequence[str]) -> bool:
    """Whether `choices` are whole numbers."""
    return len(choices) > 1 and all(re.fullmatch(r"-?\d+", choice.strip()) for choice in choices)


def split_question(text: str) -> tuple[str, str] | None:
    """`'Is this positive? What a day!'` -> (question, text); None when there is no question with a text."""
    found = re.match(r"\s*(.{3,300}?\?)\s+(\S.*)$", text, re.DOTALL)
    if found:
        return found.group(1), found.group(2)
    found = re.match(r"(.*\S)\s+([^.?!\n]{3,300}\?)\s*$", text, re.DOTALL)
    return (found.group(2), found.group(1)) if found else None


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """The chat that asks for a text: the instruction in the system role, the row's texts in the user's."""
    template = prompt.prefix + prompt.template
    words, slots = instruction(template)
    if not slots or not words:
        return [{"role": "user", "content": prompt.text}]
    titles = [""] if len(slots) == 1 else [f"Text {at + 1}: " for at in range(len(slots))]
    texts = [title + prompt.args[slot] for title, slot in zip(titles, slots, strict=True)]
    return [
        {"role": "system", "content": words},
        {"role": "user", "content": "\n\n".join(texts)},
    ]
