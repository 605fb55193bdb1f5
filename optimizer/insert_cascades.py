"""Says which questions of a plan may be cascades, under which contract, and whether the result inherits their proof.

    WHERE AI_FILTER(x)                    ->  a cascade with recall and precision; the result has the same
    SELECT AI_CLASSIFY(x, labels)         ->  a cascade with accuracy; so has the column
    ORDER BY AI_SCORE(x) DESC LIMIT k     ->  a cascade that asks about rows that may be among the best k
    WHERE NOT AI_FILTER(x), count(*), ..  ->  a cascade that keeps its own contract; none for the result

Questions that ask for text, numbers or several labels, and those that are evaluated row by row, go to the oracle.
Statements that change or remove rows are cascaded only where that was asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import is_pinned, is_site, own_sites, spec_of, sql
from sqluice.optimizer.plan import Cascade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqluice.optimizer.plan import Plan, Stage
    from sqluice.types import Contract

COMPOSITION = "composition"
_CHANGES = (exp.Update, exp.Delete, exp.Merge)


def insert_cascades(plan: Plan, contracts: Mapping[int, Contract], *, forced: bool) -> dict[int, Cascade]:
    """The cascades of a plan by the number of their spec; `contracts` are those of specs that may be cascades."""
    if not forced and isinstance(plan.statement, _CHANGES):
        return {}
    found = {}
    for number in sorted(_asked(plan) & contracts.keys()):
        contract = contracts[number]
        if contract.precision is None and contract.accuracy is None:
            top = _top(plan, number)
            if top:
                found[number] = Cascade(contract, forced=forced, apart=None, top=top)
        else:
            found[number] = Cascade(contract, forced=forced, apart=_apart(plan, number))
    in_filters = {spec_of(site) for stage in plan.stages for one in stage.filters for site in own_sites(one)}
    if len(found) < 2 and (len(in_filters) < 2 or in_filters.isdisjoint(found)):
        return found
    different = {one.contract for one in found.values()}
    alike = len(different) == 1 and all(one.apart is None for one in found.values())
    if (
        alike
        and in_filters == found.keys()
        and all(one.contract.recall for one in found.values())
        and not plan.stages[0].asks
    ):
        return {number: replace(one, chain=frozenset(found)) for number, one in found.items()}
    return {number: replace(one, apart=COMPOSITION) for number, one in found.items()}


def _asked(plan: Plan) -> set[int]:
    """Specs that only stages ask about."""
    trees: list[exp.Expr] = [plan.statement]
    asked: set[int] = set()
    for stage in plan.stages:
        trees += [stage.source, *stage.keeps]
        if stage.limit is not None:
            trees += stage.filters
            continue
        asked |= {spec_of(site) for predicate in stage.filters for site in own_sites(predicate)}
        asked |= {ask.spec for ask in stage.asks}
    rowwise = {spec_of(node) for tree in trees for node in tree.walk() if is_pinned(node)}
    return asked - rowwise


def _apart(plan: Plan, number: int) -> str | None:
    """Why the result does not inherit the contract of a question; None where it does."""
    here = [stage for stage in plan.stages if _asks(stage, number)]
    if len(here) != 1 or len(plan.stages) != 1 or not _passes_on(plan.statement, here[0].name):
        return COMPOSITION
    stage, names = here[0], [ask.name for ask in here[0].asks if ask.spec == number]
    filters = [one for one in stage.filters if own_sites(one)]
    in_filters = {sql(site) for one in filters for site in own_sites(one) if spec_of(site) == number}
    if in_filters:
        plain = all(is_site(one) and len(own_sites(one)) == 1 for one in filters)
        return None if len(in_filters) == 1 and not names and not stage.keeps and plain else COMPOSITION
    return None if len(names) == 1 and _shown_as_it_is(plan.statement, names[0]) else COMPOSITION


def _shown_as_it_is(statement: exp.Expr, name: str) -> bool:
    """Whether answers are columns of the result, and nothing is made of them."""
    select = _select(statement)
    assert select is not None
    for column in select.find_all(exp.Column):
        place = column.parent
        if isinstance(place, exp.Alias):
            place = place.parent
        if column.name == name and not isinstance(place, exp.Select | exp.Ordered):
            return False
    return True


def _asks(stage: Stage, number: int) -> bool:
    sites = [spec_of(site) for predicate in stage.filters for site in own_sites(predicate)]
    return number in sites or any(ask.spec == number for ask in stage.asks)


def _top(plan: Plan, number: int) -> int:
    """How many rows with the best answers to a question are wanted; 0 where all are, where ties are told apart by
    another key, and behind an OFFSET: rows missed before it would move all others."""
    if len(plan.stages) != 1 or _asks(replace(plan.stages[0], asks=()), number):
        return 0
    names = [ask.name for ask in plan.stages[0].asks if ask.spec == number and ask.guard is None]
    select = _select(plan.statement)
    if len(names) != 1 or select is None or not _passes_on(plan.statement, plan.stages[0].name, ends=True):
        return 0
    limit, order = select.args.get("limit"), select.args.get("order")
    if limit is None or select.args.get("offset") or order is None or len(order.expressions) > 1:
        return 0
    wanted, first = limit.expression, order.expressions[0]
    aliases = {one.alias: one.this for one in select.expressions if isinstance(one, exp.Alias)}
    key = first.this
    if isinstance(key, exp.Column) and not key.table and key.name in aliases:
        key = aliases[key.name]
    falling = first.args.get("desc") and not first.args.get("nulls_first")
    is_it = isinstance(key, exp.Column) and key.name == names[0]
    counted = isinstance(wanted, exp.Literal) and wanted.name.isdigit()
    return int(wanted.name) if counted and falling and is_it else 0


def _select(statement: exp.Expr) -> exp.Select | None:
    """The SELECT of a statement, where it has one and all of its rows go where they are to go."""
    if isinstance(statement, exp.Insert) and statement.args.get("conflict"):
        return None
    select = statement.expression if isinstance(statement, exp.Create | exp.Insert) else statement
    select = select.this if isinstance(select, exp.Copy) else select
    if isinstance(select, exp.Subquery):
        select = select.this
    return select if isinstance(select, exp.Select) else None


def _passes_on(statement: exp.Expr, stage: str, *, ends: bool = False) -> bool:
    """Whether each row of the stage becomes one row of the result, and nothing else does; with `ends` some of them,
    by an ORDER BY with a LIMIT."""
    select = _select(statement)
    if select is None:
        return False
    changing = ["joins", "where", "group", "having", "qualify", "distinct", "laterals", "sample"]
    changing += [] if ends else ["limit", "offset"]
    source = select.args.get("from_") or select.args.get("from")
    table = None if source is None else source.this
    if any(select.args.get(name) for name in changing) or not isinstance(table, exp.Table) or table.name != stage:
        return False
    inner = (exp.AggFunc, exp.Window, exp.Subquery, exp.Unnest, exp.Explode)
    return next(select.find_all(*inner), None) is None
