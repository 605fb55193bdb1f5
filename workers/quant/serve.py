"""Slices of an artifact as models: a linear layer that holds planes, a model made of them, a check of both.

Slices opened in one process share the mapped planes, coefficients and what is not quantized. `dense` keeps each
layer's weights in the dtype of the computation after the first use, which is fastest and takes that memory again for
each slice; without it weights are made from the planes at every call.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError, WeightsError
from sqluice.workers import thinking, torch_load
from sqluice.workers.quant import artifact, checkpoint, pack, probe, products, slices
from sqluice.workers.torch_load import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.workers.protocol import Model
    from sqluice.workers.quant.artifact import Artifact

TOLERANCE = 0.01
"""How far a width's cosine on the probe may lie from the manifest's, on another device or in another dtype."""


def load_slice(
    path: Path | str,
    bits: float = 0,
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int = 0,
    thinking_tokens: int = thinking.BUDGET,
    dense: bool = True,
) -> Model:
    """The model in the artifact at `path`, at `bits` bits (0: the most it has).

    `DataError` lists the widths when this one is not there; `WeightsError` names the tensor that is damaged or
    missing, and `NotSupportedError` an architecture of a newer version.
    """
    torch_load.require(f"artifact {path}")
    import torch

    from sqluice.workers import hf, torch_embedder
    from sqluice.workers.quant.runner import opened_tokenizer

    held = artifact.read(path)
    known = artifact.slices_of(held.manifest)
    width = bits or max(known)
    if width not in known:
        raise DataError(f"{path} does not hold {width:g} bits; it holds {', '.join(f'{one:g}' for one in known)}")
    where = torch_load.device_of(device)
    if threads:
        torch.set_num_threads(threads)
    generative = bool(held.manifest["base"]["generative"])
    kind = torch_load.dtype_of("float32" if dtype == "auto" and where == "cpu" and not generative else dtype, where)
    with tempfile.TemporaryDirectory(prefix="sqluice-artifact-") as scratch:
        source = _unpacked(held, Path(scratch))
        model = _assembled(held, source, known[width], where, kind, dense)
        name, details = f"artifact:{held.path}#bits={width:g}", (held.fingerprint, f"bits={width:g}")
        if generative:
            return hf.text_model(name, opened_tokenizer(source), model, details, thinking_tokens)
        return torch_embedder.embedder(name, source, model, where, details)


def _unpacked(held: Artifact, folder: Path) -> Source:
    """The settings and tokenizer as files, for the libraries that read files. Only names of ours are written."""
    for name, size in held.manifest["files"].items():
        if name not in checkpoint.FILES:
            raise WeightsError(f"{held.path}: file {name} does not belong into an artifact")
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(bytes(held.tensor(f"files/{name}").numpy())[:size])
    return Source(str(held.path), folder)


def _assembled(held: Artifact, source: Source, widths: dict[str, int], device: str, dtype: Any, dense: bool) -> Any:
    """The model with every layer at its width."""
    shape = checkpoint.skeleton(torch_load.open_config(source))
    model = shape.model
    for name, facts in held.manifest["layers"].items():
        owner, _, own = name.rpartition(".")
        old = model.get_submodule(name)
        if (old.out_features, old.in_features) != tuple(facts["shape"]):
            raise WeightsError(
                f"{held.path}: layer {name} is {facts['shape']}, and the model's configuration says"
                f" {[old.out_features, old.in_features]}"
            )
        new = plane_linear(held, name, widths[name], device, dtype, dense=dense, bias=old.bias is not None)
        setattr(model.get_submodule(owner), own, new)
    state = {}
    for name in held.entries:
        if name.startswith("weights/"):
            tensor = held.kept(name, device, dtype if held.entries[name].dtype != "I64" else None)
            state[name.removeprefix("weights/")] = tensor
    _, extra = model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    gone = [name for name, one in model.state_dict().items() if one.device.type == "meta"]
    if gone or extra:
        raise WeightsError(f"{held.path}: weight {(gone or extra)[0]} is {'missing' if gone else 'not known'}")
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            kept = name not in module._non_persistent_buffers_set  # noqa: SLF001 - torch has no other way to ask
            module.register_buffer(name, buffer.to(device), persistent=kept)
    return model.eval().requires_grad_(False)


def plane_linear(held: Artifact, name: str, bits: int, device: str, dtype: Any, dense: bool, bias: bool) -> Any:
    """A `torch.nn.Module` in the place of a linear layer: `planes`, the coefficients it reads, and a bias."""
    import torch

    facts = held.manifest["layers"][name]
    tensors = {key: held.kept(key, device) for key in artifact.reads(held.manifest, name, bits)}
    rules = rules_of(facts, name, bits, tensors.__getitem__)
    planes = planes_of(facts, name, bits, rules, tensors.__getitem__)

    class PlaneLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = facts["shape"][1], facts["shape"][0]
            self.bits = bits
            self.held_weights = self.in_features * self.out_features
            self.artifact = held  # keeps the mapping open, so that the next slice finds it
            self.tensors = tensors
            empty = torch.empty(self.out_features if bias else 0, device="meta")
            self.bias = torch.nn.Parameter(empty, requires_grad=False) if bias else None
            self._dense: Any = None
            self._few = products.few_tokens(planes, rules, bits, facts["shape"], facts["group"])

        def dequantized(self) -> Any:
            """[out, in] in the dtype of the computation."""
            return weight_from(facts, planes, rules, bits).to(dtype)

        def forward(self, x: Any) -> Any:
            if self._few is not None and x.numel() <= self._few.limit * self.in_features:
                y = self._few(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
                return y if self.bias is None else y + self.bias
            if not dense:
                return torch.nn.functional.linear(x, self.dequantized(), self.bias)
            if self._dense is None:
                self._dense = self.dequantized()
            return torch.nn.functional.linear(x, self._dense, self.bias)

        def extra_repr(self) -> str:
            return f"{self.in_features}, {self.out_features}, bits={self.bits}"

    return PlaneLinear()


def weight_of(facts: dict[str, Any], layer: str, bits: int, tensor: Callable[[str], Any]) -> Any:
    """Float32 [out, in] of a layer at a width; `tensor` gives what the file names."""
    rules = rules_of(facts, layer, bits, tensor)
    return weight_from(facts, planes_of(facts, layer, bits, rules, tensor), rules, bits)


def weight_from(facts: dict[str, Any], planes: list[Any], rules: dict[int, slices.Rule], bits: int) -> Any:
    """Float32 [out, in] of the planes and rules that a width reads."""
    return slices.weight(pack.unpack(planes, facts["shape"][1]), len(planes), rules, bits, facts["group"])


def rules_of(facts: dict[str, Any], layer: str, bits: int, tensor: Callable[[str], Any]) -> dict[int, slices.Rule]:
    """The rule of a width and of those it stands on."""
    rules = {}
    width = bits
    while width:
        said = facts["rules"][str(width)]
        named = {key: tensor(f"layers/{layer}/{width}.{key}") for key in said["tensors"]}
        rules[width] = slices.Rule(said["name"], width, named, said["base"])
        width = said["base"]
    return rules


def planes_of(
    facts: dict[str, Any], layer: str, bits: int, rules: dict[int, slices.Rule], tensor: Callable[[str], Any]
) -> list[Any]:
    """The planes that a width reads, most significant first."""
    return [tensor(f"layers/{layer}/plane.{at}") for at in range(slices.planes_read(rules, bits, facts["planes"]))]


def verify(path: Path | str) -> dict[str, Any]:
    """Hash every tensor anew, and measure every width's cosine on the probe: `{"tensors": n, "widths": {..}}`.

    `WeightsError` names the tensor that differs, or the width that is not as good as the manifest says.
    """
    count = artifact.check_hashes(path)
    held = artifact.read(path)
    found = {bits: probed(held, widths) for bits, widths in artifact.slices_of(held.manifest).items()}
    for bits, cosine in found.items():
        said = held.manifest["quality"][f"{bits:g}"]["cosine"]
        if abs(cosine - said) > TOLERANCE:
            raise WeightsError(f"{path}: at {bits:g} bits the cosine to the base model is {cosine:.4f}, not {said:.4f}")
    return {"tensors": count, "widths": found}


def probed(held: Artifact, widths: dict[str, int]) -> float:
    """Cosine of a slice's states on the probe to the base model's; `widths` by layer."""
    import torch

    from sqluice.workers.quant.runner import opened_tokenizer

    with tempfile.TemporaryDirectory(prefix="sqluice-artifact-") as scratch:
        source = _unpacked(held, Path(scratch))
        ids, mask = probe.tokens(opened_tokenizer(source))
        model = _assembled(held, source, widths, "cpu", torch.float32, True)
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return probe.cosine(probe.pooled(states, mask), held.tensor("probe"))
