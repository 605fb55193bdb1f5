"""Mixes of widths under a budget of bits, and slices of one artifact through SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_quant_artifact import spoil
from test_quant_models import TEXTS, saved

import sqluice
from sqluice.errors import DataError, ModelError, ProgrammingError, WeightsError
from sqluice.workers import registry
from sqluice.workers.places import at_bits
from sqluice.workers.quant import artifact, mix, runner, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WIDTHS = (2, 3, 4, 8)
layers = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.floats(0.001, 1), min_size=4, max_size=4)), min_size=1, max_size=8
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved(tmp_path_factory.mktemp("llama"), "llama")
    out = tmp_path_factory.mktemp("made") / "m.sq"
    runner.quantize(str(folder), "nested", WIDTHS, 16, TEXTS, out, device="cpu")
    mix.add(out, 3.5)
    return out


@pytest.fixture
def con(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqluice.Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    registry.unload_all()
    connection = sqluice.connect(allow_models=["default", str(made.parent)], ai_cache="off", ai_device="cpu")
    connection.execute("CREATE TABLE t (text VARCHAR)")
    for text in TEXTS[:12]:
        connection.execute("INSERT INTO t VALUES (?)", [text])
    yield connection
    connection.close()
    registry.unload_all()


def scores(con: Any, options: str) -> np.ndarray:
    """Expected grades, which every width answers differently."""
    rows = con.execute(f"SELECT AI_SCORE(PROMPT('how good is {{0}}?', text), {options}) FROM t").fetchall()
    return np.array(rows, float)[:, 0]


# ---- the search


@given(layers, st.floats(2.01, 7.99))
def test_a_mix_keeps_its_budget_and_beats_the_uniform_width_below(
    drawn: list[tuple[int, list[float]]], average: float
) -> None:
    if average in WIDTHS:
        return
    errors = {str(at): dict(zip(WIDTHS, sorted(one, reverse=True), strict=True)) for at, (_, one) in enumerate(drawn)}
    sizes = {str(at): size for at, (size, _) in enumerate(drawn)}
    found = mix.search(errors, sizes, average)
    below = dict.fromkeys(errors, max(width for width in WIDTHS if width < average))
    assert mix.mean_bits(found, sizes) <= average + 1e-9
    assert mix.total(found, errors) <= mix.total(below, errors)
    assert all(found[layer] >= below[layer] for layer in found)


def test_bits_go_where_they_save_most() -> None:
    errors = {"a": {2: 0.5, 4: 0.4}, "b": {2: 0.5, 4: 0.1}, "c": {2: 0.5, 4: 0.1}}
    assert mix.search(errors, {"a": 10, "b": 10, "c": 40}, 2.4) == {"a": 2, "b": 4, "c": 2}
    assert mix.search(errors, {"a": 10, "b": 10, "c": 20}, 3.5) == {"a": 2, "b": 4, "c": 4}
    for average in (2, 4, 1.5, 9):
        with pytest.raises(DataError, match=r"average bits lie between|a width of its own"):
            mix.search(errors, {"a": 10, "b": 10, "c": 40}, average)


def test_a_mix_is_a_slice_of_the_file(made: Path, tmp_path: Path) -> None:
    told = artifact.inspect(made)
    sizes = {name: one["shape"][0] * one["shape"][1] for name, one in told["layers"].items()}
    found = told["mixes"]["3.5"]
    assert 3 < mix.mean_bits(found, sizes) <= 3.5
    assert len(set(found.values())) > 1
    for name in ("layer_error", "cosine"):
        three, mixed, four = (told["quality"][bits][name] for bits in ("3", "3.5", "4"))
        assert min(three, four) < mixed < max(three, four), name
    widths = told["widths"]
    assert widths["3"]["bits_per_weight"] < widths["3.5"]["bits_per_weight"] < widths["4"]["bits_per_weight"]
    model: Any = serve.load_slice(made, 3.5, device="cpu", dtype="float32")
    assert model.info.name.endswith("#bits=3.5")
    modules = dict(model._lm.model.named_modules())
    assert {layer: modules[layer].bits for layer in found} == found
    assert sorted(serve.verify(made)["widths"]) == [2, 3, 3.5, 4, 8]
    with pytest.raises(DataError, match=r"does not hold 5 bits; it holds 2, 3, 4, 8, 3\.5"):
        serve.load_slice(made, 5)


def test_a_damaged_file_is_not_written_anew(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.sq"
    path.write_bytes(made.read_bytes())
    spoil(path, "layers/model.layers.1.mlp.gate_proj/plane.7")
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"gate_proj/plane\.7 is damaged"):
        artifact.set_policy(path, {"proxy": 3})
    assert path.read_bytes() == before


# ---- through SQL


def test_each_call_names_its_precision(con: sqluice.Connection, made: Path) -> None:
    con.execute(f"SET ai_oracle = 'artifact:{made}'")
    eight, four, mixed = scores(con, "{'bits': 8}"), scores(con, "{'bits': 4}"), scores(con, "{'bits': 3.5}")
    assert np.array_equal(eight, scores(con, f"{{'model': 'artifact:{made}#bits=3', 'bits': 8}}"))
    assert not np.allclose(eight, four, atol=1e-6)
    assert not np.allclose(four, mixed, atol=1e-6)
    con.execute(f"SET ai_oracle = 'artifact:{made}#bits=4'")
    assert np.array_equal(four, scores(con, "{'errors': false}"))


def test_proxy_and_oracle_of_one_artifact_share_its_planes(con: sqluice.Connection, made: Path) -> None:
    rows = 1200
    con.execute(f"SET ai_oracle = 'artifact:{made}#bits=8'")
    con.execute(f"SET ai_proxy = 'artifact:{made}#bits=4'")
    con.execute("SET ai_mode = 'cascade'")
    words = "'w' || (i % 90) || ' w' || (i * 7 % 83) || ' ' || i"
    con.execute(f"CREATE TABLE many AS SELECT {words} AS s FROM range({rows}) r(i)")
    con.register_model("words", Flat())
    con.execute("SET ai_embedder = 'words'")
    cursor = con.execute("SELECT AI_CLASSIFY(s, ['w1', 'w2'], {'accuracy': 0.7}) FROM many")
    assert len(cursor.fetchall()) == rows
    assert cursor.report is not None
    operators = {one.function: one for one in cursor.report.operators}
    assert operators["AI_CLASSIFY proxy"].model.endswith("#bits=4")
    (cascade,) = operators["AI_CLASSIFY"].cascades
    assert cascade.inputs == rows
    assert operators["AI_CLASSIFY proxy"].scored >= 200, "the proxy scored a sample; who decides depends on the machine"
    models: list[Any] = [serve_of(made, bits) for bits in (4, 8)]
    low, high = (dict(model._lm.model.named_modules())["model.layers.0.mlp.up_proj"].tensors for model in models)
    shared = [name for name in low if "plane." in name]
    assert len(shared) == 4
    assert all(low[name].data_ptr() == high[name].data_ptr() for name in shared)


class Flat:
    """An embedder that knows nothing, so that the proxy has to decide."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.full((len(texts), 2), np.sqrt(0.5), np.float32)


def serve_of(path: Path, bits: float) -> Any:
    """The model that this process holds of a slice."""
    (found,) = [one for one in registry._models.values() if one.info.name == f"artifact:{path}#bits={bits:g}"]
    return found


def test_bits_are_for_artifacts(con: sqluice.Connection, made: Path) -> None:
    with pytest.raises(ModelError, match=r"option bits is for slices of an artifact, and package:default is none"):
        scores(con, "{'bits': 4}")
    with pytest.raises(DataError, match="does not hold 5 bits"):
        scores(con, f"{{'model': 'artifact:{made}', 'bits': 5}}")
    for wrong in ("0", "'four'", "9", "true"):
        with pytest.raises(ProgrammingError, match="option bits of AI_SCORE lies between 1 and 8"):
            scores(con, f"{{'bits': {wrong}}}")


def test_names_of_slices() -> None:
    assert at_bits("artifact:m.sq", 3.5) == "artifact:m.sq#bits=3.5"
    assert at_bits("artifact:m.sq#dtype=bf16&bits=3", 8.0) == "artifact:m.sq#bits=8&dtype=bf16"
