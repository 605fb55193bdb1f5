"""EXPLAIN and EXPLAIN ANALYZE of statements with AI expressions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from sqluice.engine import explain_joins
from sqluice.engine.operators import merging
from sqluice.engine.operators.cascade import LEAST_INPUTS
from sqluice.optimizer import arrange
from sqluice.optimizer.ast import args_of, is_site, own_sites, replaced, spec_of, sql
from sqluice.optimizer.cascade.constraints import told
from sqluice.optimizer.cost import Forecast, forecast
from sqluice.optimizer.plan import Ask, Keep, Stage
from sqluice.optimizer.rules import order_conjuncts
from sqluice.optimizer.statistics import PRIOR_INPUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqluice.engine.report import Report
    from sqluice.engine.run import Run
    from sqluice.optimizer.plan import Cascade, Plan
    from sqluice.optimizer.statistics import Share

_HEAD = re.compile(
    r"\s*EXPLAIN\s+(?P<words>(?:(?:ANALYZE|VERBOSE)\s+)*)(?:\((?P<options>[^)]*)\)\s*)?(?P<statement>.*)\Z",
    re.IGNORECASE | re.DOTALL,
)
_WIDTH = 110
UNKNOWN_ROWS = 1000
"""Taken where DuckDB cannot tell how many rows a source has."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an EXPLAIN asks for."""

    statement: str
    analyze: bool = False
    json: bool = False
    verbose: bool = False

    @classmethod
    def parse(cls, text: str) -> Request:
        """From the words of the statement."""
        match = _HEAD.match(text)
        assert match is not None
        words = f"{match['options'] or ''} {match['words'] or ''}".upper()
        json = bool(re.search(r"FORMAT\s+\W?JSON", words))
        return cls(match["statement"], "ANALYZE" in words, json, "VERBOSE" in words)


def measured(found: dict[str, Any], run: Run, report: Report) -> None:
    """Add to a plan what its filters were expected to ask once their rows were known, and what was measured."""
    for stage in found["stages"]:
        if stage["name"] in run.expected:
            expected = run.expected[stage["name"]]
            stage["expected"] = {"calls": sum(expected.calls.values()), "saving": round(expected.saving, 2)}
    found["measured"] = report.to_dict()
    found["measured"]["text"] = str(report)


def describe(con: Any, plan: Plan, run: Run, statement: str) -> dict[str, Any]:
    """A plan as plain data: stages with their steps, the statement above, the rules that fired."""
    stages = [_stage(con, stage, run, plan.cascades) for stage in plan.stages]
    rowwise = [
        {"function": run.specs[number].function, "model": run.uri(run.specs[number]), "reason": reason}
        for number, reason in plan.rowwise
    ]
    found: dict[str, Any] = {
        "stages": stages,
        "statement": statement,
        "rowwise": rowwise,
        "rules": _counted(plan.fired),
    }
    if plan.changes:
        found["changes"] = [{"rule": rule, "before": before, "after": after} for rule, before, after in plan.changes]
    return found


