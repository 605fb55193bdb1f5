"""Finding and opening weights for torch: folders, GGUF files, the model hub. Safetensors and GGUF only."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import logging as std_logging
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice import config
from sqluice.errors import MissingExtraError, ModelError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB_SECONDS = "10"


@dataclass(frozen=True, slots=True)
class Source:
    """Weights on this machine: a folder as transformers reads it, and the GGUF file in it if it is one."""

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """Arguments for transformers' `from_pretrained`. Nothing is downloaded and no code is run."""
        file = {"gguf_file": self.gguf} if self.gguf else {}
        return {
            "pretrained_model_name_or_path": str(self.folder),
            "local_files_only": True,
            "trust_remote_code": False,
            **file,
        }


def require(feature: str) -> None:
    """`MissingExtraError` unless torch and transformers are installed."""
    if any(importlib.util.find_spec(module) is None for module in ("torch", "transformers")):
        raise MissingExtraError(feature, "local")


def find(name: str, revision: str | None = None) -> Source:
    """The weights called `name`: a folder, a .gguf or .safetensors file, or `org/name[@revision]`."""
    place = Path(name).expanduser()
    if place.is_dir():
        return _in_folder(name, place)
    if place.is_file():
        if place.suffix == ".gguf":
            return Source(name, place.parent, place.name)
        if place.suffix == ".safetensors":
            return _in_folder(name, place.parent)
        raise ModelError(f"{place} is neither .safetensors nor .gguf; other weight formats are not read")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"no model at {name}: no such file or folder")
    hub, _, tag = name.partition("@")
    return Source(name, _from_hub(hub, revision or tag or None))


def _in_folder(name: str, folder: Path) -> Source:
    ggufs = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file():
        if not any(folder.glob("*.safetensors")):
            raise WeightsError(f"{folder} holds a config.json but no .safetensors weights")
        return Source(name, folder)
    if len(ggufs) == 1:
        return Source(name, folder, ggufs[0].name)
    raise WeightsError(
        f"{folder} holds {'several GGUF files: name one of them' if ggufs else 'no config.json'};"
        " a model folder needs config.json, tokenizer.json and .safetensors files"
    )


def _from_hub(hub: str, revision: str | None) -> Path:
    """The hub's snapshot on this machine, downloaded when it is not here yet."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", HUB_SECONDS)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", HUB_SECONDS)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    with suppress(Exception):  # not here; each version of the library says so differently
        return Path(snapshot_download(hub, revision=revision, allow_patterns=wanted, local_files_only=True))
    if not _reachable():
        raise WeightsError(_no_hub(hub, "the model hub cannot be reached"))
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=wanted, max_workers=4))
    except Exception as error:
        raise WeightsError(_no_hub(hub, _first_line(error))) from error


def _reachable() -> bool:
    """Whether the hub answers at all: one short try, where the library would retry for minutes."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0, follow_redirects=False)
    except (httpx.HTTPError, OSError):
        return False
    return True


