"""Error feedback against the plain algorithm it stands for, and what it does with bad input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqluice.errors import DataError

torch = pytest.importorskip("torch")

from sqluice.workers.quant import core, gptq, grid, rtn  # noqa: E402


def layer(seed: int, out: int = 6, width: int = 24, rows: int = 200) -> tuple[Any, Any]:
    """A weight [out, in] and the statistics [in, in] of correlated inputs."""
    made = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=made, dtype=torch.float64)
    inputs = torch.randn(rows, width, generator=made, dtype=torch.float64) @ mixing
    statistics = core.Statistics(width)
    statistics.add(inputs)
    return torch.randn(out, width, generator=made), statistics.value


def lost(weight: Any, found: Any, hessian: Any) -> float:
    gap = weight.double() - found.double()
    return float((gap @ hessian * gap).sum())


def test_statistics_are_two_over_n_times_the_inputs_products() -> None:
    rows = torch.randn(50, 7)
    statistics = core.Statistics(7)
    for part in rows.split(13):
        statistics.add(part)
    assert torch.allclose(statistics.value, 2 / 50 * (rows.double().T @ rows.double()), rtol=1e-5, atol=1e-5)
    assert statistics.rows == 50


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    weight, hessian = layer(0)
    problem = core.prepare(weight, hessian, 8)
    inverse = torch.linalg.inv(problem.hessian.double())
    upper = problem.factor.double()
    assert torch.allclose(upper.T @ upper, inverse, rtol=1e-3, atol=1e-6)
    assert torch.equal(upper, upper.triu())
    mean = hessian.diagonal().mean()
    assert torch.allclose(
        problem.hessian.diagonal().double() - hessian.diagonal()[problem.order], 0.01 * mean, rtol=1e-2
    )


@pytest.mark.parametrize("width", [24, 20])
def test_group_aware_order_keeps_groups_together(width: int) -> None:
    weight, hessian = layer(1, width=width)
    problem = core.prepare(weight, hessian, 8)
    diagonal = hessian.diagonal()
    for group in problem.groups:
        columns = problem.order[group.start : group.end]
        assert set(columns.tolist()) == set(range(group.index * 8, min(group.index * 8 + 8, width)))
        assert torch.equal(diagonal[columns], diagonal[columns].sort(descending=True).values)
    leading = [float(diagonal[problem.order[group.start]]) for group in problem.groups]
    assert leading == sorted(leading, reverse=True)
    assert torch.equal(problem.restored(problem.weight).T, weight)


@given(seed=st.integers(0, 10_000), out=st.integers(1, 5), width=st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_the_error_of_a_group_follows_from_its_final_values(seed: int, out: int, width: int) -> None:
    """Column by column or at once: `E = U^-T (T - Q)`, and its squares are the loss of that group."""
    weight, hessian = layer(seed, out, width)
    problem = core.prepare(weight, hessian, width)
    step = [0.0]

    def choose(t: int, wanted: Any) -> Any:
        value = (wanted * 2).round() / 2
        step.append(float(((wanted - value) / problem.factor[t, t]).square().sum()))
        return value

    values = core.column_pass(problem.weight, problem.factor, choose)
    error = core.errors(problem.weight, values, problem.factor)
    assert float(error.square().sum()) == pytest.approx(sum(step), rel=1e-3, abs=1e-6)
    assert core.loss(problem, values) == pytest.approx(sum(step), rel=1e-2, abs=1e-5)


def test_groups_that_hand_on_their_error_equal_one_long_pass() -> None:
    weight, hessian = layer(2, out=4, width=24)
    problem = core.prepare(weight, hessian, 8)

    def choose(_: int, wanted: Any) -> Any:
        return (wanted * 3).round() / 3

    whole = core.column_pass(problem.weight, problem.factor, choose)
    rest, pieces = problem.weight.clone(), []
    for group in problem.groups:
        target, factor = rest[group.start : group.end], core.local(problem, group)
        pieces.append(core.column_pass(target, factor, choose))
        core.propagate(rest, core.errors(target, pieces[-1], factor), problem, group)
    assert torch.allclose(torch.cat(pieces), whole)


def plain_obq(weight: Any, hessian: Any, order: list[int], scale: Any, offset: Any, bits: int, group: int) -> Any:
    """Optimal Brain Quantization as its paper writes it: an explicit inverse, one column removed at a time, float64."""
    rest, inverse = weight.double().clone(), torch.linalg.inv(hessian)
    values = torch.zeros_like(rest)
    for column in order:
        s, z = scale[column // group].double(), offset[column // group].double()
        code = ((rest[:, column] - z) / s).round().clamp(0, 2**bits - 1)
        values[:, column] = z + s * code
        error = (rest[:, column] - values[:, column]) / inverse[column, column]
        rest -= error[:, None] * inverse[column][None, :]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0
    return values


@pytest.mark.parametrize(("seed", "bits"), [(3, 2), (4, 3), (5, 4)])
def test_gptq_is_plain_obq(seed: int, bits: int) -> None:
    weight, hessian = layer(seed, out=16, width=32)
    made = gptq.quantize(weight, hessian, bits=bits, group=8)
    damped = hessian.clone()
    damped.diagonal().add_(0.01 * hessian.diagonal().mean())
    rule = made.rules[bits].tensors
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    expected = plain_obq(weight, damped, order, rule["scale"], rule["offset"], bits, 8)
    found = made.weight(bits).double()
    assert float((found - expected).abs().lt(1e-4).float().mean()) > 0.99
    assert lost(weight, found, hessian) == pytest.approx(lost(weight, expected, hessian), rel=0.02)


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_rounding_to_nearest_is_within_half_a_step(seed: int, bits: int) -> None:
    weight, hessian = layer(seed, out=3, width=20)
    made = rtn.quantize(weight, hessian, bits=bits, group=8)
    step = made.rules[bits].tensors["scale"].float().T.repeat_interleave(8, 1)[:, :20]
    assert bool(((made.weight(bits) - weight).abs() <= 0.505 * step + 2e-3).all())


def test_a_search_for_the_scale_loses_no_more_than_the_whole_span() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(64, 5, generator=generator) ** 3
    weights = torch.rand(64, generator=generator)
    losses = []
    for importance in (None, weights):
        scale, offset = grid.span(columns, 2, importance)
        gap = columns - offset - scale * grid.nearest(columns, scale, offset, 2)
        losses.append((gap.square() * weights[:, None]).sum(0))
    assert bool((losses[1] <= losses[0]).all())
    assert float(losses[1].sum()) < 0.8 * float(losses[0].sum())


def test_inputs_that_are_always_zero_get_weights_of_zero() -> None:
    weight, hessian = layer(6)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    problem = core.prepare(weight, hessian, 8)
    assert problem.live.sum() == 23
    assert bool((problem.restored(problem.weight)[3] == 0).all())
    made = gptq.quantize(weight, hessian, bits=4, group=8)
    assert bool(made.weight(4).isfinite().all())
    assert lost(weight, made.weight(4), hessian) < 0.1 * lost(weight, torch.zeros_like(weight), hessian)


def test_statistics_of_fewer_rows_than_columns_are_damped() -> None:
    weight, hessian = layer(7, rows=3)
    problem = core.prepare(weight, hessian, 8)
    assert bool(problem.factor.isfinite().all())


@pytest.mark.parametrize("where", ["weight", "inputs"])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(where: str, what: float) -> None:
    weight, hessian = layer(8)
    (weight if where == "weight" else hessian)[1, 2] = what
    with pytest.raises(DataError, match="NaN or infinity"):
        gptq.quantize(weight, hessian, bits=4, group=8)


def test_weights_too_large_for_their_scales_are_refused() -> None:
    weight, hessian = layer(9)
    with pytest.raises(DataError, match="too large for float16"):
        rtn.quantize(weight * 1e6, hessian, bits=4, group=8)
