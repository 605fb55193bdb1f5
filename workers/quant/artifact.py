"""The file of a quantized model: safetensors with a manifest. docs/quantization.md draws its layout.

Tensors stand in this order: `weights/..` (what is not quantized, float32 first), `layers/<name>/<width>.<tensor>`
(coefficients), `files/..` (configuration and tokenizer, as bytes), `align`, then `layers/<name>/plane.<i>`: plane 0 of
every layer, plane 1 of every layer, and so on. So a reader of b bits reads the beginning of the file and no more.
A file that differs from its hashes is refused by the name of the tensor. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import WeightsError
from sqluice.workers import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FORMAT = 1
KEY = "sqluice"
MOST_HEADER = 100_000_000
ALIGNMENT = 64
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: `start` and `end` are bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to be written, and its bytes when they are asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], bytes | memoryview]

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * SIZES[self.dtype]


def piece_of(name: str, tensor: Any) -> Piece:
    """A piece that holds a torch tensor."""
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.uint8: "U8"}
    held = tensor.detach().cpu().contiguous()
    return Piece(
        name, names[held.dtype], tuple(held.shape), lambda: memoryview(held.reshape(-1).view(torch.uint8).numpy())
    )


def write(path: Path, pieces: Iterable[Piece], manifest: dict[str, Any]) -> None:
    """Write the artifact in one step: a file beside `path` that takes its name when all is on disk.

    One tensor at a time is in memory. `WeightsError` when the disk is full or cannot be written.
    """
    laid = _aligned(pieces)
    hashes = {piece.name: hashlib.sha256(piece.read()).hexdigest() for piece in laid}
    header = _header(laid, {**manifest, "format": FORMAT, "hashes": hashes})
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for piece in laid:
                file.write(piece.read())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        size = 8 + len(header) + sum(piece.size for piece in laid)
        raise WeightsError(f"{path} cannot be written ({size:,} bytes): {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)


def _aligned(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces in the order of the file, planes at a multiple of 64 bytes after the header."""

    def place(piece: Piece) -> tuple[int, ...]:
        if "/plane." in piece.name:
            return 3, int(piece.name.rpartition(".")[2])
        return 2 if piece.name.startswith("files/") else 0, -SIZES[piece.dtype]

    laid = sorted(pieces, key=place)
    first = next((at for at, piece in enumerate(laid) if place(piece)[0] == 3), len(laid))
    gap = -sum(piece.size for piece in laid[:first]) % ALIGNMENT
    return [*laid[:first], Piece("align", "U8", (gap,), lambda: bytes(gap)), *laid[first:]]


def _header(laid: Sequence[Piece], manifest: dict[str, Any]) -> bytes:
    table: dict[str, Any] = {}
    at = 0
    for piece in laid:
        table[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [at, at + piece.size]}
        at += piece.size
    said = json.dumps(manifest, sort_keys=True)
    metadata = {KEY: said, f"{KEY}_sha256": _seal(said, table)}
    text = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % ALIGNMENT)


def _seal(said: str, table: dict[str, Any]) -> str:
    """Hash of the manifest and of where every tensor lies."""
    return hashlib.sha256(said.encode() + json.dumps(table, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class Artifact:
    """An open file. Tensors are views of the mapped file: read when used, shared by all who opened it here."""

    path: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]
    _bytes: Any
    _kept: dict[tuple[object, ...], Any] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.RLock)

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest, which holds the hash of every tensor and the policy."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:32]

    def tensor(self, name: str) -> Any:
        """The tensor `name`, its hash checked once; `WeightsError` names it when it is damaged or not there."""
        import torch

        if name not in self.entries:
            raise WeightsError(f"{self.path}: tensor {name} is missing")
        entry = self.entries[name]
        raw = self._bytes[entry.start : entry.end]
        with self._lock:
            if name not in self._checked:
                self.check(name)
                self._checked.add(name)
        kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        kind = {**kinds, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}[entry.dtype]
        return (raw if entry.start % SIZES[entry.dtype] == 0 else raw.clone()).view(kind).reshape(entry.shape)

    def kept(self, name: str, device: str, dtype: Any = None) -> Any:
        """The tensor on a device (and in a dtype), the same one for every slice that asks."""
        with self._lock:
            key = (name, device, dtype)
            if key not in self._kept:
                self._kept[key] = self.tensor(name).to(device=device, dtype=dtype)
            return self._kept[key]

    def check(self, name: str) -> None:
        """Hash one tensor anew; `WeightsError` with its name when it differs."""
        entry = self.entries[name]
        found = hashlib.sha256(memoryview(self._bytes[entry.start : entry.end].numpy())).hexdigest()
        if found != self.manifest["hashes"].get(name):
            raise WeightsError(f"{self.path}: tensor {name} is damaged (its sha256 differs); make or copy it anew")

    def text(self, name: str) -> str:
        """An embedded file as text."""
        return bytes(self.tensor(f"files/{name}").numpy()).decode()


