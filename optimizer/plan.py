"""A plan: stages that run one after the other, then one SQL statement over their results.

A stage spools the rows of a relational fragment (`source`), asks its questions about them in `steps`, and leaves a
relation of the same name with a column for each answer. Everything is plain data; `sql` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sqlglot import exp

ORDINAL = "__ord"


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a question about rows: `spec` with `args` (SQL over the stage's columns so far), where `guard` holds.

    The answer becomes column `name`; its error, if the statement reads it, `name` + `_error`.
    """

    name: str
    spec: int
    args: tuple[exp.Expr, ...]
    guard: exp.Expr | None = None
    wants_error: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the rows for which `predicate` is true."""

    predicate: exp.Expr


Step: TypeAlias = Ask | Keep


@dataclass(frozen=True, slots=True)
class Limit:
    """Stop when `count` rows beyond `offset` have come through."""

    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """`source` returns the columns `columns`, in this order; `steps` run over them; `limit` ends the stage early after
    the last `Keep`. `pairs` tells that its rows are pairs of a semantic join."""

    name: str
    source: exp.Expr
    columns: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    limit: Limit | None = None
    pairs: bool = False
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """`statement` reads the stages by name. `rowwise` says which AI expressions stay in it and why; `fired` which
    rules changed the plan."""

    statement: exp.Expr
    stages: list[Stage] = field(default_factory=list)
    rowwise: list[tuple[int, str]] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
