"""Whether a model can do what is asked, and whether what it returned can be used: its number, shape and type, and
whether scores are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError
from sqluice.types import Completion

if TYPE_CHECKING:
    from sqluice.workers.protocol import Operation

NOT_A_NUMBER = "model returned NaN"
_ANSWERS: dict[str, str] = {"score": "scores", "generate": "text", "embed": "embeddings"}


class UnusableError(ValueError):
    """The model answered, but with the wrong number, shape or type."""


def matrix(answer: Any, n: int, k: int | None) -> np.ndarray:
    """`answer` as float32 [n, k]; `UnusableError` when it is not one."""
    try:
        found = np.asarray(answer)
    except (TypeError, ValueError):
        raise UnusableError("the model returned something that is not an array of numbers") from None
    if found.dtype.kind not in "fiu":
        raise UnusableError(f"the model returned {found.dtype} values, not numbers")
    if found.ndim != 2 or found.shape[0] != n or (k is not None and found.shape[1] != k):
        raise UnusableError(f"the model returned shape {list(found.shape)}, not [{n}, {k or 'd'}]")
    return found.astype(np.float32, copy=False)


def not_finite(found: np.ndarray, rows: np.ndarray) -> dict[int, str]:
    """Rows with NaN or +inf, or with no finite number at all. A single -inf is the log of zero."""
    bad = np.isnan(found).any(axis=1) | (found == np.inf).any(axis=1) | np.isneginf(found).all(axis=1)
    if not bad.any():
        return {}
    nan = np.isnan(found).any(axis=1)
    infinite = f"{NOT_A_NUMBER} or an infinite value"
    return {int(rows[at]): NOT_A_NUMBER if nan[at] else infinite for at in np.flatnonzero(bad).tolist()}


def completions(answer: Any, n: int) -> list[Completion]:
    """`answer` as n completions; plain strings are taken as complete texts."""
    if not isinstance(answer, (list, tuple)) or len(answer) != n:
        what = f"{len(answer)} completions" if isinstance(answer, (list, tuple)) else type(answer).__name__
        raise UnusableError(f"the model returned {what}, not a list of {n} completions")
    found = [Completion(one) if isinstance(one, str) else one for one in answer]
    for one in found:
        if not isinstance(one, Completion) or not isinstance(one.text, str):
            raise UnusableError(f"the model returned a {type(one).__name__}, not a Completion")
    return found


def method_of(model: Any, operation: Operation) -> Any:
    """The method for an operation; `ModelError` says what the model has instead."""
    method = getattr(model, operation, None)
    if callable(method):
        return method
    offers = [name for name in _ANSWERS if callable(getattr(model, name, None))]
    raise ModelError(
        f"{name_of(model)} gives no {_ANSWERS[operation]}: it has no method {operation}"
        f" ({'it has ' + ', '.join(offers) if offers else 'nor any other of a model'}); name another model"
    )


def name_of(model: Any) -> str:
    """What messages call a model."""
    return f"model {getattr(getattr(model, 'info', None), 'name', '') or type(model).__name__}"
