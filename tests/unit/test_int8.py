"""`#quant=int8`: integer products on load, near the float model, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_quant_models import TEXTS, saved  # noqa: E402

from sqluice.errors import ModelError  # noqa: E402
from sqluice.types import Prompt  # noqa: E402
from sqluice.workers import int8  # noqa: E402
from sqluice.workers.quant import runner  # noqa: E402
from sqluice.workers.registry import LoadOptions, Registry  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

CPU = LoadOptions(device="cpu")


def registry(folder: Path) -> Registry:
    return Registry(["default", str(folder)])


def test_a_layer_is_near_its_float_product() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 8, bias=False))
    x = torch.randn(9, 64)
    whole = model(x).detach()
    int8.convert(model)
    assert [type(one).__name__ for one in model] == ["Int8Linear", "Int8Linear"]
    assert float((model(x).detach() - whole).norm() / whole.norm()) < 0.03


def test_a_loud_token_does_not_drown_the_others() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48).requires_grad_(False)
    x = torch.randn(9, 64)
    model = torch.nn.Sequential(layer)
    int8.convert(model)
    quiet = model(x)[1:]
    x[0] *= 1000
    assert torch.equal(model(x)[1:], quiet), "what a row gets does not depend on the rows beside it"
    assert float((quiet - layer(x)[1:]).norm() / quiet.norm()) < 0.03


def test_an_encoder_in_int8(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", "bert")
    base: Any = registry(folder).load(f"hf:{folder}", LoadOptions(device="cpu", dtype="float32"))
    found: Any = registry(folder).load(f"hf:{folder}#quant=int8", CPU)
    cosines = (base.embed(TEXTS[:9]) * found.embed(TEXTS[:9])).sum(1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    assert found.info.revision != base.info.revision
    assert found.info.extra["quant"] == "int8"


def test_a_language_model_in_int8_keeps_its_output_layer(tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama", "llama")
    base: Any = registry(folder).load(f"hf:{folder}", LoadOptions(device="cpu", dtype="float32"))
    found: Any = registry(folder).load(f"hf:{folder}#quant=int8", CPU)
    assert isinstance(found._lm.model.get_output_embeddings(), torch.nn.Linear)
    assert sum(type(one).__name__ == "Int8Linear" for one in found._lm.model.modules()) == 14
    prompts = [Prompt("Is this good? {0}", (text,), kind="filter") for text in TEXTS[:9]]
    one, other = (model.score(prompts, ("yes", "no")) for model in (base, found))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    assert found.token_budget == base.token_budget


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ("quant=int4", "quant is int8; for fewer bits, make an artifact"),
        ("quant=int8&dtype=bf16", "computes in float32 beside the products; leave dtype=bfloat16 out"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: str, hint: str) -> None:
    folder = saved(tmp_path / "bert", "bert")
    with pytest.raises(ModelError, match=hint):
        registry(folder).load(f"hf:{folder}#{options}", CPU)


def test_other_files_and_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "bert", "bert")
    with pytest.raises(ModelError, match="a GGUF file has its own precision"):
        registry(folder).load("gguf:m.gguf#quant=int8", CPU)
    with monkeypatch.context() as patch:
        patch.setattr("sqluice.workers.torch_load.device_of", lambda _device: "cuda")
        with pytest.raises(ModelError, match="quant=int8 is for the CPU; add device=cpu"):
            registry(folder).load(f"hf:{folder}#quant=int8", LoadOptions())
    monkeypatch.delattr(torch, "quantize_per_channel")
    with pytest.raises(ModelError, match="no int8 products for this processor"):
        registry(folder).load(f"hf:{folder}#quant=int8", CPU)


def test_a_slice_of_an_artifact_in_int8(tmp_path: Path) -> None:
    folder, path = saved(tmp_path / "bert", "bert"), tmp_path / "m.sq"
    runner.quantize(str(folder), "nested", (3, 8), 16, TEXTS, path, device="cpu")
    known = Registry([str(tmp_path)])
    plain: Any = known.load(f"artifact:{path}#bits=3", LoadOptions(device="cpu", dtype="float32"))
    found: Any = known.load(f"artifact:{path}#bits=3&quant=int8", CPU)
    assert sum(type(one).__name__ == "Int8Linear" for one in found._model.modules()) >= 12
    assert (plain.embed(TEXTS[:9]) * found.embed(TEXTS[:9])).sum(1).min() > 0.99
    assert found.info.revision != plain.info.revision
