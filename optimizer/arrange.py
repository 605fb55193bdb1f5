"""From predicates with questions, in some order, to the steps that decide them.

    f(a) AND (c OR g(b))  ->  ask f; keep where f; ask g where c is not true; keep where c OR g

A question that several predicates ask is asked where it stands first, and again where a later one needs it for other
rows: answers are looked up before a model is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.optimizer import guards
from sqluice.optimizer.ast import ERROR, args_of, column, is_site, own_sites, replaced, spec_of
from sqluice.optimizer.plan import Ask, Keep, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlglot import exp


def steps(predicates: Sequence[exp.Expr], prefix: str = "__p") -> list[Step]:
    """Ask what each predicate needs and keep the rows where it is true, one predicate after the other. `prefix` begins
    the names of answers."""
    found: list[Step] = []
    for at, predicate in enumerate(predicates):
        asks, answered = questions([predicate], f"{prefix}{at}_")
        found += [*asks, Keep(answered[0])]
    return found


def questions(nodes: Sequence[exp.Expr], prefix: str) -> tuple[list[Ask], list[exp.Expr]]:
    """What to ask for the values of `nodes`, and `nodes` over the answers."""
    errors = {guards.key(site) for node in nodes for site in own_sites(node) if site.this == ERROR}
    names: dict[str, str] = {}

    def answered(node: exp.Expr) -> exp.Expr:
        def change(part: exp.Expr) -> exp.Expr | None:
            if not is_site(part):
                return None
            name = names[guards.key(part)]
            return column(f"{name}_error" if part.this == ERROR else name)

        return replaced(node, change)

    found = []
    for key, site, guard in guards.in_order(guards.collect(list(nodes))):
        name = f"{prefix}{len(names)}"
        condition = None if guard is None else answered(guard)
        args = tuple(answered(arg) for arg in args_of(site))
        names[key] = name
        found.append(Ask(name, spec_of(site), args, condition, wants_error=key in errors))
    return found, [answered(node) for node in nodes]
