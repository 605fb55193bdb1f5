"""Products of a slice's layer with few tokens, where reading fewer bits is faster than reading dense weights.

A product with many tokens is bound by arithmetic and one with few by the bytes of the weights. So a layer has dense
weights for many tokens, and for few, where the hardware has one:

- CPU: torch's packed 4-bit product, for even grids of up to 4 bits (`rtn`, `gptq`);
- CUDA: the kernels of `triton_products`, for every rule but MatGPTQ's rounding slice, which is not linear in its bits.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from sqluice.workers.quant import pack, slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.workers.quant.slices import Rule

CPU_TOKENS = 8
"""Up to here the packed product was faster than the dense one (benchmarks/products.py)."""
CUDA_TOKENS = 32
"""Two tiles of rows; chosen, not measured."""
PACKED_GROUPS = (32, 64, 128, 256)
PACKED_OUT = 16


class Few:
    """`[tokens, in] -> [tokens, out]` for up to `limit` tokens; `make` gives the product when it is first needed."""

    def __init__(self, limit: int, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.limit = limit
        self._make = make
        self._product: Callable[[Any], Any] | None = None

    def __call__(self, x: Any) -> Any:
        """The product."""
        if self._product is None:
            self._product = self._make()
        return self._product(x)


def few_tokens(
    planes: Sequence[Any], rules: dict[int, Rule], bits: int, shape: Sequence[int], group: int
) -> Few | None:
    """The product of a layer `shape` [out, in] at a width for few tokens; None where dense weights are as fast."""
    on_cuda = planes[0].device.type == "cuda"
    if on_cuda and importlib.util.find_spec("triton"):
        product = from_planes(planes, rules, bits, group)
        return None if product is None else Few(CUDA_TOKENS, lambda: product)
    if not on_cuda and packs(rules, bits, shape, group):
        return Few(CPU_TOKENS, lambda: packed(planes, rules[bits], shape[1], group))
    return None


def from_planes(planes: Sequence[Any], rules: dict[int, Rule], bits: int, group: int) -> Callable[[Any], Any] | None:
    """The product of a Triton kernel; None for a rule or a group that has none."""
    from sqluice.workers.quant import triton_products

    rule = slices.rule_of(rules, bits)
    if rule.name == "paths":
        g, h = rule.tensors["g"], rule.tensors["h"]
        return lambda x: triton_products.paths_product(x.contiguous(), planes, g, h)
    c = slices.coefficients(rules, bits)
    if c is None or group not in triton_products.GROUPS:
        return None
    return lambda x: triton_products.planes_product(x.contiguous(), planes, c, group)


def packs(rules: dict[int, Rule], bits: int, shape: Sequence[int], group: int) -> bool:
    """Whether torch's packed 4-bit product on the CPU takes this layer."""
    import torch

    whole = shape[0] % PACKED_OUT == 0 and fine_group(shape[1], group) > 0
    known = hasattr(torch, "_convert_weight_to_int4pack_for_cpu") and hasattr(torch, "_weight_int4pack_mm_for_cpu")
    return bits <= 4 and slices.rule_of(rules, bits).name == "affine" and whole and known


def fine_group(width: int, group: int) -> int:
    """The widest group of the packed product that ours are made of and that divides the columns; 0 for none."""
    return max((one for one in PACKED_GROUPS if group % one == 0 and width % one == 0), default=0)


def packed(planes: Sequence[Any], rule: Rule, width: int, group: int) -> Callable[[Any], Any]:
    """Torch's packed 4-bit product in bfloat16: in float32 it is ten times as slow where AVX-512 is missing.

    A weight there is `(code - 8) * scale + zero`, and what comes out is rounded to bfloat16. So our codes are moved to
    lie around 8, and the middle of our grid, too large for a bfloat16 `zero`, is multiplied with the sums of x over
    each group in float32.
    """
    import torch

    half = 2 ** (rule.bits - 1)
    codes = torch._convert_weight_to_int4pack_for_cpu(pack.unpack(planes, width).int() + (8 - half), 1)  # noqa: SLF001
    fine = fine_group(width, group)
    scale, offset = (
        rule.tensors[name].float().repeat_interleave(group // fine, 0)[: width // fine] for name in ("scale", "offset")
    )
    steps = torch.stack([scale, torch.zeros_like(scale)], 2).to(torch.bfloat16).contiguous()
    middle = offset + half * scale

    def product(x: Any) -> Any:
        inner = torch._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16).contiguous(), codes, fine, steps)  # noqa: SLF001
        return (inner + x.float().reshape(len(x), -1, fine).sum(2) @ middle).to(x.dtype)

    return product