def _no_hub(hub: str, cause: str) -> str:
    return (
        f"hf:{hub} is not on this machine and cannot be downloaded: {cause}. Check the network and the name,"
        " download it elsewhere and name the folder, or use package:default"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def device_of(device: str) -> str:
    """`auto` is CUDA where torch sees one; `ModelError` for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {device}: torch sees no CUDA here; SET ai_device = 'auto' or 'cpu'")
    return device


def dtype_of(dtype: str, device: str) -> Any:
    """`auto`: bfloat16 where the device multiplies it in hardware, else float32 (float16 on older GPUs)."""
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def moved(tensor: Any, device: Any) -> Any:
    """`tensor` on `device`. To a GPU through pinned memory, so that the copy runs beside the arithmetic."""
    if str(device).startswith("cuda") and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512-BF16, AMX or Arm's bf16); without them it is slower."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, notices and warnings of the libraries off a person's screen while loading."""
    from transformers.utils import logging

    theirs: Any = logging

    before, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # some bars heed no setting
        warnings.simplefilter("ignore")
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        noisy = std_logging.getLogger("transformers")
        level = noisy.level
        noisy.setLevel(std_logging.ERROR)
        try:
            yield
        finally:
            noisy.setLevel(level)
            theirs.set_verbosity(before)
            if bars:
                theirs.enable_progress_bar()


def open_config(source: Source) -> Any:
    """The model's configuration; `WeightsError` when the files cannot be read."""
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(**source.where)
    except Exception as error:
        raise unreadable(source, error) from error


def dequantizing(source: Source) -> dict[str, Any]:
    """Arguments for `from_pretrained` that give float weights of a checkpoint stored in fewer bits.

    GGUF and compressed-tensors are dequantised on load. Other formats are left to transformers; `ModelError` where it
    would need packages that are not here.
    """
    import transformers

    if source.gguf:
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    method = stored_as(source)
    if method == "compressed-tensors":
        _need(source, method, "compressed_tensors")
        return {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    if method in ("gptq", "awq"):
        _need(source, method, "gptqmodel", "optimum")
    return {}


def stored_as(source: Source) -> str:
    """The quantization method that a checkpoint's own configuration names; empty for float weights."""
    try:
        said = json.loads((source.folder / "config.json").read_text()).get("quantization_config") or {}
    except (OSError, ValueError):
        return ""
    return str(said.get("quant_method", ""))


def _need(source: Source, method: str, *modules: str) -> None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        names = " ".join(name.replace("_", "-") for name in absent)
        raise ModelError(
            f"{source.name} is a checkpoint in {method} and takes packages that are not installed: pip install {names};"
            " or name the float checkpoint it was made from, and store that in fewer bits: sqluice models quantize"
        )


def is_encoder(settings: Any) -> bool:
    """Whether a configuration is of a model that makes vectors and writes nothing."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as WRITERS

    kinds: list[str] = getattr(settings, "architectures", None) or []
    generative = any("CausalLM" in kind or "ConditionalGeneration" in kind for kind in kinds)
    return not generative and (bool(kinds) or settings.model_type not in WRITERS)


def parameters_of(model: Any) -> int:
    """How many weights a model computes with; a quantized layer says how many it stands for (`held_weights`)."""
    held = sum(getattr(module, "held_weights", 0) for module in model.modules())
    return int(held + sum(weight.numel() for weight in model.parameters()))


def unreadable(source: Source, error: BaseException) -> ModelError:
    """One clear error for weights that transformers could not load."""
    if isinstance(error, ModelError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ModelError(f"{source.name} does not fit into memory; name a smaller model or another dtype")
    if "accelerate" in str(error) or isinstance(error, ImportError):
        return ModelError(f"{source.name} needs a package that is not installed ({_first_line(error)})")
    return WeightsError(
        f"{source.name} cannot be loaded: it is damaged, incomplete or of a kind this transformers does not"
        f" know ({_first_line(error)})"
    )


def copy_of(source: Source, folder: Path | None, dtype: str) -> Path | None:
    """Where `keep` puts a copy of a GGUF file that opens faster; None when none is to be kept."""
    if folder is None or source.gguf is None:
        return None
    import transformers

    stat = (source.folder / source.gguf).stat()
    stamp = hashlib.sha256(f"{stat.st_size}-{stat.st_mtime_ns}-{transformers.__version__}".encode())
    return folder / f"torch-{dtype}-{stamp.hexdigest()[:12]}"


def keep(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a dequantised model as safetensors: a GGUF file takes seconds to read, this takes half of one.

    Best effort: a full disk costs time at the next start and nothing else.
    """
    from safetensors.torch import save_model

    settings = copy.deepcopy(model.config)
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".copying-") as scratch, quiet():
            new = Path(scratch) / "copy"
            tokenizer.save_pretrained(new)
            settings.save_pretrained(new)
            save_model(model, str(new / "model.safetensors"), metadata={"format": "pt"})
            for old in folder.parent.glob(folder.name.rpartition("-")[0] + "-*"):
                shutil.rmtree(old, ignore_errors=True)
            new.rename(folder)
    except OSError:
        return


def combined(*details: str) -> str:
    """Hex digest of a model's digest and what else decides its answers (dtype, versions of ours)."""
    return hashlib.sha256("|".join(details).encode()).hexdigest()[:32]


def digest(source: Source) -> str:
    """Hex digest of the weights, tokenizer and configuration."""
    if source.gguf:
        files = [source.folder / source.gguf]
    else:
        files = sorted(
            file for file in source.folder.iterdir() if file.suffix in (".safetensors", ".json") and file.is_file()
        )
    total = hashlib.sha256()
    for file in files:
        total.update(f"|{file.name}:{_sha256(file)}".encode())
    return total.hexdigest()[:32]


def _sha256(file: Path) -> str:
    """Hash of one file; remembered by size and time, since hashing gigabytes at every start takes seconds."""
    stat = file.resolve().stat()
    stamp = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
    notes = config.home() / "hashes.json"
    try:
        known: dict[str, list[str]] = json.loads(notes.read_text())
    except (OSError, ValueError):
        known = {}
    kept = known.get(str(file))
    if isinstance(kept, list) and kept[:1] == [stamp] and len(kept) == 2:
        return str(kept[1])
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    known[str(file)] = [stamp, found]
    _remember(notes, known)
    return found


def _remember(notes: Path, known: dict[str, list[str]]) -> None:
    new = notes.with_suffix(f".{os.getpid()}")
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(dict(list(known.items())[-200:])))
        new.replace(notes)
    except OSError:
        new.unlink(missing_ok=True)
