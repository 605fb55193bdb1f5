"""When an AI expression's value is needed: the condition under which SQL would look at it.

    CASE WHEN a THEN f END       f is needed where a is true
    a OR f                       where a is not true
    a AND f                      where a is not false
    COALESCE(a, f)               where a is null

A guard is a condition that must be true for the question to be asked; a row where it is not true gets NULL in place of
the answer, which cannot change the value of the whole expression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import ANSWER, args_of, conjunction, disjunction, has_site, is_site, own, sql

if TYPE_CHECKING:
    from collections.abc import Iterator


def collect(nodes: list[exp.Expr]) -> dict[str, exp.Expr | None]:
    """SQL of each AI expression in `nodes` -> its guard, None where it is needed on every row.

    Inner expressions (arguments of others) come before outer ones. A question in several places is needed where any
    of them needs it.
    """
    found: dict[str, list[exp.Expr | None]] = {}
    for node in nodes:
        for site, guard in _walk(node, []):
            found.setdefault(key(site), []).append(conjunction([part.copy() for part in guard]))
    return {name: None if None in guards else disjunction(guards) for name, guards in found.items()}  # type: ignore[arg-type]


def key(site: exp.Expr) -> str:
    """What two places of the same question share, whether they want the answer or its error."""
    return sql(site).replace("__AI_ERROR(", "__AI(")


def _walk(node: exp.Expr, guard: list[exp.Expr]) -> Iterator[tuple[exp.Expr, list[exp.Expr]]]:
    """Every AI expression in `node` with the conditions above it; inner ones first."""
    if not has_site(node):
        return
    if is_site(node):
        for arg in args_of(node):
            yield from _walk(arg, guard)
        yield node, guard
        return
    for child, extra in _children(node):
        if isinstance(child, exp.Query):
            continue
        yield from _walk(child, [*guard, *extra])


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


__all__ = ["ANSWER", "collect", "key"]
