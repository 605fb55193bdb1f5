"""The file: what is written comes back, and what was cut, altered or is newer is refused by name."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from test_quant_core import layer

from sqluice.errors import WeightsError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

from sqluice.workers.quant import artifact, methods, runner, slices  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BITS = (2, 3, 4, 8)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, slices.Quantized]:
    """An artifact of one layer with four widths."""
    weight, hessian = layer(0, out=12, width=40)
    found = methods.quantize("nested", weight, hessian, BITS, 16)
    facts = runner.facts_of(found, weight, hessian)
    manifest = {"bits": list(BITS), "layers": {"a.b": facts}, "policy": None, "method": "nested", "group": 16}
    pieces = [artifact.piece_of(name, tensor) for name, tensor in runner.tensors_of("a.b", found).items()]
    pieces += [
        artifact.piece_of("weights/norm", torch.arange(5.0)),
        artifact.piece_of("weights/e", torch.ones(3).half()),
    ]
    raw = b'{"model_type": "x"}'
    pieces.append(artifact.Piece("files/config.json", "U8", (len(raw),), lambda: raw))
    path = tmp_path / "m.sq"
    artifact.write(path, pieces, manifest)
    return path, found


def test_what_was_written_comes_back(made: tuple[Path, slices.Quantized]) -> None:
    from sqluice.workers.quant.serve import weight_of

    path, found = made
    held = artifact.read(path)
    assert held.tensor("weights/norm").tolist() == [0, 1, 2, 3, 4]
    assert held.tensor("weights/e").dtype == torch.float16
    assert held.text("config.json") == '{"model_type": "x"}'
    for bits in BITS:
        names = artifact.reads(held.manifest, "a.b", bits)
        assert sum("plane." in name for name in names) == bits
        weight = weight_of(held.manifest["layers"]["a.b"], "a.b", bits, {name: held.tensor(name) for name in names}.get)
        assert torch.equal(weight, found.weight(bits))
    assert artifact.check_hashes(path) == len(held.entries)
    assert list(path.parent.iterdir()) == [path]


def test_it_is_plain_safetensors(made: tuple[Path, slices.Quantized]) -> None:
    with safetensors.safe_open(made[0], framework="pt") as opened:
        held = artifact.read(made[0])
        assert set(opened.keys()) == set(held.entries)
        for name in held.entries:
            assert torch.equal(opened.get_tensor(name), held.tensor(name))


def test_planes_stand_last_the_most_significant_first(made: tuple[Path, slices.Quantized]) -> None:
    held = artifact.read(made[0])
    names = sorted(held.entries, key=lambda name: held.entries[name].start)
    planes = [name for name in names if "/plane." in name]
    assert names[-8:] == planes == [f"layers/a.b/plane.{at}" for at in range(8)]
    raw = made[0].read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    assert (begin + held.entries[planes[0]].start) % 64 == 0


def test_a_narrow_reader_touches_neither_planes_nor_hashes_beyond_its_own(
    made: tuple[Path, slices.Quantized],
) -> None:
    path, _ = made
    spoil(path, "layers/a.b/plane.3")
    held = artifact.read(path)
    for name in artifact.reads(held.manifest, "a.b", 3):
        held.tensor(name)
    with pytest.raises(WeightsError, match=r"tensor layers/a\.b/plane\.3 is damaged"):
        held.tensor("layers/a.b/plane.3")


def spoil(path: Path, name: str) -> None:
    """Turn one bit of a tensor round."""
    entry, raw = artifact.read(path).entries[name], bytearray(path.read_bytes())
    raw[8 + struct.unpack("<Q", raw[:8])[0] + entry.start] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["weights/norm", "layers/a.b/plane.0", "layers/a.b/3.c", "files/config.json"])
def test_an_altered_tensor_is_named(made: tuple[Path, slices.Quantized], name: str) -> None:
    spoil(made[0], name)
    with pytest.raises(WeightsError, match=f"tensor {name} is damaged"):
        artifact.check_hashes(made[0])


def header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_a_truncated_file_names_the_first_tensor_that_is_cut(made: tuple[Path, slices.Quantized]) -> None:
    path, _ = made
    held, raw = artifact.read(path), made[0].read_bytes()
    begin = len(raw) - max(entry.end for entry in held.entries.values())
    for name in ("layers/a.b/plane.7", "layers/a.b/plane.2", "weights/norm"):
        path.write_bytes(raw[: begin + held.entries[name].end - 1])
        with pytest.raises(WeightsError, match=f"truncated: tensor {name} ends"):
            artifact.read(path)
    for size in (0, 4, 8, 20, begin - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(WeightsError, match=r"not an artifact|truncated inside its header"):
            artifact.read(path)
    path.write_bytes(raw + b"more")
    with pytest.raises(WeightsError, match="4 bytes after its last tensor"):
        artifact.read(path)


def test_a_newer_format_says_to_upgrade(made: tuple[Path, slices.Quantized]) -> None:
    def newer(table: dict[str, Any]) -> None:
        manifest = json.loads(table["__metadata__"]["sqluice"])
        table["__metadata__"]["sqluice"] = json.dumps({**manifest, "format": artifact.FORMAT + 1})

    header(made[0], newer)
    with pytest.raises(WeightsError, match=r"has format 2, .* reads up to 1; upgrade sqluice"):
        artifact.read(made[0])


@pytest.mark.parametrize("what", ["manifest", "shape", "place", "foreign", "none"])
def test_an_altered_header_is_refused(made: tuple[Path, slices.Quantized], what: str) -> None:
    def alter(table: dict[str, Any]) -> None:
        if what == "manifest":
            table["__metadata__"]["sqluice"] = table["__metadata__"]["sqluice"].replace('"group": 16', '"group": 32')
        elif what == "shape":
            table["weights/norm"]["shape"] = [1, 5]
        elif what == "place":
            table["weights/norm"]["data_offsets"] = [0, 10**9]
        elif what == "foreign":
            del table["__metadata__"]["sqluice"]
        else:
            del table["__metadata__"]

    header(made[0], alter)
    with pytest.raises(WeightsError, match=r"altered|without a manifest of ours|header is damaged"):
        artifact.read(made[0])


def test_random_bytes_are_no_artifact(tmp_path: Path) -> None:
    path = tmp_path / "x.sq"
    for raw in (b"\x80\x04\x95pickle", b"\xff" * 64, struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(raw)
        with pytest.raises(WeightsError, match="not an artifact"):
            artifact.read(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        artifact.read(tmp_path / "gone.sq")


def test_two_readers_share_the_mapped_planes(made: tuple[Path, slices.Quantized]) -> None:
    first, second = artifact.read(made[0]), artifact.read(str(made[0]))
    assert first is second
    name = "layers/a.b/plane.0"
    assert first.tensor(name).data_ptr() == second.tensor(name).data_ptr()
    assert first.kept(name, "cpu") is second.kept(name, "cpu")


def test_a_policy_is_stored_and_changes_the_fingerprint(made: tuple[Path, slices.Quantized]) -> None:
    path, found = made
    before = artifact.inspect(path)
    artifact.set_policy(path, {"proxy": 3, "oracle": 8, "tau_low": 0.2})
    after = artifact.inspect(path)
    assert after["policy"] == {"proxy": 3, "oracle": 8, "tau_low": 0.2}
    assert after["fingerprint"] != before["fingerprint"]
    assert artifact.check_hashes(path) == len(artifact.read(path).entries)
    assert torch.equal(
        artifact.read(path).tensor("layers/a.b/plane.0"), runner.tensors_of("a.b", found)["layers/a.b/plane.0"]
    )


def test_inspect_counts_what_each_width_reads(made: tuple[Path, slices.Quantized]) -> None:
    path, _ = made
    told = artifact.inspect(path)
    assert told["bytes"] == path.stat().st_size
    assert "hashes" not in told
    words = 12 * 2 * 4  # rows, words a row, bytes a word
    sizes = [told["widths"][str(bits)]["bytes"] for bits in BITS]
    assert sizes[1] - sizes[0] == words + 12 * 3 * 2  # a plane, and one coefficient more a row and group
    per_weight = told["widths"]["4"]["bits_per_weight"]
    assert per_weight == pytest.approx(8 * (4 * words + 5 * 3 * 12 * 2) / (12 * 40))


def test_a_full_disk_says_what_was_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"m\.sq cannot be written \([\d,]+ bytes\): No space left"):
        artifact.write(tmp_path / "m.sq", [artifact.piece_of("weights/a", torch.ones(4))], {"bits": []})
    assert list(tmp_path.iterdir()) == []
