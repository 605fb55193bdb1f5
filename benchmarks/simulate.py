"""Plans past one machine: measured costs replayed in a discrete-event simulation of 1 to 1,000 workers.

Usage::

    python benchmarks/simulate.py [--batches 'traces/batches/*.parquet'] [--driver-us 14] [--faster 200]
                                  [--rows 10000,1000000,1000000000] [--workers 1,10,100,1000] [--json]

What is measured first, unless it is given: the seconds and rows of each micro-batch (`ai.batches` of a run of the
embedded model over the reviews of the demo, or the files that `--batches` names), what a row costs the driver of a
query on Ray (`--driver-us`: the key `driver_us_per_row` of benchmarks/scaling.py), and the commit of a partition. With
`--faster` the workers take so many times less: an assumption, for GPUs that are not here.

Simulated are a query (one driver hands every micro-batch to a worker, at most two wait at each) and a job (64 partition
tasks are drivers of their own, and one process commits their partitions). Service times are drawn from the measured
ones; one worker in 50 takes three times as long, and each dies once in four hours, is away for 30 s, and repeats its
micro-batch. A run of more micro-batches than are worth simulating is cut, and its steady rate is taken for the rest:
`simulated` says how many were.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

import sqluice
from sqluice.engine.jobs.folder import JobFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

REVIEWS = Path(__file__).parents[1] / "engine" / "data" / "reviews.csv"
QUERY = "SELECT count(*) FROM read_csv('{path}') WHERE AI_FILTER(PROMPT('Is this review positive? {{0}}', text))"
SLOW_SHARE, SLOWER = 0.02, 3.0
LIFE_SECONDS, AWAY_SECONDS = 4 * 3600.0, 30.0
IN_FLIGHT = 2
JOB_DRIVERS, PARTITION_ROWS = 64, 100_000
MOST_BATCHES = 200_000
BUSY = 0.95
"""A driver that is busy for this share of the time is what limits the rate."""


@dataclass(frozen=True)
class Costs:
    """Micro-batches as measured: `seconds` and `rows` float [n]; `driver_us` a row and `commit_s` a partition."""

    seconds: np.ndarray
    rows: np.ndarray
    driver_us: float
    commit_s: float


@dataclass(frozen=True)
class Run:
    """One simulated run. `bound` says what limits it: workers, driver, or commits."""

    kind: str
    workers: int
    rows: int
    seconds: float
    rows_per_s: float
    efficiency: float
    driver_busy: float
    bound: str
    simulated: int


def simulate(costs: Costs, kind: str, workers: int, rows: int, seed: int = 7) -> Run:
    """One run of a query or a job."""
    generator = np.random.default_rng(seed)
    per_batch = float(costs.rows.mean())
    batches = max(1, round(rows / per_batch))
    count = min(batches, max(MOST_BATCHES // 10, min(MOST_BATCHES, 200 * workers)))
    drawn = generator.integers(0, len(costs.seconds), count)
    service, size = costs.seconds[drawn], costs.rows[drawn]
    pace = np.where(generator.random(workers) < SLOW_SHARE, SLOWER, 1.0)
    drivers = 1 if kind == "query" else min(JOB_DRIVERS, max(1, rows // PARTITION_ROWS))
    handing = size * costs.driver_us / 1e6
    finished, handed, driver_busy = _events(service, handing, pace, drivers, generator)
    seconds = finished + (batches - count) * handed / count
    commits = 0.0 if kind == "query" else costs.commit_s * max(1, rows // PARTITION_ROWS)
    seconds = max(seconds, commits)
    ideal = float(service.sum()) / workers * batches / count
    busy = driver_busy / drivers / max(handed, 1e-9)
    bound = "commits" if commits >= seconds else "driver" if busy > BUSY else "workers"
    return Run(
        kind,
        workers,
        rows,
        round(seconds, 1),
        round(rows / seconds, 1),
        round(ideal / seconds, 3),
        round(busy, 3),
        bound,
        count,
    )


def _events(
    service: np.ndarray, handing: np.ndarray, pace: np.ndarray, drivers: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """When the last micro-batch is done, when the last was handed out, and how long drivers were at it in all.

    A micro-batch is handed out by the driver that is free first, to the worker with room that frees up first. It waits
    there until the worker is done with the one before.
    """
    room = [(0.0, worker) for worker in range(len(pace)) for _ in range(IN_FLIGHT)]
    heapq.heapify(room)
    free = [0.0] * drivers
    idle = np.zeros(len(pace))
    deaths = generator.exponential(LIFE_SECONDS, len(pace))
    last = handed = 0.0
    for seconds, cost in zip(service.tolist(), handing.tolist(), strict=True):
        ready, worker = heapq.heappop(room)
        began = max(heapq.heappop(free), ready)
        handed = began + cost
        heapq.heappush(free, handed)
        start = max(handed, idle[worker])
        end = start + seconds * pace[worker]
        if end > deaths[worker]:
            end += AWAY_SECONDS + seconds * pace[worker]
            deaths[worker] = end + generator.exponential(LIFE_SECONDS)
        idle[worker] = end
        last = max(last, end)
        heapq.heappush(room, (float(end) if IN_FLIGHT == 1 else float(start), worker))
    return float(last), handed, float(handing.sum())


def measured_batches(pattern: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and rows of micro-batches."""
    if pattern is not None:
        found = duckdb.sql(f"SELECT seconds, rows FROM read_parquet('{pattern}') WHERE outcome = 'ok' AND rows > 0")
        columns = found.fetchnumpy()
        return np.asarray(columns["seconds"], float), np.asarray(columns["rows"], float)
    with sqluice.connect(ai_cache="off", ai_mode="exact") as con:
        con.execute(QUERY.format(path=REVIEWS)).fetchall()
        rows = con.execute("SELECT seconds, rows FROM ai.batches WHERE outcome = 'ok'").fetchall()
    return np.array([one[0] for one in rows], float), np.array([one[1] for one in rows], float)


