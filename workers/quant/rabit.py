"""RaBiT's weight model, fitted after training: a sum of binary paths with row and column scales, no groups.

`W = sum_i g_i (rows) * B_i * h_i (columns)`, B_i in {-1, +1}: a product needs additions and 2 k scalings a row and
column. The model and the start are those of RaBiT (arXiv 2602.05367):

1. iterative residual SVID: in turn, each path is the sign of what the others leave of W (columns weighted by
   `H_jj^(1/4)`), and the best rank-1 fit of its magnitude;
2. ours: a column pass with error feedback that chooses all k signs of a weight at once, scales fixed;
3. ours: descent on `tr((W - Q) H (W - Q)^T)`: signs column by column, the column's h in closed form beside them, then
   all of g, a least-squares problem of k unknowns a row. A step that would not gain is not taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.workers.quant import core
from sqluice.workers.quant.slices import Quantized, Rule, half

if TYPE_CHECKING:
    from sqluice.workers.quant.core import Group, Problem

RUN = 128
SVID_ROUNDS = 10
SWEEPS = 4
_LEAST = 1e-12


def quantize(weight: Any, hessian: Any, *, bits: int, group: int = 0, sweeps: int = SWEEPS) -> Quantized:
    """`weight` [out, in] as `bits` paths under the statistics `hessian` [in, in]. There are no groups."""
    import torch

    problem = core.prepare(weight, hessian, RUN, grouped=False)
    fit = Fit(problem, bits)
    fit.feedback()
    for _ in range(sweeps):
        fit.sweep()
    powers = (2 ** torch.arange(bits - 1, -1, -1)).to(fit.signs)[:, None, None]
    codes = ((fit.signs > 0) * powers).sum(0).to(torch.uint8)
    h = half(problem.restored(fit.h.T.contiguous()).T.contiguous(), "column scales")
    rules = {bits: Rule("paths", bits, {"g": half(fit.g, "row scales"), "h": h})}
    return Quantized(problem.restored(codes).T.contiguous(), bits, group, rules)


def svid(target: Any, paths: int, rounds: int = SVID_ROUNDS) -> tuple[Any, Any, Any]:
    """Signs [k, in, out], g [k, out] and h [k, in] of iterative residual SVID on `target` [in, out]."""
    import torch

    signs = torch.ones(paths, *target.shape, dtype=target.dtype, device=target.device)
    g = torch.zeros(paths, target.shape[1], dtype=target.dtype, device=target.device)
    h = torch.zeros(paths, target.shape[0], dtype=target.dtype, device=target.device)
    for _ in range(rounds):
        for at in range(paths):
            others = sum((_path(signs, g, h, i) for i in range(paths) if i != at), torch.zeros_like(target))
            left = target - others
            signs[at] = torch.where(left >= 0, 1.0, -1.0)
            h[at], g[at] = rank_one(left.abs())
    return signs, g, h


def rank_one(magnitude: Any) -> tuple[Any, Any]:
    """h [in] and g [out] with `h g^T` the best rank-1 fit of a non-negative [in, out]: a power iteration, which is
    the same at every run. h has a root mean square of 1."""
    import torch

    g = magnitude.mean(0)
    h = magnitude.mean(1)
    for _ in range(8):
        h = magnitude @ g / g.square().sum().clamp(min=_LEAST)
        h = h / h.square().mean().sqrt().clamp(min=_LEAST)
        g = h @ magnitude / h.square().sum().clamp(min=_LEAST)
    return h, torch.as_tensor(g)


def _path(signs: Any, g: Any, h: Any, at: int) -> Any:
    return signs[at] * h[at][:, None] * g[at][None, :]


class Fit:
    """Signs [k, in, out], g [k, out], h [k, in] (values that float16 holds) and the values [in, out] they make."""

    def __init__(self, problem: Problem, paths: int) -> None:
        self.problem = problem
        scale = problem.hessian.diagonal().clamp(min=_LEAST) ** 0.25
        scale = scale / scale.mean()
        self.signs, g, h = svid(problem.weight * scale[:, None], paths)
        self.g = half(g, "row scales").float()
        self.h = half(h / scale, "column scales").float()
        self.values = sum(_path(self.signs, self.g, self.h, at) for at in range(paths))
        self._every = _sign_rows(paths, problem.weight)

    def objective(self) -> float:
        """What the layer loses."""
        return core.loss(self.problem, self.values)

    def feedback(self) -> None:
        """Step 2, then all of g."""
        rest = self.problem.weight.clone()
        for run in self.problem.groups:
            inside = slice(run.start, run.end)
            target, factor = rest[inside], core.local(self.problem, run)

            def choose(t: int, wanted: Any, start: int = run.start) -> Any:
                return self._choose(start + t, wanted)

            self.values[inside] = core.column_pass(target, factor, choose)
            core.propagate(rest, core.errors(target, self.values[inside], factor), self.problem, run)
        self._refit_rows()

    def _choose(self, column: int, wanted: Any) -> Any:
        """Set the signs of a column to those whose value is nearest to `wanted` [out]; returns the values."""
        levels = self._every @ (self.g * self.h[:, column, None])
        at = (levels - wanted).abs_().argmin(0)
        self.signs[:, column] = self._every[at].T
        return levels.gather(0, at[None])[0]

    def sweep(self) -> None:
        """Step 3, once over all columns and rows."""
        pull = self.problem.hessian @ (self.problem.weight - self.values)
        for run in self.problem.groups:
            inside = slice(run.start, run.end)
            before = self.values[inside].clone()
            self._descend(run, pull[inside].clone())
            pull -= self.problem.hessian[:, inside] @ (self.values[inside] - before)
        self._refit_rows()

    def _descend(self, run: Group, force: Any) -> None:
        inside = slice(run.start, run.end)
        block = self.problem.hessian[inside, inside]
        for t, stiff in enumerate(block.diagonal().tolist()):
            column = run.start + t
            old = self.values[column].clone()
            wanted = old + force[t] / stiff
            new = self._column_scales(column, wanted, self._choose(column, wanted))
            self.values[column] = new
            force.addr_(block[:, t], new - old, alpha=-1.0)

    def _column_scales(self, column: int, wanted: Any, values: Any) -> Any:
        """Refit h of a column to `wanted` [out] unless that gains nothing; returns the values."""
        import torch

        x = self.g * self.signs[:, column]
        gram = (x @ x.T).double()
        gram = gram + (1e-9 * gram.diagonal().mean() + _LEAST) * torch.eye(len(x), dtype=gram.dtype, device=x.device)
        h = half(torch.linalg.solve(gram, (x @ wanted).double()), "column scales").float()
        found = h @ x
        if float((found - wanted).square().sum()) < float((values - wanted).square().sum()):
            self.h[:, column] = h
            return found
        return values

    def _refit_rows(self) -> None:
        """g by least squares in the metric of H, for rows that gain."""
        import torch

        hessian, weight = self.problem.hessian, self.problem.weight
        x = self.signs * self.h[:, :, None]
        hx = torch.stack([hessian @ one for one in x])
        gram = torch.einsum("kio,lio->okl", x, hx).double()
        right = torch.einsum("kio,io->ok", hx, weight).double()
        ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1) + _LEAST
        gram = gram + ridge[:, None, None] * torch.eye(len(x), dtype=gram.dtype, device=x.device)
        g = half(torch.linalg.solve(gram, right[..., None])[..., 0].T.contiguous(), "row scales").float()
        found = (x * g[:, None, :]).sum(0)
        better = _row_losses(hessian, weight - found) < _row_losses(hessian, weight - self.values)
        self.g = torch.where(better, g, self.g)
        self.values = torch.where(better, found, self.values)


def _row_losses(hessian: Any, gap: Any) -> Any:
    return (gap * (hessian @ gap)).sum(0)


def _sign_rows(paths: int, like: Any) -> Any:
    """[2^k, k] of -1 and 1: every choice of signs."""
    import torch

    every = torch.arange(2**paths, device=like.device)
    return torch.stack([((every >> (paths - 1 - at)) & 1).to(like) * 2 - 1 for at in range(paths)], dim=1)
