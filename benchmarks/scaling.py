"""What Ray workers add and cost: two against one, one that is slow, the driver's part of a row, the start.

Usage::

    python benchmarks/scaling.py [--rows 6000] [--torch-rows 400] [--skip torch,endpoint] [--json]

- efficiency_2: rows a second on two workers over twice those on one; the model sleeps its service time, so that
  workers and driver do not fight for the same cores.
- torch_rows_per_cpu_s_1, _2: rows per CPU second of driver and workers together, `package:default` on one thread a
  worker.
- slow_worker_makespan: seconds with one worker five times as slow over seconds without, on `workers_slow` workers.
  The least that any schedule reaches is `least_makespan`.
- driver_us_per_row: CPU microseconds of the driver for a row whose model answers at once; `wall_us_per_row`: by clock.
- startup_s: from nothing to the first answer: Ray, its manager, one worker.
- endpoint_ratio: see `benchmarks/endpoint.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sqluice
from sqluice.types import ModelInfo
from sqluice.workers.pools import pool_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

SECONDS_A_ROW = 0.002
SLOW, WORKERS = 5.0, 8
TEMPLATE = "SELECT count(*) FROM range({rows}) t(i) WHERE AI_FILTER(PROMPT('Is it {{0}}?', '{run} ' || i))"
REVIEWS = Path(__file__).parents[1] / "engine" / "data" / "reviews.csv"
TORCH = """
SELECT count(*) FROM (
    SELECT r.text || ' {run} ' || n.i AS text FROM read_csv('{path}') AS r, range(100) AS n(i) LIMIT {rows}
) AS t WHERE AI_FILTER(PROMPT('Is this review positive? {{0}}', text))
"""


class Sleeper:
    """Says yes to every second row, after its service time. One copy is slow: the first that makes `folder`/slow."""

    def __init__(self, seconds_a_row: float, name: str, slow: str = "") -> None:
        self.info = ModelInfo(name, revision=f"{name} {seconds_a_row}")
        self.seconds_a_row = seconds_a_row
        self._slow = slow

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities, float32 [n, k]."""
        time.sleep(self.seconds_a_row * len(prompts))
        scores = np.full((len(prompts), len(choices)), -5.0, np.float32)
        scores[np.arange(len(prompts)), [len(prompt.args[0]) % 2 for prompt in prompts]] = -0.01
        return scores

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._slow and _first(Path(self._slow)):
            self.seconds_a_row *= SLOW


def _first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def connected(where: str, model: object | None = None) -> sqluice.Connection:
    """A connection that asks each row anew."""
    settings = {} if model is None else {"ai_oracle": "model"}
    connection = sqluice.connect(ai_workers=where, ai_cache="off", ai_mode="exact", ai_trace="off", **settings)
    if model is not None:
        connection.register_model("model", model)
    return connection


def timed(where: str, model: object, rows: int) -> float:
    """Seconds of a query once its workers are there; they end after it."""
    with connected(where, model) as connection:
        cursor = connection.cursor()
        cursor.execute(TEMPLATE.format(rows=64, run="warm")).fetchall()
        pool: Any = pool_of(where)
        pool.ready()
        started = time.perf_counter()
        cursor.execute(TEMPLATE.format(rows=rows, run="row")).fetchall()
        seconds = time.perf_counter() - started
    pool_of(where).close()
    return seconds


def startup() -> float:
    """Seconds from nothing to the first answer."""
    started = time.perf_counter()
    with connected("ray?workers=1&cpus=0.5", Sleeper(0.0, "first")) as connection:
        connection.cursor().execute(TEMPLATE.format(rows=1, run="first")).fetchall()
    seconds = time.perf_counter() - started
    pool_of("ray?workers=1&cpus=0.5").close()
    return seconds


def efficiency(rows: int) -> dict[str, float]:
    """Two workers against one."""
    one, two = (timed(f"ray?workers={n}&cpus=0.5", Sleeper(SECONDS_A_ROW, f"sleeps {n}"), rows) for n in (1, 2))
    return {"efficiency_2": one / (2 * two), "seconds_1": one, "seconds_2": two, "seconds_asleep": rows * SECONDS_A_ROW}


def makespan(rows: int, folder: Path) -> dict[str, float]:
    """One slow worker among `WORKERS`."""
    where = f"ray?workers={WORKERS}&cpus=0.1"
    sound = timed(where, Sleeper(SECONDS_A_ROW, "sound"), rows * WORKERS // 2)
    slow = timed(where, Sleeper(SECONDS_A_ROW, "slow", str(folder / f"slow-{os.getpid()}")), rows * WORKERS // 2)
    least = WORKERS / (WORKERS - 1 + 1 / SLOW)
    return {"slow_worker_makespan": slow / sound, "least_makespan": least, "workers_slow": WORKERS}


def driver(rows: int) -> dict[str, float]:
    """The driver's part of a row, on Ray and in process."""
    found = {}
    for name, where in (("", "ray?workers=2&cpus=0.5"), ("local_", "local")):
        with connected(where, Sleeper(0.0, "free")) as connection:
            cursor = connection.cursor()
            cursor.execute(TEMPLATE.format(rows=2000, run="warm")).fetchall()
            wall, cpu = time.perf_counter(), time.process_time()
            cursor.execute(TEMPLATE.format(rows=rows, run="row")).fetchall()
            found[f"{name}driver_us_per_row"] = (time.process_time() - cpu) / rows * 1e6
            found[f"{name}wall_us_per_row"] = (time.perf_counter() - wall) / rows * 1e6
        pool_of(where).close()
    return found


def torch(rows: int) -> dict[str, float | None]:
    """Rows per CPU second on one and two torch workers of one thread."""
    found: dict[str, float | None] = {}
    for workers in (1, 2):
        where = f"ray?workers={workers}&cpus=1"
        with connected(where) as connection:
            cursor = connection.cursor()
            for run, count in (("warm", 32 * workers), ("row", rows)):
                before = cpu_seconds()
                sql = TORCH.format(run=run, path=REVIEWS, rows=count)
                cursor.execute(sql).fetchall()
                spent = cpu_seconds() - before
        pool_of(where).close()
        found[f"torch_rows_per_cpu_s_{workers}"] = rows / spent
    return found


def cpu_seconds() -> float:
    """CPU seconds of this process and of the Ray workers below it."""
    import ray  # noqa: F401 - brings psutil along

    import psutil  # isort: skip

    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::"):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def endpoint() -> float | None:
    """A remote endpoint at 32 requests in flight; None where there is no such benchmark."""
    path = Path(__file__).with_name("endpoint.py")
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("endpoint", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["endpoint"] = module
    spec.loader.exec_module(module)
    return float(module.measure())


def measure(rows: int, torch_rows: int, skip: set[str]) -> dict[str, float | None]:
    """All keys."""
    import tempfile

    found: dict[str, float | None] = {"rows": rows, "startup_s": startup()}
    found |= efficiency(rows)
    with tempfile.TemporaryDirectory() as folder:
        found |= makespan(rows, Path(folder))
    found |= driver(10 * rows)
    found |= dict.fromkeys(("torch_rows_per_cpu_s_1", "torch_rows_per_cpu_s_2"))
    found |= {} if "torch" in skip else torch(torch_rows)
    found["endpoint_ratio"] = None if "endpoint" in skip else endpoint()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--torch-rows", type=int, default=400)
    parser.add_argument("--skip", default="", help="torch, endpoint, or both with a comma between them")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    found = measure(args.rows, args.torch_rows, set(args.skip.split(",")))
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:<24} {'not measured' if value is None else f'{value:.3f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
