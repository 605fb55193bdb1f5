"""Decide first what costs least for the rows it drops.

    f(a) AND g(b)                ->  g(b) AND f(a)               where g drops more rows for its calls
    f(a) AND (g(b) OR h(c))      ->  f(a) AND (h(c) OR g(b))     where h settles more rows for its calls

With calls that cost c and a share s of rows that go on, the best order of independent predicates over distinct inputs
is by c / (1 - s) (Hellerstein and Stonebraker 1993, section 3). Here inputs repeat and one input's rows are spread over
the table, so that what a predicate costs depends on which rows are left: the orders are tried out on the rows
themselves, with answers drawn by the shares expected where they are not known. Up to `MOST_TRIED` arms every order is
tried, by dynamic programming over sets of arms; beyond that the best next arm is taken each time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from sqlglot import exp

from sqluice.optimizer.ast import args_of, has_site, own_sites, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Cost = Callable[[int, np.ndarray], float]

MOST_TRIED = 6
WORTH = 0.02
"""The written order stays unless another saves more than this share of its cost."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of a predicate that AND, OR and NOT do not take apart, on n rows.

    `yes` and `no` are bool [n] (both false: NULL). `codes` are int [n], one number for each distinct input, -1 where
    none is asked; None for a leaf without a question. `known` is bool [inputs]: no call is needed. `cost` is that of a
    call.
    """

    yes: np.ndarray
    no: np.ndarray
    codes: np.ndarray | None = None
    known: np.ndarray | None = None
    cost: float = 1.0

    def calls(self, rows: np.ndarray) -> int:
        """Calls for the rows, bool [n], that get here."""
        if self.codes is None or self.known is None:
            return 0
        wanted = np.bincount(self.codes[rows & (self.codes >= 0)], minlength=len(self.known)) > 0
        return int((wanted & ~self.known).sum())


@dataclass(frozen=True, slots=True)
class Ordered:
    """Predicates in the order to decide them, and what is expected of it: cost, and rows and calls by leaf."""

    predicates: tuple[exp.Expr, ...]
    cost: float
    calls: Mapping[str, int]
    rows: Mapping[str, int]
    written: float
    """What the order as written is expected to cost."""


def leaves(predicates: Sequence[exp.Expr]) -> dict[str, exp.Expr]:
    """The leaves of predicates by their SQL."""
    found: dict[str, exp.Expr] = {}
    for predicate in predicates:
        for part in _parts(predicate):
            found.setdefault(_name(part), part)
    return found


def asking(predicates: Sequence[exp.Expr]) -> dict[str, exp.Expr]:
    """The leaves that hold a question."""
    return {name: leaf for name, leaf in leaves(predicates).items() if has_site(leaf)}


def _name(leaf: exp.Expr) -> str:
    """The SQL of a leaf, which is asked for many times."""
    if "leaf" not in leaf.meta:
        leaf.meta["leaf"] = sql(leaf)
    name: str = leaf.meta["leaf"]
    return name


def _parts(node: exp.Expr) -> list[exp.Expr]:
    if not has_site(node):
        return [node]
    if isinstance(node, exp.And | exp.Or):
        return [leaf for arm in _arms(node) for leaf in _parts(arm)]
    return _parts(node.this) if isinstance(node, exp.Not | exp.Paren) else [node]


def apply(predicates: Sequence[exp.Expr], rows: np.ndarray, facts: Mapping[str, Leaf]) -> Ordered:
    """The best order of conjuncts, and of arms inside them, for `rows`, bool [n]; `facts` by the leaves' SQL."""
    written = spent(predicates, rows, facts)
    best = [_inside(predicate, rows, facts) for predicate in predicates]
    found = spent(_best(best, rows, facts, conjuncts=True), rows, facts)
    return written if found.cost > (1 - WORTH) * written.cost else replace(found, written=written.cost)


def spent(predicates: Sequence[exp.Expr], rows: np.ndarray, facts: Mapping[str, Leaf]) -> Ordered:
    """What conjuncts cost in the order in which they stand."""
    tally = _Tally()
    _spend(predicates, rows, facts, tally, conjuncts=True)
    return Ordered(tuple(predicates), tally.cost, tally.calls, tally.rows, tally.cost)


class _Tally:
    def __init__(self) -> None:
        self.cost = 0.0
        self.calls: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()


def _inside(node: exp.Expr, rows: np.ndarray, facts: Mapping[str, Leaf]) -> exp.Expr:
    """`node` with the arms below it in their best order for `rows`."""
    if isinstance(node, exp.Paren | exp.Not) and has_site(node):
        new = node.copy()
        new.set("this", _inside(node.this, rows, facts))
        return new
    if not isinstance(node, exp.And | exp.Or) or not has_site(node):
        return node
    kind = type(node)
    arms = [_inside(arm, rows, facts) for arm in _arms(node)]
    if all(map(_may_move, arms)):
        arms = _best(arms, rows, facts, conjuncts=False, either=kind is exp.Or)
    found = arms[0]
    for arm in arms[1:]:
        found = kind(this=found, expression=arm)
    return found


