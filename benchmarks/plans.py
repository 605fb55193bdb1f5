"""Calls that plans make, beside those of the written order and of the best order there is.

Usage::

    python benchmarks/plans.py [--json] [--only NAME]

Queries over a generated star schema ask scripted models that say yes to a known share of all inputs. `best` is found by
trying every order of the questions (of conjuncts, and of arms inside them) on the fully reduced rows, with every answer
known beforehand: a question is asked about the distinct inputs of the rows that get to it. `written` is the order in
which the questions stand. Each query runs twice, without and with what the first run has learnt; nothing is cached.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from star import QUERIES, TABLES, Query

from sqluice.types import ModelInfo, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

SLACK_CALLS, SLACK_SHARE = 64, 0.02
_SHARE = re.compile(r"(\d+)%")


class Known:
    """Says yes to the share of inputs that its prompt names ('30%'), and counts what it is asked."""

    info = ModelInfo("known", revision="1")
    batch_rows = 64

    def __init__(self) -> None:
        self.calls = 0

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]."""
        self.calls += len(prompts)
        yes = np.array([says_yes(prompt.template, prompt.args) for prompt in prompts])
        return np.log(np.where(yes[:, None], [[0.9, 0.1]], [[0.1, 0.9]])).astype(np.float32)[:, : len(choices)]


def says_yes(template: str, args: Sequence[str]) -> bool:
    """The answer to a prompt."""
    share = _SHARE.search(template)
    assert share is not None, template
    digest = hashlib.blake2b("\x1f".join([template, *args]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 1000 < 10 * int(share[1])


class Answers:
    """Every answer to a query's questions on its reduced rows."""

    def __init__(self, con: Any, query: Query) -> None:
        rows = con.execute(query.reduced).fetchall()
        self.n = len(rows)
        self.nothing = np.zeros(self.n, bool)
        self.cheap = np.array([row[-1] is True for row in rows], bool)
        self.same: dict[int, int] = {}
        """By question the first one that asks the same."""
        self.codes: dict[int, np.ndarray] = {}
        self.yes: dict[int, np.ndarray] = {}
        at = 0
        for number, (template, width) in enumerate(query.questions):
            inputs = [tuple(row[at : at + width]) for row in rows]
            known = {one: code for code, one in enumerate(dict.fromkeys(one for one in inputs if None not in one))}
            self.codes[number] = np.array([known.get(one, -1) for one in inputs], np.int64)
            answers = np.array([says_yes(template, tuple(map(str, one))) for one in known] or [False])
            self.yes[number] = answers[self.codes[number]] & (self.codes[number] >= 0)
            same = (one for one in range(number) if query.questions[one] == query.questions[number])
            self.same[number] = next((one for one in same if (self.codes[one] == self.codes[number]).all()), number)
            at += width

    def calls(self, number: int, rows: np.ndarray) -> set[int]:
        """The inputs of a question on some rows."""
        codes = self.codes[number][rows]
        return set(codes[codes >= 0].tolist())


def spend(node: Any, rows: np.ndarray, answers: Answers, asked: dict[int, set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Decide a formula on rows in the order in which it stands; where it is true and where it is false."""
    if isinstance(node, int):
        asked.setdefault(answers.same[node], set()).update(answers.calls(node, rows))
        return answers.yes[node], ~answers.yes[node] & (answers.codes[node] >= 0)
    if node == "cheap":
        return answers.cheap, ~answers.cheap
    kind, *arms = node
    if kind == "not":
        yes, no = spend(arms[0], rows, answers, asked)
        return no, yes
    if kind == "each":
        for arm in arms:
            spend(arm, rows, answers, asked)
        return answers.nothing, answers.nothing
    all_yes, all_no = np.ones(answers.n, bool), np.zeros(answers.n, bool)
    if kind == "or":
        all_yes, all_no = all_no, all_yes
    for arm in arms:
        yes, no = spend(arm, rows, answers, asked)
        if kind == "or":
            all_yes, all_no, rows = all_yes | yes, all_no & no, rows & ~yes
        else:
            all_yes, all_no = all_yes & yes, all_no | no
            rows = rows & (yes if kind == "where" else ~no)
    return all_yes, all_no


def orders(node: Any) -> list[Any]:
    """Every order of a formula."""
    if isinstance(node, int | str):
        return [node]
    kind, *arms = node
    found = []
    for order in itertools.permutations(arms) if kind != "not" else [tuple(arms)]:
        found += [(kind, *some) for some in itertools.product(*(orders(arm) for arm in order))]
    return found


def total(node: Any, answers: Answers) -> int:
    """Calls of a formula as it stands."""
    asked: dict[int, set[int]] = {}
    spend(node, np.ones(answers.n, bool), answers, asked)
    return sum(map(len, asked.values()))


def measure(only: str | None) -> dict[str, Any]:
    """Every query, cold and warm."""
    os.environ["SQLUICE_HOME"] = tempfile.mkdtemp(prefix="sqluice-plans-")
    import sqluice

    model = Known()
    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle="known")
    con.register_model("known", model)
    for statement in TABLES:
        con.execute(statement)
    found = []
    for query in QUERIES:
        if only not in (None, query.name):
            continue
        answers = Answers(con, query)
        one: dict[str, Any] = {"query": query.name, "written": total(query.formula, answers)}
        one["best"] = min(total(order, answers) for order in orders(query.formula))
        for run in ("cold", "warm"):
            model.calls, started = 0, time.perf_counter()
            con.execute(query.sql).fetchall()
            one[run] = model.calls
            one[f"{run}_seconds"] = round(time.perf_counter() - started, 3)
        found.append(one)
    return {"queries": found, **{run: summary(found, run) for run in ("written", "cold", "warm")}}


def summary(found: list[dict[str, Any]], run: str) -> dict[str, Any]:
    """Geometric mean and worst of calls over the best; queries that ask more than the written order may."""
    ratios = [max(one[run], 1) / max(one["best"], 1) for one in found]
    above = [
        one["query"] for one in found if one[run] > one["written"] + max(SLACK_CALLS, SLACK_SHARE * one["written"])
    ]
    worst = max(range(len(found)), key=ratios.__getitem__)
    return {
        "geometric_mean": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3),
        "worst": round(ratios[worst], 3),
        "worst_query": found[worst]["query"],
        "above_written": above,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", help="one query by its name")
    options = parser.parse_args()
    found = measure(options.only)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'query':34} {'written':>8} {'best':>8} {'cold':>8} {'warm':>8} {'cold/best':>10} {'seconds':>8}")
    for one in found["queries"]:
        ratio = one["cold"] / max(one["best"], 1)
        numbers = f"{one['written']:8,} {one['best']:8,} {one['cold']:8,} {one['warm']:8,} {ratio:10.2f}"
        print(f"{one['query']:34} {numbers} {one['cold_seconds']:8.2f}")
    for run in ("written", "cold", "warm"):
        print(run, found[run])


if __name__ == "__main__":
    main()
