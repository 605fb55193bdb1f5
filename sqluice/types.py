"""Plain data that crosses folders. Frozen; no behaviour beyond rendering."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["filter", "classify", "score", "complete"]

_PLACEHOLDER = re.compile(r"\{(\d+)\}")


def split_template(template: str) -> list[str | int]:
    """`'a {0} b'` -> `['a ', 0, ' b']`: fixed text and argument numbers in order."""
    pieces: list[str | int] = []
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        if match.start() > end:
            pieces.append(template[end : match.start()])
        pieces.append(int(match.group(1)))
        end = match.end()
    if end < len(template):
        pieces.append(template[end:])
    return pieces


def render(template: str, args: tuple[str, ...]) -> str:
    """Fill `{0}`, `{1}`, .. in one pass: braces inside an argument stay text."""
    return "".join(args[piece] if isinstance(piece, int) else piece for piece in split_template(template))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template and one row's arguments.

    `prefix` is text in front of the template that the whole batch shares. `kind` tells a backend which form
    of question it is; a registered model may ignore it.
    """

    template: str
    args: tuple[str, ...]
    prefix: str = ""
    kind: Kind = "filter"

    @property
    def text(self) -> str:
        """The rendered prompt: prefix, then the template with its arguments in place."""
        return self.prefix + render(self.template, self.args)


@dataclass(frozen=True, slots=True)
class Completion:
    """What `Model.generate` returns for one prompt. `finish_reason` is `stop` or `length` (cut by a limit)."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a model. Prices are in US dollars per million tokens, `price_cached` that of input which the
    model had in a cache (None: the same as `price_in`); `revision` is a digest of everything that decides its
    answers (weights, dtype, prompt form, calibration)."""

    name: str
    revision: str = ""
    context_tokens: int = 0
    price_in: float = 0.0
    price_out: float = 0.0
    price_cached: float | None = None
    reasoning: bool = False
    device: str = "cpu"
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running query is. `total` is None while the number of distinct inputs is not known."""

    operator: str
    done: int
    total: int | None
    calls: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Contract:
    """What a cascade may get wrong against the oracle on every row, with probability 1 - `delta`: `recall` and
    `precision` of yes/no answers, or the share of equal answers (`accuracy`), all strictly between 0 and 1."""

    recall: float | None = None
    precision: float | None = None
    accuracy: float | None = None
    delta: float = 0.05
