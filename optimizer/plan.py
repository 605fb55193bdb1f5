"""A plan: stages that run one after the other, then one SQL statement over their results.

A stage spools the rows of a relational fragment (`source`), asks its questions about them in `steps`, and leaves a
relation of the same name with a column for each answer. Everything is plain data; `sql` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sqlglot import exp

    from sqluice.types import Contract

ORDINAL = "__ord"


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a question about rows: `spec` with `args` (SQL over the stage's columns so far), where `guard` holds.

    The answer becomes column `name`; its error, if the statement reads it, `name` + `_error`. `counts`: its rows count
    in the trace, since nothing before it has asked the same about them.
    """

    name: str
    spec: int
    args: tuple[exp.Expr, ...]
    guard: exp.Expr | None = None
    wants_error: bool = False
    counts: bool = True


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
    """`source` returns the columns `columns`, in this order. Rows go on where all of `filters` are true, then all of
    `keeps`, then `limit` ends the stage; `asks` are about the rows that are left.

    `filters` hold AI expressions over the stage's columns and stand in the order written; the order in which they are
    decided is found while they run. `keeps` are evaluated row by row. `pairs` tells that the rows are pairs of a
    semantic join.
    """

    name: str
    source: exp.Expr
    columns: tuple[str, ...]
    filters: tuple[exp.Expr, ...] = ()
    keeps: tuple[exp.Expr, ...] = ()
    asks: tuple[Ask, ...] = ()
    limit: Limit | None = None
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Cascade:
    """A question that cheaper tiers may decide within `contract`. `forced`: whatever it is expected to save. `apart`
    says why the contract is not one of the result; None where it is. `chain` holds the numbers of all whose predicates
    must be true together, where there are several. With `top` only the rows with the `top` best scores are wanted."""

    contract: Contract
    forced: bool
    apart: str | None
    chain: frozenset[int] = frozenset()
    top: int = 0


@dataclass(slots=True)
class Plan:
    """`statement` reads the stages by name. `rowwise` says which AI expressions stay in it and why; `fired` which
    rules changed the plan, `changes` what they changed (rule, SQL before, SQL after) where that is wanted.
    `cascades` are keyed by the number of their spec."""

    statement: exp.Expr
    stages: list[Stage] = field(default_factory=list)
    rowwise: list[tuple[int, str]] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    cascades: dict[int, Cascade] = field(default_factory=dict)
