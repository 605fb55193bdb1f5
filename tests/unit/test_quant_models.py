"""Whole models, small and random: quantized, resumed after a crash, loaded at each width."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sqluice.errors import DataError, ModelError, NotSupportedError, WeightsError
from sqluice.types import Prompt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sqluice.workers.quant import artifact, calibrate, checkpoint, methods, runner, serve  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [f"w{at}" for at in range(90)]
TEXTS = [" ".join(WORDS[(at * 7 + step * (at % 5 + 1)) % 90] for step in range(8 + at % 9)) for at in range(60)]
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}
FEWER = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}


def configured(kind: str) -> Any:
    if kind in ("bert", "roberta", "xlm-roberta"):
        return transformers.AutoConfig.for_model(kind, **SIZES, architectures=[f"{kind.title()}Model"])
    extra = SPECIAL if kind.startswith("gemma") and kind != "gemma" else {}
    config = transformers.AutoConfig.for_model(kind, **FEWER, **extra)
    config.architectures = ["SomethingForCausalLM"]
    return config


def saved(folder: Path, kind: str, **settings: Any) -> Path:
    """A random model of a kind, with a small tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    config = configured(kind)
    for name, value in settings.items():
        setattr(config, name, value)
    maker = transformers.AutoModel if kind in ("bert", "roberta", "xlm-roberta") else transformers.AutoModelForCausalLM
    model = maker.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    every = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=every, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def nested(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nested") / "m.sq"
    runner.quantize(str(llama), "nested", (2, 4, 8), 16, TEXTS, out, device="cpu")
    return out


def logits(model: Any) -> Any:
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        return model(input_ids=ids)[0].float()


@pytest.mark.parametrize("kind", sorted(checkpoint.SUPPORTED))
def test_every_supported_kind_comes_through(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", kind)
    told = runner.quantize(str(folder), "rtn", (8,), 16, TEXTS, tmp_path / "m.sq", device="cpu")
    assert told["base"]["model_type"] == kind
    layers = [name for name in told["layers"] if ".0." in name]
    assert len(layers) == len(told["layers"]) / 2 >= 4
    found: Any = serve.load_slice(tmp_path / "m.sq", 8, dtype="float32", device="cpu")
    maker = transformers.AutoModel if hasattr(found, "embed") else transformers.AutoModelForCausalLM
    base = maker.from_pretrained(folder).eval()
    ours = found._model if hasattr(found, "embed") else found._lm.model
    one, other = logits(base).flatten(), logits(ours).flatten()
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.995
    assert told["quality"]["8"]["cosine"] > 0.99
    assert told["quality"]["8"]["layer_error"] < 0.02


def test_the_manifest_says_what_it_is(nested: Path, llama: Path) -> None:
    told = artifact.inspect(nested)
    assert told["method"] == "nested"
    assert told["bits"] == [2, 4, 8]
    assert told["base"]["name"] == str(llama)
    assert len(told["base"]["revision"]) == 32
    assert told["policy"] is None
    assert told["calibration"]["texts"] == 60
    assert told["calibration"]["held_out_texts"] == 8
    assert len(told["layers"]) == 14
    errors = [told["quality"][bits]["layer_error"] for bits in ("2", "4", "8")]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02 < errors[0]
    mean = np.mean([one["error"]["4"] for one in told["layers"].values()])
    assert told["quality"]["4"]["layer_error"] == pytest.approx(mean)
    assert "w1 " not in json.dumps(told), "no calibration text in the file"


def test_slices_share_planes_and_all_that_is_not_quantized(nested: Path, llama: Path) -> None:
    models: list[Any] = [serve.load_slice(nested, bits, dtype="float32", device="cpu") for bits in (2, 8)]
    low, high = (dict(model._lm.model.named_modules()) for model in models)
    layer = "model.layers.0.mlp.up_proj"
    assert (len(low[layer].tensors), len(high[layer].tensors)) == (2 + 1, 8 + 1 + 2)
    for name in low[layer].tensors:
        if "plane." in name:
            assert low[layer].tensors[name].data_ptr() == high[layer].tensors[name].data_ptr()
    embeddings = [model._lm.model.get_input_embeddings().weight.data_ptr() for model in models]
    assert embeddings[0] == embeddings[1]
    assert models[0].info.revision != models[1].info.revision
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    assert models[0].info.extra["parameters"] == str(sum(weight.numel() for weight in base.parameters()))


def test_the_slice_computes_with_the_weights_of_its_width(nested: Path) -> None:
    held = artifact.read(nested)
    for dense in (True, False):
        model: Any = serve.load_slice(nested, 4, dtype="float32", device="cpu", dense=dense)
        layer = model._lm.model.get_submodule("model.layers.1.self_attn.q_proj")
        facts = held.manifest["layers"]["model.layers.1.self_attn.q_proj"]
        weight = serve.weight_of(facts, "model.layers.1.self_attn.q_proj", 4, held.tensor)
        x = torch.randn(3, 32)
        assert torch.allclose(layer(x), x @ weight.T, atol=1e-5)
        prompts = [Prompt("Is this good? {0}", (text,), kind="filter") for text in TEXTS[:3]]
        assert np.isfinite(model.score(prompts, ("yes", "no"))).all()
        written = model.generate([Prompt("Go on: {0}", (TEXTS[0],))], max_tokens=3)
        assert 1 <= written[0].tokens_out <= 3


def test_the_widest_slice_is_the_default_and_others_must_be_there(nested: Path) -> None:
    assert serve.load_slice(nested, device="cpu").info.name.endswith("#bits=8")
    with pytest.raises(DataError, match="does not hold 3 bits; it holds 2, 4, 8"):
        serve.load_slice(nested, 3)


def test_slices_have_names_of_their_own(nested: Path) -> None:
    from sqluice.workers.registry import LoadOptions, Registry, unload_all

    registry = Registry([str(nested.parent)])
    options = LoadOptions(dtype="float32", device="cpu")
    low, again, high = (registry.load(f"artifact:{nested}#bits={bits}", options) for bits in (2, 2, 8))
    assert low is again is not high
    assert low.info.name == f"artifact:{nested}#bits=2"
    with pytest.raises(DataError, match="it holds 2, 4, 8"):
        registry.load(f"artifact:{nested}#bits=5", options)
    unload_all()


def test_verify_hashes_and_measures(nested: Path, tmp_path: Path) -> None:
    told = serve.verify(nested)
    assert told["tensors"] == len(artifact.read(nested).entries)
    assert sorted(told["widths"]) == [2, 4, 8]
    said = artifact.inspect(nested)["quality"]
    assert all(cosine == pytest.approx(said[str(bits)]["cosine"], abs=1e-3) for bits, cosine in told["widths"].items())
    held = artifact.read(nested)
    pieces = [artifact.piece_of(name, held.tensor(name)) for name in held.entries if name != "align"]
    quality = {bits: {**one, "cosine": one["cosine"] - 0.1} for bits, one in held.manifest["quality"].items()}
    artifact.write(tmp_path / "worse.sq", pieces, {**held.manifest, "quality": quality})
    with pytest.raises(WeightsError, match="at 2 bits the cosine to the base model is"):
        serve.verify(tmp_path / "worse.sq")


def test_an_embedder_keeps_its_meaning(bert: Path, tmp_path: Path) -> None:
    runner.quantize(str(bert), "gptq", (8,), 16, TEXTS, tmp_path / "e.sq", device="cpu")
    from sqluice.workers import hf

    base: Any = hf.load(str(bert), dtype="float32", device="cpu")
    found: Any = serve.load_slice(tmp_path / "e.sq", dtype="float32", device="cpu")
    cosines = (base.embed(TEXTS[:9]) * found.embed(TEXTS[:9])).sum(1)
    assert cosines.min() > 0.995
    assert found.info.extra["truncates_at"] == base.info.extra["truncates_at"]


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_head_tied_to_the_embeddings_is_stored_once(tmp_path: Path, kept: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "model", "qwen2", tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[kept] = tensors.pop("model.embed_tokens.weight", tensors.pop("lm_head.weight", None))
    save_file(tensors, path, metadata={"format": "pt"})
    runner.quantize(str(folder), "rtn", (8,), 16, TEXTS, tmp_path / "m.sq", device="cpu")
    assert [name for name in artifact.read(tmp_path / "m.sq").entries if "embed" in name or "head" in name] == [
        "weights/model.embed_tokens.weight"
    ]
    found: Any = serve.load_slice(tmp_path / "m.sq", dtype="float32", device="cpu")
    model = found._lm.model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.allclose(model.lm_head.weight, tensors[kept], atol=1e-3)


# ---- resuming


def test_a_run_that_was_killed_goes_on(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "m.sq", []
    real = methods.quantize

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(methods, "quantize", killed)
    arguments = (str(llama), "gptq", (4,), 16, TEXTS, out)
    with pytest.raises(KeyboardInterrupt):
        runner.quantize(*arguments, device="cpu")
    assert not out.exists()
    assert [path.name for path in runner.partial(out).glob("block-*")] == ["block-0000.safetensors"]
    told: list[str] = []
    resumed = runner.quantize(*arguments, lambda _done, _total, label: told.append(label), device="cpu")
    assert told[0] == "gptq: block 1 of 2", "what an earlier run did says nothing about the rest"
    assert told[1] == "gptq: block 2 of 2, 0 s left"
    assert len(calls) == 10 + 7, "the first block of seven layers is not quantized again"
    assert list(tmp_path.iterdir()) == [out]
    whole = runner.quantize(*arguments[:-1], tmp_path / "again.sq", device="cpu")
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert out.read_bytes() == (tmp_path / "again.sq").read_bytes()


@pytest.mark.parametrize("what", ["another plan", "a block cut short"])
def test_only_what_fits_is_taken_over(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    out, calls = tmp_path / "m.sq", []
    real = methods.quantize

    def counted(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    def fails(*_: Any) -> None:
        raise WeightsError("disk full")

    monkeypatch.setattr(methods, "quantize", counted)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write", fails)
        with pytest.raises(WeightsError, match="disk full"):
            runner.quantize(str(llama), "rtn", (4,), 16, TEXTS, out, device="cpu")
    assert len(calls) == 14
    if what == "a block cut short":
        block = runner.partial(out) / "block-0001.safetensors"
        block.write_bytes(block.read_bytes()[:-9])
    runner.quantize(str(llama), "rtn", (4 if what == "a block cut short" else 3,), 16, TEXTS, out, device="cpu")
    assert len(calls) == 14 + (7 if what == "a block cut short" else 14)


def test_progress_counts_every_weight_and_says_how_long(llama: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    runner.quantize(str(llama), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", lambda *one: told.append(one), device="cpu")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] == told[-1][1] > told[0][0]
    assert "block 1 of 2" in told[0][2]
    assert told[-1][2].endswith("0 s left")


def test_blocks_are_in_memory_one_at_a_time(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = methods.quantize

    def counted(*args: Any) -> Any:
        here = [one for one in shapes[0].blocks if any(p.device.type != "meta" for p in one.parameters())]
        seen.append(len(here))
        return real(*args)

    shapes: list[Any] = []
    made = checkpoint.skeleton

    def kept(config: Any) -> Any:
        shapes.append(made(config))
        return shapes[-1]

    monkeypatch.setattr(checkpoint, "skeleton", kept)
    monkeypatch.setattr(methods, "quantize", counted)
    runner.quantize(str(llama), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")
    assert set(seen) == {1}


# ---- bad input


def test_an_unsupported_kind_lists_the_supported(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(NotSupportedError, match="type 'gpt2' cannot be quantized; supported are bert, roberta"):
        runner.quantize(str(tmp_path / "model"), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")


@pytest.mark.parametrize("texts", [[], ["w1 w2"], ["w1 w2 w3"] * 500, ["", "  "] * 50])
def test_too_little_text(llama: Path, tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"too little calibration text: \d distinct texts of \d+ tokens"):
        runner.quantize(str(llama), "rtn", (4,), 16, texts, tmp_path / "m.sq", device="cpu")
    assert not list(tmp_path.iterdir())


def test_nan_in_a_checkpoint_names_the_layer(llama: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layer model\.layers\.1\.mlp\.down_proj: its weights hold NaN"):
        runner.quantize(str(tmp_path / "model"), "gptq", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")


def test_a_checkpoint_that_lacks_a_weight_says_which(llama: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"does not hold the weight model\.layers\.0\.mlp\.up_proj\.weight"):
        runner.quantize(str(tmp_path / "model"), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")


def test_out_of_memory_says_what_to_do(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(methods, "quantize", exhausted)
    with pytest.raises(ModelError, match=r"out of memory while quantizing .*fewer calibration tokens"):
        runner.quantize(str(llama), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")


def test_a_folder_that_cannot_be_written(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        runner.quantize(str(llama), "rtn", (4,), 16, TEXTS, tmp_path / "file" / "m.sq", device="cpu")


def test_a_damaged_tensor_is_named_when_a_slice_loads(nested: Path, tmp_path: Path) -> None:
    from test_quant_artifact import spoil

    path = tmp_path / "m.sq"
    path.write_bytes(nested.read_bytes())
    name = "layers/model.layers.1.mlp.gate_proj/plane.3"
    spoil(path, name)
    assert serve.load_slice(path, 2, device="cpu").info.device == "cpu"
    with pytest.raises(WeightsError, match=f"tensor {name} is damaged"):
        serve.load_slice(path, 4, device="cpu")


def test_layers_that_take_the_same_inputs_share_statistics(llama: Path) -> None:
    shape = checkpoint.skeleton(transformers.AutoConfig.from_pretrained(llama))
    held = checkpoint.Checkpoint(llama, shape)
    run = runner.Run(runner.Plan("x", "", "rtn", (4,), 16, ""), shape, held, llama, "cpu", None)
    run._fill_outside()
    rows = [[1, 5, 6, 7], [8, 9]]
    batches = list(calibrate.batches(rows, 0, "calibration", "cpu"))
    calibrate.enter(shape, batches)
    held.fill(shape.blocks[0], "model.layers.0.", "cpu", torch.float32)
    stages = runner._stages(shape.blocks[0], shape.linears(0), batches, 0, "cpu")
    assert [len(stage) for stage in stages] == [3, 1, 2, 1]
    watch = calibrate.Watch(shape.linears(0), "cpu")
    watch.run(shape.blocks[0], batches, 0)
    assert sum(watch._found["self_attn.q_proj", "calibration"].rows for _ in [0]) == 6, "padding is not counted"
