"""Which slice of an artifact is the best proxy for its widest: measured on a query, stored as the artifact's policy.

The query runs once without a proxy and once with each narrower slice, every time from nothing: no cached answer, no
head that an earlier run has left. A cascade reports what it cost as a share of the oracle on every input (delegation
times the oracle's cost a call, plus what the scores cost); the least share wins, among runs that keep the contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqluice.engine.dbapi import Connection
    from sqluice.engine.report import CascadeReport, Report


@dataclass(frozen=True, slots=True)
class Measured:
    """A run with a proxy of `proxy` bits (None: without one). `cost` is the share of what the oracle on every input
    costs, `seconds` by operator and call, `thresholds` those of the cascades."""

    proxy: float | None
    cost: float
    delegation: float
    scorers: tuple[str, ...]
    label: str
    inputs: int
    seconds: dict[str, float]
    thresholds: list[tuple[float | None, float | None]]

    @property
    def uses_proxy(self) -> bool:
        """Whether the proxy's scores decided inputs; a head may have been cheaper."""
        return any("proxy" in scorer for scorer in self.scorers)


def measure(proxy: float | None, report: Report) -> Measured:
    """What a run came to; `DataError` when nothing was a cascade."""
    ran: list[CascadeReport] = [one for operator in report.operators for one in operator.cascades]
    inputs = sum(one.inputs for one in ran)
    if not inputs:
        raise DataError("nothing in the query is a cascade; ask AI_FILTER or AI_CLASSIFY about 1,000 rows or more")
    calls = {one.function: one.calls or one.scored for one in report.operators}
    return Measured(
        proxy,
        sum((1 - one.saving) * one.inputs for one in ran) / inputs,
        sum(one.labels for one in ran) / inputs,
        tuple(one.scorer or "oracle" for one in ran),
        report.label or "",
        inputs,
        {one.function: one.seconds_busy / max(calls[one.function], 1) for one in report.operators},
        [(_finite(one.tau_low), _finite(one.tau_high)) for one in ran],
    )


def _finite(threshold: float | None) -> float | None:
    """JSON has no infinity."""
    return None if threshold is None or not math.isfinite(threshold) else float(threshold)


def best(runs: Sequence[Measured]) -> Measured:
    """The cheapest run that keeps its contract; of equal ones the first."""
    kept = [one for one in runs if not one.label.startswith("uncertified")]
    return min(kept or runs, key=lambda one: one.cost)


def tune(
    path: Path,
    query: str,
    open_connection: Callable[[dict[str, Any]], Connection],
    run: Callable[[Connection, str], Report | None],
    told: Callable[[Measured], None],
) -> Measured:
    """Run `query` with each proxy and store the best pair as the policy of the artifact at `path`.

    `open_connection` takes settings, `run` runs a query to its end and gives its report, `told` hears of each run.
    `DataError` when the artifact has one slice, or nothing in the query is a cascade.
    """
    from sqluice.workers.quant import artifact

    manifest = artifact.read(path).manifest
    *narrower, widest = sorted(artifact.slices_of(manifest))
    if not narrower:
        raise DataError(f"{path} has one width; a proxy needs a narrower one")
    runs = []
    for proxy in (None, *narrower):
        given = {"ai_oracle": f"artifact:{path}#bits={widest:g}", "ai_mode": "cascade", "ai_cache": "off"}
        con = open_connection(given if proxy is None else {**given, "ai_proxy": f"artifact:{path}#bits={proxy:g}"})
        try:
            con._session.runner.statistics = None  # noqa: SLF001 - the first run must not help the next
            report = run(con, query)
        finally:
            con.close()
        if report is None:
            raise DataError("the query asks no model; a query with AI_FILTER or AI_CLASSIFY is needed")
        runs.append(measure(proxy, report))
        told(runs[-1])
    found = best(runs)
    artifact.set_policy(path, policy(found, widest, runs))
    return found


def policy(found: Measured, oracle: float, runs: Sequence[Measured]) -> dict[str, Any]:
    """What is stored: no text of the query, whose rows may be private. `proxy` is null where none pays."""
    return {
        "oracle": oracle,
        "proxy": found.proxy if found.uses_proxy else None,
        "cost": found.cost,
        "delegation": found.delegation,
        "contract": found.label,
        "thresholds": [list(pair) for pair in found.thresholds],
        "seconds": found.seconds,
        "inputs": found.inputs,
        "measured": [
            {"proxy": one.proxy, "cost": one.cost, "delegation": one.delegation, "scorers": list(one.scorers)}
            for one in runs
        ],
    }
