"""A classifier trained during a query on the labels that it has bought: the embedding head.

Logistic regression with an L2 penalty on embeddings of the arguments, on what a proxy model says, or on both. It is
cross-fitted: the probabilities of rows with labels come from models that have not seen them (Chernozhukov et al.,
"Double/debiased machine learning", 2018, section 3.1), so that they are as good as those of rows without one.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDS = 5
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Inverse strengths that are tried, from the weakest penalty to the strongest, for features of unit variance."""

MOST_TRIED = 800
"""Labels on which penalties are compared; more would take longer and choose the same."""

_LESS_PENALTY = 4.0
"""What a proxy says is penalised less than one of many features: it is a better guess to begin with."""

_FITTING = threading.Lock()
_LEAST = 1e-6
_STEPS = 100
_ARRAYS = ("weights", "bias", "centre", "scale")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear model of some of k classes: `weights` float [c, d] and `bias` float [c] of those in `classes`, over
    features less `centre` by `scale`."""

    k: int
    classes: tuple[int, ...]
    weights: np.ndarray
    bias: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def predict(self, features: np.ndarray | None, proxy: np.ndarray | None) -> np.ndarray:
        """Probabilities of the choices, float64 [n, k]; NaN for rows with a NaN."""
        return self.chances((_joined(features, proxy) - self.centre) / self.scale)

    def chances(self, x: np.ndarray) -> np.ndarray:
        """The same for features that are centred and scaled."""
        logits = x @ self.weights.T + self.bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.full((len(x), self.k), _LEAST)
        found[:, self.classes] = np.maximum(shares / shares.sum(axis=1, keepdims=True), _LEAST)
        found[np.isnan(x).any(axis=1)] = np.nan
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        arrays = {name: getattr(self, name).astype(np.float32) for name in _ARRAYS}
        return {
            "k": self.k,
            "classes": list(self.classes),
            **{name: base64.b64encode(values.tobytes()).decode() for name, values in arrays.items()},
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Linear:
        """From plain values; `KeyError`, `TypeError` or `ValueError` where they are none of a model."""
        read = {name: np.frombuffer(base64.b64decode(found[name]), np.float32).astype(np.float64) for name in _ARRAYS}
        classes = tuple(map(int, found["classes"]))
        weights = read.pop("weights").reshape(len(classes), len(read["centre"]))
        return cls(int(found["k"]), classes, weights, **read)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model on all labels, and float64 [m, k] `scores` of its rows by models that have not seen them. `log_loss` is
    theirs. Rows with a NaN among their features have NaN scores."""

    scores: np.ndarray
    log_loss: float
    model: Linear

    def predict(self, features: np.ndarray | None, proxy: np.ndarray | None) -> np.ndarray:
        """Probabilities of the choices, float64 [n, k], for other rows."""
        return self.model.predict(features, proxy)


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
    scores = np.full((len(x), k), np.nan)
    with _one_thread():
        penalty = _best_penalty(x[whole], y, k, folds)
        for seen, unseen in _splits(folds):
            scores[whole[unseen]] = _trained(x[whole[seen]], y[seen], k, penalty).chances(x[whole[unseen]])
        model = replace(_trained(x[whole], y, k, penalty), centre=centre, scale=scale)
    return Fitted(scores, _log_loss(scores[whole], y), model)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices are small here: BLAS on several threads takes ten times as long. The number is the process's own, so one
    fit at a time may change it."""
    from threadpoolctl import threadpool_limits

    with _FITTING, threadpool_limits(1, user_api="blas"):
        yield


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
            chances = _trained(x[seen], labels[seen], k, penalty).chances(x[unseen])
            loss += _log_loss(chances, labels[unseen]) * len(unseen)
        if loss >= best:
            break
        best, found = loss, penalty
    return found


def _trained(x: np.ndarray, labels: np.ndarray, k: int, penalty: float) -> Linear:
    """A fitted model; the shares of the labels where there is nothing to tell apart."""
    classes = np.unique(labels)
    d = x.shape[1]
    if len(classes) < 2:
        names = tuple(classes.tolist()) or tuple(range(k))
        return Linear(k, names, np.zeros((len(names), d)), np.zeros(len(names)), np.zeros(d), np.ones(d))
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is good enough: folds judge it
        model = LogisticRegression(C=penalty / d, max_iter=_STEPS, tol=1e-3).fit(x, labels)
    weights, bias = model.coef_, model.intercept_
    if len(classes) == 2:
        weights, bias = np.concatenate([np.zeros((1, d)), weights]), np.concatenate([[0.0], bias])
    return Linear(k, tuple(classes.tolist()), weights, bias, np.zeros(d), np.ones(d))


def _log_loss(chances: np.ndarray, labels: np.ndarray) -> float:
    if not len(labels):
        return float("nan")
    return float(-np.log(chances[np.arange(len(labels)), labels]).mean())
