"""The cascades of a job: policies are learnt on a sample of the driving rows, applied by every partition, and proven at
the end by what all partitions have seen (`optimizer/cascade/policy.py`)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqluice.engine.jobs import inputs
from sqluice.engine.jobs.task import connected
from sqluice.engine.policies import Seen, Shared
from sqluice.optimizer.cascade.policy import Audit, Policy, Proof, prove

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sqluice.engine.jobs.plan import Plan, Request

SAMPLE_ROWS = 20_000
"""Driving rows that policies are learnt on."""

LEAST_TIMES = 3
"""A job of fewer times as many rows has no policy: each partition keeps the contract with its share of delta."""

MOST_RATE = 0.5
"""A question whose proof would take more than this share of its inputs has no policy."""

MORE = 4.0
"""How much higher the rate is when a proof fails."""

SHARES = (0.8, 0.1, 0.1)
"""Of delta, for each rate that is tried."""


def learn(plan: Plan, request: Request) -> tuple[dict[str, Policy], dict[str, Any]]:
    """Policies by question, and the record of the run that found them. None for a small job, or where none pays."""
    total = sum(one.rows for one in plan.partitions)
    every = total // SAMPLE_ROWS
    if every < LEAST_TIMES or request.settings.get("ai_mode", "auto") == "exact" or request.budget is not None:
        return {}, {}
    seed = int(request.settings.get("ai_seed") or 0)
    paths = sorted({path for one in plan.partitions for path, _, _ in one.pieces})
    work = plan.whole(request, {plan.driving: inputs.sample(paths, every, seed)})
    shared = Shared(learns=True, scale=float(every))
    with connected(work, shared) as con:
        cursor = con.execute(plan.part)
        for _ in cursor.fetch_record_batch():
            pass
        report = cursor.report
    found = {question: policy.scaled(every, SHARES[0]) for question, policy in shared.found.items()}
    calls = 0 if report is None else report.calls
    return {question: one for question, one in found.items() if one.rate <= MOST_RATE}, {"learning_calls": calls}


def more(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Policies that ask about more of what scores decide."""
    return {question: replace(one, rate=min(1.0, one.rate * MORE)) for question, one in policies.items()}


def to_json(policies: Mapping[str, Policy], **more_of_it: Any) -> dict[str, Any]:
    """As a file keeps it."""
    return {"policies": {question: one.to_dict() for question, one in policies.items()}, **more_of_it}


def from_json(text: str) -> tuple[dict[str, Policy], dict[str, Any]]:
    """Policies, and what else the file keeps."""
    found = json.loads(text)
    policies = {question: Policy.from_dict(one) for question, one in found.pop("policies").items()}
    return policies, found


def write_seen(seen: Sequence[Seen], path: Path) -> None:
    """What a partition has seen, as a Parquet file."""
    table = pa.table(
        {
            "question": pa.array([one.question for one in seen for _ in one.keys], pa.string()).dictionary_encode(),
            "key": _joined([one.keys for one in seen], np.uint64),
            "n_rows": _joined([one.n_rows for one in seen], np.int64),
            "side": _joined([one.sides for one in seen], np.int8),
            "label": _joined([one.labels for one in seen], np.int8),
        }
    )
    pq.write_table(table, path)


def _joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([part.astype(kind) for part in parts]) if parts else np.zeros(0, kind)


def proofs(policies: Mapping[str, Policy], files: Sequence[str], attempt: int) -> dict[str, Proof]:
    """What all partitions together prove of each question, at the rate that was tried as number `attempt`."""
    found = {}
    with duckdb.connect() as con:
        for question, policy in policies.items():
            # An input asked about for its weight in one partition and decided by its score in another keeps both.
            rows = con.sql(
                "SELECT sum(n_rows)::BIGINT AS n_rows, side, max(label) AS label"
                f" FROM read_parquet({inputs.listed(files)}) WHERE question = ? GROUP BY key, side ORDER BY key, side",
                params=[question],
            ).to_arrow_table()
            columns = (rows.column(name).to_numpy() for name in ("n_rows", "side", "label"))
            found[question] = prove(policy, Audit(*columns), SHARES[attempt])
    return found
