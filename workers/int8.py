"""`#quant=int8`: a model's linear layers as 8-bit integer products of torch (FBGEMM on x86, QNNPACK on ARM), on load.

Weights have a scale for each output; the activations of a batch have one scale, found when they come, so what a row
gets depends a little on the rows beside it. The output layer stays as it was: its logits are compared.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sqluice.errors import ModelError
from sqluice.workers import torch_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.workers.protocol import Model

VERSION = "1"


def load(name: str, opened: Callable[..., Model], dtype: str, device: str, **options: Any) -> Model:
    """The model that `opened(name, dtype=.., device=.., ..)` gives, its layers in int8; its revision says so.

    `ModelError` for a dtype other than float32, a device other than the CPU, and a torch that has no int8 products.
    """
    if dtype not in ("auto", "float32"):
        raise ModelError(f"{name}: quant=int8 computes in float32 beside the products; leave dtype={dtype} out")
    if torch_load.device_of(device) != "cpu":
        raise ModelError(f"{name}: quant=int8 is for the CPU; add device=cpu, or leave quant out")
    check_engine(name)
    found: Any = opened(name, dtype="float32", device="cpu", **options)
    inner = found._lm.model if hasattr(found, "_lm") else found._model  # noqa: SLF001 - both are classes of ours
    convert(inner)
    revision = torch_load.combined(found.info.revision, "int8", VERSION)
    found.info = replace(found.info, revision=revision, extra={**found.info.extra, "quant": "int8"})
    return cast("Model", found)


def check_engine(name: str) -> None:
    """`ModelError` where torch has no int8 products, or none for this processor."""
    import torch

    if not hasattr(torch, "quantize_per_channel") or torch.backends.quantized.engine in (None, "none"):
        raise ModelError(f"{name}: this torch has no int8 products for this processor; leave quant=int8 out")


def convert(model: Any) -> None:
    """Put integer products in the place of the linear layers of a float32 model, all but its output layer."""
    import torch

    vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    narrow = not (vnni is not None and vnni())  # without VNNI, sums of two products of 8 bits overflow 16 bits

    class Int8Linear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, linear: Any) -> None:
            super().__init__()
            weight = linear.weight.data
            scales = (weight.abs().amax(1).double() / 127).clamp(min=1e-12)
            zeros = torch.zeros(len(scales), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch will take it away; check_engine says so then
                codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            bias = None if linear.bias is None else linear.bias.data
            self.packed = torch.ops.quantized.linear_prepack(codes, bias)

        def forward(self, x: Any) -> Any:
            return torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=narrow)

    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, torch.nn.Linear) and layer is not output:
                setattr(owner, name, Int8Linear(layer))
