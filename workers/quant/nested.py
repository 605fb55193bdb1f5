"""Nested, our own: one code a weight, every width's error carried apart, codes and coefficients settled jointly.

Minimises `sum_b lambda_b tr((W - W_b) H (W - W_b)^T)` over codes whose leading b bits are the width b, each width with
its own coefficients (`planes`, as in BPDQ). MatGPTQ's rule mixes the widths' errors into one state; here

1. a start: group by group, a column pass in which every width has its own compensated target; the code is the one with
   the least `sum_b lambda_b (w_b - level_b(code))^2`; refit of every width; each row keeps its best iterate;
2. descent: sweeps over all columns. With the others fixed, the best value of a column at width b is
   `v_b + (H (W - W_b))_t / H_tt`; the code with the least joint cost is taken, then each width's coefficients of the
   group are refitted to the whole error. No step raises the objective;
3. widths above 4 bits are the one below plus a finer uniform grid for what is left (`tail`), by error feedback and
   the same descent. What is left decides how fine that grid can be, so where such widths are wanted a term in the
   objective keeps every weight within `REACH` steps of its 4-bit value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.workers.quant import bpdq, core, grid
from sqluice.workers.quant.slices import Quantized, Rule, half

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.workers.quant.core import Group, Problem

COARSE = 4
"""Widths up to this many bits have free coefficients; wider ones stand on the widest of them."""
ROUNDS = 4
SWEEPS = 3
EMPHASIS = 3.0
"""lambda grows by this factor with each bit. 4 would treat equal relative errors alike; less favours few bits."""
REACH = 0.7
STIFFNESS = 30.0
"""Where a tail follows: how far (in steps of an even grid) a weight may lie from its coarse value, and the weight of
the squared excess. Measured on four layers: halves the gap to 8-bit GPTQ, costs the narrow widths 2 percent."""


def quantize(
    weight: Any,
    hessian: Any,
    *,
    bits: Sequence[int],
    group: int,
    emphasis: float = EMPHASIS,
    rounds: int = ROUNDS,
    sweeps: int = SWEEPS,
) -> Quantized:
    """`weight` [out, in] under the statistics `hessian` [in, in]; `DataError` when no width is 4 bits or fewer."""
    widths = sorted(bits)
    coarse = [width for width in widths if width <= COARSE]
    if not coarse:
        raise DataError(f"nested needs a width of {COARSE} bits or fewer; gptq or rtn make {widths[0]} bits alone")
    problem = core.prepare(weight, hessian, group)
    lambdas = [emphasis ** (width - coarse[0]) for width in coarse]
    state = State(problem, coarse, lambdas, STIFFNESS if len(coarse) < len(widths) else 0.0)
    state.start(rounds)
    for _ in range(sweeps):
        state.sweep()
    rules = {width: Rule("planes", width, {"c": state.table(at)}) for at, width in enumerate(coarse)}
    codes, base, values = state.codes, coarse[-1], state.values[-1]
    for width in widths[len(coarse) :]:
        extra, values, tensors = tail(problem, values, width - base, sweeps)
        codes = (codes << (width - base)) | extra
        rules[width] = Rule("tail", width, tensors, base=base)
        base = width
    return Quantized(problem.restored(codes).T.contiguous(), base, group, rules)


class State:
    """Codes [in, out], and for each width its coefficients by group and its values [in, out]."""

    def __init__(
        self, problem: Problem, widths: Sequence[int], lambdas: Sequence[float], stiffness: float = 0.0
    ) -> None:
        import torch

        self.problem = problem
        self.widths = list(widths)
        self.lambdas = list(lambdas)
        self.stiffness = stiffness * self.lambdas[-1]
        self.bits = self.widths[-1]
        self.codes = torch.zeros_like(problem.weight, dtype=torch.uint8)
        self.values = [torch.zeros_like(problem.weight) for _ in widths]
        self.coefficients: list[dict[int, Any]] = [{} for _ in widths]

    def objective(self) -> float:
        """The weighted sum of the widths' losses, and of the excess beyond `REACH`."""
        losses = (core.loss(self.problem, values) for values in self.values)
        total = sum(scale * lost for scale, lost in zip(self.lambdas, losses, strict=True))
        for run in self.problem.groups:
            inside = slice(run.start, run.end)
            weight = self.problem.weight[inside]
            excess = _excess(self.values[-1][inside] - weight, _reach(weight, self.bits))
            stiff = self.problem.hessian.diagonal()[inside, None]
            total += self.stiffness * float((excess.double() * stiff).sum())
        return total

    def table(self, at: int) -> Any:
        """Coefficients fp16 [b + 1, groups, out] of width number `at`."""
        found = self.coefficients[at]
        pieces = [found[run.index] for run in self.problem.groups]
        return half(self.problem.by_group(pieces), "weights").permute(1, 0, 2).contiguous()

    def start(self, rounds: int) -> None:
        """Step 1."""
        rests = [self.problem.weight.clone() for _ in self.widths]
        for run in self.problem.groups:
            factor = core.local(self.problem, run)
            targets = [rest[run.start : run.end] for rest in rests]
            codes, tables = self._started(targets, factor, rounds)
            self.codes[run.start : run.end] = codes
            for at, c in enumerate(tables):
                values = bpdq.values_of(codes >> (self.bits - self.widths[at]), c)
                self.coefficients[at][run.index] = c
                self.values[at][run.start : run.end] = values
                core.propagate(rests[at], core.errors(targets[at], values, factor), self.problem, run)

    def _started(self, targets: list[Any], factor: Any, rounds: int) -> tuple[Any, list[Any]]:
        """Codes [m, out] and coefficients of each width for one group."""
        import torch

        scale, offset = grid.span(targets[-1], 8)
        codes = grid.nearest(targets[-1], scale, offset, 8).to(torch.uint8) >> (8 - self.bits)
        tables = self._refitted(targets, codes, factor)
        best = [codes, *tables, self._scored(targets, codes, tables, factor)]
        for _ in range(rounds):
            codes = self._joint_pass(targets, factor, tables)
            tables = self._refitted(targets, codes, factor)
            lost = self._scored(targets, codes, tables, factor)
            better = lost < best[-1]
            best = [torch.where(better, new, old) for new, old in zip((codes, *tables, lost), best, strict=True)]
        return best[0], best[1:-1]

    def _refitted(self, targets: list[Any], codes: Any, factor: Any) -> list[Any]:
        pairs = zip(self.widths, targets, strict=True)
        return [bpdq.refit(target, codes >> (self.bits - width), factor, width) for width, target in pairs]

    def _scored(self, targets: list[Any], codes: Any, tables: list[Any], factor: Any) -> Any:
        lost = 0.0
        for width, scale, target, c in zip(self.widths, self.lambdas, targets, tables, strict=True):
            lost = lost + scale * bpdq.scored(target, codes >> (self.bits - width), c, factor)
        return lost

    def _joint_pass(self, targets: list[Any], factor: Any, tables: list[Any]) -> Any:
        """Codes of a column pass in which every width keeps its own error."""
        import torch

        wide = torch.stack(targets, dim=1)
        codes = torch.empty(targets[0].shape, dtype=torch.uint8, device=wide.device)
        levels = self._levels(tables)

        def choose(t: int, wanted: Any) -> Any:
            code = self._cheapest(levels, wanted)
            codes[t] = code.to(torch.uint8)
            return levels.gather(1, code.expand(len(levels), 1, -1))[:, 0].reshape(-1)

        core.column_pass(wide.reshape(len(wide), -1), factor, lambda t, w: choose(t, w.reshape(len(levels), -1)))
        return codes

    def _levels(self, tables: list[Any]) -> Any:
        """[widths, 2^K, out]: the value at each width of every whole code."""
        import torch

        every = torch.arange(2**self.bits, dtype=torch.uint8, device=tables[0].device)
        every = every[:, None].expand(-1, tables[0].shape[1])
        pairs = zip(self.widths, tables, strict=True)
        return torch.stack([bpdq.values_of(every >> (self.bits - width), c) for width, c in pairs])

    def _cheapest(self, levels: Any, wanted: Any, weight: Any = None, reach: Any = None) -> Any:
        """Codes [out] with the least joint cost for the wanted values [widths, out]."""
        parts = (levels - wanted[:, None]).square_()
        cost = sum(scale * part for scale, part in zip(self.lambdas, parts, strict=True))
        if self.stiffness and reach is not None:
            cost = cost + self.stiffness * _excess(levels[-1] - weight, reach)
        return cost.argmin(0)

    def sweep(self) -> None:
        """Step 2, once over all groups."""
        import torch

        problem = self.problem
        pulls = [problem.hessian @ (problem.weight - values) for values in self.values]
        for run in problem.groups:
            inside = slice(run.start, run.end)
            before = torch.stack([values[inside] for values in self.values])
            after = self._descended(run, torch.stack([pull[inside] for pull in pulls]), before)
            for at, values in enumerate(self.values):
                pulls[at] -= problem.hessian[:, inside] @ (after[at] - before[at])
                values[inside] = after[at]

    def _descended(self, run: Group, pull: Any, values: Any) -> Any:
        """Values [widths, m, out] of a group after one round of its columns and a refit; sets codes and
        coefficients. `pull` [widths, m, out] is `H (W - W_b)` at the group's columns."""
        import torch

        inside = slice(run.start, run.end)
        block = self.problem.hessian[inside, inside]
        levels = self._levels([found[run.index] for found in self.coefficients])
        values, force = values.clone(), pull.clone()
        weight = self.problem.weight[inside]
        reach = _reach(weight, self.bits)
        for t, stiff in enumerate(block.diagonal().tolist()):
            code = self._cheapest(levels, values[:, t] + force[:, t] / stiff, weight[t], reach)
            new = levels.gather(1, code.expand(len(levels), 1, -1))[:, 0]
            moved = new - values[:, t]
            self.codes[run.start + t] = code.to(torch.uint8)
            values[:, t] = new
            force -= block[:, t][None, :, None] * moved[:, None]
        for at, width in enumerate(self.widths):
            features = _features(self.codes[inside] >> (self.bits - width), width)
            old = self.coefficients[at][run.index]
            held = (weight, reach, self.stiffness) if width == self.bits and self.stiffness else None
            new, values[at] = _refit(features, old, values[at], force[at], block, held, self.lambdas[at])
            self.coefficients[at][run.index] = new
        return values


