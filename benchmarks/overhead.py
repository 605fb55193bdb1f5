"""What the engine itself costs: a free model over all-distinct rows, with the trace on.

Usage::

    python benchmarks/overhead.py [--rows 1000000] [--memory-limit 512MB] [--json]

Each size runs in a process of its own, so that its peak memory can be told; the model's own time is measured in the
same process and taken off. DuckDB spools between the stages and spills beyond `--memory-limit`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.types import ModelInfo, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

QUERY = "SELECT count(*) FROM range({rows}) t(i) WHERE AI_FILTER(PROMPT('Is {{0}} a good row?', 'row number ' || i))"
PLAIN = "SELECT count(*) FROM range({rows}) t(i) WHERE md5('row number ' || i) < '8'"


class Free:
    """Says yes to every other prompt, at no cost."""

    info = ModelInfo("free", revision="1")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.rows = 0
        self._answers = np.tile(np.log(np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)), (4096, 1))

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        """Float32 [n, 2]."""
        started = time.perf_counter()
        found = self._answers[: len(prompts)]
        self.rows += len(prompts)
        self.seconds += time.perf_counter() - started
        return found


def measure(rows: int, memory: str, cache: str) -> dict[str, Any]:
    """One size, in this process."""
    import sqluice

    model = Free()
    con = sqluice.connect(ai_cache=cache, ai_mode="exact", ai_oracle="free", config={"memory_limit": memory})
    con.register_model("free", model)
    con.execute(QUERY.format(rows=1000).replace("good", "first")).fetchall()
    plain = _timed(con, PLAIN.format(rows=rows))
    model.rows, model.seconds = 0, 0.0
    started = time.perf_counter()
    cursor = con.execute(QUERY.format(rows=rows))
    (count,) = cursor.fetchall()[0]
    seconds = time.perf_counter() - started
    assert (model.rows, cursor.report.calls) == (rows, rows), "every row is a question of its own"
    assert 0 < count < rows
    con.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "us_per_row": round((seconds - model.seconds) / rows * 1e6, 2),
        "plain_us_per_row": round(plain / rows * 1e6, 2),
        "peak_mb": round(peak, 1),
    }


def _timed(con: Any, sql: str) -> float:
    started = time.perf_counter()
    con.execute(sql).fetchall()
    return time.perf_counter() - started


def apart(rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """The same in a fresh process, with a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            __file__,
            "--one",
            str(rows),
            "--memory-limit",
            args.memory_limit,
            "--cache",
            args.cache,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**_environment(), "SQLUICE_HOME": home}
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-limit", default="512MB", help="DuckDB's; beyond it, it spills")
    parser.add_argument("--cache", choices=("off", "memory", "disk"), default="off")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(args.one, args.memory_limit, args.cache)))
        return 0
    whole = [apart(args.rows, args) for _ in range(args.rounds)]
    tenth = apart(args.rows // 10, args)
    found = {
        "rows": args.rows,
        "us_per_row": statistics.median(one["us_per_row"] for one in whole),
        "plain_us_per_row": statistics.median(one["plain_us_per_row"] for one in whole),
        "us_per_row_at_tenth": tenth["us_per_row"],
        "peak_mb": max(one["peak_mb"] for one in whole),
        "peak_mb_at_tenth": tenth["peak_mb"],
        "memory_limit": args.memory_limit,
        "cache": args.cache,
    }
    if not args.json:
        for name, value in found.items():
            print(f"{name:20} {value}")
        return 0
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
