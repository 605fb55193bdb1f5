"""`sqluice demo`: a first query over the project's own reviews, and how many of its answers are right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.engine.output import cell
from sqluice.engine.progress import ProgressBar, duration
from sqluice.engine.running import err_console, execute, out_console, running, say, warnings_of
from sqluice.engine.table import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sqluice.config import Value
    from sqluice.engine.dbapi import Connection, Cursor

DATA = Path(__file__).parent / "data"

QUERY = """\
SELECT p.name AS product, r.stars, r.text
FROM reviews r JOIN products p USING (product_id)
WHERE p.department = 'restaurants' AND p.price < 40
  AND r.posted >= DATE '2024-07-01'
  AND AI_FILTER(PROMPT('Is this review positive? {0}', r.text))
ORDER BY r.posted DESC, r.review_id"""

CHECK = """\
SELECT r.sentiment, AI_FILTER(PROMPT('Is this review positive? {0}', r.text)) AS answer, r.text
FROM reviews r ORDER BY r.review_id"""

CHEAP = """\
SELECT count(*) FROM reviews r JOIN products p USING (product_id)
WHERE p.department = 'restaurants' AND p.price < 40 AND r.posted >= DATE '2024-07-01'"""

COUNTS = "SELECT (SELECT count(*) FROM reviews), (SELECT count(*) FROM products)"

NEXT = """\
Where to look next
  sqluice                                   the shell; .help lists its commands
  EXPLAIN ANALYZE SELECT ...                the plan with rows, calls and seconds of every step
  SELECT * FROM ai.decisions                every question: score, tier, answer (in the same session)
  SET ai_oracle = 'hf:org/name'             a better model than the embedded one (docs/models.md)
  sql_examples/                             the same data, told step by step
  {data}"""


def run(settings: dict[str, Value], allow: Sequence[str] = ()) -> int:
    """Run the demo; the exit code. Answers are kept in memory only, so that every run asks anew."""
    import sqluice

    bar = ProgressBar(err_console())
    given: dict[str, Any] = {"ai_cache": "memory", **settings}
    con = sqluice.connect(progress=bar, allow_models=["default", *allow] if allow else None, **given)
    try:
        show(con, bar, out_console(), DATA)
    finally:
        con.close()
    return 0


def show(con: Connection, bar: ProgressBar, out: Console, data: Path) -> tuple[int, int]:
    """The demo on a connection; `(right, labelled)`."""
    load(con, data)
    (cheap,), (rows, products) = _one(con, CHEAP), _one(con, COUNTS)
    out.print(f"{rows} reviews of {products} products. Which restaurant reviews since July 2024 are positive?\n")
    out.print(_indent(QUERY) + "\n")
    begun = time.monotonic()
    with running(con, bar):
        cursor = execute(con, QUERY)
        drawn = draw(cursor.fetch_record_batch(1000), out)
    out.print(f"{drawn} in {duration(time.monotonic() - begun)}, the loading of the model included.")
    out.print(f"The date, the price and the join left {cheap} of {rows} reviews to ask about: {asked(cursor)}.\n")
    _warn(cursor)
    right, labelled = check(con, bar, out)
    out.print(f"\nright on {right} of {labelled} labelled rows ({100 * right / labelled:.1f} %)\n", style="bold")
    out.print(NEXT.format(data=f"{data}  the reviews, with their labels"))
    return right, labelled


def load(con: Connection, data: Path) -> None:
    """Tables `reviews` and `products` from the CSV files in the folder `data`."""
    for name in ("reviews", "products"):
        path = str(data / f"{name}.csv").replace("'", "''")
        execute(con, f"CREATE OR REPLACE TABLE {name} AS FROM read_csv('{path}', header = true)")


def check(con: Connection, bar: ProgressBar, out: Console) -> tuple[int, int]:
    """Ask the same question of every review and compare with its label; a row without an answer is wrong."""
    out.print("The same question of every labelled row, to see how far this model can be trusted:\n")
    out.print(_indent(CHECK) + "\n")
    begun = time.monotonic()
    with running(con, bar):
        cursor = execute(con, CHECK)
        rows = cursor.fetchall()
    out.print(f"{len(rows)} rows in {duration(time.monotonic() - begun)}: {asked(cursor)}.")
    _warn(cursor)
    wrong = [row for row in rows if row[1] != (row[0] == "positive")]
    for sentiment, answer, text in wrong[:3]:
        out.print(f"  wrong: {cell(answer)} for a {sentiment} one: {text[:80]}")
    return len(rows) - len(wrong), len(rows)


def asked(cursor: Cursor) -> str:
    """`'30 model calls; tiers: oracle 30, cache 12'`, from the cursor's report."""
    report = cursor.report
    assert report is not None
    tiers = ", ".join(f"{tier} {rows}" for tier, rows in report.rows_by_tier.items() if rows)
    return f"{report.calls} model call{'' if report.calls == 1 else 's'}; answers by tier: {tiers or 'none'}"


def _one(con: Connection, sql: str) -> tuple[int, ...]:
    row = execute(con, sql).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


def _indent(sql: str) -> str:
    return "\n".join("  " + line for line in sql.splitlines())


def _warn(cursor: Cursor) -> None:
    for text in warnings_of(cursor):
        say(f"warning: {text}")
