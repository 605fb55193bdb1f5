"""GPTQ (arXiv 2210.17323): uniform grids under error feedback.

Grids are fixed before the first column is rounded ("static groups"), by a search that weighs each column with what its
rounding costs, `1 / U_tt^2`; so columns can be taken in the order of their importance across groups and groups stay
contiguous in the file.
"""

from __future__ import annotations

from typing import Any

from sqluice.workers.quant import core, grid
from sqluice.workers.quant.slices import Quantized, Rule


def quantize(weight: Any, hessian: Any, *, bits: int, group: int) -> Quantized:
    """`weight` [out, in] under the statistics `hessian` [in, in] of its inputs."""
    import torch

    problem = core.prepare(weight, hessian, group, grouped=False)
    owner = problem.order // group
    importance = problem.factor.diagonal().reciprocal().square()
    scales, offsets = [], []
    for index in range(int(owner.max()) + 1):
        inside = owner == index
        scale, offset = grid.span(problem.weight[inside], bits, importance[inside])
        scales.append(scale)
        offsets.append(offset)
    scale, offset = torch.stack(scales), torch.stack(offsets)
    codes = torch.empty_like(problem.weight, dtype=torch.uint8)
    rest = problem.weight.clone()
    groups = owner.tolist()
    for run in problem.groups:

        def choose(t: int, wanted: Any, start: int = run.start) -> Any:
            at = groups[start + t]
            code = grid.nearest(wanted, scale[at], offset[at], bits)
            codes[start + t] = code.to(torch.uint8)
            return offset[at] + scale[at] * code

        target = rest[run.start : run.end]
        factor = core.local(problem, run)
        values = core.column_pass(target, factor, choose)
        core.propagate(rest, core.errors(target, values, factor), problem, run)
    rules = {bits: Rule("affine", bits, {"scale": scale.half(), "offset": offset.half()})}
    return Quantized(problem.restored(codes).T.contiguous(), bits, group, rules)
