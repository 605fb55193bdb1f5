"""Products of a slice on a GPU, from its bit planes: a tile of weights is made in registers and multiplied there.

Both kernels compute `y = x W^T` [tokens, out] for x [tokens, in] from planes int32 [out, words] (`pack`: column
32 w + j in bit j of word w), b words for 32 weights instead of 64 bytes. A program owns `ROWS` tokens and `OUTS`
outputs and walks over the columns, a group at a time; sums are float32.

- `planes`: coefficients float16 or float32 [b + 1, groups, out], `W = c_0 + sum_i c_i bit_i` (`slices.coefficients`;
  the product of BPDQ, arXiv 2602.04163, and of every uniform grid);
- `paths`: `y = sum_i g_i * (B_i (h_i * x))`, B_i of -1 and +1 (RaBiT, arXiv 2602.05367).

Imported on CUDA only, and by tests: TRITON_INTERPRET=1 runs both on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUPS = (32, 64, 128, 256)
"""Groups that `planes` walks by: whole words, and a tile of weights that fits into registers."""
ROWS = 16
OUTS = 32
PATH_COLUMNS = 128


@triton.jit
def _bits(plane, outs, out, word, words, breadth: tl.constexpr, span: tl.constexpr):
    """[breadth, span]: the bits of the outputs `outs` in the words `word` of a plane, 0 past its edges."""
    held = (outs < out)[:, None] & (word < words)[None, :]
    packed = tl.load(plane + outs[:, None] * words + word[None, :], held, 0)
    bits = (packed[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return tl.reshape(bits, (breadth, span))


@triton.jit
def _given(x, rows, tokens, columns, width):
    """[rows, columns] of the inputs, 0 past their edges."""
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    return tl.load(x + rows[:, None] * width + columns[None, :], inside, 0.0)


@triton.jit
def _put(y, rows, tokens, outs, out, total):
    inside = (rows < tokens)[:, None] & (outs < out)[None, :]
    tl.store(y + rows[:, None] * out + outs[None, :], total.to(y.dtype.element_ty), inside)


@triton.jit
def _planes_kernel(
    x,
    planes,
    y,
    tokens,
    width,
    out,
    words,
    c,
    groups,
    count: tl.constexpr,
    span: tl.constexpr,
    height: tl.constexpr,
    breadth: tl.constexpr,
):
    rows = tl.program_id(0) * height + tl.arange(0, height)
    outs = tl.program_id(1) * breadth + tl.arange(0, breadth)
    total = tl.zeros((height, breadth), tl.float32)
    for group in range(groups):
        word = group * (span // 32) + tl.arange(0, span // 32)
        weight = tl.zeros((breadth, span), tl.float32)
        weight += tl.load(c + group * out + outs, outs < out, 0.0).to(tl.float32)[:, None]
        for at in tl.static_range(count):
            bits = _bits(planes[at], outs, out, word, words, breadth, span)
            scale = tl.load(c + ((at + 1) * groups + group) * out + outs, outs < out, 0.0).to(tl.float32)
            weight += scale[:, None] * bits.to(tl.float32)
        given = _given(x, rows, tokens, group * span + tl.arange(0, span), width)
        total = tl.dot(given, tl.trans(weight.to(given.dtype)), total, input_precision="ieee")
    _put(y, rows, tokens, outs, out, total)


@triton.jit
def _paths_kernel(
    x,
    planes,
    y,
    tokens,
    width,
    out,
    words,
    g,
    h,
    count: tl.constexpr,
    span: tl.constexpr,
    height: tl.constexpr,
    breadth: tl.constexpr,
):
    rows = tl.program_id(0) * height + tl.arange(0, height)
    outs = tl.program_id(1) * breadth + tl.arange(0, breadth)
    total = tl.zeros((height, breadth), tl.float32)
    for at in tl.static_range(count):
        path = tl.zeros((height, breadth), tl.float32)
        for start in range(0, width, span):
            bits = _bits(planes[at], outs, out, start // 32 + tl.arange(0, span // 32), words, breadth, span)
            columns = start + tl.arange(0, span)
            given = _given(x, rows, tokens, columns, width)
            scale = tl.load(h + at * width + columns, columns < width, 0.0).to(tl.float32)
            scaled = (given.to(tl.float32) * scale[None, :]).to(given.dtype)
            path = tl.dot(scaled, tl.trans((2 * bits - 1).to(given.dtype)), path, input_precision="ieee")
        total += path * tl.load(g + at * out + outs, outs < out, 0.0).to(tl.float32)[None, :]
    _put(y, rows, tokens, outs, out, total)


def planes_product(x: Any, planes: Sequence[Any], c: Any, group: int) -> Any:
    """[tokens, out] in the dtype of x [tokens, in], contiguous; `planes` and `c` as the module says, most significant
    first. `group` is one of `GROUPS`."""
    return _launched(_planes_kernel, x, planes, (c, c.shape[1]), group)


def paths_product(x: Any, planes: Sequence[Any], g: Any, h: Any) -> Any:
    """[tokens, out] in the dtype of x [tokens, in], contiguous; g [b, out] and h [b, in]."""
    return _launched(_paths_kernel, x, planes, (g, h), PATH_COLUMNS)


def _launched(kernel: Any, x: Any, planes: Sequence[Any], own: tuple[Any, ...], span: int) -> Any:
    """What a kernel makes of x; `own` are its arguments beside those that both have."""
    tokens, width = x.shape
    out, words = planes[0].shape
    y = x.new_empty(tokens, out)
    grid = (triton.cdiv(tokens, ROWS), triton.cdiv(out, OUTS))
    tile = {"count": len(planes), "span": span, "height": ROWS, "breadth": OUTS}
    kernel[grid](x, tuple(planes), y, tokens, width, out, words, *own, **tile)
    return y
