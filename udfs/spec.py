"""What an AI expression is once its constants are known: a `Spec`, and the arguments a row brings.

`bind` in `signatures.py` turns the arguments of a call into a `Bound`. The planner hands in SQL expressions as
`Row` values, plain DuckDB hands in columns; neither matters here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sqluice.errors import ProgrammingError

if TYPE_CHECKING:
    from sqluice.types import Kind

Operation = Literal["score", "generate", "embed", "count_tokens"]
OptionValue: TypeAlias = str | float | int | bool


@dataclass(frozen=True, slots=True)
class Spec:
    """The constant part of an AI expression. Equal specs with equal arguments are one question.

    `returns` is the SQL type of the answer: BOOLEAN, VARCHAR, VARCHAR[], DOUBLE, FLOAT[] or INTEGER. `model` None
    means the session's oracle (its embedder for `embed`). `template` has a placeholder for each of the row's
    arguments; `choices` are what a score is asked for. `multi` takes every fitting label, `grades` turns choices
    into an expected grade, `errors` asks for STRUCT(value, error). `options` holds contract options
    (recall, precision, accuracy, delta, budget) that cascades read.
    """

    function: str
    operation: Operation
    returns: str
    kind: Kind = "filter"
    template: str = "{0}"
    choices: tuple[str, ...] = ()
    model: str | None = None
    max_tokens: int = 0
    multi: bool = False
    grades: tuple[int, int] | None = None
    errors: bool = False
    options: tuple[tuple[str, OptionValue], ...] = ()


@dataclass(frozen=True, slots=True)
class Const:
    """An argument whose value is the same on every row."""

    value: object


@dataclass(frozen=True, slots=True)
class Row:
    """An argument that each row brings; `expr` is whatever the caller will evaluate."""

    expr: object


@dataclass(frozen=True, slots=True)
class PromptValue:
    """`PROMPT('..{0}..', a, ..)`: a constant template and its arguments."""

    template: str
    args: tuple[Const | Row, ...]


Arg: TypeAlias = Const | Row | PromptValue


@dataclass(frozen=True, slots=True)
class Bound:
    """A call with its constants taken out: `args[i]` fills placeholder `{i}` of `spec.template`."""

    spec: Spec
    args: tuple[Const | Row, ...]


class BindError(ProgrammingError):
    """A call of an AI function is wrong. `argument` is the number of the argument at fault, from 0, or None."""

    def __init__(self, message: str, argument: int | None = None) -> None:
        super().__init__(message)
        self.argument = argument
