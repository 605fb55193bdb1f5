"""The methods by name, and which widths each can make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.workers.quant import bpdq, gptq, matgptq, nested, rabit, rtn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.workers.quant.slices import Quantized

SINGLE: dict[str, Any] = {
    "rtn": rtn.quantize,
    "gptq": gptq.quantize,
    "bpdq": bpdq.quantize,
    "rabit": rabit.quantize,
}
"""One width an artifact."""

SEVERAL: dict[str, Any] = {"matgptq": matgptq.quantize, "nested": nested.quantize}
"""Several widths in one artifact, sharing their bits."""

NAMES = (*SINGLE, *SEVERAL)
WIDTHS = {name: range(1, 5) if name in ("bpdq", "rabit") else range(2, 9) for name in NAMES}


def check(method: str, bits: Sequence[int], group: int) -> tuple[int, ...]:
    """The widths, sorted; `DataError` for what `method` cannot make."""
    if method not in NAMES:
        raise DataError(f"no quantization method '{method}'; there are {', '.join(NAMES)}")
    widths = tuple(sorted(set(bits)))
    span = WIDTHS[method]
    if not widths or any(width not in span for width in widths):
        raise DataError(f"{method} makes {span[0]} to {span[-1]} bits, not {', '.join(map(str, bits)) or 'none'}")
    if method in SINGLE and len(widths) > 1:
        raise DataError(f"{method} makes one width an artifact; for several in one, use {' or '.join(SEVERAL)}")
    if method == "nested" and widths[0] > nested.COARSE:
        raise DataError(f"nested needs a width of {nested.COARSE} bits or fewer; use gptq for {widths[0]} bits alone")
    if group < 8:
        raise DataError(f"a group has at least 8 columns, not {group}")
    return widths


def quantize(method: str, weight: Any, hessian: Any, bits: Sequence[int], group: int) -> Quantized:
    """`weight` [out, in] under the statistics `hessian` [in, in] of its inputs, at checked widths."""
    found: Quantized
    if method in SINGLE:
        found = SINGLE[method](weight, hessian, bits=bits[0], group=group)
    else:
        found = SEVERAL[method](weight, hessian, bits=bits, group=group)
    return found
