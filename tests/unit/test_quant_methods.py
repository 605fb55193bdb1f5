"""Each method against a slow, plain reference on small layers, and what all of them promise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quant_core import layer, lost

from sqluice.errors import DataError

torch = pytest.importorskip("torch")

from sqluice.workers.quant import bpdq, core, matgptq, methods, nested, rabit  # noqa: E402
from sqluice.workers.quant.slices import Quantized, rounded  # noqa: E402

CASES = [
    ("rtn", (3,)),
    ("gptq", (3,)),
    ("bpdq", (2,)),
    ("rabit", (2,)),
    ("matgptq", (2, 3, 4, 8)),
    ("nested", (2, 3, 4, 8)),
    ("nested", (3,)),
    ("nested", (4, 6, 8)),
]
ids = [f"{method}-{'.'.join(map(str, bits))}" for method, bits in CASES]


def made(method: str, bits: tuple[int, ...], seed: int = 0, **shape: int) -> tuple[Any, Any, Quantized]:
    weight, hessian = layer(seed, **{"out": 16, "width": 40, **shape})
    return weight, hessian, methods.quantize(method, weight, hessian, bits, 16)


@pytest.mark.parametrize(("method", "bits"), CASES, ids=ids)
def test_twice_the_same(method: str, bits: tuple[int, ...]) -> None:
    first, second = made(method, bits)[2], made(method, bits)[2]
    assert torch.equal(first.codes, second.codes)
    for width in bits:
        assert torch.equal(first.weight(width), second.weight(width))


@pytest.mark.parametrize(("method", "bits"), CASES, ids=ids)
def test_codes_fit_their_planes_and_a_last_group_may_be_short(method: str, bits: tuple[int, ...]) -> None:
    weight, hessian, found = made(method, bits)
    assert found.codes.shape == weight.shape
    assert found.codes.dtype == torch.uint8
    assert found.planes == max(bits)
    assert int(found.codes.max()) < 2**found.planes
    assert sorted(found.rules) == list(bits)
    for width in bits:
        assert bool(found.weight(width).isfinite().all())
        assert lost(weight, found.weight(width), hessian) < 0.6 * lost(weight, torch.zeros_like(weight), hessian)


@pytest.mark.parametrize(("method", "bits"), [case for case in CASES if len(case[1]) > 1])
def test_more_bits_lose_less(method: str, bits: tuple[int, ...]) -> None:
    weight, hessian, found = made(method, bits, width=64, out=24)
    losses = [lost(weight, found.weight(width), hessian) for width in bits]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("method", "bits"), CASES, ids=ids)
def test_inputs_that_never_occur_do_no_harm(method: str, bits: tuple[int, ...]) -> None:
    weight, hessian = layer(1, out=8, width=40)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    hessian[16:32], hessian[:, 16:32] = 0.0, 0.0  # a whole group
    found = methods.quantize(method, weight, hessian, bits, 16)
    for width in bits:
        assert bool(found.weight(width).isfinite().all())
        assert lost(weight, found.weight(width), hessian) < 0.7 * lost(weight, torch.zeros_like(weight), hessian)


@pytest.mark.parametrize(("method", "bits"), CASES, ids=ids)
def test_a_layer_of_zeros_stays_one(method: str, bits: tuple[int, ...]) -> None:
    _, hessian = layer(2, width=40)
    found = methods.quantize(method, torch.zeros(4, 40), hessian, bits, 16)
    assert all(float(found.weight(width).abs().max()) < 1e-6 for width in bits)


def test_feedback_beats_rounding_and_grids_of_planes_beat_even_ones() -> None:
    sums: dict[tuple[str, int], float] = {}
    cases = [("rtn", (2,)), ("gptq", (2,)), ("bpdq", (2,)), ("rabit", (2,)), ("matgptq", (2, 3, 4, 8))]
    for seed in range(3):
        weight, hessian = layer(seed, out=48, width=96)
        for method, bits in [*cases, ("nested", (2, 3, 4, 8)), ("gptq", (3,)), ("gptq", (4,)), ("rtn", (8,))]:
            found = methods.quantize(method, weight, hessian, bits, 32)
            for width in bits:
                key = (method, width)
                sums[key] = sums.get(key, 0.0) + lost(weight, found.weight(width), hessian)
    assert sums["gptq", 2] < 0.5 * sums["rtn", 2]
    assert sums["bpdq", 2] < sums["gptq", 2]
    assert sums["rabit", 2] < sums["gptq", 2]
    for width in (2, 3, 4, 8):
        assert sums["nested", width] < sums["matgptq", width]
    assert sums["nested", 3] < 1.3**2 * sums["gptq", 3]
    assert sums["nested", 4] < 1.3**2 * sums["gptq", 4]


@pytest.mark.parametrize(
    ("method", "bits", "group", "says"),
    [
        ("awq", (4,), 128, "there are rtn, gptq"),
        ("gptq", (3, 4), 128, "one width an artifact"),
        ("gptq", (9,), 128, "2 to 8 bits, not 9"),
        ("bpdq", (8,), 128, "1 to 4 bits"),
        ("nested", (6, 8), 128, "a width of 4 bits or fewer"),
        ("nested", (), 128, "not none"),
        ("rtn", (4,), 4, "at least 8 columns"),
    ],
)
def test_what_a_method_cannot_make(method: str, bits: tuple[int, ...], group: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        methods.check(method, bits, group)
    assert methods.check("nested", (8, 2, 4, 2), 64) == (2, 4, 8)


# ---- MatGPTQ


@given(u=st.floats(-40, 300), lambdas=st.lists(st.floats(0.1, 8), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_envelope_finds_the_code_that_trying_all_finds(u: float, lambdas: list[float]) -> None:
    widths = (2, 3, 4, 8)
    corners, envelope, mean = matgptq.best_codes(widths, lambdas)
    every = torch.arange(256)
    values = torch.stack([(rounded(every, 8, width) << (8 - width)).double() for width in widths])
    cost = (torch.tensor(lambdas, dtype=torch.float64)[:, None] * (u - values).square()).sum(0)
    found = int(envelope[torch.searchsorted(corners, torch.tensor(u))])
    assert float(cost[found]) <= float(cost.min()) * (1 + 1e-4) + 1e-3
    assert torch.allclose(mean.double(), values.mean(0))


def test_matgptq_is_its_rule_tried_out_on_every_code() -> None:
    widths = (2, 4, 8)
    weight, hessian = layer(4, out=5, width=16)
    found = matgptq.quantize(weight, hessian, bits=widths, group=16)
    problem = core.prepare(weight, hessian, 16)
    rule = found.rules[8].tensors
    scale, offset = rule["scale"][0].double(), rule["offset"][0].double()
    every = torch.arange(256)
    values = torch.stack([(rounded(every, 8, width) << (8 - width)).double() for width in widths])
    rest, codes = problem.weight.double().clone(), []
    for t in range(16):
        wanted = (rest[t] - offset) / scale
        cost = (wanted[None, None] - values[..., None]).square().sum(0)
        code = cost.argmin(0)
        codes.append(code)
        mean = torch.stack([offset + scale * values[at][code] for at in range(3)]).mean(0)
        error = (rest[t] - mean) / problem.factor[t, t].double()
        rest[t + 1 :] -= problem.factor[t, t + 1 :, None].double() * error
    expected = problem.restored(torch.stack(codes)).T
    assert float((expected == found.codes).float().mean()) > 0.97


# ---- BPDQ


def test_a_refit_is_least_squares_in_the_metric_of_the_hessian() -> None:
    weight, hessian = layer(5, out=7, width=24)
    problem = core.prepare(weight, hessian, 24)
    codes = torch.randint(0, 4, (24, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    c = bpdq.refit(problem.weight, codes, problem.factor, 2)
    whitening = torch.linalg.inv(problem.factor.double().T)
    for row in range(7):
        bits = torch.stack([torch.ones(24), (codes[:, row] >> 1).float(), (codes[:, row] & 1).float()], 1).double()
        expected = torch.linalg.lstsq(whitening @ bits, (whitening @ problem.weight[:, row].double())[:, None]).solution
        assert torch.allclose(c[:, row].double(), expected[:, 0], rtol=5e-2, atol=5e-3)


def test_a_pass_takes_the_nearest_level_of_what_is_left() -> None:
    weight, hessian = layer(6, out=3, width=12)
    problem = core.prepare(weight, hessian, 12)
    c = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    codes = bpdq.nearest_pass(problem.weight, problem.factor, c)
    for row in range(3):
        rest = problem.weight[:, row].double().clone()
        levels = [float(c[0, row] + c[1, row] * (q >> 1) + c[2, row] * (q & 1)) for q in range(4)]
        for t in range(12):
            code = min(range(4), key=lambda q, t=t: abs(levels[q] - float(rest[t])))  # type: ignore[misc]
            assert int(codes[t, row]) == code
            error = (float(rest[t]) - levels[code]) / float(problem.factor[t, t])
            rest[t + 1 :] -= problem.factor[t, t + 1 :].double() * error


def test_more_rounds_never_lose_more_in_a_group() -> None:
    weight, hessian = layer(7, out=9, width=16)
    problem = core.prepare(weight, hessian, 16)
    losses = []
    for rounds in (0, 1, 3, 8):
        codes, c = bpdq._solved(problem.weight, problem.factor, 2, rounds)
        losses.append(bpdq.scored(problem.weight, codes, c, problem.factor))
    assert all(bool((after <= before + 1e-5).all()) for before, after in pairwise(losses))
    assert float(losses[-1].sum()) < 0.9 * float(losses[0].sum())


# ---- nested


@given(seed=st.integers(0, 1000), stiffness=st.sampled_from([0.0, 30.0]))
@settings(max_examples=10, deadline=None)
def test_descent_never_raises_the_objective(seed: int, stiffness: float) -> None:
    weight, hessian = layer(seed, out=8, width=40)
    state = nested.State(core.prepare(weight, hessian, 16), (2, 3, 4), (1.0, 3.0, 9.0), stiffness)
    state.start(2)
    before = state.objective()
    for _ in range(3):
        state.sweep()
        after = state.objective()
        assert after <= before * (1 + 1e-4)
        before = after


def test_the_joint_pass_weighs_every_width_with_its_own_target() -> None:
    weight, hessian = layer(8, out=3, width=10)
    problem = core.prepare(weight, hessian, 10)
    state = nested.State(problem, (1, 2), (1.0, 3.0))
    made = torch.Generator().manual_seed(3)
    tables = [torch.randn(2, 3, generator=made), torch.randn(3, 3, generator=made)]
    targets = [problem.weight, problem.weight + 0.1]
    codes = state._joint_pass(targets, problem.factor, tables)
    for row in range(3):
        one = [float(tables[0][0, row] + tables[0][1, row] * (q >> 1)) for q in range(4)]
        two = [float(tables[1][0, row] + tables[1][1, row] * (q >> 1) + tables[1][2, row] * (q & 1)) for q in range(4)]
        rests = [target[:, row].double().clone() for target in targets]
        for t in range(10):
            costs = [(float(rests[0][t]) - one[q]) ** 2 + 3.0 * (float(rests[1][t]) - two[q]) ** 2 for q in range(4)]
            code = costs.index(min(costs))
            assert int(codes[t, row]) == code
            for rest, value in zip(rests, (one[code], two[code]), strict=True):
                error = (float(rest[t]) - value) / float(problem.factor[t, t])
                rest[t + 1 :] -= problem.factor[t, t + 1 :].double() * error


def test_what_is_stored_is_what_was_settled() -> None:
    weight, hessian = layer(9, out=8, width=40)
    found = nested.quantize(weight, hessian, bits=(2, 3, 4), group=16)
    problem = core.prepare(weight, hessian, 16)
    state = nested.State(problem, (2, 3, 4), (1.0, 3.0, 9.0))
    state.start(nested.ROUNDS)
    for _ in range(nested.SWEEPS):
        state.sweep()
    for at, width in enumerate((2, 3, 4)):
        assert torch.allclose(found.weight(width), problem.restored(state.values[at]).T, atol=2e-5)


# ---- RaBiT


def test_a_rank_one_fit_is_that_of_the_singular_value_decomposition() -> None:
    magnitude = torch.rand(12, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    h, g = rabit.rank_one(magnitude)
    u, s, v = torch.linalg.svd(magnitude)
    assert torch.allclose(torch.outer(h, g), s[0] * torch.outer(u[:, 0], v[0]), atol=1e-5)
    assert float(h.square().mean()) == pytest.approx(1.0)


def test_rounds_over_residuals_beat_one_greedy_round() -> None:
    target = torch.randn(40, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gaps = []
    for rounds in (1, 10):
        signs, g, h = rabit.svid(target, 2, rounds)
        made = sum(signs[at] * h[at][:, None] * g[at][None, :] for at in range(2))
        gaps.append(float((target - made).square().sum()))
    assert gaps[1] < 0.95 * gaps[0]


@given(seed=st.integers(0, 1000), paths=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_sweeps_over_paths_never_lose_more(seed: int, paths: int) -> None:
    weight, hessian = layer(seed, out=12, width=40)
    fit = rabit.Fit(core.prepare(weight, hessian, 16, grouped=False), paths)
    start = fit.objective()
    fit.feedback()
    before = fit.objective()
    for _ in range(3):
        fit.sweep()
        after = fit.objective()
        assert after <= before * (1 + 1e-4)
        before = after
    assert before < start
    made = sum(fit.signs[at] * fit.h[at][:, None] * fit.g[at][None, :] for at in range(paths))
    assert torch.allclose(made, fit.values, atol=1e-4)