def _may_move(arm: exp.Expr) -> bool:
    """Whether nothing is computed for the questions of an arm that an arm before it might have prevented."""
    return all(isinstance(arg, exp.Column | exp.Literal) for site in own_sites(arm) for arg in args_of(site))


def _best(
    arms: list[exp.Expr], rows: np.ndarray, facts: Mapping[str, Leaf], *, conjuncts: bool, either: bool = False
) -> list[exp.Expr]:
    if len(arms) < 2:
        return arms
    settled = [_left(arm, facts, conjuncts=conjuncts, either=either) for arm in arms]

    def cost(at: int, left: np.ndarray) -> float:
        tally = _Tally()
        _spend_one(arms[at], left, facts, tally)
        return tally.cost

    order = _tried(len(arms), rows, settled, cost) if len(arms) <= MOST_TRIED else _greedy(rows, settled, cost)
    return [arms[at] for at in order]


def _tried(n: int, rows: np.ndarray, settled: list[np.ndarray], cost: Cost) -> list[int]:
    """The cheapest order: what an arm costs depends only on which arms came before it."""
    left = {0: rows}
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for done in sorted(range(1, 1 << n), key=lambda some: (some.bit_count(), some)):
        last = done.bit_length() - 1
        left[done] = left[done & ~(1 << last)] & settled[last]
        ways = []
        for at in range(n):
            if done >> at & 1:
                before, order = best[done & ~(1 << at)]
                ways.append((before + cost(at, left[done & ~(1 << at)]), (*order, at)))
        best[done] = min(ways)  # of equal ones that nearest to the order written
    return list(best[(1 << n) - 1][1])


def _greedy(rows: np.ndarray, settled: list[np.ndarray], cost: Cost) -> list[int]:
    open_ones, order, left = list(range(len(settled))), [], rows
    while open_ones:
        ranks = [(cost(at, left) / max(int((left & ~settled[at]).sum()), 0.5), at) for at in open_ones]
        at = min(ranks)[1]
        order.append(at)
        open_ones.remove(at)
        left = left & settled[at]
    return order


def _left(arm: exp.Expr, facts: Mapping[str, Leaf], *, conjuncts: bool, either: bool) -> np.ndarray:
    """The rows, bool [n], that go on after an arm: a WHERE takes what is true, an AND what is not false, an OR what is
    not true."""
    yes, no = _values(arm, facts)
    return yes if conjuncts else ~yes if either else ~no


def _values(node: exp.Expr, facts: Mapping[str, Leaf]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(node, exp.And | exp.Or) and has_site(node):
        parts = [_values(arm, facts) for arm in _arms(node)]
        yes = np.stack([part[0] for part in parts])
        no = np.stack([part[1] for part in parts])
        both = (yes.all(0), no.any(0)) if isinstance(node, exp.And) else (yes.any(0), no.all(0))
        return np.asarray(both[0]), np.asarray(both[1])
    if isinstance(node, exp.Paren) and has_site(node):
        return _values(node.this, facts)
    if isinstance(node, exp.Not) and has_site(node):
        yes, no = _values(node.this, facts)
        return no, yes
    leaf = facts[_name(node)]
    return leaf.yes, leaf.no


def _spend(
    arms: Sequence[exp.Expr],
    rows: np.ndarray,
    facts: Mapping[str, Leaf],
    tally: _Tally,
    *,
    conjuncts: bool,
    either: bool = False,
) -> None:
    """Add what arms cost that are decided in this order."""
    for arm in arms:
        _spend_one(arm, rows, facts, tally)
        rows = rows & _left(arm, facts, conjuncts=conjuncts, either=either)


def _spend_one(node: exp.Expr, rows: np.ndarray, facts: Mapping[str, Leaf], tally: _Tally) -> None:
    if not has_site(node):
        return
    if isinstance(node, exp.And | exp.Or):
        arms = _arms(node)
        free = [arm for arm in arms if not has_site(arm)]  # decide first, wherever they stand
        ordered = [*free, *(arm for arm in arms if has_site(arm))]
        _spend(ordered, rows, facts, tally, conjuncts=False, either=isinstance(node, exp.Or))
    elif isinstance(node, exp.Paren | exp.Not):
        _spend_one(node.this, rows, facts, tally)
    else:
        leaf = facts[_name(node)]
        calls = leaf.calls(rows)
        tally.cost += leaf.cost * calls
        tally.calls[_name(node)] += calls
        tally.rows[_name(node)] += int(rows.sum())


def _arms(node: exp.Expr) -> list[exp.Expr]:
    kind = type(node)
    found: list[exp.Expr] = []
    for side in (node.args["this"], node.args["expression"]):
        inner = side.this if isinstance(side, exp.Paren) and isinstance(side.this, kind) else side
        found += _arms(inner) if isinstance(inner, kind) else [side]
    return found
