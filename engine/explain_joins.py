"""What EXPLAIN says of a semantic join: its strategies, with what each is expected to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.errors import ModelError
from sqluice.optimizer.ast import spec_of
from sqluice.optimizer.joins import choose
from sqluice.optimizer.joins.sides import below_the_join, detected, pair_of, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlglot import exp

    from sqluice.engine.run import Run
    from sqluice.optimizer.joins.detect import Detection
    from sqluice.optimizer.plan import Cascade, Stage


def describe(
    stage: Stage, run: Run, cascades: Mapping[int, Cascade], rows_of: Callable[[exp.Expr], int]
) -> list[dict[str, Any]]:
    """The strategies of each question about two groups of tables, the cheapest first; `rows_of` guesses the rows of a
    query. Nothing where a stage is not a join by questions, or has one about one side alone."""
    sides = split(stage)
    if sides is None:
        return []
    if not stage.pairs:
        return [{"below": True}] if stage.filters and below_the_join(stage, sides) else []
    names = [frozenset(group.columns) for group in sides.groups]
    found = []
    for predicate in sides.filters:
        both = pair_of(predicate, names)
        if both is not None:
            number = spec_of(predicate)
            detection = detected(predicate, sides.names, run.specs[number].template)
            rows = sorted((rows_of(sides.groups[at].source) for at in both), reverse=True)
            n_pairs = rows[0] * rows[1]
            if sides.keyed and len(names) == 2:
                n_pairs = min(n_pairs, rows_of(stage.source))
            facts = choose.Facts(rows[0], rows[1], n_pairs, detection=detection, writes=_writes(run, number))
            found.append(_question(facts, run, number, cascades.get(number)))
    return found


def _question(facts: choose.Facts, run: Run, number: int, cascade: Cascade | None) -> dict[str, Any]:
    cost = run.earlier_cost(number)
    options = []
    for one in choose.options(facts, approximate=cascade is not None):
        told: dict[str, Any] = {"strategy": one.name, "calls": round(one.calls)}
        if one.why_not:
            told["why_not"] = one.why_not
        else:
            told["recall"] = 1.0 if cascade is None or one.name == choose.CROSS else cascade.contract.recall
        if cost is not None:
            told["seconds"] = cost[0] * one.calls
        options.append(told)
    return {"rows": [facts.lefts, facts.rights], "about": _about(facts.detection), "options": options}


def _writes(run: Run, number: int) -> bool:
    """Whether the model of a question writes texts, as far as is known before it is loaded."""
    try:
        run.runner.registry.check(run.uri(run.specs[number]), needs="generate")
    except ModelError:
        return False
    return True


def _about(detection: Detection) -> str:
    """What the wording of a question tells, in words."""
    guess = "" if detection.sure else ", as it seems"
    if detection.kind == "label":
        return f"whether the label {{{detection.label_side}}} fits the other text{guess}"
    if detection.kind == "attribute":
        return (
            f"whether the {detection.attribute} is {'the same' if detection.relation == 'same' else 'another'}{guess}"
        )
    return f"both texts together{guess}"


def text(joins: list[dict[str, Any]]) -> list[str]:
    """The same for people."""
    lines = []
    for join in joins:
        if "below" in join:
            lines.append("    join  the question is about one side: it is a filter, asked before the sides are joined")
            continue
        left, right = join["rows"]
        lines.append(f"    join  {left:,} x {right:,} rows, asked {join['about']}")
        lines.append("          strategies, chosen anew once their inputs are known:")
        for one in join["options"]:
            seconds = f", {one['seconds']:,.1f} s" if "seconds" in one else ""
            how = f"not possible: {one['why_not']}" if "why_not" in one else f"recall {one['recall']:g} expected"
            lines.append(f"          {one['strategy']:<19} {one['calls']:>12,} calls{seconds}, {how}")
    return lines
