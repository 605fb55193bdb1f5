"""Round to nearest: each weight to the nearest point of its group's grid, from the weights alone."""

from __future__ import annotations

from typing import Any

from sqluice.workers.quant import grid
from sqluice.workers.quant.core import check_finite
from sqluice.workers.quant.slices import Quantized, Rule


def quantize(weight: Any, hessian: Any, *, bits: int, group: int) -> Quantized:
    """`weight` [out, in] on min-to-max grids. `hessian` is only looked at for NaN."""
    import torch

    check_finite(weight, hessian)
    columns = weight.float().T
    codes, scales, offsets = [], [], []
    for run in columns.split(group):
        scale, offset = grid.span(run, bits)
        codes.append(grid.nearest(run, scale, offset, bits))
        scales.append(scale)
        offsets.append(offset)
    tensors = {"scale": torch.stack(scales).half(), "offset": torch.stack(offsets).half()}
    rules = {bits: Rule("affine", bits, tensors)}
    return Quantized(torch.cat(codes).T.to(torch.uint8).contiguous(), bits, group, rules)
