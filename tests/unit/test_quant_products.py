"""Products of a layer with few tokens against its dense weights; the GPU's kernels under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_quant_core import layer

torch = pytest.importorskip("torch")

from sqluice.workers.quant import methods, pack, products, slices  # noqa: E402

KERNELS = Path(__file__).parents[1] / "support" / "triton_kernels.py"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def bits_of(codes: Any, planes: int) -> list[Any]:
    return [((codes >> (planes - 1 - at)) & 1).float() for at in range(planes)]


@pytest.mark.parametrize(
    ("method", "widths"), [("rtn", (3,)), ("gptq", (4,)), ("bpdq", (2,)), ("nested", (2, 4, 6, 8)), ("nested", (3, 8))]
)
def test_coefficients_are_the_weight_as_a_sum_over_bits(method: str, widths: tuple[int, ...]) -> None:
    weight, hessian = layer(3, out=8, width=40)
    found = methods.quantize(method, weight, hessian, widths, 16)
    for bits in widths:
        c = slices.coefficients(found.rules, bits)
        assert c.shape == (bits + 1, 3, 8)
        spread = c.repeat_interleave(16, 1)[:, :40].transpose(1, 2)
        planes = bits_of(found.codes, found.planes)[:bits]
        made = spread[0] + sum(spread[at + 1] * plane for at, plane in enumerate(planes))
        assert torch.allclose(made, found.weight(bits), atol=1e-5)


def test_signs_and_rounding_have_no_coefficients() -> None:
    weight, hessian = layer(3, out=8, width=40)
    assert slices.coefficients(methods.quantize("rabit", weight, hessian, (2,), 16).rules, 2) is None
    assert slices.coefficients(methods.quantize("matgptq", weight, hessian, (4, 8), 16).rules, 4) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("method", "bits", "group"), [("rtn", 2, 32), ("gptq", 3, 32), ("gptq", 4, 64), ("gptq", 4, 256)]
)
def test_the_packed_product_is_the_dense_one(method: str, bits: int, group: int, dtype: Any) -> None:
    weight, hessian = layer(5, out=32, width=192)
    found = methods.quantize(method, weight, hessian, (bits,), group)
    few = products.few_tokens(pack.pack(found.codes, bits), found.rules, bits, (32, 192), group)
    assert few is not None
    for tokens in (1, few.limit):
        x = torch.randn(tokens, 192, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        expected = x.float() @ found.weight(bits).T
        gap = float((few(x).float() - expected).norm() / expected.norm())
        assert gap < 0.006, gap


@pytest.mark.parametrize(
    ("method", "bits", "out", "width", "group"),
    [("gptq", 8, 32, 128, 32), ("bpdq", 4, 32, 128, 32), ("gptq", 4, 30, 128, 32), ("gptq", 4, 32, 120, 32)],
    ids=["more than 4 bits", "an uneven grid", "outputs left over", "columns left over"],
)
def test_other_layers_have_dense_weights_alone(method: str, bits: int, out: int, width: int, group: int) -> None:
    weight, hessian = layer(5, out=out, width=width)
    found = methods.quantize(method, weight, hessian, (bits,), group)
    planes = pack.pack(found.codes, bits)
    assert products.few_tokens(planes, found.rules, bits, (out, width), group) is None


def run(what: str, **environment: str) -> list[dict[str, Any]]:
    """What the script finds in a process of its own: Triton reads at import whether it interprets."""
    told = subprocess.run(
        [sys.executable, "-P", str(KERNELS), what],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return found


@needs_triton
def test_the_kernels_multiply_as_dense_weights_do() -> None:
    found = run("interpret", TRITON_INTERPRET="1")
    assert {(row["method"], row["bits"]) for row in found} == {
        *(("nested", bits) for bits in (2, 3, 4, 8)),
        ("bpdq", 2),
        ("gptq", 4),
        ("rabit", 2),
        ("rabit", 3),
    }
    for row in found:
        assert row["gap"] < (1e-5 if row["dtype"] == "torch.float32" else 0.005), row


@needs_triton
def test_the_kernels_compile_for_a_gpu() -> None:
    for row in run("compile"):
        assert row["cubin"] > 1000, row
        assert "mma" in row["ptx"], "the tensor cores multiply"
