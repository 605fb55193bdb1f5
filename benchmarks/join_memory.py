"""A semantic join of two large sides in bounded memory: seconds, peak memory, calls and recall with a scripted oracle.

Usage::

    python benchmarks/join_memory.py [--rows 100000] [--dimension 384] [--json]

Both sides have --rows made-up product names; each right one is a left one with words left out, added and misspelt. The
oracle knows which belong together. Vectors are random projections of the names' trigrams: what they cost is not what
is measured here.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

import sqluice
from sqluice.types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def names(count: int, generator: np.random.Generator) -> list[str]:
    """Names of three to six words; common words are shared by many, others by few."""
    words = ["".join(generator.choice(SYLLABLES, generator.integers(2, 5))) for _ in range(max(count // 4, 50))]
    chance = 1 / np.arange(1, len(words) + 1) ** 0.8
    picks = generator.choice(len(words), (count, 6), p=chance / chance.sum())
    lengths = generator.integers(3, 7, count)
    codes = generator.integers(10, 9999, count)
    return [
        " ".join(words[at] for at in row[:length]) + f" {code}"
        for row, length, code in zip(picks, lengths.tolist(), codes.tolist(), strict=True)
    ]


def changed(name: str, generator: np.random.Generator) -> str:
    """The same thing as another shop would write it."""
    words = name.split()
    keep = [word for word in words if generator.random() > 0.15] or words[:1]
    at = int(generator.integers(len(keep)))
    word = keep[at]
    place = int(generator.integers(len(word)))
    keep[at] = word[:place] + word[place + 1 :] if len(word) > 3 else word
    return " ".join([*keep, *generator.choice(["new", "pc", "2007", "edition"], generator.integers(0, 2))])


class Vectors:
    """Unit vectors from hashed trigrams."""

    batch_rows = 4096

    def __init__(self, dimension: int) -> None:
        self.info = ModelInfo("vectors", revision="1")
        self._table = np.random.default_rng(0).standard_normal((4096, dimension)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d]."""
        found = np.empty((len(texts), self._table.shape[1]), np.float32)
        for at, text in enumerate(texts):
            rows = [zlib.crc32(text[i : i + 3].encode()) % 4096 for i in range(max(len(text) - 2, 1))]
            found[at] = self._table[rows].sum(axis=0)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Oracle:
    """Knows which names belong together."""

    batch_rows = 4096

    def __init__(self, matches: set[tuple[str, str]]) -> None:
        self.info = ModelInfo("oracle", revision="1")
        self._matches = matches

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, 2]; no labels are asked about."""
        assert len(choices) == len(("yes", "no"))
        yes = np.array([tuple(prompt.args) in self._matches for prompt in prompts])
        return np.where(np.stack([yes, ~yes], axis=1), 0.0, -20.0).astype(np.float32)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    generator = np.random.default_rng(1)
    left = names(args.rows, generator)
    right = [changed(name, generator) for name in left]
    matches = set(zip(left, right, strict=True))
    con = sqluice.connect(ai_cache="off", ai_trace="off")
    con.register_model("oracle", Oracle(matches))
    con.register_model("vectors", Vectors(args.dimension))
    cursor = con.cursor()
    for name, value in (("ai_oracle", "oracle"), ("ai_embedder", "vectors"), ("ai_mode", "cascade")):
        cursor.execute(f"SET {name} = '{value}'")
    for table, side in (("l", left), ("r", right)):
        cursor.execute(f"CREATE TABLE {table} AS SELECT unnest(?) AS name", [side])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    cursor.execute(
        "SELECT l.name, r.name FROM l JOIN r ON AI_FILTER(PROMPT('Is {0} the same as {1}?', l.name, r.name))"
    )
    found = set(cursor.fetchall())
    seconds, report = time.perf_counter() - started, cursor.report
    result = {
        "rows": args.rows,
        "pairs": args.rows**2,
        "calls": report.calls,
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_mb_before": before,
        "recall": len(found & matches) / len(matches),
        "precision": len(found & matches) / max(len(found), 1),
        "label": report.label,
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<16} {value:,.4g}" if isinstance(value, float) else f"{name:<16} {value}")


if __name__ == "__main__":
    main()
