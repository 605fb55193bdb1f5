"""Strategy *block*: pairs in the order of a score that is learnt on the way, from the top down to a proven cut.

1. A spread of pairs, as many from each decade of ranks by similarity, is asked about; then batch after batch of the
   pairs that look likeliest, while the score is fitted anew, until most of a batch is no match.
2. A second spread, over the ranks of that score, tells how deep matches lie: candidates are the first K pairs, K being
   several times the rank of the deepest.
3. Among the candidates a learner bounds what is missed (`cascade/learner.py`, no row is accepted without a label): a
   finite-sample proof without assumptions.
4. Below the cut lie too many pairs to prove anything (Lewis et al., "Certifying one-phase technology-assisted
   reviews", 2021, is about the same in reviews of documents). That the match rate falls with the score would not do: a
   rate of one in ten thousand, however constant, is many matches among millions. Assumed is that matches thin out so
   fast that all the ranks beyond K hold no more of them, in pairs of rows, than the ranks from K/2 to K. A third
   spread, beyond K, tests that; where it finds a match, or the half found too many, K grows and the proof is made anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sqluice.optimizer.cascade.betting import draw
from sqluice.optimizer.cascade.constraints import Constraint
from sqluice.optimizer.cascade.learner import REJECT, UNKNOWN, YES
from sqluice.optimizer.cascade.logistic import logistic, sigmoid
from sqluice.optimizer.joins.pairs import BUDGET, AskPairs, Outcome, asked_everything, proven

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqluice.optimizer.cascade.learner import Verdict
    from sqluice.optimizer.joins.pairs import Pairs, Request, Strategy
    from sqluice.types import Contract

ASSUMING = "monotone score, thinning out beyond rank {cut:,}"
UNLISTED = "no match beyond the most similar pairs"
NO_MATCHES = "no match found"

FIRST_SPREAD, SECOND_SPREAD, AUDIT = 150, 200, 100
LEAST_BATCH, BATCH_SHARE = 50, 0.15
LEAST_TRAINED = 300
POOR_BATCH = 0.4
"""A batch of the likeliest pairs with fewer matches than this ends the learning of the score."""

USEFUL = 0.1
"""A score whose likeliest pairs hold fewer matches than this is left for another way of telling pairs, if there is
one."""

LEAST_FOUND = 5
"""Matches without which no score can be fitted: pairs are taken by similarity until there are so many."""

SOON_IN_VAIN, MOST_IN_VAIN = 500, 2000
"""Pairs that are asked about, the most similar first, before another way of telling pairs is tried, where there is one,
and before it is believed that there is next to no match."""

DEEPER = 4
"""Candidates reach so many times as deep as the deepest match found, and as many pairs as were asked about."""

OWN_PART = 0.45
"""The share of what may be missing that the candidates are given; the rest covers what lies below the cut."""

MOST_EXTENSIONS = 6
RIDGE = 1.0
_TRAINED_ON = 100_000


def search(
    pairs: Pairs,
    features: np.ndarray,
    prior: np.ndarray,
    contract: Contract,
    generator: np.random.Generator,
    *,
    last: bool = True,
) -> Strategy:
    """Find the matches; `features` float32 [n, d] describe the pairs, `prior` float [n] is how similar they look before
    anything is known. Precision is 1: every accepted pair has been asked about. None where matches lie so deep that the
    score tells next to nothing; sooner where this is not the `last` way to tell pairs."""
    ranking = _Ranking(pairs, features, prior)
    failed = yield from _trained(ranking, generator, last=last)
    if failed and failed != BUDGET and not last:
        return None
    if failed:
        return ranking.outcome(certified=False, reason=failed)
    order = ranking.best(len(pairs))
    depth = yield from _spread(pairs, order, SECOND_SPREAD, 30, generator)
    if depth is None:
        return ranking.outcome(certified=False, reason=BUDGET)
    n_labels = int((~pairs.open).sum())
    deepest = max(DEEPER * depth, DEEPER * n_labels)
    if 2 * deepest > len(order) and DEEPER * n_labels * 2 < len(order):
        return None
    for attempt in range(MOST_EXTENSIONS):
        cut = min(deepest, len(order))
        if cut * 2 > len(order):
            cut = len(order)
        verdict = yield from _proven(ranking, order[:cut], contract, generator, attempt)
        if verdict is None or not verdict.certified:
            return ranking.outcome(certified=False, reason=BUDGET if verdict is None else verdict.reason)
        whole = cut == len(order) and not pairs.unlisted
        left = 0.0 if whole else _below(pairs, order[cut // 2 : cut], verdict)
        missed = _missed(verdict, ranking.pairs) + left
        surprise = False
        if not whole:
            audit = yield from _audited(ranking, order[cut:], generator)
            if audit is None:
                return ranking.outcome(certified=False, reason=BUDGET)
            surprise = audit
        if missed <= _missed_at_most(contract, pairs.found) and not surprise:
            reached = {"recall": pairs.found / (pairs.found + missed) if missed else 1.0, "precision": 1.0}
            return ranking.outcome(
                certified=True,
                assuming=_assumed(pairs, cut, whole=whole),
                reached=reached,
                order=order,
                cut=cut,
            )
        deepest = 2 * cut
    return ranking.outcome(certified=False, reason="score not monotone")


class _Ranking:
    """The score as it stands."""

    def __init__(self, pairs: Pairs, features: np.ndarray, prior: np.ndarray) -> None:
        self.pairs = pairs
        self.prior = prior
        order = np.argsort(-prior, kind="stable")
        self.by_prior = order
        near = features[order[:_TRAINED_ON]]
        centre, scale = near.mean(axis=0), near.std(axis=0) + 1e-6
        self._features = (features - centre) / scale
        self.scores = prior.astype(float)
        """Log-odds once they were fitted, similarities before."""

    def fit(self) -> None:
        """Fit the score to the labels so far."""
        known = np.flatnonzero(self.pairs.labels >= 0)
        x = np.concatenate([np.ones((len(known), 1)), self._features[known]], axis=1).astype(float)
        ridge = np.full(x.shape[1], RIDGE)
        ridge[0] = 1e-3
        weights = logistic(x, (self.pairs.labels[known] == YES).astype(float), np.ones(len(known)), ridge)
        self.scores = self._features @ weights[1:].astype(np.float32) + weights[0]

    def best(self, k: int) -> np.ndarray:
        """The k likeliest pairs without a label, in that order."""
        rows = np.flatnonzero(self.pairs.open)
        scores = self.scores[rows]
        if k < len(rows):
            rows = rows[np.argpartition(-scores, k - 1)[:k]]
        return np.asarray(rows[np.argsort(-self.scores[rows], kind="stable")])

    def outcome(
        self,
        *,
        certified: bool,
        reason: str = "",
        assuming: str = "",
        reached: dict[str, float] | None = None,
        order: np.ndarray | None = None,
        cut: int = 0,
    ) -> Outcome:
        """What has been found. Scores are chances by the fitted score."""
        pairs = self.pairs
        if not pairs.open.any() and not pairs.unlisted:
            return asked_everything(pairs)
        scores = sigmoid(self.scores)
        below = np.zeros(0, np.int64) if order is None else order[cut:]
        return Outcome(
            pairs.labels == YES,
            scores,
            certified=certified,
            reason=reason,
            assuming=assuming,
            tau_low=float(scores[pairs.open].max()) if pairs.open.any() else np.nan,
            reached=reached or {},
            cut=float(scores[below[0]]) if len(below) else np.nan,
            pruned=float(pairs.mass[below].sum()) + pairs.unlisted,
        )


def _trained(ranking: _Ranking, generator: np.random.Generator, *, last: bool) -> Generator[Request, int, str]:
    """Ask until the score has learnt what it can; why not, where there is nothing to learn from."""
    pairs = ranking.pairs
    first = yield from _spread(pairs, ranking.by_prior, FIRST_SPREAD, 1, generator)
    if first is None:
        return BUDGET
    while int((pairs.labels == YES).sum()) < LEAST_FOUND:
        batch = ranking.best(2 * LEAST_BATCH)
        if not len(batch) or int((~pairs.open).sum()) > (MOST_IN_VAIN if last else SOON_IN_VAIN):
            break
        if (yield AskPairs(batch)) < len(batch):
            return BUDGET
    taken = found = 0
    while True:
        ranking.fit()
        labelled = int((~pairs.open).sum())
        batch = ranking.best(max(LEAST_BATCH, int(BATCH_SHARE * labelled)))
        if not len(batch):
            return ""
        if (yield AskPairs(batch)) < len(batch):
            return BUDGET
        hits = int((pairs.labels[batch] == YES).sum())
        taken, found = taken + len(batch), found + hits
        if hits < POOR_BATCH * len(batch) and labelled + len(batch) > LEAST_TRAINED:
            ranking.fit()
            useless = not (pairs.labels == YES).any() if last else found < USEFUL * taken
            return NO_MATCHES if useless else ""


def _spread(
    pairs: Pairs, order: np.ndarray, k: int, start: int, generator: np.random.Generator
) -> Generator[Request, int, int | None]:
    """Ask about pairs at ranks that are spread evenly over decades, from `start`; the rank of the deepest match, 0
    without one, None when the budget is spent."""
    if len(order) <= start:
        start = 1
    places = np.exp(generator.uniform(math.log(start), math.log(len(order) + 1), k)).astype(np.int64) - 1
    places = np.unique(places[places < len(order)])
    places = places[pairs.labels[order[places]] == UNKNOWN]
    rows = order[places]
    if len(rows) and (yield AskPairs(rows, "sample")) < len(rows):
        return None
    hits = places[pairs.labels[rows] == YES]
    return int(hits.max()) + 1 if len(hits) else 0


def _audited(
    ranking: _Ranking, below: np.ndarray, generator: np.random.Generator
) -> Generator[Request, int, bool | None]:
    """Whether there is a match among pairs below the cut: some by the score, some by similarity alone, some at random
    by the rows they stand for; None when the budget is spent."""
    pairs, found = ranking.pairs, False
    for order in (below, _by_prior(ranking, below)):
        depth = yield from _spread(pairs, order, AUDIT // 2, 1, generator)
        if depth is None:
            return None
        found |= depth > 0
    rows = below[pairs.open[below]]
    if len(rows):
        taken, _ = draw(pairs.mass[rows], min(AUDIT, len(rows)), generator)
        if (yield AskPairs(rows[taken], "sample")) < len(taken):
            return None
        found |= bool((pairs.labels[rows[taken]] == YES).any())
    return found


def _proven(
    ranking: _Ranking, candidates: np.ndarray, contract: Contract, generator: np.random.Generator, attempt: int
) -> Generator[Request, int, Verdict | None]:
    """Bound what is missed among candidates and the pairs asked about; None when the budget is spent."""
    pairs = ranking.pairs
    rows = np.unique(np.concatenate([np.flatnonzero(~pairs.open), candidates]))
    ranks = np.empty(len(rows))
    ranks[np.argsort(-ranking.scores[rows], kind="stable")] = np.arange(1, len(rows) + 1)
    assert contract.recall is not None
    slack, delta = 1 - contract.recall, contract.delta / 2 ** (attempt + 1)
    promise = Constraint("recall", contract.recall, contract.recall / OWN_PART, slack, slack, 0.0, delta)
    half = max(float((pairs.labels == YES).sum()), 1.0)
    scores = half / (half + ranks)  # smooth in log-rank, so that its rates bend to the labels
    return (yield from proven(pairs, rows, scores, [promise], generator, side=REJECT))


def _assumed(pairs: Pairs, cut: int, *, whole: bool) -> str:
    if whole:
        return ""
    return ASSUMING.format(cut=cut) + (f", {UNLISTED}" if pairs.unlisted else "")


def _by_prior(ranking: _Ranking, below: np.ndarray) -> np.ndarray:
    """Pairs below the cut, the most similar first: an order that the score has had no part in."""
    return np.asarray(below[np.argsort(-ranking.prior[below], kind="stable")])


def _missed_at_most(contract: Contract, found: float) -> float:
    """How many pairs may be missing where `found` are there and all of them are right."""
    assert contract.recall is not None
    return (1 - contract.recall) / contract.recall * found


def _missed(verdict: Verdict, pairs: Pairs) -> float:
    """At most so many matches are missed among the candidates."""
    recall = verdict.reached.get("recall", 1.0)
    return OWN_PART * pairs.found * (1 / recall - 1) if recall else math.inf


def _below(pairs: Pairs, half: np.ndarray, verdict: Verdict) -> float:
    """Matches below the cut, if they are no more than those in the deeper half of the candidates."""
    return float(pairs.mass[half[pairs.labels[half] == YES]].sum()) + _missed(verdict, pairs)