_open: weakref.WeakValueDictionary[tuple[object, ...], Artifact] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def read(path: Path | str) -> Artifact:
    """The artifact at `path`, its header checked; one object a process and file, so that slices share planes.

    `WeightsError` when it is no artifact, truncated, altered in its header, or of a newer version.
    """
    place = Path(path).expanduser()
    try:
        stat = place.stat()
        key = (str(place.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        with _guard:
            found = _open.get(key)
            if found is None:
                found = _open[key] = _read(place, stat.st_size)
            return found
    except OSError as error:
        raise WeightsError(f"{place} cannot be read: {error.strerror or error}") from error


def _read(path: Path, size: int) -> Artifact:
    import torch

    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= MOST_HEADER:
            raise WeightsError(f"{path} is not an artifact: it does not begin with a safetensors header")
        raw = file.read(length)
        if len(raw) < length:
            raise WeightsError(f"{path} is truncated inside its header")
        table, metadata = _parsed(path, raw)
        manifest = _manifest(path, metadata, table)
        entries = _entries(path, table, size - 8 - length)
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = torch.frombuffer(whole, dtype=torch.uint8)[8 + length :]
    return Artifact(path, manifest, entries, data)


def _parsed(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        table = json.loads(raw)
        metadata = table.pop("__metadata__")
        return table, {str(name): str(value) for name, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not an artifact, or its header is damaged") from error


def _manifest(path: Path, metadata: dict[str, str], table: dict[str, Any]) -> dict[str, Any]:
    said = metadata.get(KEY)
    if said is None:
        raise WeightsError(f"{path} is a safetensors file without a manifest of ours; name its folder to load it")
    try:
        manifest = json.loads(said)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its manifest is damaged") from error
    if not isinstance(version, int) or version > FORMAT:
        raise WeightsError(
            f"{path} has format {version}, and this version of sqluice reads up to {FORMAT}; upgrade sqluice"
        )
    if metadata.get(f"{KEY}_sha256") != _seal(said, table):
        raise WeightsError(f"{path}: its header was altered (its sha256 differs); make or copy it anew")
    return dict(manifest)


def _entries(path: Path, table: dict[str, Any], size: int) -> dict[str, Entry]:
    """Where tensors lie, after checking that they fill the file without gaps."""
    entries: dict[str, Entry] = {}
    at = 0
    for name, one in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = one["data_offsets"]
        piece = Piece(name, one["dtype"], tuple(one["shape"]), bytes)
        if start != at or end - start != piece.size:
            raise WeightsError(f"{path}: tensor {name} does not lie where its shape says")
        if end > size:
            raise WeightsError(f"{path} is truncated: tensor {name} ends at {end:,} of {size:,} bytes")
        entries[name] = Entry(piece.dtype, piece.shape, start, end)
        at = end
    if at != size:
        raise WeightsError(f"{path} has {size - at:,} bytes after its last tensor")
    return entries


def set_policy(path: Path, policy: dict[str, Any] | None) -> None:
    """Store a cascade policy (plain data) in the manifest."""
    rewrite(path, {"policy": policy})


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Give the manifest other values; the file is written anew beside itself, then swapped. `WeightsError` names a
    tensor that is damaged, which must not get a new hash."""
    check_hashes(path)
    held = read(path)
    pieces = [
        Piece(name, entry.dtype, entry.shape, lambda e=entry: memoryview(held._bytes[e.start : e.end].numpy()))  # type: ignore[misc]  # noqa: SLF001
        for name, entry in held.entries.items()
        if name != "align"
    ]
    write(Path(path), pieces, {**held.manifest, **changes})


def proxy_of(uri: str) -> str | None:
    """The proxy that the policy of the artifact `uri` names for its widest slice, as a URI; None where `uri` is no
    artifact, names a slice itself, or has no policy."""
    name, _, fragment = uri.partition("#")
    if not name.startswith("artifact:") or "bits=" in fragment:
        return None
    policy = read(name.removeprefix("artifact:")).manifest.get("policy")
    proxy = None if policy is None else policy.get("proxy")
    return None if proxy is None else places.at_bits(uri, proxy)


def inspect(path: Path | str) -> dict[str, Any]:
    """The manifest without hashes, with `bytes`, `fingerprint` and, for each width, `bits_per_weight` and the `bytes`
    that its reader reads. Reads the header alone."""
    held = read(path)
    manifest = {name: value for name, value in held.manifest.items() if name != "hashes"}
    weights = sum(one["shape"][0] * one["shape"][1] for one in manifest["layers"].values())
    widths = {}
    for bits, layers in slices_of(manifest).items():
        inside = sum(_size(held, name) for layer, width in layers.items() for name in reads(manifest, layer, width))
        outside = sum(_size(held, name) for name in held.entries if not name.startswith("layers/"))
        widths[f"{bits:g}"] = {"bits_per_weight": 8 * inside / max(weights, 1), "bytes": inside + outside}
    return {**manifest, "bytes": held.path.stat().st_size, "fingerprint": held.fingerprint, "widths": widths}


def _size(held: Artifact, name: str) -> int:
    return held.entries[name].end - held.entries[name].start


def slices_of(manifest: dict[str, Any]) -> dict[float, dict[str, int]]:
    """The slices that can be named: the width of every layer by bits, mixes after the uniform ones."""
    uniform: dict[float, dict[str, int]] = {bits: dict.fromkeys(manifest["layers"], bits) for bits in manifest["bits"]}
    return uniform | {float(name): dict(mix) for name, mix in manifest.get("mixes", {}).items()}


def reads(manifest: dict[str, Any], layer: str, bits: int) -> list[str]:
    """Names of the tensors that a reader of `bits` bits needs for a layer."""
    one = manifest["layers"][layer]
    rule = one["rules"][str(bits)]
    planes = min(one["planes"], bits + 1) if rule["name"] == "rounded" else bits
    names = [f"layers/{layer}/plane.{at}" for at in range(planes)]
    width = bits
    while True:
        names += [f"layers/{layer}/{width}.{tensor}" for tensor in rule["tensors"]]
        width = rule["base"]
        if not width:
            return names
        rule = one["rules"][str(width)]


def check_hashes(path: Path | str) -> int:
    """Hash every tensor anew; the number of tensors. `WeightsError` names the first that differs."""
    held = read(path)
    for name in held.entries:
        held.check(name)
    return len(held.entries)
