"""Which strategies a semantic join has, and what each is expected to ask. EXPLAIN prints the same list."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqluice.optimizer.joins import attribute, classify, factor, several
from sqluice.optimizer.joins.detect import UNKNOWN, Detection
from sqluice.types import Contract

LEAST_PAIRS = 1000
"""Fewer pairs than this are all asked about: a sample would be a good part of them."""

PILOT = 64
"""Pairs drawn at random that are asked about first."""

DENSE = 3
"""Matches in the pilot from which on a join is not sparse."""

BY_ATTRIBUTE = "factor by attribute"
MAP = "map then block"
CROSS = "cross"

EXACT = Contract(recall=0.999, precision=0.999, delta=0.05)
"""What pairs are ranked by where the best ones are wanted first and all of them are to be true."""

PER_MATCH, TO_BEGIN = 5.0, 1000.0
"""What ranking costs: calls a match, and calls to begin with."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a join: distinct inputs of the side with more of them and of the other, pairs after all cheap
    conditions, the expected share of matches (None: unknown), mean characters of the right side's values, whether both
    sides hold the same texts, what the prompt's wording tells, and whether the model writes texts."""

    lefts: int
    rights: int
    pairs: int
    share: float | None = None
    label_length: float = 0.0
    same: bool = False
    detection: Detection = UNKNOWN
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy and the calls it is expected to take; `why_not` where it cannot be taken."""

    name: str
    calls: float
    why_not: str = ""


def options(facts: Facts, *, approximate: bool) -> list[Option]:
    """Every strategy, those that can be taken first, each group by calls. Without `approximate` only the cross join is
    exact enough."""
    share = 1 / max(facts.rights, 1) if facts.share is None else facts.share
    block = min(TO_BEGIN + PER_MATCH * share * facts.pairs, facts.pairs)
    found = [
        Option("classify", classify.calls(facts.lefts, facts.rights), why_not=_no_labels(facts)),
        Option("factor", factor.calls(facts.lefts, facts.rights, same=facts.same), why_not=_no_kinds(facts)),
        Option(BY_ATTRIBUTE, attribute.calls(facts.lefts, facts.rights, same=facts.same), why_not=_no_attribute(facts)),
        Option("block", block, why_not=_no_ranking(facts)),
        Option(MAP, facts.lefts + block, why_not=_no_ranking(facts) or _no_writer(facts)),
        Option("several", several.calls(facts.pairs), why_not=_no_writer(facts)),
        Option(CROSS, facts.pairs),
    ]
    if not approximate:
        found = [one if one.name == CROSS else _refused(one, "ai_mode = 'exact'") for one in found]
    elif facts.pairs < LEAST_PAIRS:
        found = [one if one.name == CROSS else _refused(one, "there are few pairs") for one in found]
    return sorted(found, key=lambda one: (bool(one.why_not), one.calls))


def _refused(option: Option, why: str) -> Option:
    return replace(option, why_not=option.why_not or why)


def _no_labels(facts: Facts) -> str:
    if facts.rights < 2:
        return "one value is no choice"
    if facts.rights > classify.MOST_LABELS:
        return f"{facts.rights:,} values are too many labels"
    if facts.label_length > classify.LONGEST_LABEL:
        return "the values are too long for labels"
    if facts.detection.kind == "match" and facts.detection.sure and facts.rights > classify.LABELS_AT_ONCE:
        return "the question compares two texts"
    return ""


def _no_attribute(facts: Facts) -> str:
    if facts.detection.kind != "attribute":
        return "the question names no attribute of both sides"
    return "too few rows" if min(facts.lefts, facts.rights) < 2 * factor.BLOCK else ""


def _no_kinds(facts: Facts) -> str:
    if min(facts.lefts, facts.rights) < 2 * factor.BLOCK:
        return "too few rows"
    if facts.share is not None and not 0.05 < facts.share < 0.95:
        return "nearly all pairs are alike"
    return ""


def _no_writer(facts: Facts) -> str:
    return "" if facts.writes else "the model writes no texts"


def _no_ranking(facts: Facts) -> str:
    if facts.share is not None and facts.share > 0.2:
        return "too many pairs match"
    return ""
