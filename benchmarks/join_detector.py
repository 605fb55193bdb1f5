"""How often the wording of a join prompt is understood: the detector's accuracy and false rewrites on labelled prompts.

Usage::

    python benchmarks/join_detector.py [--data tests/joins/prompts.csv] [--errors] [--json]

`rules` are prompts that the rules were written by. `held_out` were written before the rules, by the same author, so
that they flatter the rules somewhat; no rule was changed for their sake. A false rewrite says label or attribute where
both texts are needed, or names the wrong side, attribute or relation; a miss says match where a rewrite was possible.
`sure` counts only what is not called a guess.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.optimizer.joins.detect import Detection, detect

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Path(__file__).resolve().parents[1] / "tests" / "joins" / "prompts.csv"
Case = tuple[dict[str, str], Detection, Detection]
"""A row of the file, what is true of it, and what was found; `sure` is that of what was found."""


def cases(path: Path) -> list[Case]:
    """All labelled prompts with their detections."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            said = detect(row["template"], (row["left_name"], row["right_name"]))
            side = int(row["label_side"]) if row["label_side"] else None
            true = Detection(row["kind"], side, row["attribute"] or None, row["relation"] or None, sure=said.sure)
            found.append((row, true, said))
    return found


def outcome(true: Detection, said: Detection) -> str:
    """'right', 'miss' or 'false rewrite'."""
    if true == said:
        return "right"
    return "miss" if said.kind == "match" else "false rewrite"


def measured(some: Sequence[Case]) -> dict[str, Any]:
    """Accuracy in every field and in the kind alone, false rewrites, misses, and how much of that was sure."""
    outcomes = [outcome(true, said) for _, true, said in some]
    sure = [kind for kind, (_, _, said) in zip(outcomes, some, strict=True) if said.sure]
    return {
        "prompts": len(some),
        "accuracy": outcomes.count("right") / len(some),
        "kind_accuracy": sum(true.kind == said.kind for _, true, said in some) / len(some),
        "false_rewrites": outcomes.count("false rewrite"),
        "misses": outcomes.count("miss"),
        "sure": len(sure),
        "sure_accuracy": sure.count("right") / max(len(sure), 1),
        "sure_false_rewrites": sure.count("false rewrite"),
        "sure_misses": sure.count("miss"),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    every = cases(args.data)
    splits = {
        split: measured([one for one in every if one[0]["split"] == split])
        for split in sorted({row["split"] for row, _, _ in every})
    }
    if not args.json:
        print(
            "split     prompts  accuracy  kind   false rewrites  misses  sure  their accuracy, false rewrites, misses"
        )
        for split, one in splits.items():
            print(
                f"{split:<9} {one['prompts']:>7}  {one['accuracy']:8.3f}  {one['kind_accuracy']:.3f}"
                f"  {one['false_rewrites']:>14}  {one['misses']:>6}  {one['sure']:>4}"
                f"  {one['sure_accuracy']:.3f}, {one['sure_false_rewrites']}, {one['sure_misses']}"
            )
    if args.errors:
        for row, true, said in every:
            if true != said:
                print(f"{row['split']}  {outcome(true, said)}  {row['template']!r}  {astuple(said)}")
    if args.json:
        print(json.dumps({"data": args.data.name, "splits": splits}))


if __name__ == "__main__":
    main()
