"""A classifier trained during a query on the labels that it has bought: the embedding head.

Logistic regression with an L2 penalty on embeddings of the arguments, on what a proxy model says, or on both. It is
cross-fitted: the probabilities of rows with labels come from models that have not seen them (Chernozhukov et al.,
"Double/debiased machine learning", 2018, section 3.1), so that they are as good as those of rows without one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDS = 5
PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""Inverse strengths that are tried, from the weakest penalty to the strongest, for features of unit variance."""

MOST_TRIED = 400
"""Labels on which penalties are compared; more would take longer and choose the same."""

_LESS_PENALTY = 4.0
"""What a proxy says is penalised less than one of many features: it is a better guess to begin with."""

_LEAST = 1e-6
_STEPS = 100


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model on all labels, and float64 [m, k] `scores` of its rows by models that have not seen them. `log_loss` is
    theirs. Rows with a NaN among their features have NaN scores."""

    scores: np.ndarray
    log_loss: float
    k: int
    _model: Any
    _centre: np.ndarray
    _scale: np.ndarray

    def predict(self, features: np.ndarray | None, proxy: np.ndarray | None) -> np.ndarray:
        """Probabilities of the choices, float64 [n, k], for other rows."""
        return _chances(self._model, (_joined(features, proxy) - self._centre) / self._scale, self.k)


def fit(
    features: np.ndarray | None,
    labels: np.ndarray,
    k: int,
    *,
    proxy: np.ndarray | None,
    generator: np.random.Generator,
) -> Fitted:
    """Fit on m rows: `features` float [m, d] and `proxy` float [m, k] probabilities, at least one of them; `labels` int
    [m] in 0 .. k - 1. Where all labels are the same, or of each but one there is a single label, scores are the shares
    of the labels."""
    x = _joined(features, proxy)
    whole = np.flatnonzero(~np.isnan(x).any(axis=1))
    centre = x[whole].mean(axis=0) if len(whole) else np.zeros(x.shape[1])
    scale = x[whole].std(axis=0) + 1e-9 if len(whole) else np.ones(x.shape[1])
    if proxy is not None and features is not None:
        scale[features.shape[1] :] /= _LESS_PENALTY
    x, y = (x - centre) / scale, labels[whole]
    folds = _folds(y, generator)
    penalty = _best_penalty(x[whole], y, k, folds)
    scores = np.full((len(x), k), np.nan)
    for seen, unseen in _splits(folds):
        scores[whole[unseen]] = _chances(_trained(x[whole[seen]], y[seen], penalty), x[whole[unseen]], k)
    return Fitted(scores, _log_loss(scores[whole], y), k, _trained(x[whole], y, penalty), centre, scale)


def _joined(features: np.ndarray | None, proxy: np.ndarray | None) -> np.ndarray:
    """Features of both kinds: of the proxy, log probabilities over their mean."""
    parts = [] if features is None else [np.asarray(features, np.float64)]
    if proxy is not None:
        logs = np.log(np.clip(proxy, _LEAST, 1.0))
        parts.append((logs - logs.mean(axis=1, keepdims=True))[:, :-1])
    return np.concatenate(parts, axis=1)


def _folds(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Fold of each row, int [m]: of every class as many in each."""
    folds = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        folds[rows] = np.arange(len(rows)) % FOLDS
    return folds


def _splits(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def _best_penalty(x: np.ndarray, labels: np.ndarray, k: int, folds: np.ndarray) -> float:
    """The penalty with the least loss on rows it has not seen; weaker ones are not tried once the loss rises again."""
    x, labels, folds = x[:MOST_TRIED], labels[:MOST_TRIED], folds[:MOST_TRIED]
    best, found = np.inf, PENALTIES[-1]
    for penalty in reversed(PENALTIES):
        loss = 0.0
        for seen, unseen in _splits(folds):
            chances = _chances(_trained(x[seen], labels[seen], penalty), x[unseen], k)
            loss += _log_loss(chances, labels[unseen]) * len(unseen)
        if loss >= best:
            break
        best, found = loss, penalty
    return found


def _trained(x: np.ndarray, labels: np.ndarray, penalty: float) -> Any:
    """A fitted model, or the shares of the labels where there is nothing to tell apart."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        return classes, counts
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is good enough: folds judge it
        return LogisticRegression(C=penalty / x.shape[1], max_iter=_STEPS, tol=1e-3).fit(x, labels)


def _chances(model: Any, x: np.ndarray, k: int) -> np.ndarray:
    """Probabilities float64 [n, k], never 0; NaN for rows with a NaN."""
    found = np.full((len(x), k), np.nan)
    whole = ~np.isnan(x).any(axis=1)
    if not whole.any():
        return found
    chances = np.full((int(whole.sum()), k), _LEAST)
    if isinstance(model, tuple):
        classes, counts = model
        chances[:, classes] = counts / max(counts.sum(), 1)
    else:
        chances[:, model.classes_] = np.maximum(model.predict_proba(x[whole]), _LEAST)
    found[whole] = chances / chances.sum(axis=1, keepdims=True)
    return found


def _log_loss(chances: np.ndarray, labels: np.ndarray) -> float:
    if not len(labels):
        return float("nan")
    return float(-np.log(chances[np.arange(len(labels)), labels]).mean())
