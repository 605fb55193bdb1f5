"""What is expected of a predicate: the share of its inputs that say yes, from priors, earlier runs and this one.

Each source is a number of yes answers out of a number of inputs; they add up, as the parameters of a beta distribution
do. What an earlier run saw counts for at most `MOST_REMEMBERED` inputs, less as it ages and as the data changes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import own, own_sites, spec_of, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.optimizer.plan import Stage

MOST_REMEMBERED = 64.0
HALF_LIFE_DAYS = 30.0
PRIOR_INPUTS = 2.0
_EQUAL = 0.5
_CLASSIFY = 0.3


@dataclass(frozen=True, slots=True)
class Share:
    """`yes` out of `inputs`, fractions allowed."""

    yes: float = 0.0
    inputs: float = 0.0

    def plus(self, other: Share) -> Share:
        """Both together."""
        return Share(self.yes + other.yes, self.inputs + other.inputs)

    @property
    def mean(self) -> float:
        """The share expected."""
        return self.yes / self.inputs if self.inputs else _EQUAL


@dataclass(frozen=True, slots=True)
class Remembered:
    """What earlier runs saw of one predicate: `rows` is how many rows stood before it, `updated` seconds since 1970,
    `revision` that of its models."""

    share: Share
    rows: float
    updated: float
    revision: str = ""

    def now(self, rows: float, time: float) -> Share:
        """What it is worth for `rows` rows at `time`."""
        if not self.share.inputs:
            return Share()
        age = max(0.0, time - self.updated) / 86_400
        alike = min(rows, self.rows) / max(rows, self.rows, 1.0)
        weight = min(self.share.inputs, MOST_REMEMBERED) * 0.5 ** (age / HALF_LIFE_DAYS) * math.sqrt(alike)
        return Share(self.share.mean * weight, weight)


def prior(leaf: exp.Expr) -> Share:
    """What is expected of a predicate that nobody has seen: half for a yes or no, less for one label out of several,
    what is above a threshold for a score."""
    mean = _EQUAL
    if isinstance(leaf, exp.EQ):
        mean = _CLASSIFY
    elif isinstance(leaf, exp.GT | exp.GTE | exp.LT | exp.LTE) and isinstance(leaf.expression, exp.Literal):
        at = float(leaf.expression.this) if leaf.expression.is_number else -1.0
        if 0.0 <= at <= 1.0:
            mean = 1.0 - at if isinstance(leaf, exp.GT | exp.GTE) else at
    mean = min(max(mean, 0.05), 0.95)
    return Share(mean * PRIOR_INPUTS, PRIOR_INPUTS)


def fingerprint(stage: Stage, leaf: exp.Expr, identity: Callable[[int], str]) -> str:
    """What a predicate is across runs: its questions by `identity`, its columns by table and name."""
    tables = {table.alias_or_name: table.sql("duckdb") for table in _tables(stage.source)}
    outputs = stage.source.expressions if isinstance(stage.source, exp.Select) else []
    known = dict(zip(stage.columns, outputs, strict=False)) if len(outputs) == len(stage.columns) else {}

    def named(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Column) and node.name in known and len(node.parts) == 1:
            written: exp.Expr = known[node.name].transform(_by_table)
            return written
        return node

    def _by_table(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Column) and node.table in tables:
            return exp.Identifier(this=f"{tables[node.table]}.{node.name}".lower(), quoted=True)
        return node

    questions = [identity(spec_of(site)) for site in own_sites(leaf)]
    text = sql(leaf.transform(named))
    for at, site in enumerate(own_sites(leaf)):
        text = text.replace(f"__AI({spec_of(site)},", f"__AI(q{at},")
    return hashlib.blake2b("\x1f".join([text, *questions]).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _tables(source: exp.Expr) -> list[exp.Table]:
    return [node for node in own(source) if isinstance(node, exp.Table)]
