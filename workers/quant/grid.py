"""Uniform grids: `offset + scale * code`, codes 0 .. 2^bits - 1, one scale and offset a row and group."""

from __future__ import annotations

from typing import Any

from sqluice.workers.quant.slices import half

SHRINKS = 40
"""Steps of the search for a scale: shares 1, .98, .. of the range between the smallest and largest weight."""
_LEAST = 2.0**-24


def span(columns: Any, bits: int, importance: Any = None) -> tuple[Any, Any]:
    """Scale and offset, float32 [out] (values that float16 holds), for the columns [m, out] of a group.

    Without `importance` the grid spans the smallest to the largest weight. With it ([m]), the share of that span
    which loses the least `sum importance * (w - q)^2` after rounding is searched: at few bits, cutting the tails
    costs less than coarse steps.
    """
    import torch

    low, high = columns.amin(0).clamp(max=0.0), columns.amax(0).clamp(min=0.0)
    best = _held(low, high, bits)
    if importance is None:
        return best
    weights = importance[:, None]
    least = _lost(columns, *best, bits, weights)
    for step in range(1, SHRINKS):
        share = 1.0 - 0.02 * step
        tried = _held(low * share, high * share, bits)
        lost = _lost(columns, *tried, bits, weights)
        better = lost < least
        least = torch.where(better, lost, least)
        best = (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1]))
    return best


def _held(low: Any, high: Any, bits: int) -> tuple[Any, Any]:
    """Scale and offset as float16 can hold them; a group of zeros gets a scale that is not zero."""
    scale = half(((high - low) / (2**bits - 1)).clamp(min=_LEAST), "weights").float()
    return scale, half((low / scale).round() * scale, "weights").float()


def _lost(columns: Any, scale: Any, offset: Any, bits: int, weights: Any) -> Any:
    gap = columns - offset - scale * nearest(columns, scale, offset, bits)
    return (gap.square_() * weights).sum(0)


def nearest(columns: Any, scale: Any, offset: Any, bits: int) -> Any:
    """Float codes of the nearest grid points to `columns` [.., out]."""
    return ((columns - offset) / scale).round().clamp(0, 2**bits - 1)
