"""Logistic regression with an L2 penalty, for a handful of features: Newton's method, steps halved until they help."""

from __future__ import annotations

import numpy as np

_STEPS = 50
_SMALL = 1e-6
_MOST = 30.0


def logistic(features: np.ndarray, yes: np.ndarray, counts: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Weights, float [d], for `features` float [n, d] of which `yes` out of `counts`, float [n], were true; `ridge`
    float [d] is the penalty of each weight."""
    weights = np.zeros(features.shape[1])
    loss = _loss(features, yes, counts, ridge, weights)
    for _ in range(_STEPS):
        chance = sigmoid(features @ weights)
        slope = features.T @ (yes - counts * chance) - ridge * weights
        curvature = (features * (counts * chance * (1 - chance))[:, None]).T @ features + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        while np.abs(step).max() > _SMALL:
            after = _loss(features, yes, counts, ridge, weights + step)
            if after <= loss:
                break
            step /= 2
        if np.abs(step).max() <= _SMALL:
            break
        weights, loss = weights + step, after
    return weights


def _loss(features: np.ndarray, yes: np.ndarray, counts: np.ndarray, ridge: np.ndarray, weights: np.ndarray) -> float:
    logits = features @ weights
    return float((counts * np.logaddexp(0, logits) - yes * logits).sum() + (ridge * weights**2).sum() / 2)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -_MOST, _MOST))))
