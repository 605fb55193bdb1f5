"""When an AI expression's value is needed: the condition under which SQL would look at it.

    CASE WHEN a THEN f END       f is needed where a is true
    a OR f                       where a is not true
    a AND f                      where a is not false
    COALESCE(a, f)               where a is null
    sum(f) FILTER (a)            where a is true

A guard is a condition that must be true for the question to be asked; a row where it is not true gets NULL in place of
the answer, which cannot change the value of the whole expression.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import (
    aggregate_calls,
    args_of,
    conjunction,
    disjunction,
    has_site,
    is_aggregate,
    is_site,
    own,
    own_sites,
    sql,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator


@dataclass(slots=True)
class Need:
    """A question and the places that need its answer, each with the conditions that must all hold for it."""

    site: exp.Expr
    places: list[list[exp.Expr]] = field(default_factory=list)

    def waits_for(self) -> set[str]:
        """The questions that its guard holds."""
        return {key(site) for place in self.places for part in place for site in own_sites(part)}

    def guard(self, unknown: Container[str] = ()) -> exp.Expr | None:
        """Where the answer is needed: in any of its places; None for every row. Conditions that hold an `unknown`
        question are left out, which can only ask more."""
        found = []
        for place in self.places:
            parts = [part for part in place if not any(key(site) in unknown for site in own_sites(part))]
            if not parts:
                return None
            whole = conjunction([part.copy() for part in parts])
            if whole is not None and whole not in found:
                found.append(whole)
        return disjunction(found) if len(found) > 1 else found[0] if found else None


def collect(nodes: list[exp.Expr], aggregates: frozenset[str] = frozenset()) -> dict[str, Need]:
    """What each AI expression in `nodes` is needed for, by `key`. Inner ones (arguments of others) come before outer
    ones. `aggregates` names aggregate functions: conditions on one are about groups, not about rows."""
    found: dict[str, Need] = {}
    for node in nodes:
        for site, guard in _walk(node, [], aggregates):
            found.setdefault(key(site), Need(site)).places.append(guard)
    return found


def in_order(wanted: dict[str, Need], asked: Container[str] = ()) -> Iterator[tuple[str, exp.Expr, exp.Expr | None]]:
    """The questions of `wanted`, each after those that its arguments and its guard need, with its guard; without those
    in `asked`. In a circle of guards the first one is asked without its guard."""
    open_ones = {name: need for name, need in wanted.items() if name not in asked}
    while open_ones:
        free = [name for name, need in open_ones.items() if not _inner(need.site) & open_ones.keys()]
        ready = [name for name in free if not open_ones[name].waits_for() & open_ones.keys() - {name}]
        name = (ready or free)[0]
        yield name, open_ones[name].site, open_ones[name].guard(unknown=open_ones.keys())
        del open_ones[name]


def _inner(site: exp.Expr) -> set[str]:
    """The questions in the arguments of `site`."""
    return {key(found) for arg in args_of(site) for found in own_sites(arg)}


def key(site: exp.Expr) -> str:
    """What two places of the same question share, whether they want the answer or its error."""
    return sql(site).replace("__AI_ERROR(", "__AI(")


def _walk(
    node: exp.Expr, guard: list[exp.Expr], aggregates: frozenset[str]
) -> Iterator[tuple[exp.Expr, list[exp.Expr]]]:
    """Every AI expression in `node` with the conditions above it; inner ones first."""
    if not has_site(node):
        return
    if is_site(node):
        for arg in args_of(node):
            yield from _walk(arg, guard, aggregates)
        yield node, guard
        return
    if isinstance(node, exp.Window | exp.Filter | exp.WithinGroup) or is_aggregate(node, aggregates):
        guard = []
    for child, conditions in _children(node):
        if isinstance(child, exp.Query):
            continue
        extra = [part for part in conditions if not aggregate_calls(part, aggregates) and not windows(part)]
        if isinstance(node, exp.Filter) and child is node.this:  # not again at the aggregate itself
            for below in child.iter_expressions():
                yield from _walk(below, [*guard, *extra], aggregates)
        else:
            yield from _walk(child, [*guard, *extra], aggregates)


def _children(node: exp.Expr) -> Iterator[tuple[exp.Expr, list[exp.Expr]]]:
    """The children of `node` with what must hold for each to be looked at."""
    if isinstance(node, exp.Case):
        yield from _case(node)
    elif isinstance(node, exp.If):
        yield node.this, []
        yield node.args["true"], [_is_true(node.this)]
        if node.args.get("false") is not None:
            yield node.args["false"], [_is_not_true(node.this)]
    elif isinstance(node, exp.Coalesce):
        before: list[exp.Expr] = []
        for arm in [node.this, *node.expressions]:
            yield arm, [_is_null(other) for other in before]
            before.append(arm)
    elif isinstance(node, exp.And | exp.Or):
        yield from _arms(node)
    elif isinstance(node, exp.Filter):
        yield node.expression, []
        yield node.this, [_is_true(node.expression.this)]
    else:
        for child in node.iter_expressions():
            yield child, []


def _case(node: exp.Case) -> Iterator[tuple[exp.Expr, list[exp.Expr]]]:
    subject = node.this
    if subject is not None:
        yield subject, []
    passed: list[exp.Expr] = []
    for arm in node.args["ifs"]:
        condition = (
            arm.this if subject is None else exp.EQ(this=subject.copy(), expression=exp.Paren(this=arm.this.copy()))
        )
        yield arm.this, list(passed)
        yield arm.args["true"], [*passed, _is_true(condition)]
        passed.append(_is_not_true(condition))
    if node.args.get("default") is not None:
        yield node.args["default"], list(passed)


def _arms(node: exp.And | exp.Or) -> Iterator[tuple[exp.Expr, list[exp.Expr]]]:
    """Arms without a question decide first, whatever the order they are written in; then from left to right."""
    arms = _flat(node, type(node))
    undecided = _is_not_false if isinstance(node, exp.And) else _is_not_true
    plain = [arm for arm in arms if not has_site(arm) and not any(isinstance(part, exp.Query) for part in own(arm))]
    before = [undecided(arm) for arm in plain]
    for arm in arms:
        if has_site(arm):
            yield arm, list(before)
            before.append(undecided(arm))
        else:
            yield arm, []


def _flat(node: exp.Expr, kind: type[exp.Expr]) -> list[exp.Expr]:
    if isinstance(node, kind):
        return [*_flat(node.args["this"], kind), *_flat(node.args["expression"], kind)]
    if isinstance(node, exp.Paren) and isinstance(node.this, kind):
        return _flat(node.this, kind)
    return [node]


def _is(node: exp.Expr, value: exp.Expr) -> exp.Expr:
    return exp.Is(this=exp.Paren(this=node.copy()), expression=value)


def _is_true(node: exp.Expr) -> exp.Expr:
    return exp.func("coalesce", exp.cast(exp.Paren(this=node.copy()), "boolean"), exp.false())


def _is_not_true(node: exp.Expr) -> exp.Expr:
    return exp.Not(this=_is_true(node))


def _is_not_false(node: exp.Expr) -> exp.Expr:
    return exp.func("coalesce", exp.cast(exp.Paren(this=node.copy()), "boolean"), exp.true())


def _is_null(node: exp.Expr) -> exp.Expr:
    return _is(node, exp.null())
