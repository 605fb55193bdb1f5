"""What the predicates of a stage are expected to cost before a row has been read.

Every row counts as an input of its own and predicates as independent, so that the numbers are upper bounds; while the
predicates run the rows themselves are looked at (`rules/order_conjuncts.py`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.ast import has_site
from sqluice.optimizer.rules import order_conjuncts
from sqluice.optimizer.rules.order_conjuncts import Leaf, Ordered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlglot import exp

ROWS = 1000
MOST_LISTED = 3
MOST_PERMUTED = 4


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicates in the order expected to cost least, calls by leaf, and orders considered: numbers of predicates as
    written (from 1) with calls, cheapest first."""

    predicates: tuple[exp.Expr, ...]
    calls: Mapping[str, int]
    considered: tuple[tuple[tuple[int, ...], int], ...]


def forecast(
    predicates: Sequence[exp.Expr], rows: int, shares: Mapping[str, float], costs: Mapping[str, float]
) -> Forecast:
    """For `rows` rows: `shares` are those of yes answers by leaf, `costs` those of a call."""
    generator = np.random.default_rng(0)
    scale = rows / ROWS
    facts = {}
    for name, leaf in order_conjuncts.leaves(predicates).items():
        yes = (np.arange(ROWS) + 0.5) / ROWS < shares.get(name, 0.5)
        generator.shuffle(yes)
        facts[name] = Leaf(yes, ~yes)
        if has_site(leaf):
            facts[name] = Leaf(yes, ~yes, np.arange(ROWS), np.zeros(ROWS, bool), costs.get(name, 1.0))
    every = np.ones(ROWS, bool)
    best = order_conjuncts.apply(predicates, every, facts)
    found: dict[tuple[int, ...], Ordered] = {}
    numbers = range(len(predicates))
    for order in itertools.permutations(numbers) if len(predicates) <= MOST_PERMUTED else [tuple(numbers)]:
        found[tuple(at + 1 for at in order)] = order_conjuncts.spent([predicates[at] for at in order], every, facts)
    ranked = sorted(found.items(), key=lambda item: item[1].cost)[:MOST_LISTED]
    written = tuple(at + 1 for at in numbers)
    if all(order != written for order, _ in ranked):
        ranked.append((written, found[written]))
    considered = tuple((order, round(sum(one.calls.values()) * scale)) for order, one in ranked)
    return Forecast(best.predicates, {name: round(n * scale) for name, n in best.calls.items()}, considered)
