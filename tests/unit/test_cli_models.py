"""`sqluice models`: artifacts made, inspected, checked and tuned on the command line, on tiny random models."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_quant_artifact import spoil
from test_quant_models import TEXTS, saved

import sqluice
from sqluice.engine import cli
from sqluice.engine.models_command import artifact_of
from sqluice.engine.progress import StepBar
from sqluice.workers.quant import artifact, methods, runner

if TYPE_CHECKING:
    from pathlib import Path

SQL = "SELECT text FROM t ORDER BY n"
SMALL = ("--group", "16", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose table `t` has the texts, some twice, some NULL or blank."""
    path = tmp_path_factory.mktemp("texts") / "texts.db"
    con = sqluice.connect(str(path))
    con.execute("CREATE TABLE t (n INTEGER, text VARCHAR)")
    for at, text in enumerate([None, " ", *TEXTS, TEXTS[0]]):
        con.execute("INSERT INTO t VALUES (?, ?)", [at, text])
    con.close()
    return path


@pytest.fixture(scope="module")
def made(llama: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "m.sq"
    assert quantized(llama, texts, out) == 0
    return out


def quantized(llama: Path, texts: Path, out: Path, *options: str, sql: str = SQL) -> int:
    given = ["--calibration", sql, "--db", str(texts), "--out", str(out), *SMALL, *options]
    return cli.main(["models", "quantize", str(llama), *given])


def test_quantize_takes_its_texts_from_sql(made: Path, llama: Path, tmp_path: Path) -> None:
    told = artifact.inspect(made)
    assert told["bits"] == [2, 3, 4, 8]
    assert (told["method"], told["group"]) == ("nested", 16)
    runner.quantize(str(llama), "nested", (2, 3, 4, 8), 16, TEXTS, tmp_path / "same.sq", device="cpu")
    assert told["fingerprint"] == artifact.inspect(tmp_path / "same.sq")["fingerprint"]


def test_steps_and_the_summary_are_on_standard_error(
    llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(llama, texts, tmp_path / "m.sq", "--method", "rtn", "--bits", "4", "--tokens", "300") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "rtn: block 1 of 2, 0 s left (50%)" in err
    assert "14 layers" in err
    assert 300 <= artifact.inspect(tmp_path / "m.sq")["calibration"]["tokens"] < 400


def test_a_bar_on_a_terminal_says_how_long() -> None:
    from rich.console import Console

    screen = io.StringIO()
    with StepBar(Console(file=screen, force_terminal=True, width=100), "the first block") as bar:
        bar(1, 4, "block 1 of 4, 9 s left")
    assert "block 1 of 4, 9 s left" in screen.getvalue()


def test_ctrl_c_keeps_finished_blocks_and_the_same_command_goes_on(
    llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, calls = tmp_path / "m.sq", []
    real = methods.quantize

    def stopped(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(methods, "quantize", stopped)
    given = ("--method", "gptq", "--bits", "4")
    assert quantized(llama, texts, out, *given) == 130
    assert f"finished blocks are kept in {out}.partial; the same command goes on" in capsys.readouterr().err
    assert quantized(llama, texts, out, *given) == 0
    assert len(calls) == 10 + 7
    assert "gptq: block 2 of 2, 0 s left (100%)" in capsys.readouterr().err
    assert artifact.inspect(out)["bits"] == [4]


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (["--bits", "2,x"], 2, "widths are whole numbers such as 2,3,4,8"),
        (["--tokens", "0"], 2, "a whole number from 1"),
        (["--bits", "9"], 1, "nested makes 2 to 8 bits, not 9"),
        (["--method", "magic"], 1, "no quantization method 'magic'; there are rtn, gptq"),
        (["--average-bits", "many"], 2, "a number such as 3.5"),
        (["--average-bits", "9"], 1, "average bits lie between 2 and 8, exclusive, not 9"),
        (["--average-bits", "4"], 1, "4 bits are a width of its own"),
        (["--group", "4"], 1, "at least 8 columns, not 4"),
        (["--calibration", "SELECT n FROM t"], 1, "column n is of type int32; the first column has to be texts"),
        (["--calibration", "SELECT text FROM t LIMIT 4"], 1, "too little calibration text: 2 distinct texts"),
        (["--calibration", "SELECT nothing FROM t"], 1, "nothing"),
        (["--calibration", "SET ai_threads = 1"], 1, "this statement gives no rows"),
    ],
)
def test_bad_input_leaves_nothing(
    llama: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    hint: str,
) -> None:
    assert quantized(llama, texts, tmp_path / "m.sq", *options) == code
    assert hint in capsys.readouterr().err
    assert not list(tmp_path.glob("m.sq*"))


def test_an_unsupported_kind_lists_the_supported(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    config = transformers.AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    assert quantized(tmp_path / "model", texts, tmp_path / "m.sq") == 1
    assert "type 'gpt2' cannot be quantized; supported are bert, roberta" in capsys.readouterr().err


def test_inspect(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "inspect", str(made)]) == 0
    text = capsys.readouterr().out
    told = artifact.inspect(made)
    for piece in ("nested", "groups of 16", told["fingerprint"], "60 texts", "policy       none"):
        assert piece in text
    assert f"{told['widths']['3']['bits_per_weight']:.3f}" in text
    assert cli.main(["models", "inspect", f"artifact:{made}#bits=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(told))
    assert cli.main(["models", "inspect", str(made.with_name("gone.sq"))]) == 1
    assert "gone.sq cannot be read: No such file" in capsys.readouterr().err


def test_verify_names_the_tensor_that_is_damaged(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "verify", str(made)]) == 0
    err = capsys.readouterr().err
    assert "tensors match their hashes" in err
    assert "8 bits" in err
    path = tmp_path / "m.sq"
    path.write_bytes(made.read_bytes())
    spoil(path, "layers/model.layers.1.mlp.gate_proj/plane.3")
    assert cli.main(["models", "verify", str(path)]) == 1
    assert "tensor layers/model.layers.1.mlp.gate_proj/plane.3 is damaged" in capsys.readouterr().err


def test_names_of_weights_and_of_artifacts_are_told_apart(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_of("default") is None
    assert artifact_of("no-such-model") is None
    assert artifact_of(str(made)) == artifact_of(f"artifact:{made}#bits=3") == made
    assert str(artifact_of("gone.sq")) == "gone.sq"
    (tmp_path / "plain").write_bytes(b"")
    assert str(artifact_of("plain")) == "plain"
