"""Error feedback: what a column loses by rounding is made up for by the columns after it.

The core of GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), shared by every method here. A layer `y = W x` with
inputs X [n, in] loses `tr((W - Q) H (W - Q)^T)` of its output, `H = (2 / n) X^T X`. With `H^-1 = U^T U`, U upper
triangular, columns are rounded one after another; column t leaves the error `E_t = (w_t - q_t) / U_tt`, and the
columns after it move by `-E_t U[t, t+1:]`. The loss is then `sum_t |E_t|^2`, up to damping.

Everything is kept transposed, [in, out], so that a column of W is one contiguous row. For a run of columns with
targets T and final values Q, however Q was found, `E = U_run^-T (T - Q)` (transposed form): so a method may choose a
whole group in any way and hand on its error afterwards. BPDQ's "delta correction" is this identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

DAMPING = 0.01
_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that share coefficients: `start:end` in the order of rounding; `index` among the layer's groups."""

    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer, ready to be rounded. Tensors are float32 and in the order of rounding.

    `weight` [in, out] is W transposed, dead inputs at zero. `hessian` [in, in] is damped, `factor` [in, in] is the
    upper U of its inverse. `order[t]` is the column of W rounded as number t. `live` [in] is false for dead inputs.
    """

    weight: Any
    hessian: Any
    factor: Any
    order: Any
    live: Any
    groups: tuple[Group, ...]
    group: int

    def restored(self, tensor: Any) -> Any:
        """[in, ..] in the order of rounding, as [in, ..] in the order of W's columns."""
        found = tensor.new_empty(tensor.shape)
        found[self.order] = tensor
        return found

    def by_group(self, pieces: list[Any]) -> Any:
        """One tensor a group in the order of rounding, stacked in the order of the layer's groups."""
        import torch

        at = {group.index: piece for group, piece in zip(self.groups, pieces, strict=True)}
        return torch.stack([at[index] for index in range(len(pieces))])


def prepare(weight: Any, hessian: Any, group: int, *, damping: float = DAMPING, grouped: bool = True) -> Problem:
    """The problem of rounding `weight` [out, in] under `hessian` [in, in] in groups of `group` columns.

    A last group may be shorter. With `grouped` the order is group-aware (GAR, as in BPDQ): groups by their largest
    diagonal of H, columns inside a group by theirs, both descending, so that groups stay contiguous in the file.
    Otherwise (`act-order`) all columns by their diagonal; then `groups` are runs of that order and no groups of the
    file. `DataError` when the weight or the statistics hold NaN or infinity.
    """
    import torch

    check_finite(weight, hessian)
    statistics = hessian.double().clone()
    diagonal = statistics.diagonal()
    live = diagonal > 0
    diagonal[~live] = 1.0
    order = _group_aware(diagonal, group) if grouped else torch.argsort(diagonal, descending=True, stable=True)
    statistics = statistics[order][:, order]
    statistics, factor = _factored(statistics, damping)
    columns = weight.float().T.clone()
    columns[~live] = 0.0
    return Problem(
        weight=columns[order].contiguous(),
        hessian=statistics.float(),
        factor=factor.float(),
        order=order,
        live=live[order],
        groups=_groups(order, group),
        group=group,
    )


def check_finite(weight: Any, hessian: Any) -> None:
    """`DataError` unless every number is finite."""
    if not bool(weight.isfinite().all()):
        raise DataError("its weights hold NaN or infinity; the checkpoint is damaged")
    if not bool(hessian.isfinite().all()):
        raise DataError("its inputs on the calibration texts hold NaN or infinity; load the model in float32")


def _group_aware(diagonal: Any, group: int) -> Any:
    import torch

    runs = [torch.arange(at, min(at + group, len(diagonal))) for at in range(0, len(diagonal), group)]
    runs = [run.to(diagonal.device)[torch.argsort(diagonal[run], descending=True, stable=True)] for run in runs]
    largest = torch.stack([diagonal[run[0]] for run in runs])
    return torch.cat([runs[at] for at in torch.argsort(largest, descending=True, stable=True).tolist()])


def _groups(order: Any, group: int) -> tuple[Group, ...]:
    """Runs of `order`, cut where the group of the column changes (GAR), or every `group` columns."""
    owners = (order // group).tolist()
    starts = [at for at in range(len(owners)) if at == 0 or owners[at] != owners[at - 1]]
    if len(starts) != len(set(owners)):
        starts = list(range(0, len(owners), group))
        ends = [*starts[1:], len(owners)]
        return tuple(Group(at, *span) for at, span in enumerate(zip(starts, ends, strict=True)))
    ends = [*starts[1:], len(owners)]
    return tuple(Group(owners[start], start, end) for start, end in zip(starts, ends, strict=True))


def _factored(statistics: Any, damping: float) -> tuple[Any, Any]:
    """Damped H and the upper factor of its inverse; damping grows tenfold until H is positive definite."""
    import torch

    mean = statistics.diagonal().mean()
    for attempt in range(_ATTEMPTS):
        damped = statistics.clone()
        damped.diagonal().add_(damping * 10**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(upper.isfinite().all()):
            return damped, upper
    raise DataError("the statistics of its inputs cannot be inverted; use more calibration texts")


def column_pass(target: Any, factor: Any, choose: Callable[[int, Any], Any]) -> Any:
    """Values [m, out] of a run of m columns, rounded in order with feedback inside the run.

    `choose(t, wanted)` takes column t's compensated target [out] and returns its value [out].
    """
    import torch

    rest = target.clone()
    values = torch.empty_like(target)
    scales = factor.diagonal().tolist()
    for t, scale in enumerate(scales):
        values[t] = choose(t, rest[t])
        if t + 1 < len(scales):
            error = (rest[t] - values[t]) / scale
            rest[t + 1 :].addr_(factor[t, t + 1 :], error, alpha=-1.0)
    return values


def errors(target: Any, values: Any, factor: Any) -> Any:
    """E [m, out] of a run with targets and final values [m, out], by the identity above."""
    import torch

    return torch.linalg.solve_triangular(factor.T, target - values, upper=False)


def propagate(weight: Any, error: Any, problem: Problem, group: Group) -> None:
    """Move the columns after `group` in `weight` [in, out] to make up for `error` [m, out]. Changes `weight`."""
    if group.end < len(weight):
        weight[group.end :] -= problem.factor[group.start : group.end, group.end :].T @ error


def local(problem: Problem, group: Group) -> Any:
    """The block of U for the group's own columns."""
    return problem.factor[group.start : group.end, group.start : group.end]


def loss(problem: Problem, values: Any) -> float:
    """`tr((W - Q) H (W - Q)^T)` of `values` [in, out], in the problem's order."""
    gap = (problem.weight - values).double()
    return float((gap * (problem.hessian.double() @ gap)).sum())


class Statistics:
    """Sums X^T X over calibration rows, in float64. `value` is `(2 / n) X^T X`."""

    def __init__(self, width: int, device: Any = "cpu") -> None:
        import torch

        self.rows = 0
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: Any) -> None:
        """Count the inputs `rows` [n, in]."""
        wide = rows.float()
        self._sum += (wide.T @ wide).double()
        self.rows += len(rows)

    @property
    def value(self) -> Any:
        """Float64 [in, in]; zero before any row."""
        return self._sum * (2.0 / max(self.rows, 1))
