"""The kernels of `triton_products` without a GPU: under Triton's interpreter, and compiled for one.

TRITON_INTERPRET=1 python triton_kernels.py interpret      products against dense weights, as JSON
python triton_kernels.py compile                           machine code for compute capability 8.0
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

from sqluice.workers.quant import methods, pack, products, triton_products

CASES = (
    ("nested", (2, 3, 4, 8), 32),
    ("bpdq", (2,), 64),
    ("gptq", (4,), 128),
    ("rabit", (2,), 32),
    ("rabit", (3,), 32),
)
OUT, WIDTH = 40, 200


def interpreted() -> list[dict[str, Any]]:
    """The gap of every product, relative to what the dense weights give; shapes leave tiles half empty."""
    made = torch.Generator().manual_seed(0)
    found = []
    for method, widths, group in CASES:
        inputs = torch.randn(300, WIDTH, generator=made)
        weight = torch.randn(OUT, WIDTH, generator=made)
        layer = methods.quantize(method, weight, 2 / 300 * inputs.T @ inputs, widths, group)
        planes = pack.pack(layer.codes, layer.planes)
        for bits in widths:
            product = products.from_planes(planes[:bits], layer.rules, bits, group)
            assert product is not None
            for tokens, dtype in ((1, torch.float32), (19, torch.float16)):
                x = torch.randn(tokens, WIDTH, generator=made).to(dtype)
                expected = x.float() @ layer.weight(bits).T
                gap = float((product(x).float() - expected).norm() / expected.norm())
                found.append({"method": method, "bits": bits, "tokens": tokens, "dtype": str(dtype), "gap": gap})
    return found


def compiled() -> list[dict[str, Any]]:
    """Size of the machine code, and the assembler, of both kernels with bfloat16 inputs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    shapes = dict.fromkeys(("tokens", "width", "out", "words"), "i32")
    ends = {"x": "*bf16", "planes": ("*i32",) * 3, "y": "*bf16"}
    tile = {"count": 3, "span": 128, "height": triton_products.ROWS, "breadth": triton_products.OUTS}
    cases = (
        (triton_products._planes_kernel, {**ends, "c": "*fp32", **shapes, "groups": "i32"}, tile),
        (triton_products._paths_kernel, {**ends, "g": "*fp16", "h": "*fp16", **shapes}, tile),
    )
    found = []
    for kernel, types, constants in cases:
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        code = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm
        found.append({"cubin": len(code["cubin"]), "ptx": code["ptx"]})
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(interpreted() if sys.argv[1] == "interpret" else compiled()))
