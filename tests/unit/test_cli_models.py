"""`sqluice models`: artifacts made, inspected, checked and tuned on the command line, on tiny random models."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_quant_artifact import spoil
from test_quant_models import TEXTS, saved

import sqluice
from sqluice.engine import cli, tuning
from sqluice.engine.models_command import artifact_of
from sqluice.engine.progress import StepBar
from sqluice.engine.report import CascadeReport, OpReport, Report
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


# ---- tuning

ASKED = "SELECT AI_CLASSIFY(s, ['w1', 'w2'], {'accuracy': 0.7}) FROM many"


class Flat:
    """An embedder that knows nothing, so that the proxy has to decide."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.full((len(texts), 2), np.sqrt(0.5), np.float32)


@pytest.fixture
def tuned(texts: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artifact; table `many` is there, and every connection knows the embedder `flat`."""
    con = sqluice.connect(str(texts))
    words = "'w' || (i % 90) || ' w' || (i * 7 % 83) || ' ' || i"
    con.execute(f"CREATE OR REPLACE TABLE many AS SELECT {words} AS s FROM range(1200) r(i)")
    con.close()
    opened = cli.open_connection

    def open_with_model(*args: Any) -> Any:
        con = opened(*args)
        con.register_model("flat", Flat())
        return con

    monkeypatch.setattr(cli, "open_connection", open_with_model)
    path = tmp_path / "m.sq"
    path.write_bytes(made.read_bytes())
    return path


def tune(path: Path, texts: Path, query: str, *options: str) -> int:
    given = ["--query", query, "--db", str(texts), "--set", "ai_embedder=flat", "--set", "ai_device=cpu"]
    return cli.main(["models", "tune", str(path), *given, *options])


def test_tune_stores_the_cheapest_pair(
    tuned: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = artifact.inspect(tuned)
    real = tuning.measure
    costs: dict[float | None, float] = {None: 0.9, 2: 0.8, 3: 0.7, 4: 0.6}  # time on a tiny model means nothing

    def priced(proxy: float | None, report: Any) -> Any:
        told = real(proxy, report)
        assert all(0 < seconds < 1 for seconds in told.seconds.values())
        return dataclasses.replace(told, cost=costs[proxy], scorers=("head" if proxy is None else "proxy",))

    monkeypatch.setattr(tuning, "measure", priced)
    assert tune(tuned, texts, ASKED) == 0
    err = capsys.readouterr().err
    for line in ("no proxy: 90%", "proxy 2 bits: 80%", "proxy 4 bits: 60%", "4 bits are the proxy; stored"):
        assert line in err
    told = artifact.inspect(tuned)
    policy = told["policy"]
    assert (policy["oracle"], policy["proxy"], policy["inputs"], policy["cost"]) == (8, 4, 1200, 0.6)
    assert 0 < policy["delegation"] <= 1
    assert policy["contract"].startswith(("certified(accuracy >= 0.7", "exact"))
    assert set(policy["seconds"]) == {"AI_CLASSIFY", "AI_CLASSIFY head", "AI_CLASSIFY proxy"}
    assert [one["proxy"] for one in policy["measured"]] == [None, 2, 3, 4]
    assert "w1" not in json.dumps(policy), "no text of the query"
    assert told["fingerprint"] != before["fingerprint"]
    assert artifact.check_hashes(tuned)
    assert cli.main(["models", "inspect", str(tuned)]) == 0
    assert '"proxy": 4' in capsys.readouterr().out

    con = sqluice.connect(str(texts), allow_models=["default", str(tuned.parent)], ai_cache="off", ai_mode="cascade")
    con.register_model("flat", Flat())
    con.execute("SET ai_embedder = 'flat'")
    for oracle, proxies in (("", ["#bits=4"]), ("#bits=8", [])):
        con.execute(f"SET ai_oracle = 'artifact:{tuned}{oracle}'")
        cursor = con.execute(ASKED)
        cursor.fetchall()
        assert cursor.report is not None
        found = [one.model for one in cursor.report.operators if one.function == "AI_CLASSIFY proxy"]
        assert found == [f"artifact:{tuned}{slice_}" for slice_ in proxies]
    con.close()


def test_what_a_run_cost_is_the_mean_over_its_inputs() -> None:
    cascades = (
        CascadeReport("c", "certified(c)", "proxy", 3000, 300, saving=0.8, tau_low=0.1, tau_high=math.inf),
        CascadeReport("c", "exact (too little is left to save)", None, 1000, 1000),
    )
    asked = OpReport("AI_FILTER", "o", calls=1300, seconds_busy=13.0, cascades=cascades)
    scored = OpReport("AI_FILTER proxy", "p", scored=3000, seconds_busy=6.0)
    found = tuning.measure(3, Report("r", "", "ok", 20.0, label="certified(c)", operators=(asked, scored)))
    assert found.cost == pytest.approx((0.2 * 3000 + 1000) / 4000)
    assert found.delegation == pytest.approx(1300 / 4000)
    assert found.seconds == {"AI_FILTER": pytest.approx(0.01), "AI_FILTER proxy": pytest.approx(0.002)}
    assert found.thresholds == [(0.1, None), (None, None)]
    assert found.uses_proxy


def run_of(proxy: float | None, cost: float, label: str = "certified(..)", scorer: str = "proxy") -> Any:
    return tuning.Measured(proxy, cost, 0.1, (scorer,), label, 1000, {}, [])


def test_the_best_pair_keeps_the_contract() -> None:
    runs = [run_of(None, 0.9, scorer="head"), run_of(3, 0.4, "uncertified(drift)"), run_of(4, 0.6), run_of(3.5, 0.6)]
    assert tuning.best(runs).proxy == 4
    assert tuning.best(runs[1:2]).proxy == 3
    assert tuning.policy(run_of(4, 0.5, scorer="head"), 8, runs)["proxy"] is None
    assert tuning.policy(run_of(4, 0.5, scorer="head and proxy"), 8, runs)["proxy"] == 4


@pytest.mark.parametrize(
    ("query", "options", "hint"),
    [
        ("SELECT 1", (), "the query asks no model"),
        ("SELECT AI_CLASSIFY(text, ['w1', 'w2']) FROM t LIMIT 0", (), "nothing in the query is a cascade"),
        (ASKED, ("--oracle", "flat"), "takes no --oracle"),
    ],
)
def test_tune_refuses(
    tuned: Path, texts: Path, capsys: pytest.CaptureFixture[str], query: str, options: tuple[str, ...], hint: str
) -> None:
    assert tune(tuned, texts, query, *options) == 1
    assert hint in capsys.readouterr().err
    assert artifact.inspect(tuned)["policy"] is None


def test_one_width_has_no_proxy(llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantized(llama, texts, tmp_path / "m.sq", "--method", "rtn", "--bits", "4") == 0
    assert tune(tmp_path / "m.sq", texts, ASKED) == 1
    assert "has one width; a proxy needs a narrower one" in capsys.readouterr().err
