"""RaBiT's coupled training (arXiv 2602.05367), as an option for small models: a rabit artifact learns from its base.

Each layer keeps one full-precision latent W; in every step `B_1 = sign(W)`, `B_2 = sign(W - g_1 B_1 h_1)` and so on:
a path always binarizes what the ones before it leave. The gradient of the sum of paths goes to W as it is (straight
through), those of g and h are exact with the signs held. The latent starts where the post-training fit ended. The
loss is the relative squared difference of hidden states to the base model's, mean over blocks.

The base model, the student and the optimiser's two moments of every weight are in memory at once.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.workers import torch_load
from sqluice.workers.quant import artifact, calibrate, probe, runner
from sqluice.workers.quant.pack import unpack
from sqluice.workers.quant.slices import Quantized, Rule, half

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Progress = Callable[[int, int, str], None]

STEPS = 160
RATE = 0.003
"""Step of Adam, as a share of the root mean square of what it moves."""
STEP_TOKENS = 1536
TOKENS = 32_768


@cache
def coupled() -> Any:
    """The autograd function `(latent [out, in], g [k, out], h [k, in]) -> sum of paths [out, in]`."""
    import torch

    class Coupled(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, latent: Any, g: Any, h: Any) -> Any:
            signs = signs_of(latent, g, h)
            ctx.save_for_backward(signs, g, h)
            return (signs * g[:, :, None] * h[:, None, :]).sum(0)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            signs, g, h = ctx.saved_tensors
            moved = signs * gradient
            return gradient, (moved * h[:, None, :]).sum(2), (moved * g[:, :, None]).sum(1)

    return Coupled


def signs_of(latent: Any, g: Any, h: Any) -> Any:
    """[k, out, in]: each path's signs of what the paths before it leave."""
    import torch

    left, found = latent, []
    for rows, columns in zip(g, h, strict=True):
        sign = torch.where(left >= 0, 1.0, -1.0)
        found.append(sign)
        left = left - sign * rows[:, None] * columns[None, :]
    return torch.stack(found)


def latent_of(signs: Any, g: Any, h: Any) -> tuple[Any, Any, Any]:
    """A latent [out, in] whose paths are these (exactly for two paths), with g and h made positive."""
    import torch

    flips = torch.where(g < 0, -1.0, 1.0)[:, :, None] * torch.where(h < 0, -1.0, 1.0)[:, None, :]
    signs, g, h = signs * flips, g.abs(), h.abs()
    least = None
    latent = torch.zeros_like(signs[0])
    for sign, rows, columns in zip(signs, g, h, strict=True):
        size = rows[:, None] * columns[None, :]
        least = size if least is None else torch.minimum(size, least / 2)
        latent = latent + sign * least
    return latent, g, h


def distill(
    path: Path | str,
    texts: Iterable[str],
    out: Path | str,
    progress: Progress | None = None,
    *,
    steps: int = STEPS,
    tokens: int = TOKENS,
    device: str = "auto",
) -> dict[str, Any]:
    """Train the rabit artifact at `path` against the base model it names; write the result to `out`.

    Returns the manifest of `out`. Raises `DataError` when the artifact is of another method or there is too little
    text, and what loading the base model raises.
    """
    import torch

    held = artifact.read(path)
    if held.manifest["method"] != "rabit":
        raise DataError(f"{path} was made by {held.manifest['method']}; only rabit artifacts are distilled")
    (bits,) = held.manifest["bits"]
    where = torch_load.device_of(device)
    files = runner.located(held.manifest["base"]["name"])
    tokenizer = runner.opened_tokenizer(files)
    config = torch_load.open_config(files)
    longest = probe.longest(files.folder, config, runner.LONGEST)
    rows = calibrate.tokenised(tokenizer, list(texts), longest, tokens)
    calibrate.check_enough(rows, runner.LEAST_TOKENS)
    teacher, student = (_model(files, held.manifest["base"]["generative"]).to(where) for _ in range(2))
    layers = {name: _couple(student, held, name, bits) for name in held.manifest["layers"]}
    held_out = rows[:: calibrate.HELD_OUT]
    train(teacher, student, [row for at, row in enumerate(rows) if at % calibrate.HELD_OUT], steps, progress)
    made = {name: _frozen(layer, bits) for name, layer in layers.items()}
    with torch.no_grad():
        facts = _facts(teacher, student, layers, made, held_out)
        quality = _quality(held, student, tokenizer)
    quality["layer_error"] = sum(one["error"][str(bits)] for one in facts.values()) / len(facts)
    tensors: dict[str, Any] = {}
    for name, one in made.items():
        tensors |= runner.tensors_of(name, one)
    kept = {name: held.tensor(name) for name in held.entries if name not in tensors and name != "align"}
    pieces = [artifact.piece_of(name, tensor) for name, tensor in {**kept, **tensors}.items()]
    told = {"steps": steps, "fingerprint": calibrate.fingerprint(rows)}
    changed = {"layers": facts, "quality": {str(bits): quality}, "distilled": told}
    artifact.write(Path(out), pieces, {**held.manifest, **changed})
    return artifact.inspect(out)


