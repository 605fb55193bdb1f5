"""What one AI function is to parser, planner, registration and docs: a `Function`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.udfs.spec import Arg, Bound


@dataclass(frozen=True, slots=True)
class Function:
    """`signatures` are for people, `options` the names its struct of options may hold; `bind` checks a call."""

    name: str
    signatures: tuple[str, ...]
    returns: str
    options: tuple[str, ...]
    help: str
    bind: Callable[[Sequence[Arg]], Bound]
