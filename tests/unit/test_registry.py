"""Names, URIs, the allow list, and loading once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqluice.errors import InterfaceError, ModelError, ModelRefusedError
from sqluice.types import ModelInfo
from sqluice.workers import registry as registry_module
from sqluice.workers.places import Allowed, parse
from sqluice.workers.registry import LoadOptions, Registry, unload_all


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SQLUICE_ALLOW_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)


class Scorer:
    __slots__ = ()

    def score(self, prompts: Any, choices: Any) -> np.ndarray:
        return np.zeros((len(prompts), len(choices)), dtype=np.float32)


class Named(Scorer):
    __slots__ = ("info",)

    def __init__(self) -> None:
        self.info = ModelInfo("mine", "r1", context_tokens=7)


def recording(folder: Path, name: str = "run.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": ["a"], "score": [0.5]}), folder / name)
    return folder / name


def test_a_registered_object_is_given_back_as_it_is() -> None:
    models, model = Registry(), Named()
    models.register("mine", model)
    assert models.load("mine", LoadOptions()) is model
    assert models.is_registered("mine")
    assert not models.is_registered("other")


def test_info_is_made_up_without_touching_the_object() -> None:
    models, model = Registry(), Scorer()
    models.register("plain", model, price_in=2.0)
    found = models.load("plain", LoadOptions())
    assert found.info == ModelInfo("plain", price_in=2.0)
    assert found.score(["a"], ["x"]).shape == (1, 1)  # type: ignore[list-item]
    assert not hasattr(found, "generate")
    assert not hasattr(model, "info")


def test_prices_and_foreign_infos_are_taken_over() -> None:
    models, model = Registry(), Named()
    models.register("mine", model, price_in=1.0, price_out=3.0)
    info = models.load("mine", LoadOptions()).info
    assert (info.name, info.revision, info.price_in, info.price_out) == ("mine", "r1", 1.0, 3.0)
    assert model.info.price_in == 0
    strange = SimpleNamespace(score=print, info=SimpleNamespace(context_tokens=9))
    models.register("strange", strange)
    assert models.load("strange", LoadOptions()).info == ModelInfo("strange", context_tokens=9)


def test_registering_again_replaces_and_wins_over_uris() -> None:
    models, first, second = Registry([]), Named(), Named()
    models.register("package:default", first)
    models.register("package:default", second)
    models.check("package:default", needs="score")
    assert models.load("package:default", LoadOptions()) is second


@pytest.mark.parametrize(("name", "model"), [("", Named()), ("  ", Named()), ("x", object()), ("x", 5)])
def test_what_cannot_be_registered(name: str, model: object) -> None:
    with pytest.raises(InterfaceError):
        Registry().register(name, model)


def test_needs_are_checked() -> None:
    models = Registry()
    models.register("mine", Named())
    models.check("mine", needs="score")
    with pytest.raises(ModelError, match=r"no method embed \(it has score\).*package:embedder"):
        models.check("mine", needs="embed")
    with pytest.raises(ModelError, match="no method score"):
        models.check("package:embedder", needs="score")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("minee", "did you mean mine"),
        ("pakage:default", "did you mean package:default"),
        ("package:defualt", "did you mean package:default"),
        ("org/name", "hf:org/name"),
        ("", "names no model"),
        ("hf:", "names no model"),
        ("hf:a b", "expected hf:org/name"),
        ("hf:org/name@../x", "is not a revision"),
        ("hf:org/name#dtyp=bf16", "unknown option 'dtyp'"),
        ("hf:org/name#dtype=int3", "dtype is one of"),
        ("hf:org/name#threads=many", "whole number"),
        ("http://host/v1", r"expected http\(s\)://host/v1#model"),
        ("http://host:port/v1#m", "not a URL"),
        ("http://me:word@127.0.0.1/v1#m", "no user name or password"),
        ("http://127.0.0.1/v1?key=abc#m", "unknown option 'key'"),
        ("http://127.0.0.1/v1?api_key_env=sk-12345#m", "never the key itself"),
        ("./none.gguf", "no such file"),
        ("gguf:none.gguf", "no such file"),
        ("replay:none.parquet", "no such file"),
    ],
)
def test_bad_uris_name_the_remedy(uri: str, said: str) -> None:
    models = Registry()
    models.register("mine", Named())
    with pytest.raises(ModelError, match=said) as caught:
        models.check(uri)
    assert "abc" not in str(caught.value)
    assert "sk-12345" not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_an_artifact_names_a_file_and_a_width() -> None:
    place = parse("artifact:m.sq#bits=3&dtype=bf16")
    assert (place.kind, place.path.name, place.options) == ("artifact", "m.sq", {"bits": "3", "dtype": "bfloat16"})
    with pytest.raises(ModelError, match=r"bits takes a number such as 3 or 3\.5"):
        parse("artifact:m.sq#bits=three")
    with pytest.raises(ModelError, match="unknown option 'bits'"):
        parse("hf:org/name#bits=3")
    with pytest.raises(ModelError, match="no such file or folder"):
        Registry().check("artifact:m.sq#bits=3")


def test_uris_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    hub = parse("hf:org/name@v1.0#dtype=bf16&threads=2")
    assert (hub.kind, hub.name, hub.revision) == ("hub", "org/name", "v1.0")
    assert hub.options == {"dtype": "bfloat16", "threads": "2"}
    assert parse("hf:./weights").path == parse("weights").path == tmp_path.resolve() / "weights"
    assert parse("x.gguf").kind == parse("gguf:x").kind == "gguf"
    assert parse("hf:x.gguf").kind == parse("model.safetensors").kind == "local"
    url = parse("https://api.example.com:8443/v1/?api_key_env=MY_KEY#org/model")
    assert (url.name, url.model) == ("https://api.example.com:8443/v1", "org/model")
    assert url.options == {"api_key_env": "MY_KEY"}
    assert parse("http://[::1]:80/v1#m").host == "::1:80"


@pytest.mark.parametrize(
    ("uri", "entry"),
    [
        ("http://api.example.com/v1#m", "api.example.com"),
        ("https://api.example.com:8443/v1#m", "api.example.com:8443"),
        ("http://127.0.0.1.example.com/v1#m", "127.0.0.1.example.com"),
        ("http://localhost.example.com/v1#m", "localhost.example.com"),
        ("http://10.0.0.5/v1#m", "10.0.0.5"),
        ("http://2130706433/v1#m", "2130706433"),
    ],
)
def test_other_hosts_are_refused_with_the_line_to_add(uri: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelRefusedError) as caught:
        Registry().check(uri)
    assert f"connect(allow_models=['default', '{entry}'])" in str(caught.value)
    assert f"SQLUICE_ALLOW_MODELS={entry}" in str(caught.value)
    Registry(["default", entry]).check(uri)
    monkeypatch.setenv("SQLUICE_ALLOW_MODELS", f"other.example.com, {entry}")
    Registry().check(uri)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3:8080", "[::1]:8080"])
def test_loopback_is_allowed_until_it_is_taken_out(host: str) -> None:
    Registry().check(f"http://{host}/v1#m")
    with pytest.raises(ModelRefusedError):
        Registry([]).check(f"http://{host}/v1#m")


def test_a_url_prefix_is_no_prefix_of_a_host() -> None:
    allowed = Registry(["https://api.example.com/v1"])
    allowed.check("https://api.example.com/v1#m")
    for uri in (
        "https://api.example.com/v1x#m",
        "https://api.example.com/v2#m",
        "http://api.example.com/v1#m",
    ):
        with pytest.raises(ModelRefusedError):
            allowed.check(uri)
    with pytest.raises(ModelError, match="expected"):
        allowed.check("https://api.example.com/v1/../v2#m")


def test_paths_outside_are_refused_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = recording(tmp_path / "in"), recording(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "in")
    Registry().check("replay:run.parquet")
    Path("link.parquet").symlink_to(outside)
    for uri in (f"replay:{outside}", "replay:../out/run.parquet", "replay:link.parquet"):
        with pytest.raises(ModelRefusedError, match=f"allow_models=.*{tmp_path}/out"):
            Registry().check(uri)
        Registry([str(tmp_path / "out")]).check(uri)
    with pytest.raises(ModelRefusedError):
        Registry([str(tmp_path / "out")]).check(f"replay:{inside}")


def test_hub_and_packages_can_be_narrowed() -> None:
    allowed = Allowed(["hf:Qwen/*", "package:embedder"])
    allowed.check(parse("hf:Qwen/Qwen3-0.6B"))
    allowed.check(parse("package:embedder"))
    for uri in ("hf:other/name", "package:default", "http://127.0.0.1/v1#m"):
        with pytest.raises(ModelRefusedError):
            allowed.check(parse(uri))


def test_a_model_is_loaded_once_a_process_and_anew_when_its_file_changes(tmp_path: Path) -> None:
    path = recording(tmp_path)
    first = Registry().load(f"replay:{path}", LoadOptions())
    assert Registry().load("replay:run.parquet", LoadOptions(threads=1)) is first
    pq.write_table(pa.table({"text": ["a", "b"], "score": [0.5, 0.6]}), path)
    assert Registry().load(f"replay:{path}", LoadOptions()) is not first
    unload_all()


def test_load_refuses_what_check_refuses() -> None:
    with pytest.raises(ModelRefusedError):
        Registry().load("http://api.example.com/v1#m", LoadOptions())


def test_a_failing_load_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(registry_module, "_load_replay", broken)
    path = recording(tmp_path, "broken.parquet")
    with pytest.raises(ModelError, match=r"broken\.parquet cannot be loaded: RuntimeError: disk on fire"):
        Registry().load(f"replay:{path}", LoadOptions())


def test_the_uris_own_options_win() -> None:
    merged = registry_module._merged(LoadOptions(4, "float32", "cpu"), parse("hf:org/name#dtype=bf16&threads=1"))
    assert merged == LoadOptions(1, "bfloat16", "cpu")


def test_list_names_what_is_registered_packaged_and_loaded(tmp_path: Path) -> None:
    unload_all()
    models = Registry()
    models.register("mine", Named())
    models.load(f"replay:{recording(tmp_path)}", LoadOptions())
    rows = models.list()
    assert all(set(row) == {"uri", "kind", "where", "size", "present", "licence"} for row in rows)
    assert {"mine", "package:default", "package:embedder"} <= {row["uri"] for row in rows}
    assert [row["kind"] for row in rows if row["where"] == "loaded"] == ["replay"]
    unload_all()
