"""What it saves to ask several questions about a text in one pass (`{'merge': true}`), and which answers differ.

Usage::

    python benchmarks/merging.py [--model package:default] [--rows 40] [--json]

Short texts are reviews of the demo, long ones five of them joined. Seconds are those of the CPU, so that other work on
the machine counts little; both sides run in one process, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

REVIEWS = Path(__file__).parents[1] / "engine" / "data" / "reviews.csv"
ALIKE = ("Is the writer angry? {0}", "Is this review positive? {0}", "Is the writer happy? {0}", "Is it good? {0}")
JOINED = {"short": 1, "long": 5}


def opened(model: str, rows: int) -> Any:
    """A connection with a table for each length of texts, a home of its own, and the model loaded."""
    import sqluice
    from sqluice import config

    weights = config.home()
    home = Path(tempfile.mkdtemp(prefix="sqluice-merging-"))
    for child in weights.iterdir() if weights.is_dir() else ():
        if child.name in ("models", "weights", "packages"):
            (home / child.name).symlink_to(child)
    os.environ["SQLUICE_HOME"] = str(home)
    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle=model)
    for name, joined in JOINED.items():
        con.execute(
            f"CREATE TABLE {name} AS SELECT n // {joined} AS id, string_agg(text, ' ' ORDER BY n) AS text FROM ("
            f"SELECT text, row_number() OVER (ORDER BY md5(text)) - 1 AS n FROM '{REVIEWS}') GROUP BY 1"
            f" ORDER BY 1 LIMIT {rows}"
        )
        con.execute(select(name, len(ALIKE), merge=False) + " LIMIT 1").fetchall()
    return con


def select(table: str, questions: int, *, merge: bool) -> str:
    """A query with the first so many questions."""
    option = ", {'merge': true}" if merge else ""
    listed = ", ".join(f"AI_FILTER(PROMPT('{one}', text){option})" for one in ALIKE[:questions])
    return f"SELECT id, {listed} FROM {table} ORDER BY id"


def asked(con: Any, query: str) -> tuple[list[Any], Any, float]:
    """Rows, report, seconds of CPU."""
    started = time.process_time()
    cursor = con.execute(query)
    rows = cursor.fetchall()
    return rows, cursor.report, time.process_time() - started


def measure(con: Any, table: str, questions: int) -> dict[str, Any]:
    """One row of the result."""
    alone, apart, before = asked(con, select(table, questions, merge=False))
    merged, together, after = asked(con, select(table, questions, merge=True))
    pairs = [pair for one, other in zip(alone, merged, strict=True) for pair in zip(one[1:], other[1:], strict=True)]
    return {
        "texts": table,
        "questions": questions,
        "rows": len(alone),
        "tokens": apart.tokens_in,
        "tokens_merged": together.tokens_in,
        "cpu_s": round(before, 2),
        "cpu_s_merged": round(after, 2),
        "times_as_fast": round(before / after, 2),
        "differ": sum(one != other for one, other in pairs),
        "answers": len(pairs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:default")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    con = opened(options.model, options.rows)
    found = [measure(con, table, questions) for table in JOINED for questions in (2, 4)]
    for one in found:
        print(
            f"{one['texts']:<6} {one['questions']} questions: {one['cpu_s']:.2f} s, merged {one['cpu_s_merged']:7.2f} s"
            f" ({one['times_as_fast']:.2f} times as fast); {one['differ']} of {one['answers']} answers differ"
        )
    if options.json:
        print(json.dumps({"model": options.model, "rows": found}))


if __name__ == "__main__":
    main()
