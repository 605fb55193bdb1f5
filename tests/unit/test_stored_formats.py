"""Checkpoints that other tools stored in fewer bits: read where a library can, refused with what it takes elsewhere."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_quant_models import TEXTS, saved  # noqa: E402

from sqluice.errors import ModelError, NotSupportedError  # noqa: E402
from sqluice.types import Prompt  # noqa: E402
from sqluice.workers.quant import runner  # noqa: E402
from sqluice.workers.registry import LoadOptions, Registry  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

CPU = LoadOptions(device="cpu", dtype="float32")
GROUP = 8


def compressed(folder: Path, model: Any) -> None:
    """Store `model` in 4 bits a weight as llm-compressor and vLLM do (compressed-tensors, pack-quantized)."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"all": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="compressed",
    )
    apply_quantization_config(model, config)
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            groups = layer.weight.data.reshape(layer.weight.shape[0], -1, GROUP)
            layer.weight_scale.data = groups.abs().amax(2) / 7.5
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_compressed_tensors_are_read(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("compressed_tensors")
    folder, packed = saved(tmp_path / "float", kind), saved(tmp_path / "packed", kind)
    maker = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModel
    compressed(packed, maker.from_pretrained(folder))
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    assert sum(file.stat().st_size for file in packed.glob("*.safetensors")) < 0.8 * sum(
        file.stat().st_size for file in folder.glob("*.safetensors")
    )
    known = Registry([str(tmp_path)])
    capfd.readouterr()
    base, found = (known.load(f"hf:{place}", CPU) for place in (folder, packed))
    assert capfd.readouterr().err == ""
    if kind == "bert":
        cosines = (base.embed(TEXTS[:9]) * found.embed(TEXTS[:9])).sum(1)
        assert 0.9 < cosines.min() < 1 - 1e-6
        return
    prompts = [Prompt("Is this good? {0}", (text,), kind="filter") for text in TEXTS[:9]]
    one, other = (model.score(prompts, ("yes", "no")) for model in (base, found))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
    with pytest.raises(NotSupportedError, match="stored in compressed-tensors already; name the float checkpoint"):
        runner.quantize(str(packed), "rtn", (8,), 16, TEXTS, tmp_path / "m.sq", device="cpu")


@pytest.mark.parametrize(
    ("method", "packages"),
    [("compressed-tensors", "compressed-tensors"), ("gptq", "gptqmodel optimum"), ("awq", "gptqmodel optimum")],
)
def test_a_format_whose_library_is_missing(
    method: str, packages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "llama", "llama")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    find = importlib.util.find_spec
    hidden = ("compressed_tensors", "gptqmodel", "optimum")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else find(name, *a))
    with pytest.raises(ModelError, match=f"checkpoint in {method} and takes packages.*: pip install {packages};"):
        Registry([str(tmp_path)]).load(f"hf:{folder}", CPU)
