"""What a run did, in numbers: `cursor.report`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.engine.trace import OpTrace


@dataclass(frozen=True, slots=True)
class CascadeReport:
    """What a cascade came to. `scorer` is what decided inputs beside the oracle, None where the oracle answered all;
    `labels` counts what the oracle said and `nulls` the NULLs among it, `inputs` everything; both are distinct inputs.
    Inputs with a score at or below `tau_low` were rejected and those at or above `tau_high` accepted, where the oracle
    did not answer. `reached` is what is proven of each target. `saving` is the share of what the oracle on every input
    would have cost, `saving_usd` the same in US dollars, machine time included, the scores paid. `drift` says how rows
    differ from those of the run that trained the head. `pruned` pairs of a join scored
    below `cut` and were not looked at one by one."""

    contract: str
    label: str
    scorer: str | None
    inputs: int
    labels: int
    nulls: int = 0
    saving_usd: float = 0.0
    saving: float = 0.0
    tau_low: float | None = None
    tau_high: float | None = None
    reached: dict[str, float] = field(default_factory=dict)
    drift: tuple[str, ...] = ()
    cut: float | None = None
    pruned: int = 0

    @property
    def delegation(self) -> float:
        """Share of the inputs that the oracle answered."""
        return self.labels / self.inputs if self.inputs else 0.0

    def __str__(self) -> str:
        if self.scorer is None:
            return f"{self.label}: {self.inputs:,} inputs"
        marks = [
            f"{what} {value:.4f}"
            for what, value in (("rejects up to", self.tau_low), ("accepts from", self.tau_high))
            if value is not None
        ]
        proven = [f"{name} {_proven(name, value)} proven" for name, value in self.reached.items() if value > 0]
        nulls = [f"{self.nulls:,} NULL answers left out"] if self.nulls else []
        pruned = [f"{self.pruned:,} pairs of rows pruned below {self.cut or 0:.2g}"] if self.pruned else []
        facts = [
            self.label,
            f"{self.scorer} decided {self.inputs - self.labels:,} of {self.inputs:,} inputs",
            f"delegation {self.delegation:.3f}",
            *marks,
            *proven,
            *nulls,
            *pruned,
            *self.drift,
            f"saves {self.saving:.0%} of the oracle on every row"
            if self.saving > 0
            else "costs more than the oracle on every row",
        ]
        return "; ".join(facts)


@dataclass(frozen=True, slots=True)
class OpReport:
    """One AI operator. `calls`, `cached`, `scored` (by a cheaper model, for a cascade) and `distinct_inputs` count
    distinct inputs, the other counts rows;
    `padding` is the share of padding among the tokens the model computed; `seconds_busy` sums batches."""

    function: str
    model: str
    rows_in: int = 0
    rows_out: int = 0
    distinct_inputs: int = 0
    calls: int = 0
    cached: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    padding: float = 0.0
    seconds_busy: float = 0.0
    scored: int = 0
    cascades: tuple[CascadeReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """One run. `rows_by_tier` counts rows, `calls` and `cached` distinct inputs; `label` is 'exact' or what a
    contract came to. `recorded` is False where the `ai` tables hold nothing about this run; `degraded` is True where it
    did without a model that it was told to use, which its warnings name."""

    run_id: str
    sql: str
    status: str
    seconds: float
    calls: int = 0
    cached: int = 0
    rows_by_tier: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    failed: int = 0
    cost_usd: float = 0.0
    label: str | None = None
    operators: tuple[OpReport, ...] = ()
    warnings: int = 0
    recorded: bool = True
    degraded: bool = False

    def to_dict(self) -> dict[str, object]:
        """The report as plain values that JSON can hold."""
        return {**asdict(self), "operators": [asdict(op) for op in self.operators]}

    def __str__(self) -> str:
        label = f", {self.label}" if self.label else ""
        lines = [f"run {self.run_id}: {self.status} in {self.seconds:.2f} s{label}"]
        lines += [f"  {name:<9} {value}" for name, value in self._facts()]
        for op in self.operators:
            lines += [f"  cascade   {op.function}: {one}" for one in op.cascades]
        if self.operators:
            lines += ["", *_aligned(self.operators)]
        return "\n".join([*lines, "", *self._where()])

    def _facts(self) -> list[tuple[str, str]]:
        tiers = ", ".join(f"{rows:,} {tier}" for tier, rows in self.rows_by_tier.items() if rows)
        facts = [
            ("rows", tiers or "none asked about"),
            ("calls", f"{self.calls:,} ({self.cached:,} more answered by the cache)"),
            ("tokens", f"{self.tokens_in:,} in, {self.tokens_out:,} out"),
        ]
        if self.cost_usd:
            facts.append(("cost", f"{self.cost_usd:.4f} USD"))
        if self.failed:
            facts.append(("failed", f"{self.failed:,} rows"))
        if self.warnings:
            facts.append(("warnings", f"{self.warnings:,}{' (degraded)' if self.degraded else ''}"))
        return facts

    def _where(self) -> list[str]:
        if not self.recorded:
            return ["The ai tables do not hold this run."]
        lines = [f"SELECT * FROM ai.decisions WHERE run_id = '{self.run_id}'"]
        if self.failed:
            lines.append(lines[0] + " AND status = 'failed'")
        return lines


def _proven(name: str, value: float) -> str:
    """A bound to three digits, rounded away from what it promises."""
    towards = math.ceil if name in ("missed", "wrong") else math.floor
    return f"{towards(value * 1000) / 1000:.3f}"


def op_report(op: OpTrace) -> OpReport:
    """The numbers of one operator as they are now."""
    same = ("rows_in", "rows_out", "distinct_inputs", "calls", "cached", "failed", "tokens_in", "tokens_out", "scored")
    counts: dict[str, Any] = {name: getattr(op, name) for name in same}
    cascades = tuple(op.cascades)
    return OpReport(
        op.function, op.model, padding=op.padding, seconds_busy=round(op.seconds_busy, 6), cascades=cascades, **counts
    )


def totals(ops: Sequence[OpTrace]) -> dict[str, Any]:
    """The fields of a `Report` that come from its operators."""
    tiers: dict[str, int] = {}
    for op in ops:
        for tier, rows in op.rows_by_tier.items():
            tiers[tier] = tiers.get(tier, 0) + rows
    same = ("calls", "cached", "tokens_in", "tokens_out", "failed", "cost_usd")
    sums = {name: sum(getattr(op, name) for op in ops) for name in same}
    return {**sums, "rows_by_tier": tiers, "operators": tuple(map(op_report, ops))}


_HEADS = ("operator", "model", "in", "out", "distinct", "calls", "cached", "failed", "tokens", "padding", "busy s")


def _aligned(operators: tuple[OpReport, ...]) -> list[str]:
    """A table of operators: text to the left, numbers to the right."""
    rows = [_HEADS, *map(_cells, operators)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _cells(op: OpReport) -> tuple[str, ...]:
    counts = (op.rows_in, op.rows_out, op.distinct_inputs, op.calls, op.cached, op.failed)
    tokens = f"{op.tokens_in + op.tokens_out:,}"
    return (op.function, op.model, *(f"{n:,}" for n in counts), tokens, f"{op.padding:.1%}", f"{op.seconds_busy:.2f}")
