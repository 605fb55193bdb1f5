"""BPDQ, bit-plane decomposition (arXiv 2602.04163): a grid of 2^k levels with k + 1 free parameters a row and group.

`w = c_0 + sum_i c_i b_i`. Per group, all rows at once:

1. planes start as the k leading bits of an 8-bit min-to-max code;
2. coefficients by ridge least squares in the metric of the Hessian: features and target whitened by `U_group^-T`;
3. repeat: levels from the coefficients; a column pass with error feedback from the group's own targets; refit (2);
   the error after the refit by `core.errors` (the paper's delta correction); each row keeps its best iterate;
4. the kept error moves the columns after the group.

Groups are taken in the group-aware order. Per row the paper's code keeps the iterate that is best over all rows; here
every row keeps its own best, which cannot lose more.
"""

from __future__ import annotations

from typing import Any

from sqluice.workers.quant import core, grid
from sqluice.workers.quant.slices import Quantized, Rule, half

ROUNDS = 10
RIDGE = 1e-4


def quantize(weight: Any, hessian: Any, *, bits: int, group: int, rounds: int = ROUNDS) -> Quantized:
    """`weight` [out, in] under the statistics `hessian` [in, in] of its inputs."""
    import torch

    problem = core.prepare(weight, hessian, group)
    rest = problem.weight.clone()
    codes = torch.empty_like(rest, dtype=torch.uint8)
    coefficients = []
    for run in problem.groups:
        target, factor = rest[run.start : run.end], core.local(problem, run)
        found, c = _solved(target, factor, bits, rounds)
        codes[run.start : run.end] = found
        coefficients.append(c)
        core.propagate(rest, core.errors(target, values_of(found, c), factor), problem, run)
    table = half(problem.by_group(coefficients), "weights").permute(1, 0, 2).contiguous()
    rules = {bits: Rule("planes", bits, {"c": table})}
    return Quantized(problem.restored(codes).T.contiguous(), bits, group, rules)


def _solved(target: Any, factor: Any, bits: int, rounds: int) -> tuple[Any, Any]:
    """Codes uint8 [m, out] and coefficients [k + 1, out] (values that float16 holds) of one group."""
    import torch

    scale, offset = grid.span(target, 8)
    codes = grid.nearest(target, scale, offset, 8).to(torch.uint8) >> (8 - bits)
    c = refit(target, codes, factor, bits)
    best = (codes, c, scored(target, codes, c, factor))
    for _ in range(rounds):
        codes = nearest_pass(target, factor, c)
        c = refit(target, codes, factor, bits)
        lost = scored(target, codes, c, factor)
        better = lost < best[2]
        best = tuple(torch.where(better, new, old) for new, old in zip((codes, c, lost), best, strict=True))
    return best[0], best[1]


def levels(c: Any) -> Any:
    """[2^k, out]: the value of every code under coefficients [k + 1, out]."""
    import torch

    bits = len(c) - 1
    every = torch.arange(2**bits, dtype=torch.uint8, device=c.device)
    return values_of(every[:, None].expand(-1, c.shape[1]), c)


def values_of(codes: Any, c: Any) -> Any:
    """[m, out]: the values of codes [m, out] under coefficients [k + 1, out]."""
    bits = len(c) - 1
    found = c[0].expand(codes.shape).clone()
    for at in range(bits):
        found += c[at + 1] * ((codes >> (bits - 1 - at)) & 1)
    return found


def nearest_pass(target: Any, factor: Any, c: Any) -> Any:
    """Codes of a column pass that takes the nearest level."""
    import torch

    table = levels(c)
    codes = torch.empty(target.shape, dtype=torch.uint8, device=target.device)

    def choose(t: int, wanted: Any) -> Any:
        at = (table - wanted).abs_().argmin(0)
        codes[t] = at.to(torch.uint8)
        return table.gather(0, at[None])[0]

    core.column_pass(target, factor, choose)
    return codes


def refit(target: Any, codes: Any, factor: Any, bits: int) -> Any:
    """Coefficients [k + 1, out] (values that float16 holds): ridge least squares in the metric of the Hessian."""
    import torch

    ones = torch.ones_like(target)
    features = torch.stack([ones, *(((codes >> (bits - 1 - at)) & 1).to(target) for at in range(bits))])
    k, m, out = features.shape
    stacked = torch.cat([features, target[None]]).permute(1, 0, 2).reshape(m, -1)
    white = torch.linalg.solve_triangular(factor.T, stacked, upper=False).reshape(m, k + 1, out)
    white = white.permute(2, 0, 1).double()
    x, y = white[..., :-1], white[..., -1:]
    gram = x.transpose(1, 2) @ x
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
    gram = gram + ridge * torch.eye(k, dtype=gram.dtype, device=gram.device)
    found = torch.linalg.solve(gram, x.transpose(1, 2) @ y)[..., 0]
    return half(found.T.contiguous(), "weights").float()


def scored(target: Any, codes: Any, c: Any, factor: Any) -> Any:
    """[out]: what each row loses in the metric of the Hessian."""
    return core.errors(target, values_of(codes, c), factor).square().sum(0)
