"""`#quant=int8`: a model's linear layers as 8-bit integer products of torch (FBGEMM), on load. x86 only.

Weights have a scale for each output, activations one for each token, found when it comes. (One for a whole batch, as
torch's own dynamic product has, let one loud token drown the others: errors of 40 % instead of 4 %.) The output layer
stays as it was: its logits are compared. A slice of an artifact is rounded once more.
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

VERSION = "2"


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

    known = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    known = known and hasattr(torch, "quantize_per_channel")
    if not known or torch.backends.quantized.engine not in ("x86", "fbgemm"):
        raise ModelError(f"{name}: this torch has no int8 products for this processor; leave quant=int8 out")


def convert(model: Any) -> None:
    """Put integer products in the place of the linear layers of a float32 model, all but its output layer."""
    import torch

    vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    # Without VNNI two products of 8 bits are added in 16 bits, which overflow: a bit less for the weights costs less
    # than one for the activations.
    most = 127 if vnni is not None and vnni() else 63
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    class Int8Linear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, linear: Any) -> None:
            super().__init__()
            weight = linear.dequantized() if hasattr(linear, "dequantized") else linear.weight.data
            scales = (weight.abs().amax(1).double() / most).clamp(min=1e-12)
            zeros = torch.zeros(len(scales), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch will take it away; check_engine says so then
                codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.bias = linear.bias
            self.packed = torch.ops.quantized.linear_prepack(codes, None)

        def forward(self, x: Any) -> Any:
            scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(127)
            y = multiply(x / scale, 1.0, 128, self.packed).mul_(scale)
            return y if self.bias is None else y.add_(self.bias)

    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            linear = isinstance(layer, torch.nn.Linear) or hasattr(layer, "dequantized")
            if linear and layer is not output:
                setattr(owner, name, Int8Linear(layer))
