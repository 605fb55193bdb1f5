"""Rows per second through SQL against a hand-written loop over the same model and rows.

Usage::

    python benchmarks/throughput.py [--rows 400] [--rounds 3] [--model package:default] [--json]

Three sides take turns in one process, each with the same words in another order, so that none finds another's tokens:

- sql: exact mode, trace on, answer cache off;
- plain loop: `model.score` on batches in the order of arrival;
- sorted loop: the same over batches of rows sorted by their exact number of tokens.

Both loops use as many rows a batch as fill the model's token budget on average (plain), or batch by batch (sorted).
Lengths are lognormal with sigma 0.8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

import sqluice
from sqluice.types import Prompt
from sqluice.workers.registry import LoadOptions, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEMPLATE = "Is this review positive? {0}"
YES_NO = ("yes", "no")
MEDIAN_WORDS, SIGMA, MOST_WORDS = 40, 0.8, 600
REVIEWS = Path(__file__).parents[1] / "engine" / "data" / "reviews.csv"


def texts(n: int, seed: int) -> list[list[str]]:
    """n rows as lists of words, with lognormal lengths; the words come from the project's own reviews."""
    rng = np.random.default_rng(seed)
    words = [
        w for (text,) in duckdb.connect().execute(f"SELECT text FROM '{REVIEWS}'").fetchall() for w in text.split()
    ]
    lengths = np.clip(rng.lognormal(np.log(MEDIAN_WORDS), SIGMA, n), 3, MOST_WORDS).astype(int)
    return [[words[at] for at in rng.integers(0, len(words), length)] for length in lengths]


def shuffled(rows: list[list[str]], rng: np.random.Generator) -> list[str]:
    """The same rows with their words in another order."""
    return [" ".join(rng.permutation(row)) for row in rows]


def loop(model: Any, prompts: Sequence[Prompt], batches: Sequence[np.ndarray]) -> np.ndarray:
    """Calibrated scores, batch by batch."""
    bias = model.calibration(prompts[0], YES_NO)
    found = np.zeros((len(prompts), 2), np.float32)
    for rows in batches:
        found[rows] = model.score([prompts[row] for row in rows], YES_NO) - bias
    return found


def plain(model: Any, rows: list[str]) -> np.ndarray:
    """Batches in the order of arrival, of as many rows as fill the token budget on average."""
    prompts = [Prompt(TEMPLATE, (row,)) for row in rows]
    mean = float(np.mean([len(row.split()) for row in rows])) * 1.4 + 16
    size = max(1, int(model.token_budget / mean))
    every = np.arange(len(rows))
    return loop(model, prompts, [every[at : at + size] for at in range(0, len(rows), size)])


def perfectly_sorted(model: Any, rows: list[str]) -> np.ndarray:
    """Batches of rows sorted by tokens, filled up to the token budget."""
    prompts = [Prompt(TEMPLATE, (row,)) for row in rows]
    lengths = np.asarray(model.lengths(prompts))
    order = np.argsort(-lengths, kind="stable")
    batches, at = [], 0
    while at < len(order):
        size = max(1, int(model.token_budget // lengths[order[at]]))
        batches.append(order[at : at + size])
        at += size
    return loop(model, prompts, batches)


def through_sql(con: Any, rows: list[str]) -> tuple[np.ndarray, float]:
    """Answers and the share of padding."""
    import pyarrow as pa

    con.register("rows_now", pa.table({"id": np.arange(len(rows)), "text": rows}))
    cursor = con.execute(f"SELECT AI_SCORE(PROMPT('{TEMPLATE}', text)) AS p FROM rows_now ORDER BY id")
    found = np.array([p for (p,) in cursor.fetchall()])
    con.unregister("rows_now")
    return found, cursor.report.operators[0].padding


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds; medians."""
    settings = {"ai_threads": args.threads, "ai_dtype": args.dtype}
    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle=args.model, allow_models=["default"], **settings)
    model: Any = Registry(["default"]).load(args.model, LoadOptions(threads=args.threads, dtype=args.dtype))
    rows = texts(args.rows, args.seed)
    rng = np.random.default_rng(args.seed + 1)
    waste: list[float] = []

    def sql(now: list[str]) -> np.ndarray:
        found, padding = through_sql(con, now)
        waste.append(padding)
        return found

    sides: dict[str, Callable[[list[str]], np.ndarray]] = {
        "sql": sql,
        "plain": lambda now: plain(model, now),
        "sorted": lambda now: perfectly_sorted(model, now),
    }
    for side in sides.values():  # the first call of each is not counted
        side(shuffled(rows[: args.rows // 8], rng))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        names = list(sides)
        for name in names[number % 3 :] + names[: number % 3]:
            now = shuffled(rows, rng)
            started = time.perf_counter()
            sides[name](now)
            seconds[name].append(time.perf_counter() - started)
    con.close()
    rate = {name: args.rows / statistics.median(took) for name, took in seconds.items()}
    return {
        "model": model.info.name,
        "dtype": model.info.extra.get("dtype", ""),
        "rows": args.rows,
        "sql_rows_per_s": round(rate["sql"], 2),
        "plain_loop_rows_per_s": round(rate["plain"], 2),
        "sorted_loop_rows_per_s": round(rate["sorted"], 2),
        "ratio_sorted": round(statistics.median(map(_ratio, seconds["sorted"], seconds["sql"])), 3),
        "ratio_plain": round(statistics.median(map(_ratio, seconds["plain"], seconds["sql"])), 3),
        "pad_waste": round(statistics.median(waste[1:]), 4),
        "seconds": {name: [round(one, 2) for one in took] for name, took in seconds.items()},
    }


def _ratio(other: float, own: float) -> float:
    return other / own


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="package:default", help="URI of a torch model that scores")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
