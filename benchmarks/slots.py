"""Continuous slots against static batches: how full the slots are, and rows per second of the embedded model.

Usage::

    python benchmarks/slots.py [--rows 64] [--max-tokens 96] [--slots 16] [--threads 0] [--scripted] [--json]

Two parts. Scripted: answers of lognormal length as reasoning models write them (median 300 tokens, sigma 1.2, at most
8,192), no arithmetic; the share of slots x steps that hold a row, with 32 slots, for continuous slots in the order of
arrival, for longest first when lengths are known, and for static batches. Real: the same prompts through the model's
`generate` (slots) and through transformers' own in batches of as many rows as there are slots, in the order of arrival;
the two take turns. Texts are compared with those of one row at a time. `*_rows_per_cpu_s` are rows a second of
processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from sqluice.types import Prompt
from sqluice.workers import forms, torch_slots
from sqluice.workers.registry import LoadOptions, Registry
from sqluice.workers.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEMPLATE = "Say in a few words what this review is about, or list what it mentions: {0}"
REVIEWS = Path(__file__).parents[1] / "engine" / "data" / "reviews.csv"
SCRIPTED_ROWS, SCRIPTED_SLOTS = 4096, 32
NO_LIMIT = 1 << 50


class Counting:
    """A decoder that counts tokens and does no arithmetic: row i is done after `lengths[i]`."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.left = lengths.copy()
        self.rows: list[int] = []

    def admit(self, rows: Sequence[int]) -> list[int]:
        """The first token of each."""
        self.rows += rows
        return self._written(list(rows))

    def step(self) -> list[int]:
        """One token more."""
        return self._written(self.rows)

    def release(self, rows: Sequence[int]) -> None:
        """They leave."""
        gone = set(rows)
        self.rows = [row for row in self.rows if row not in gone]

    def _written(self, rows: list[int]) -> list[int]:
        self.left[rows] -= 1
        return [row for row in rows if self.left[row] <= 0]


def use(lengths: np.ndarray, predicted: np.ndarray | None = None) -> float:
    """Share of slots x steps that hold a row."""
    needs = [1] * len(lengths)
    slots = Slots(Counting(lengths), needs, most_rows=SCRIPTED_SLOTS, most_tokens=NO_LIMIT, predicted=predicted)
    for _ in slots.run():
        pass
    return slots.use


def static_use(lengths: np.ndarray, slots: int) -> float:
    """The same of batches that run until their longest row is done."""
    batches = [lengths[at : at + slots] for at in range(0, len(lengths), slots)]
    return float(lengths.sum() / sum(slots * int(batch.max()) for batch in batches))


def scripted(seed: int) -> dict[str, float]:
    """The scripted part."""
    drawn = np.random.default_rng(seed).lognormal(np.log(300), 1.2, SCRIPTED_ROWS)
    lengths = np.clip(drawn, 1, 8192).astype(np.int64)
    return {
        "slot_use": round(use(lengths), 4),
        "longest_first_slot_use": round(use(lengths, lengths), 4),
        "static_slot_use": round(static_use(lengths, SCRIPTED_SLOTS), 4),
    }


def real(args: argparse.Namespace) -> dict[str, Any]:
    """The part with a model."""
    torch_slots.SLOTS = torch_slots.SLOTS_CUDA = args.slots
    model: Any = Registry(["default"]).load(args.model, LoadOptions(threads=args.threads, dtype=args.dtype))
    lm, tokens = model._lm, model._tokens  # noqa: SLF001 - the loop written by hand needs what the model is made of
    texts = [text for (text,) in duckdb.connect().execute(f"SELECT text FROM '{REVIEWS}' LIMIT {args.rows}").fetchall()]
    prompts = [Prompt(TEMPLATE, (text,), kind="complete") for text in texts]
    chats = [[*shared, *own] for shared, own in (tokens.chat(forms.messages(prompt)) for prompt in prompts)]

    def text_of(written: list[int]) -> str:
        return str(tokens.text([token for token in written if token not in lm.stops])).strip()

    def slots() -> list[str]:
        return [one.text for one in model.generate(prompts, max_tokens=args.max_tokens)]

    def static() -> list[str]:
        pieces = [chats[at : at + args.slots] for at in range(0, len(chats), args.slots)]
        return [text_of(row) for piece in pieces for row in lm.write(piece, args.max_tokens)]

    model.generate(prompts[:2], max_tokens=2)
    steps: list[int] = []
    step = lm.next_tokens
    lm.next_tokens = lambda last, *rest: (steps.append(len(last)), step(last, *rest))[1]
    found, took = _in_turns({"slots": slots, "static": static}, args.rounds)
    written = [one.tokens_out for one in model.generate(prompts, max_tokens=args.max_tokens)]
    alone = [text_of(lm.write([chat], args.max_tokens)[0]) for chat in chats[: args.compare]]
    lengths = np.array(written)
    facts: dict[str, Any] = {"model": model.info.name, "dtype": model.info.extra["dtype"], "rows": args.rows}
    for name, (wall, cpu) in took.items():
        facts[f"{name}_rows_per_s"] = round(args.rows / wall, 3)
        facts[f"{name}_rows_per_cpu_s"] = round(args.rows / cpu, 3)
        facts[f"{name}_flips"] = sum(one != other for one, other in zip(found[name], alone, strict=False))
    return facts | {
        "ratio": round(took["static"][0] / took["slots"][0], 3),
        "ratio_cpu": round(took["static"][1] / took["slots"][1], 3),
        "compared": len(alone),
        "tokens_mean": round(float(lengths.mean()), 1),
        "tokens_max": int(lengths.max()),
        "real_slot_use": round(sum(steps) / (args.slots * len(steps)), 4),
        "real_static_slot_use": round(static_use(lengths, args.slots), 4),
    }


def _in_turns(
    sides: dict[str, Callable[[], list[str]]], rounds: int
) -> tuple[dict[str, list[str]], dict[str, tuple[float, float]]]:
    """What each side wrote, and the least seconds it took: of the clock, and of the processor."""
    found: dict[str, list[str]] = {}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)
        for name in names if turn % 2 == 0 else names[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = sides[name]()
            took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found, {name: (min(w for w, _ in all_), min(c for _, c in all_)) for name, all_ in took.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compare", type=int, default=16, help="rows also written one at a time")
    parser.add_argument("--model", default="package:default", help="URI of a torch model that writes")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripted", action="store_true", help="only the part without a model")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    found = scripted(args.seed) | ({} if args.scripted else real(args))
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
