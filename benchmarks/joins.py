"""One semantic join as SQL: calls, seconds, recall and precision of the engine's strategy, of a fixed embedding top-k
filter, and of the cross join (predicted from a slice where it is too large to run).

Usage::

    python benchmarks/joins.py --left F --right F --matches F --left-columns a,b --right-columns a,b
        --prompt 'Are {0} and {1} the same product?' [--oracle gold|model|URI] [--recall .95 --precision .95]
        [--seeds N] [--first N] [--slice 100] [--budget '300 calls' ..]
        [--similarity .7 ..] [--json]

F are Parquet or CSV files. Both sides have a column `id` (or --left-id, --right-id); the first two columns of the
matches are the ids of a left and of a right row. A side's columns are joined by a space into its placeholder. With
`--oracle gold` the answers come from the matches, so that only the strategy is measured: a pair is a match where its
texts are those of one, and a label fits a text where the two are. Recall and precision are against the matches; with a
model the cross join is run on a slice (100 x 100 rows), and its quality is that of the model's answers there. With
`--first 100` all is run on the first rows of both sides, so that ours and the cross join are compared on the same pairs
in one run; `times_faster` is how often ours would fit into the cross join's time. `--similarity .7` adds the join that
a user writes whose oracle is too weak to prove anything by: a condition on similarity before the question. `calls`
counts every prompt to the oracle's model, those for labels, attributes and lists too; `embedded` counts texts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from asking import embedded, timed

import sqluice
from sqluice.types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice import Connection
    from sqluice.types import Prompt

SURE = -20.0
TOP_K = 20
SLICE = 100
YES_NO = ("yes", "no")
EMBED = "AI_EMBED"
NOT_ORACLE = (" head", " proxy")
"""How operators are called that ask another model than the oracle's."""


class Gold:
    """Answers from the matches. `calls` counts prompts."""

    batch_rows = 4096

    def __init__(self, matches: set[tuple[str, str]]) -> None:
        self.info = ModelInfo("gold", revision="1")
        self.calls = 0
        self._matches = matches
        self._labels: dict[str, set[str]] = {}
        for left, right in matches:
            self._labels.setdefault(left, set()).add(right)
            self._labels.setdefault(right, set()).add(left)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]: 0 for what is true, and far below for what is not."""
        self.calls += len(prompts)
        found = np.full((len(prompts), len(choices)), SURE, np.float32)
        for at, prompt in enumerate(prompts):
            if tuple(choices) == YES_NO:
                found[at, 0 if tuple(prompt.args) in self._matches else 1] = 0.0
            else:
                fits = self._labels.get(prompt.args[0], set())
                found[at, [choice in fits for choice in choices]] = 0.0
        return found


class Data:
    """Both sides as texts by id, and the ids of the pairs that match."""

    def __init__(self, con: Connection, args: argparse.Namespace) -> None:
        cursor = con.cursor()
        self.sides = []
        for name, file, key, columns in (
            ("l", args.left, args.left_id, args.left_columns),
            ("r", args.right, args.right_id, args.right_columns),
        ):
            text = f"concat_ws(' ', {', '.join(columns.split(','))})"
            some = "" if args.first is None else f" LIMIT {args.first}"
            cursor.execute(f"CREATE TABLE {name} AS SELECT {key} AS id, {text} AS text FROM '{file.as_posix()}'{some}")
            self.sides.append(dict(cursor.execute(f"SELECT id, text FROM {name}").fetchall()))
        ids = cursor.execute(f"SELECT * FROM '{args.matches.as_posix()}'").fetchall()
        self.matches = {(row[0], row[1]) for row in ids if row[0] in self.sides[0] and row[1] in self.sides[1]}

    @property
    def texts(self) -> set[tuple[str, str]]:
        """The texts of the pairs that match."""
        left, right = self.sides
        return {(left[a], right[b]) for a, b in self.matches}

    def quality(self, found: set[tuple[Any, Any]], true: set[tuple[Any, Any]] | None = None) -> dict[str, float]:
        """Recall, precision and F1 of pairs of ids against the matches, or other pairs."""
        true = self.matches if true is None else true
        both = len(found & true)
        recall, precision = both / max(len(true), 1), both / max(len(found), 1)
        return {"recall": recall, "precision": precision, "f1": 2 * both / max(len(found) + len(true), 1)}


def calls_of(report: Any) -> int:
    """What the oracle's model was asked: pairs, and all else that a strategy asks it."""
    asked = sum(op.calls for op in report.operators if op.function != EMBED)
    return int(asked + sum(op.scored for op in report.operators if not op.function.endswith(NOT_ORACLE)))