def measured_commit(times: int = 50) -> float:
    """Seconds that the commit of a partition takes on this disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = JobFolder(Path(name))
        folder.create({})
        started = time.perf_counter()
        for number in range(times):
            (folder.rows / str(number)).write_bytes(b"x" * 4096)
            folder.commit(f"{number:05d}", {"file": str(number), "rows": 0})
        return (time.perf_counter() - started) / times


def limit(costs: Costs) -> dict[str, float]:
    """From how many workers on a driver is the limit, by arithmetic: what the simulation should find."""
    per_worker = float(costs.rows.sum() / costs.seconds.sum())
    one_driver = 1e6 / costs.driver_us
    return {
        "rows_per_s_per_worker": round(per_worker, 2),
        "rows_per_s_one_driver": round(one_driver, 1),
        "workers_one_driver": round(one_driver / per_worker, 1),
        "workers_job": round(JOB_DRIVERS * one_driver / per_worker, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", help="Parquet files of ai.batches; measured on the embedded model without it")
    parser.add_argument("--driver-us", type=float, default=14.0, help="microseconds that a row costs a driver on Ray")
    parser.add_argument("--faster", type=float, default=1.0, help="workers that are so many times as fast")
    parser.add_argument("--rows", default="10000,1000000,100000000,1000000000")
    parser.add_argument("--workers", default="1,10,100,1000")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    seconds, rows = measured_batches(args.batches)
    costs = Costs(seconds / args.faster, rows, args.driver_us, measured_commit())
    runs = [
        simulate(costs, kind, workers, total)
        for kind in ("query", "job")
        for total in map(int, args.rows.split(","))
        for workers in map(int, args.workers.split(","))
    ]
    facts: dict[str, Any] = {
        "batches": len(seconds),
        "faster": args.faster,
        "driver_us_per_row": costs.driver_us,
        "commit_ms": round(costs.commit_s * 1e3, 2),
        **limit(costs),
    }
    for name, value in facts.items():
        print(f"{name:<26} {value:,}")
    heads = ("", "workers", "rows", "hours", "rows/s", "efficiency", "driver busy")
    print("\n" + "".join(head.rjust(14) for head in heads) + "  limit")
    for run in runs:
        cells = (
            run.kind,
            f"{run.workers:,}",
            f"{run.rows:,}",
            f"{run.seconds / 3600:,.2f}",
            f"{run.rows_per_s:,.1f}",
            f"{run.efficiency:.3f}",
            f"{run.driver_busy:.3f}",
        )
        print("".join(cell.rjust(14) for cell in cells) + f"  {run.bound}")
    if args.json:
        print(json.dumps({**facts, "runs": [vars(run) for run in runs]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