def _reach(weight: Any, bits: int) -> Any:
    """[out]: how far from the weights [m, out] of a group their coarse values may lie."""
    return REACH * (weight.amax(0) - weight.amin(0)) / 2**bits


def _excess(gap: Any, reach: Any) -> Any:
    """Squares of what exceeds `reach`."""
    return (gap.abs() - reach).clamp_(min=0).square_()


def _features(codes: Any, bits: int) -> Any:
    """[k + 1, m, out] float32: ones, then each bit of codes [m, out]."""
    import torch

    planes = [((codes >> (bits - 1 - at)) & 1).float() for at in range(bits)]
    return torch.stack([torch.ones_like(planes[0]), *planes])


def _refit(
    x: Any, old: Any, values: Any, force: Any, block: Any, held: Any = None, scale: float = 1.0
) -> tuple[Any, Any]:
    """Coefficients [k, out] of features x [k, m, out], and values [m, out], that lose least; rows that would not
    gain stay as they are. Moving a group's values by D changes the loss by `D^T H_gg D - 2 D^T force`."""
    import torch

    k, m, out = x.shape
    hx = (block @ x.permute(1, 0, 2).reshape(m, -1)).reshape(m, k, out)
    gram = torch.einsum("kmo,mlo->okl", x, hx).double()
    right = torch.einsum("kmo,mo->ok", x, block @ values + force).double()
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    eye = torch.eye(k, dtype=gram.dtype, device=gram.device)
    pulled = (right + ridge[:, None] * old.T.double())[..., None]
    solved = torch.linalg.solve(gram + ridge[:, None, None] * eye, pulled)[..., 0]
    new = half(solved.T.contiguous(), "weights").float()
    found = (x * new[:, None]).sum(0)
    moved = found - values
    change = (moved * (block @ moved) - 2 * moved * force).sum(0)
    if held is not None:
        weight, reach, stiffness = held
        cost = _excess(found - weight, reach) - _excess(values - weight, reach)
        change = change + stiffness / scale * (cost * block.diagonal()[:, None]).sum(0)
    better = change < 0
    return torch.where(better, new, old), torch.where(better, found, values)


