"""What planning costs, and what statements without a question cost beside plain DuckDB.

Usage::

    python benchmarks/planning.py [--rounds 30] [--rows 10000000] [--json]

- `planning`: a query over ten tables with six questions: its plan, and EXPLAIN as a whole (parsing, binding, checking
  with DuckDB, planning, estimates), medians in milliseconds.
- `relational`: statements without a question here and on a plain DuckDB connection, interleaved, medians.
- `large`: a table of `--rows` rows with a cheap condition that one row in a hundred meets, and a question about those;
  peak memory of a process of its own with a `memory_limit` of 512 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from overhead import Free

if TYPE_CHECKING:
    from collections.abc import Callable

TABLES = 10
RELATIONAL = {
    "select 1": "SELECT 1",
    "point query": "SELECT s FROM t0 WHERE id = 77",
    "join": "SELECT count(*) FROM t0 JOIN t1 ON t0.id = t1.k JOIN t2 ON t1.id = t2.k WHERE t2.id % 3 = 0",
    "aggregate of a million rows": "SELECT i % 100, sum(i), count(DISTINCT i % 7) FROM range(1000000) r(i) GROUP BY 1",
    "result of 200,000 rows": "SELECT i, i::VARCHAR FROM range(200000) r(i)",
}


def connection(**options: Any) -> Any:
    """A connection with a free model and a home of its own."""
    os.environ["SQLUICE_HOME"] = tempfile.mkdtemp(prefix="sqluice-planning-")
    import sqluice

    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle="free", **options)
    con.register_model("free", Free())
    return con


def make(con: Any) -> None:
    """Ten tables, each with a key into the one before."""
    for at in range(TABLES):
        con.execute(
            f"CREATE TABLE t{at} AS SELECT i AS id, (i * 7 + {at}) % 1000 AS k, 'text ' || i AS s FROM range(1000) r(i)"
        )


def wide() -> str:
    """A query over ten tables with six questions."""
    joins = " ".join(f"JOIN t{at} ON t{at}.id = t{at - 1}.k" for at in range(1, TABLES))
    asked = [f"AI_FILTER(PROMPT('q{at} {{0}}', t{at}.s))" for at in range(4)]
    conditions = " AND ".join([*asked[:2], f"({asked[2]} OR {asked[3]})", "t9.id % 2 = 0", "t5.k > 10"])
    return (
        f"SELECT t0.id, AI_SCORE(PROMPT('score {{0}}', t4.s)) AS score, count(*) OVER (PARTITION BY t7.k) AS n FROM t0 "
        f"{joins} WHERE {conditions} ORDER BY AI_SCORE(PROMPT('grade {{0}}', t5.s)), t0.id LIMIT 10"
    )


def planning(rounds: int) -> dict[str, float]:
    """Medians of a plan and of the EXPLAIN around it."""
    from sqluice.engine.statement import AiStatement

    con, plans = connection(), []
    make(con)
    plan = AiStatement._plan

    def timed(*args: Any) -> Any:
        found: list[Any] = []
        plans.append(_timed(lambda: found.append(plan(*args))))
        return found[0]

    AiStatement._plan = timed  # type: ignore[method-assign]
    try:
        whole = [_timed(lambda: con.execute("EXPLAIN " + wide()).fetchall()) for _ in range(rounds)]
    finally:
        AiStatement._plan = plan  # type: ignore[method-assign]
    return {"plan_ms": round(statistics.median(plans), 2), "explain_ms": round(statistics.median(whole), 2)}


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def relational(rounds: int) -> dict[str, Any]:
    """Statements without a question, here and there."""
    import duckdb

    ours, plain = connection(), duckdb.connect()
    for con in (ours, plain):
        make(con)
    found = {}
    for name, sql in RELATIONAL.items():
        pairs = [
            (_timed(lambda: ours.execute(sql).fetchall()), _timed(lambda: plain.execute(sql).fetchall()))  # noqa: B023
            for _ in range(rounds)
        ]
        here, there = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[name] = {"ms": round(here, 3), "duckdb_ms": round(there, 3), "ratio": round(here / there, 3)}
    return found


def large(rows: int) -> dict[str, Any]:
    """One row in a hundred of a large table, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        con = connection(config={"memory_limit": "512MB", "temp_directory": folder})
        con.execute(f"CREATE TABLE big AS SELECT i AS id, 'row number ' || i AS s FROM range({rows}) r(i)")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        sql = "SELECT count(*) FROM big WHERE AI_FILTER(PROMPT('Is {0} good?', s)) AND id % 100 = 0"
        cursor = con.execute(sql)
        ((count,),) = cursor.fetchall()
        seconds = time.perf_counter() - started
        calls = cursor.report.calls
        con.close()
    assert calls == -(-rows // 100)
    assert 0 < count < calls
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "calls": calls,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 1024),
        "peak_mb_before": round(before / 1024),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--large-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large_only:
        print(json.dumps(large(options.rows)))
        return
    found: dict[str, Any] = {"planning": planning(options.rounds)}
    found["relational"] = relational(options.rounds)
    again = [sys.executable, __file__, "--large-only", "--rows", str(options.rows)]
    found["large"] = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