def embedded_by(report: Any) -> int:
    """Texts that the embedder was given."""
    return int(
        sum(op.scored for op in report.operators if op.function.endswith(NOT_ORACLE))
        + sum(op.calls for op in report.operators if op.function == EMBED)
    )


def top_k(con: Connection, data: Data, question: str) -> dict[str, Any]:
    """The nearest k right rows of each left row by embeddings, filtered by the oracle."""
    left, right = (list(side.items()) for side in data.sides)
    started = time.perf_counter()
    vectors = [embedded(con, [text for _, text in side]) for side in (left, right)]
    near = np.argsort(-(vectors[0] @ vectors[1].T), axis=1, kind="stable")[:, :TOP_K]
    pairs = [(left[at][0], right[to][0]) for at, row in enumerate(near.tolist()) for to in row]
    cursor = con.cursor()
    cursor.execute(
        "CREATE OR REPLACE TEMP TABLE near AS SELECT unnest(?) AS a, unnest(?) AS b",
        [[a for a, _ in pairs], [b for _, b in pairs]],
    )
    sql = f"SELECT l.id, r.id FROM near JOIN l ON l.id = near.a JOIN r ON r.id = near.b WHERE {question}"
    rows, report, _ = timed(con, sql, {"ai_mode": "exact", "ai_max_cross_calls": "100000000"})
    seconds = time.perf_counter() - started
    return {"name": f"embedding top-{TOP_K}", "calls": calls_of(report), "seconds": seconds, **data.quality(set(rows))}


def cross(con: Connection, data: Data, question: str, cross_calls: int, size: int, *, gold: bool) -> dict[str, Any]:
    """The cross join on a slice, and what that makes of all of it."""
    ids = [list(side)[:size] for side in data.sides]
    cursor = con.cursor()
    for name, some in zip(("l", "r"), ids, strict=True):
        cursor.execute(
            f"CREATE OR REPLACE TEMP TABLE {name}s AS SELECT * FROM {name} WHERE id IN (SELECT unnest(?))", [some]
        )
    sql = f"SELECT l.id, r.id FROM ls AS l, rs AS r WHERE {question}"
    rows, report, seconds = timed(con, sql, {"ai_mode": "exact"})
    calls = calls_of(report)
    a_call = seconds / max(calls, 1)
    inside = {(a, b) for a, b in data.matches if a in set(ids[0]) and b in set(ids[1])}
    return {
        "name": "cross",
        "calls": cross_calls,
        "seconds": a_call * cross_calls,
        "predicted": calls < cross_calls,
        "slice": {"rows": [len(ids[0]), len(ids[1])], "matches": len(inside), "calls": calls, "seconds": seconds},
        **({"recall": 1.0, "precision": 1.0, "f1": 1.0} if gold else data.quality(set(rows), inside)),
    }


def ours(con: Connection, data: Data, question: str, cross_calls: int, settings: dict[str, str]) -> dict[str, Any]:
    """The engine's own way."""
    rows, report, seconds = timed(con, f"SELECT l.id, r.id FROM l JOIN r ON {question}", settings)
    cascades = [one for op in report.operators for one in op.cascades]
    strategy = cascades[0].scorer or "cross" if cascades else "cross"
    return {
        "strategy": strategy.split(" ")[0],
        "calls": calls_of(report),
        "embedded": embedded_by(report),
        "cross_calls": cross_calls,
        "rows": len(rows),
        **data.quality(set(rows)),
        "certified": report.label.startswith("certified") or report.label == "exact",
        "label": report.label,
        "seconds": seconds,
        "budget": settings.get("ai_budget"),
    }