def _model(files: Any, generative: bool) -> Any:
    import torch
    import transformers

    from sqluice.workers.hf import open_text

    if generative:
        return open_text(files, torch.float32)[1].eval().requires_grad_(False)
    with torch_load.quiet():
        model: Any = transformers.AutoModel.from_pretrained(**files.where, dtype=torch.float32, use_safetensors=True)
    return model.eval().requires_grad_(False)


def _couple(student: Any, held: Any, name: str, bits: int) -> Any:
    """Put a trainable layer of paths in the place of a linear one; returns it."""
    import torch

    old = student.get_submodule(name)
    names = artifact.reads(held.manifest, name, bits)
    planes = [held.tensor(one) for one in names if "/plane." in one]
    g, h = (held.tensor(f"layers/{name}/{bits}.{one}").float().to(old.weight.device) for one in ("g", "h"))
    signs = torch.stack([unpack([plane], old.in_features).float() * 2 - 1 for plane in planes]).to(old.weight.device)
    latent, g, h = latent_of(signs, g, h)

    class CoupledLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent, self.g, self.h = (torch.nn.Parameter(one.clone()) for one in (latent, g, h))
            self.bias = old.bias

        def weight(self) -> Any:
            return coupled().apply(self.latent, self.g, self.h)

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight(), self.bias)

    owner, _, own = name.rpartition(".")
    layer = CoupledLinear()
    setattr(student.get_submodule(owner), own, layer)
    return layer


def train(
    teacher: Any, student: Any, rows: list[list[int]], steps: int, progress: Progress | None = None
) -> list[float]:
    """The losses of `steps` steps over `rows` in turn. Changes what of `student` has gradients."""
    import torch

    moving = [one for one in student.parameters() if one.requires_grad]
    groups = [{"params": [one], "lr": RATE * float(one.detach().square().mean().sqrt())} for one in moving]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    batches = _batches(rows, str(next(teacher.parameters()).device))
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 1.0 if step == 0 else (steps - step) / (steps - step + 1)  # linear to zero
        ids, mask = batches[step % len(batches)]
        with torch.no_grad():
            wanted = _states(teacher, ids, mask)
        loss = torch.stack(
            [
                ((a - b).square() * mask[..., None]).sum() / (b.square() * mask[..., None]).sum()
                for a, b in zip(_states(student, ids, mask), wanted, strict=True)
            ]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step + 1, steps, f"distilling: loss {losses[-1]:.4f}")
    return losses


def _batches(rows: list[list[int]], device: str) -> list[tuple[Any, Any]]:
    """Ids and mask of about `STEP_TOKENS` tokens each, rows in their order."""
    found, part = [], []
    for at, row in enumerate(rows):
        part.append(row)
        if sum(map(len, part)) >= STEP_TOKENS or at + 1 == len(rows):
            found += [(one.ids, one.mask) for one in calibrate.batches(part, 0, "", device)]
            part = []
    return found


def _states(model: Any, ids: Any, mask: Any) -> list[Any]:
    told = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return list(told.hidden_states[1:])


def _frozen(layer: Any, bits: int) -> Quantized:
    """What a trained layer has become, coefficients in float16."""
    import torch

    signs = signs_of(layer.latent.detach(), layer.g.detach(), layer.h.detach())
    powers = (2 ** torch.arange(bits - 1, -1, -1)).to(signs)[:, None, None]
    codes = ((signs > 0) * powers).sum(0).to(torch.uint8)
    tensors = {"g": half(layer.g.detach(), "row scales"), "h": half(layer.h.detach(), "column scales")}
    return Quantized(codes, bits, 0, {bits: Rule("paths", bits, tensors)})


def _facts(
    teacher: Any, student: Any, layers: Any, made: dict[str, Quantized], rows: list[list[int]]
) -> dict[str, Any]:
    """Facts of every layer, its error on what the student sees of held-out rows."""
    from sqluice.workers.quant.core import Statistics

    found = {name: Statistics(one.codes.shape[1], layers[name].latent.device) for name, one in made.items()}
    mask: list[Any] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: found[name].add(given[0][mask[-1]]))
        for name, layer in layers.items()
    ]
    for ids, kept in _batches(rows, str(next(teacher.parameters()).device)):
        mask.append(kept.bool())
        _states(student, ids, kept)
    for handle in handles:
        handle.remove()
    weights = {name: teacher.get_submodule(name).weight for name in made}
    return {name: runner.facts_of(one, weights[name], found[name].value) for name, one in made.items()}


def _quality(held: Any, student: Any, tokenizer: Any) -> dict[str, float]:
    ids, mask = probe.tokens(tokenizer)
    device = next(student.parameters()).device
    states = student.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    pooled = probe.pooled(states.last_hidden_state.cpu(), mask)
    return {"cosine": probe.cosine(pooled, held.tensor("probe"))}