def _counted(names: list[str]) -> list[str]:
    return [f"{name} x{names.count(name)}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]


def _stage(con: Any, stage: Stage, run: Run, cascades: Mapping[int, Cascade]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": stage.name, "source": sql(stage.source), "steps": []}
    rows = _estimate(con, stage.source)
    if rows is not None:
        found["estimated_rows"] = rows
    if stage.limit is not None:
        found["limit"] = stage.limit.count + stage.limit.offset
    joins = explain_joins.describe(stage, run, cascades, lambda source: _estimate(con, source) or UNKNOWN_ROWS)
    if joins:
        found["joins"] = joins
    filters = stage.filters
    if filters and not (stage.pairs and joins and len(filters) == 1):
        guess = rows if rows is not None else UNKNOWN_ROWS
        shares = run.shares(stage, guess)
        foreseen = _forecast(stage, run, guess, shares)
        filters = foreseen.predicates
        found["filters"] = _shares(stage, run, shares, foreseen)
        found["considered"] = [{"order": list(order), "calls": calls} for order, calls in foreseen.considered]
    for step in [*arrange.steps(filters), *map(Keep, stage.keeps), *stage.asks]:
        if isinstance(step, Keep):
            found["steps"].append({"keep": sql(step.predicate)})
        else:
            cascade = cascades.get(step.spec) if rows is None or rows >= LEAST_INPUTS else None
            question = _question(step, run, cascade)
            together = merging.written_together(stage, step, run.specs.__getitem__)
            if together and not cascade:
                question["together"] = [f"{run.specs[at].function} {run.specs[at].template!r}" for at in together]
            found["steps"].append(question)
    return found


def _forecast(stage: Stage, run: Run, rows: int, shares: Mapping[str, Share]) -> Forecast:
    leaves = order_conjuncts.asking(stage.filters)
    means = {name: share.mean for name, share in shares.items()}
    costs = {name: run.unit_cost([spec_of(site) for site in own_sites(leaf)]) for name, leaf in leaves.items()}
    return forecast(stage.filters, rows, means, costs)


def _shares(stage: Stage, run: Run, shares: Mapping[str, Share], foreseen: Forecast) -> list[dict[str, Any]]:
    """Of each leaf: the share of yes answers expected, how many inputs earlier runs have seen of it, calls."""
    leaves = order_conjuncts.asking(stage.filters)
    found = []
    for name, share in shares.items():
        seen = round(share.inputs - PRIOR_INPUTS)
        calls = foreseen.calls.get(name, 0)
        one = {"leaf": _named(leaves[name], run), "share": round(share.mean, 3), "seen": seen, "calls": calls}
        costs = [run.earlier_cost(spec_of(site)) for site in own_sites(leaves[name])]
        if None not in costs:
            one["seconds"], one["usd"] = (sum(calls * cost[at] for cost in costs if cost) for at in (0, 1))
        found.append(one)
    return found


def _named(leaf: exp.Expr, run: Run) -> str:
    """A predicate with its questions by their functions."""

    def change(node: exp.Expr) -> exp.Expr | None:
        if not is_site(node):
            return None
        spec = run.specs[spec_of(node)]
        template = [] if spec.template == "{0}" else [exp.Literal.string(spec.template)]
        return exp.Anonymous(this=spec.function, expressions=[*template, *(arg.copy() for arg in args_of(node))])

    return sql(replaced(leaf, change))


def _question(step: Ask, run: Run, cascade: Cascade | None) -> dict[str, Any]:
    spec = run.specs[step.spec]
    asked: dict[str, Any] = {
        "ask": spec.function,
        "answer": step.name,
        "model": run.uri(spec),
        "template": spec.template,
        "arguments": [sql(arg) for arg in step.args],
    }
    if spec.choices and spec.choices != ("yes", "no"):
        asked["choices"] = list(spec.choices)
    if step.guard is not None:
        asked["only_where"] = sql(step.guard)
    if cascade is not None:
        of = f"of the best {cascade.top:,}: " if cascade.top else ""
        asked["cascade"] = {
            "contract": of + told(cascade.contract),
            "forced": cascade.forced,
            "result": cascade.apart is None,
        }
    cost = run.earlier_cost(step.spec)
    if cost is not None:
        asked["seconds_per_call"], asked["usd_per_call"] = cost
    return asked


def _estimate(con: Any, source: exp.Expr) -> int | None:
    """DuckDB's guess at the rows of a source; None where the source reads an earlier stage."""
    try:
        rows = con.execute(f"EXPLAIN (FORMAT JSON) {sql(source)}").fetchall()
        tree = json.loads(rows[0][-1])
    except (duckdb.Error, ValueError, TypeError, IndexError):
        return None
    node = tree[0] if isinstance(tree, list) and tree else tree
    while isinstance(node, dict):
        guess = (node.get("extra_info") or {}).get("Estimated Cardinality")
        if guess is not None and str(guess).isdigit():
            return int(guess)
        children = node.get("children") or []
        node = children[0] if children else None
    return None


def text(found: dict[str, Any]) -> str:
    """The plan for people."""
    lines = ["PLAN", f"  above   {_short(found['statement'])}"]
    for stage in found["stages"]:
        guess = stage.get("estimated_rows")
        lines.append(
            f"  stage   {stage['name']}" + (f"   (DuckDB expects {guess:,} rows)" if guess is not None else "")
        )
        lines.append(f"    from  {_short(stage['source'])}")
        for step in stage["steps"]:
            lines += _step(step)
        lines += explain_joins.text(stage.get("joins", []))
        lines += _foreseen(stage)
        if "limit" in stage:
            lines.append(f"    stop  after {stage['limit']:,} rows; pieces start with 16 rows and grow")
    for one in found["rowwise"]:
        lines.append(f"  row by row: {one['function']} of {one['model']} ({one['reason']})")
    if found["rules"]:
        lines.append(f"  rules   {', '.join(found['rules'])}")
    for one in found.get("changes", ()):
        lines += [f"  rule    {one['rule']}", f"    before  {one['before']}", f"    after   {one['after']}"]
    if not found["stages"] and not found["rowwise"]:
        lines.append("  no question is left to ask")
    measured = found.get("measured")
    if measured is not None:
        lines += ["", "MEASURED", *("  " + line for line in measured["text"].splitlines())]
    return "\n".join(lines)


def _step(step: dict[str, Any]) -> list[str]:
    if "keep" in step:
        return [f"    keep  where {_short(step['keep'])}"]
    arguments = ", ".join(step["arguments"])
    lines = [f"    ask   {step['answer']} = {step['ask']} of {step['model']} about each distinct ({_short(arguments)})"]
    lines.append(
        f"          {_short(step['template'])!r}" + (f" -> {', '.join(step['choices'])}" if "choices" in step else "")
    )
    if "only_where" in step:
        lines.append(f"          only where {_short(step['only_where'])}")
    if "cascade" in step:
        cascade = step["cascade"]
        when = "as a cascade" if cascade["forced"] else "as a cascade where that saves enough"
        apart = "" if cascade["result"] else "; the result has no contract of its own"
        lines.append(f"          {when}: {cascade['contract']}{apart}")
    if "together" in step:
        lines.append(f"          in one pass with {_short(', '.join(step['together']))}, where the model can")
    if "seconds_per_call" in step:
        usd = f" and {step['usd_per_call']:.2g} USD" if step["usd_per_call"] else ""
        lines.append(f"          {step['seconds_per_call']:.3f} s{usd} a call, as measured before")
    return lines


def _foreseen(stage: dict[str, Any]) -> list[str]:
    lines = []
    for one in stage.get("filters", ()):
        how = f"seen on {one['seen']} inputs" if one["seen"] else "not seen before"
        cost = f", {one['seconds']:.1f} s" if "seconds" in one else ""
        cost += f", {one['usd']:.2g} USD" if one.get("usd") else ""
        share = f"    share {one['share']:.2f} expected of {_short(one['leaf'])}"
        lines.append(f"{share} ({how}), {one['calls']:,} calls{cost}")
    considered = stage.get("considered", ())
    if len(considered) > 1:
        orders = "; ".join(f"{', '.join(map(str, one['order']))}: {one['calls']:,} calls" for one in considered)
        lines.append(f"    order {orders} (numbers as written; found anew while they run)")
    if "expected" in stage:
        expected = stage["expected"]
        lines.append(
            f"    taken {expected['calls']:,} calls expected once the rows were known; "
            f"the written order costs {expected['saving']:.2f} times as much"
        )
    return lines


def _short(words: str) -> str:
    one_line = " ".join(words.split())
    return one_line if len(one_line) <= _WIDTH else one_line[: _WIDTH - 1] + "…"
