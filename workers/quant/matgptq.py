"""MatGPTQ (arXiv 2602.03537), the paper's rule: one master code a weight, its slices rounded from the leading bits.

Slices are MatQuant's (arXiv 2502.06786): `S_b = clamp((q >> K-b) + (q >> K-b-1 & 1), 0, 2^b - 1)`, one scale and
offset a group for all widths. A weight w takes the code with the least `sum_b lambda_b (w - w_b(q))^2`, and hands on
the plain mean of its slices' errors: one state of error for all widths. Grids span the group's compensated weights.

In units of the grid, u = (w - offset) / scale, the cost of code q is a line in u: `B(q) - 2 u A(q)` with A the
weighted sum of its slices' values and B that of their squares. The best code for every u is the lower envelope of
these lines, so a search among its corners takes the place of 2^K trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.workers.quant import core, grid
from sqluice.workers.quant.slices import Quantized, Rule, rounded

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantize(
    weight: Any, hessian: Any, *, bits: Sequence[int], group: int, emphasis: Sequence[float] | None = None
) -> Quantized:
    """`weight` [out, in] as a master code of `max(bits)` bits; `emphasis` is lambda for each of `bits` (all 1)."""
    import torch

    widths = sorted(bits)
    planes = widths[-1]
    lambdas = list(emphasis or [1.0] * len(widths))
    corners, envelope, mean = best_codes(widths, lambdas, weight.device)
    problem = core.prepare(weight, hessian, group)
    rest = problem.weight.clone()
    codes = torch.empty_like(rest, dtype=torch.uint8)
    scales, offsets = [], []
    for run in problem.groups:
        target, factor = rest[run.start : run.end], core.local(problem, run)
        scale, offset = grid.span(target, planes)

        def choose(t: int, wanted: Any, scale: Any = scale, offset: Any = offset, start: int = run.start) -> Any:
            code = envelope[torch.searchsorted(corners, (wanted - offset) / scale)]
            codes[start + t] = code.to(torch.uint8)
            return offset + scale * mean[code]

        values = core.column_pass(target, factor, choose)
        core.propagate(rest, core.errors(target, values, factor), problem, run)
        scales.append(scale)
        offsets.append(offset)
    tensors = {"scale": problem.by_group(scales).half(), "offset": problem.by_group(offsets).half()}
    rules = {width: Rule("rounded", width, {}, base=planes) for width in widths[:-1]}
    rules[planes] = Rule("affine", planes, tensors)
    return Quantized(problem.restored(codes).T.contiguous(), planes, group, rules)


def best_codes(widths: Sequence[int], lambdas: Sequence[float], device: Any = "cpu") -> tuple[Any, Any, Any]:
    """Corners [c], the codes [c + 1] that are best between them, and the mean slice value of every code [2^K].

    All in units of the grid. `searchsorted(corners, u)` is the place of u's best code.
    """
    import torch

    planes = max(widths)
    every = torch.arange(2**planes)
    values = torch.stack([(rounded(every, planes, width) << (planes - width)).double() for width in widths])
    weights = torch.tensor(lambdas, dtype=torch.float64)[:, None]
    slopes, squares = (weights * values).sum(0), (weights * values.square()).sum(0)
    hull: list[int] = []
    corners: list[float] = []
    order = sorted(every.tolist(), key=lambda code: (float(slopes[code]), float(squares[code]), code))
    for code in order:
        if hull and float(slopes[code]) == float(slopes[hull[-1]]):
            continue
        while hull:
            meets = float((squares[code] - squares[hull[-1]]) / (slopes[code] - slopes[hull[-1]])) / 2
            if not corners or meets > corners[-1]:
                corners.append(meets)
                break
            hull.pop()
            corners.pop()
        hull.append(code)
    found = torch.tensor(corners, dtype=torch.float32, device=device)
    return found, torch.tensor(hull, device=device), values.mean(0).float().to(device)
