"""Planes and slices: packing round-trips, and the leading bits of the master are the narrower model exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quant_core import layer

from sqluice.errors import DataError

torch = pytest.importorskip("torch")

from sqluice.workers.quant import methods, pack, slices  # noqa: E402


@given(out=st.integers(1, 5), width=st.integers(1, 100), planes=st.integers(1, 8), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_packing_round_trips(out: int, width: int, planes: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**planes, (out, width), dtype=torch.uint8, generator=made)
    packed = pack.pack(codes, planes)
    assert [tuple(plane.shape) for plane in packed] == [(out, pack.words(width))] * planes
    assert torch.equal(pack.unpack(packed, width), codes)
    for read in range(1, planes + 1):
        assert torch.equal(pack.unpack(packed[:read], width), codes >> (planes - read))


def test_a_column_is_a_bit_of_its_word() -> None:
    codes = torch.zeros(1, 70, dtype=torch.uint8)
    codes[0, 0], codes[0, 33], codes[0, 69] = 2, 1, 3
    high, low = pack.pack(codes, 2)
    assert high.tolist() == [[1, 0, 1 << 5]]
    assert low.tolist() == [[0, 2, 1 << 5]]


@pytest.mark.parametrize(
    ("method", "bits"), [("matgptq", (2, 3, 4, 8)), ("nested", (2, 3, 4, 8)), ("nested", (2, 4, 6)), ("bpdq", (3,))]
)
def test_leading_planes_alone_give_the_narrower_weight(method: str, bits: tuple[int, ...]) -> None:
    weight, hessian = layer(0, out=8, width=40)
    found = methods.quantize(method, weight, hessian, bits, 16)
    packed = pack.pack(found.codes, found.planes)
    for width in bits:
        read = slices.planes_read(found.rules, width, found.planes)
        assert read == (min(width + 1, found.planes) if method == "matgptq" else width)
        codes = pack.unpack(packed[:read], 40)
        assert torch.equal(slices.weight(codes, read, found.rules, width, 16), found.weight(width))


@given(q=st.integers(0, 255), bits=st.integers(2, 8))
def test_the_rounded_slice_is_matquants(q: int, bits: int) -> None:
    expected = q if bits == 8 else min((q >> (8 - bits)) + ((q >> (7 - bits)) & 1), 2**bits - 1)
    assert int(slices.rounded(torch.tensor([q]), 8, bits)) == expected
    if bits < 8:  # one bit more than it keeps is enough
        assert int(slices.rounded(torch.tensor([q >> (7 - bits)]), bits + 1, bits)) == expected


def naive(found: slices.Quantized, bits: int) -> Any:
    """Weights by loops, straight from the table of rules."""
    out, width = found.codes.shape
    made = torch.zeros(out, width, dtype=torch.float64)
    for r in range(out):
        for j in range(width):
            made[r, j] = value(found, bits, r, j)
    return made


def value(found: slices.Quantized, bits: int, r: int, j: int) -> float:
    rule, q, g = found.rules[bits], int(found.codes[r, j]), j // found.group
    held = {name: tensor.double() for name, tensor in rule.tensors.items()}
    lead = [(q >> (found.planes - 1 - at)) & 1 for at in range(bits)]
    code = q >> (found.planes - bits)
    if rule.name == "affine":
        return float(held["offset"][g, r] + held["scale"][g, r] * code)
    if rule.name == "rounded":
        kept = min(code + ((q >> (found.planes - bits - 1)) & 1), 2**bits - 1) << (found.planes - bits)
        base = found.rules[rule.base].tensors
        return float(base["offset"][g, r].double() + base["scale"][g, r].double() * kept)
    if rule.name == "planes":
        return float(held["c"][0, g, r] + sum(held["c"][at + 1, g, r] * bit for at, bit in enumerate(lead)))
    if rule.name == "tail":
        extra = code & (2 ** (bits - rule.base) - 1)
        return value(found, rule.base, r, j) + float(held["offset"][g, r] + held["scale"][g, r] * extra)
    return float(sum(held["g"][at, r] * (2 * bit - 1) * held["h"][at, j] for at, bit in enumerate(lead)))


@pytest.mark.parametrize(
    ("method", "bits"),
    [("rtn", (3,)), ("bpdq", (2,)), ("rabit", (2,)), ("matgptq", (2, 3, 8)), ("nested", (2, 3, 4, 6, 8))],
)
def test_weights_are_what_the_table_of_rules_says(method: str, bits: tuple[int, ...]) -> None:
    weight, hessian = layer(1, out=3, width=21)
    found = methods.quantize(method, weight, hessian, bits, 8)
    for width in bits:
        assert torch.allclose(found.weight(width).double(), naive(found, width), atol=1e-5)


def test_bits_per_weight_count_coefficients() -> None:
    weight, hessian = layer(2, out=8, width=128)
    expected = {
        ("rtn", (4,)): {4: 4 + 32 / 64},
        ("bpdq", (2,)): {2: 2 + 48 / 64},
        ("rabit", (2,)): {2: 2 + 32 * (1 / 8 + 1 / 128)},
        ("matgptq", (3, 8)): {3: 4 + 32 / 64, 8: 8 + 32 / 64},
        ("nested", (2, 4, 8)): {2: 2 + 48 / 64, 4: 4 + 80 / 64, 8: 8 + (80 + 32) / 64},
    }
    for (method, bits), by_width in expected.items():
        found = methods.quantize(method, weight, hessian, bits, 64)
        assert {width: found.bits_per_weight(width) for width in by_width} == pytest.approx(by_width)


def test_a_width_that_is_not_there() -> None:
    weight, hessian = layer(3)
    found = methods.quantize("nested", weight, hessian, (2, 4), 8)
    with pytest.raises(DataError, match="3 bits are not in it; it holds 2, 4"):
        found.weight(3)