def _budget(text: str | None) -> dict[str, str]:
    return {} if text is None else {"ai_budget": text}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("left", "right", "matches"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("left", "right"):
        parser.add_argument(f"--{name}-columns", required=True)
        parser.add_argument(f"--{name}-id", default="id")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--oracle", default="gold")
    for name in ("recall", "precision"):
        parser.add_argument(f"--{name}", type=float, default=0.95)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=1, help="runs with different samples; the worst recall is told")
    parser.add_argument("--first", type=int, help="rows of each side that are taken at all")
    parser.add_argument("--slice", type=int, default=SLICE, help="rows of each side on which the cross join is run")
    parser.add_argument("--budget", nargs="+", default=[None], help="such as '300 calls'; ours is run with each")
    parser.add_argument(
        "--similarity",
        type=float,
        nargs="+",
        default=[],
        help="once more behind AI_SIMILARITY(..) > each of these",
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    con = sqluice.connect(ai_cache="off")
    data = Data(con, args)
    gold = args.oracle == "gold"
    settings = {"ai_mode": "cascade"} | {f"ai_{n}": str(getattr(args, n)) for n in ("recall", "precision", "delta")}
    if gold:
        con.register_model("gold", Gold(data.texts))
        con.cursor().execute("SET ai_oracle = 'gold'")
    elif args.oracle != "model":
        con.cursor().execute(f"SET ai_oracle = '{args.oracle}'")
    prompt = args.prompt.replace("'", "''")
    question = f"AI_FILTER(PROMPT('{prompt}', l.text, r.text))"
    timed(con, f"SELECT 1, {question} FROM (SELECT 'a' AS text) AS l, (SELECT 'b' AS text) AS r", {"ai_mode": "exact"})
    cross_calls = len(set(data.sides[0].values())) * len(set(data.sides[1].values()))
    runs = [
        ours(con, data, question, cross_calls, {**settings, "ai_seed": str(seed)} | _budget(budget))
        for budget in args.budget
        for seed in range(args.seeds)
    ]
    conditions = []
    for least in args.similarity:
        where = f"AI_SIMILARITY(l.text, r.text) > {least} AND {question}"
        found = ours(con, data, where, cross_calls, {**settings, "ai_mode": "exact"})
        conditions.append({"name": f"similarity > {least}", **found})
    result = dict(runs[0])
    if len(runs) > 1:
        result["runs"] = runs
        result["calls_mean"] = float(np.mean([one["calls"] for one in runs]))
        result["recall_min"] = min(one["recall"] for one in runs)
        result["recall_mean"] = float(np.mean([one["recall"] for one in runs]))
    result["calls_share"] = result["calls"] / cross_calls
    result["calls_per_left"] = result["calls"] / max(len(set(data.sides[0].values())), 1)
    whole = cross(con, data, question, cross_calls, args.slice, gold=gold)
    filtered = [top_k(con, data, question)] if len(data.sides[1]) > TOP_K else []  # of fewer it would be the cross join
    result["baselines"] = [whole, *filtered, *conditions]
    for one in (*runs, *filtered, *conditions, result):
        one["times_faster"] = whole["seconds"] / one["seconds"]
    if args.json:
        print(json.dumps(result))
        return
    for one in (*runs, *result["baselines"]):
        name = one.get("name", f"ours: {one.get('strategy')}")
        print(
            f"{name:<20} {one['calls']:>10,} calls  {one['seconds']:9.1f} s  recall {one['recall']:.3f}  precision "
            f"{one['precision']:.3f}  F1 {one['f1']:.3f}  x{one.get('times_faster', 1):,.1f}  {one.get('label', '')}"
        )


if __name__ == "__main__":
    main()