def tail(problem: Problem, base: Any, bits: int, sweeps: int) -> tuple[Any, Any, dict[str, Any]]:
    """Step 3: codes [in, out] of `bits` more bits over the values `base` [in, out], the new values, the grids."""
    import torch

    rest = problem.weight.clone()
    codes = torch.empty_like(rest)
    values = torch.empty_like(rest)
    tables: dict[int, Any] = {}
    for run in problem.groups:
        inside = slice(run.start, run.end)
        target, factor = rest[inside], core.local(problem, run)
        importance = factor.diagonal().reciprocal().square()
        scale, offset = grid.span(target - base[inside], bits, importance)

        def choose(t: int, wanted: Any, scale: Any = scale, offset: Any = offset, start: int = run.start) -> Any:
            codes[start + t] = grid.nearest(wanted - base[start + t], scale, offset, bits)
            return base[start + t] + offset + scale * codes[start + t]

        values[inside] = core.column_pass(target, factor, choose)
        core.propagate(rest, core.errors(target, values[inside], factor), problem, run)
        tables[run.index] = torch.stack([offset, scale])
    for _ in range(sweeps):
        _tail_sweep(problem, base, bits, codes, values, tables)
    offset, scale = problem.by_group([tables[run.index] for run in problem.groups]).half().unbind(1)
    tensors = {"scale": scale.contiguous(), "offset": offset.contiguous()}
    return codes.to(torch.uint8), values, tensors


def _tail_sweep(problem: Problem, base: Any, bits: int, codes: Any, values: Any, tables: dict[int, Any]) -> None:
    """Descent over a tail's codes, and its scale and offset, once over all groups. Changes what it is given."""
    import torch

    pull = problem.hessian @ (problem.weight - values)
    for run in problem.groups:
        inside = slice(run.start, run.end)
        block, before = problem.hessian[inside, inside], values[inside].clone()
        offset, scale = tables[run.index]
        force, now = pull[inside].clone(), before.clone()
        for t, stiff in enumerate(block.diagonal().tolist()):
            under = base[run.start + t]
            code = grid.nearest(now[t] + force[t] / stiff - under, scale, offset, bits)
            moved = under + offset + scale * code - now[t]
            codes[run.start + t] = code
            now[t] += moved
            force.addr_(block[:, t], moved, alpha=-1.0)
        under = base[inside]
        x = torch.stack([torch.ones_like(now), codes[inside]])
        tables[run.index], over = _refit(x, tables[run.index], now - under, force, block)
        values[inside] = under + over
        pull -= problem.hessian[:, inside] @ (values[inside] - before)
