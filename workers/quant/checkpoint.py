"""A model whose weights stay on disk: its skeleton in memory, its blocks filled one at a time.

`SUPPORTED` lists the kinds of model whose blocks are known: a list of equal blocks that take hidden states and give
hidden states. Linear layers inside blocks are quantized; embeddings, norms and the head are not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqluice.errors import NotSupportedError, WeightsError
from sqluice.workers import torch_load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqluice.workers.torch_load import Source

SUPPORTED = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
    "llama": "layers",
    "mistral": "layers",
    "qwen2": "layers",
    "qwen3": "layers",
    "gemma": "layers",
    "gemma2": "layers",
    "gemma3_text": "layers",
    "phi3": "layers",
}
"""Model type -> where the list of its blocks is, below the base model."""

FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""What of a model's folder goes into an artifact, where it is there."""

_OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


@dataclass(slots=True)
class Skeleton:
    """A transformers model without weights. `generative` tells a language model from an encoder."""

    model: Any
    generative: bool
    model_type: str

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @property
    def blocks(self) -> Any:
        """The list of blocks."""
        found = self.base
        for step in SUPPORTED[self.model_type].split("."):
            found = getattr(found, step)
        return found

    def name_of_block(self, at: int) -> str:
        """The block's name in the model."""
        prefix = next(name for name, module in self.model.named_modules() if module is self.blocks)
        return f"{prefix}.{at}"

    def linears(self, at: int) -> dict[str, Any]:
        """The linear layers of a block, by their names in the block."""
        import torch

        return {name: one for name, one in self.blocks[at].named_modules() if isinstance(one, torch.nn.Linear)}

    def tied(self) -> dict[str, str]:
        """Names of weights that are another's, and whose."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    def outside(self) -> list[str]:
        """Names of the parameters and kept buffers outside the blocks, each tied weight once."""
        inside = tuple(f"{self.name_of_block(at)}." for at in range(len(self.blocks)))
        tied = self.tied()
        return [name for name in self.model.state_dict() if not name.startswith(inside) and name not in tied]


def skeleton(config: Any) -> Skeleton:
    """A model of `config` with its parameters on the meta device; `NotSupportedError` lists what is supported."""
    import transformers
    from accelerate import init_empty_weights

    kind = str(config.model_type)
    if kind not in SUPPORTED:
        raise NotSupportedError(f"models of type '{kind}' cannot be quantized; supported are {', '.join(SUPPORTED)}")
    generative = not torch_load.is_encoder(config)
    maker: Any = transformers.AutoModelForCausalLM if generative else transformers.AutoModel
    with torch_load.quiet(), init_empty_weights(include_buffers=False):
        model = maker.from_config(config)
    return Skeleton(model.eval().requires_grad_(False), generative, kind)


class Checkpoint:
    """Safetensors files of a folder, read by the names that the model gives its parameters."""

    def __init__(self, folder: Path, shape: Skeleton) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                opened: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} cannot be read: it is damaged or incomplete ({error})") from error
            self._files |= dict.fromkeys(opened.keys(), opened)
        tied = shape.tied()
        names = [name for name in shape.model.state_dict() if name not in tied]
        also = {source: [name for name, one in tied.items() if one == source] for source in tied.values()}
        self._names = {name: self._found([name, *also.get(name, ())]) for name in names}
        gone = [name for name, held in self._names.items() if held is None]
        if gone:
            raise WeightsError(f"{folder} does not hold the weight {gone[0]} ({len(gone)} are missing)")

    def _found(self, names: list[str]) -> str | None:
        """The file's name of a weight: the model's own, that of a weight it is tied to, or one of another habit."""
        tried = [*names]
        for name in names:
            tried += [f"model.{name}", name.partition(".")[2], *(f"{prefix}.{name}" for prefix in SUPPORTED)]
        for new, old in _OLD_NAMES:
            tried += [one.replace(new, old) for one in tried if new in one]
        return next((one for one in tried if one in self._files), None)

    def names(self) -> list[str]:
        """The names that the model gives its parameters."""
        return list(self._names)

    def read(self, name: str) -> Any:
        """The tensor as the file has it."""
        held = self._names[name]
        assert held is not None
        return self._files[held].get_tensor(held)

    def fill(self, module: Any, prefix: str, device: str, dtype: Any) -> None:
        """Give `module` its weights, in `dtype`."""
        state = {
            name: self.read(f"{prefix}{name}").to(device=device, dtype=dtype)
            for name in module.state_dict()
            if f"{prefix}{name}" in self._names
        }
        module.load_state_dict(state, assign=True, strict=False)
        for name, buffer in module.named_buffers():
            owner, _, own = name.rpartition(".")
            module.get_submodule(owner).register_buffer(own, buffer.to(device), persistent=False)
        module.requires_grad_(False)


def in_safetensors(source: Source, scratch: Path) -> Path:
    """A folder with the model in safetensors: the source's own, or a GGUF file dequantised into `scratch`."""
    if source.gguf is None:
        method = torch_load.stored_as(source)
        if method:
            raise NotSupportedError(
                f"{source.name} is stored in {method} already; name the float checkpoint that it was made from"
            )
        return source.folder
    if (scratch / "done").is_file():
        return scratch
    import copy

    import torch
    from safetensors.torch import save_model

    from sqluice.workers.hf import open_text

    tokenizer, model = open_text(source, torch.float16)
    settings = copy.deepcopy(model.config)
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    scratch.mkdir(parents=True, exist_ok=True)
    with torch_load.quiet():
        tokenizer.save_pretrained(scratch)
        settings.save_pretrained(scratch)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(scratch)
        save_model(model.to(torch.float16), str(scratch / "model.safetensors"), metadata={"format": "pt"})
    (scratch / "done").touch()
    return scratch


def files_of(folder: Path, config: Any) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file an artifact takes along. Settings lose what names code to run."""
    for name in FILES:
        path = folder / name
        if name == "config.json":
            settings = {key: one for key, one in config.to_dict().items() if key not in ("auto_map", "_name_or_path")}
            settings.pop("quantization_config", None)
            settings["architectures"] = getattr(config, "architectures", None)
            yield name, json.dumps(settings, default=str).encode()
        elif path.is_file():
            yield name, path.read_bytes()


def licence_of(name: str, folder: Path) -> str:
    """The licence of a base model, from the embedded list or its card; empty when neither says."""
    from sqluice.workers import fetch

    if name.startswith("package:"):
        return fetch.WEIGHTS[fetch.resolve(name.removeprefix("package:"))].licence
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text(errors="replace"), re.MULTILINE) if card.is_file() else None
    return found[1] if found else ""
