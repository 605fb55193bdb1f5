"""Wall time, oracle calls and F1 of one question as SQL: the oracle on every row, a proxy alone, cascades.

Usage::

    python benchmarks/cascade_e2e.py --data FILE.parquet [--rows N] [--oracle URI] [--proxy URI]
        [--recall .9 --precision .9] [--accuracy .9] [--json]

FILE has the columns `text` and `label`. With labels positive and negative the question is AI_FILTER and F1 that of
positive; with others it is AI_CLASSIFY and the mean F1 of all labels. The proxy needs no training: how near the text's
embedding is to those of the labels; `--proxy` names another model. `cascade` has the embedding head and no proxy (the
default), `cascade-proxy` the proxy and no head, `cascade-both` both. Nothing is cached; models are loaded before the
clock starts.
"""

from __future__ import annotations

import argparse
import json
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

SHARPNESS = 20.0
YES_NO = ("yes", "no")
POLES = ("This is positive, good.", "This is negative, bad.")
MODES: dict[str, dict[str, str]] = {
    "oracle": {"ai_mode": "exact"},
    "proxy": {"ai_mode": "exact", "ai_oracle": "nearest"},
    "cascade-proxy": {"ai_mode": "cascade", "ai_proxy": "nearest", "ai_embedder": "blind"},
    "cascade": {"ai_mode": "cascade"},
    "cascade-both": {"ai_mode": "cascade", "ai_proxy": "nearest"},
}


class Nearest:
    """Scores choices by the cosine between the text and the choice."""

    info = ModelInfo("nearest", revision="1")
    batch_rows = 64

    def __init__(self, con: Connection) -> None:
        self._con = con

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d]."""
        return embedded(self._con, texts)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]."""
        ends = self.embed(
            POLES if tuple(choices) == YES_NO else [f"This text is about {choice}." for choice in choices]
        )
        logits = SHARPNESS * self.embed([prompt.args[0] for prompt in prompts]) @ ends.T
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)


class Blind:
    """Sees nothing in a text: a cascade without a head."""

    info = ModelInfo("blind", revision="1")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, 1]."""
        return np.ones((len(texts), 1), np.float32)


def f1(found: Sequence[Any], true: Sequence[Any], labels: Sequence[Any]) -> float:
    """The mean F1 of `labels`."""
    values = []
    for label in labels:
        both = sum(a == b == label for a, b in zip(found, true, strict=True))
        values.append(2 * both / max(sum(a == label for a in found) + sum(b == label for b in true), 1))
    return float(np.mean(values))


def folders(*uris: str) -> list[str]:
    """Where the artifacts among `uris` lie."""
    files = [Path(uri.removeprefix("artifact:").partition("#")[0]) for uri in uris if uri.startswith("artifact:")]
    return [str(file.resolve().parent) for file in files]


def modes_with(proxy: str) -> dict[str, dict[str, str]]:
    """`MODES` with the model `proxy` in the place of the nearest label."""
    return {
        mode: {name: proxy if one == "nearest" else one for name, one in how.items()} for mode, how in MODES.items()
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--oracle", default="package:default")
    parser.add_argument("--proxy", default="nearest", help="a model's URI")
    for name in ("recall", "precision", "accuracy"):
        parser.add_argument(f"--{name}", type=float, default=0.9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    con = sqluice.connect(ai_cache="off", allow_models=["default", *folders(args.oracle, args.proxy)])
    con.register_model("nearest", Nearest(sqluice.connect(ai_cache="memory")))
    con.register_model("blind", Blind())
    limit = "" if args.rows is None else f"USING SAMPLE {args.rows} ROWS (reservoir, 7)"
    cursor = con.cursor()
    cursor.execute(
        f"CREATE TABLE t AS SELECT row_number() OVER () AS id, text, label FROM '{args.data.as_posix()}' {limit}"
    )
    gold = dict(cursor.execute("SELECT id, label FROM t").fetchall())
    labels = sorted(set(gold.values()))
    is_filter = set(labels) == {"positive", "negative"}
    question = (
        "AI_FILTER(PROMPT('Is this sentence positive? {0}', text))" if is_filter else f"AI_CLASSIFY(text, {labels})"
    )
    sql = f"SELECT id, {question} FROM t"
    settings = {"ai_oracle": args.oracle} | {
        f"ai_{n}": str(getattr(args, n)) for n in ("recall", "precision", "accuracy")
    }
    for warm in ("SELECT AI_EMBED('a')", f"SELECT {question} FROM (SELECT 'a' AS text)"):
        timed(con, f"SELECT 1, ({warm})", {**settings, "ai_mode": "exact"})
    timed(
        con, f"SELECT {question} FROM (SELECT 'a' AS text)", {**settings, "ai_mode": "exact", "ai_oracle": args.proxy}
    )
    truth = {row: (label == "positive" if is_filter else label) for row, label in gold.items()}
    wanted = [True] if is_filter else labels
    modes, oracle = [], {}
    for mode, how in modes_with(args.proxy).items():
        rows, report, seconds = timed(con, sql, {**settings, **how})
        found = dict(rows)
        oracle = oracle or found
        ids = list(gold)
        answers = [found[row] for row in ids]
        calls = 0 if mode == "proxy" else report.calls
        one = {"mode": mode, "seconds": seconds, "oracle_calls": calls, "label": report.label}
        one["f1_oracle"] = f1(answers, [oracle[row] for row in ids], wanted)
        one["f1_gold"] = f1(answers, [truth[row] for row in ids], wanted)
        modes.append(one)
        if not args.json:
            print(
                f"{mode:<14} {seconds:8.1f} s  {calls:>6} oracle calls  F1 against the oracle {one['f1_oracle']:.3f}, "
                f"against gold {one['f1_gold']:.3f}  {report.label}"
            )
    if args.json:
        print(json.dumps({"rows": len(gold), "data": args.data.name, "modes": modes}))


if __name__ == "__main__":
    main()
