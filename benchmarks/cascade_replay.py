"""How many rows a cascade sends to the oracle, and whether it keeps its contract, on recorded scores and answers.

Usage::

    python benchmarks/cascade_replay.py --scores FILE.csv [FILE.csv ...] [--recall .9 --precision .9 | --accuracy .9]
        [--delta .05] [--seeds 200] [--json]

Files have the columns `proxy_pred_true_prob` and `oracle_pred`. Each is replayed once a seed. `delegation` is the share
of rows with an oracle label; `least` is what it would be with the thresholds known and the middle labelled; a violation
is a run that misses one of its targets; the baseline is a single pass of SUPG (`supg.py`) with the same targets and
delta. `learner_s_per_million` scales the learner's time to a million rows, `million_rows_s` is measured on that many.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import supg

from sqluice.optimizer.cascade.learner import YES, Learner
from sqluice.types import Contract

if TYPE_CHECKING:
    from collections.abc import Callable

MILLION = 1_000_000
Run = tuple[np.ndarray, np.ndarray]


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores float [n] and answers bool [n]."""
    with path.open(newline="") as file:
        rows = [
            (float(row["proxy_pred_true_prob"]), row["oracle_pred"].lower() == "true") for row in csv.DictReader(file)
        ]
    return np.array([score for score, _ in rows]), np.array([answer for _, answer in rows], bool)


def replay(scores: np.ndarray, truth: np.ndarray, contract: Contract, seed: int) -> Run:
    """Answers and which rows have a label."""
    learner = Learner(contract, np.random.default_rng(seed))
    learner.add(scores)
    learner.close()
    while len(wanted := learner.wanted()):
        learner.tell(truth[wanted])
    verdict = learner.verdict()
    return verdict.answers == YES, verdict.labelled


def quality(answers: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall, precision and accuracy; 1 where there is nothing to be found or nothing was."""
    both = float((answers & truth).sum())
    return {
        "recall": both / truth.sum() if truth.any() else 1.0,
        "precision": both / answers.sum() if answers.any() else 1.0,
        "accuracy": float((answers == truth).mean()),
    }


def measured(decide: Callable[[int], Run], truth: np.ndarray, contract: Contract, seeds: int) -> dict[str, Any]:
    """One way of deciding, over all seeds."""
    targets = {name: value for name in ("recall", "precision", "accuracy") if (value := getattr(contract, name))}
    shares, found, violations = [], [], 0
    for seed in range(seeds):
        answers, seen = decide(seed)
        reached = quality(answers, truth)
        shares.append(float(seen.mean()))
        found.append(reached)
        violations += any(reached[name] < value for name, value in targets.items())
    result: dict[str, Any] = {"delegation_mean": float(np.mean(shares)), "violations": violations, "seeds": seeds}
    for name in targets:
        values = [one[name] for one in found]
        result |= {f"{name}_min": min(values), f"{name}_mean": float(np.mean(values))}
    return result


def least(scores: np.ndarray, truth: np.ndarray, contract: Contract) -> float:
    """The smallest middle, fully labelled, that keeps the contract; rows with equal scores stay together."""
    order = np.argsort(scores, kind="stable")
    y, n = truth[order], len(truth)
    ends = np.flatnonzero(np.diff(scores[order])) + 1
    places = np.concatenate([[0], ends, [n]])
    yes = np.concatenate([[0], np.cumsum(y)])[places]
    no = places - yes
    best = n
    for at, low in enumerate(places):
        missed = yes[at]
        wrong = no[-1] - no
        found = yes[-1] - missed
        if contract.accuracy:
            fits = missed + wrong <= (1 - contract.accuracy) * n
        else:
            assert contract.recall is not None
            assert contract.precision is not None
            if found < contract.recall * yes[-1]:
                break
            fits = wrong <= (1 - contract.precision) * (found + wrong)
        here = places[fits & (places >= low)]
        best = min(best, int(here.min()) - int(low)) if len(here) else best
    return best / n


def one_file(path: Path, contract: Contract, seeds: int) -> dict[str, Any]:
    """The learner beside the baseline on one file."""
    scores, truth = read(path)
    started = time.perf_counter()
    result = measured(lambda seed: replay(scores, truth, contract, seed), truth, contract, seeds)
    seconds = (time.perf_counter() - started) / seeds
    result |= {
        "scores": path.name,
        "rows": len(scores),
        "delegation_least": least(scores, truth, contract),
        "learner_s_per_million": seconds / len(scores) * MILLION,
    }
    if contract.recall and contract.precision:
        recall, precision = contract.recall, contract.precision

        def single_pass(seed: int) -> Run:
            return supg.decide(scores, truth, recall, precision, contract.delta, np.random.default_rng(seed))

        result["baseline"] = measured(single_pass, truth, contract, seeds)
    return result


def a_million(contract: Contract) -> float:
    """Seconds of learner time on a million rows with a well calibrated score."""
    generator = np.random.default_rng(0)
    scores = generator.beta(0.4, 0.8, MILLION)
    truth = generator.random(MILLION) < scores
    started = time.perf_counter()
    replay(scores, truth, contract, 0)
    return time.perf_counter() - started


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, nargs="+", required=True)
    parser.add_argument("--recall", type=float)
    parser.add_argument("--precision", type=float)
    parser.add_argument("--accuracy", type=float)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.accuracy is not None:
        contract = Contract(accuracy=args.accuracy, delta=args.delta)
    else:
        contract = Contract(args.recall or 0.9, args.precision or 0.9, delta=args.delta)
    files = [one_file(path, contract, args.seeds) for path in args.scores]
    seconds = a_million(contract)
    if args.json:
        print(json.dumps(summary(files) | {"million_rows_s": seconds}))
        return
    for one in files:
        kept = ", ".join(f"{name} {value:.3f}" for name, value in one.items() if name.endswith(("_min", "_mean")))
        missed = f"{one['violations']} of {one['seeds']} missed"
        print(f"{one['scores']}: {missed}, least {one['delegation_least']:.3f}, {kept}")
        if "baseline" in one:
            base = one["baseline"]
            print(
                f"  baseline: delegation {base['delegation_mean']:.3f}, {base['violations']} of {base['seeds']} missed"
            )
    print(f"learner: {seconds:.2f} s for a million rows")


def summary(files: list[dict[str, Any]]) -> dict[str, Any]:
    """One file as it is; of several the means, with each of them."""
    if len(files) == 1:
        return files[0]
    means = ("delegation_mean", "delegation_least", "recall_mean", "precision_mean", "accuracy_mean")
    found = _over(files, (*means, "learner_s_per_million"))
    if "baseline" in files[0]:
        found["baseline"] = _over([one["baseline"] for one in files], means)
    return {**found, "files": files}


def _over(files: list[dict[str, Any]], means: tuple[str, ...]) -> dict[str, Any]:
    found = {name: float(np.mean([one[name] for one in files])) for name in means if name in files[0]}
    lowest = {name: min(one[name] for one in files) for name in files[0] if name.endswith("_min")}
    return {**found, **lowest, "violations": sum(one["violations"] for one in files), "seeds": files[0]["seeds"]}


if __name__ == "__main__":
    main()
