"""Where a model comes from: the syntax of model URIs, and the list of places a connection may use.

`parse` turns a URI into a `Place` without touching the network or loading anything; `Allowed` says whether
the person who opened the connection let models come from there.

    hf:org/name[@revision][#dtype=bf16&device=cpu&quant=int8]   the model hub, through transformers
    <folder>, <file>.safetensors, with or without hf:           local weights, through transformers
    <file>.gguf, gguf:<file>                                    llama.cpp in process
    package:<name>                                              weights inside an installed package
    http(s)://host[:port]/v1[?api_key_env=NAME]#model           an OpenAI-compatible endpoint
    replay:<file>.parquet                                       recorded scores and answers
    artifact:<file>[#bits=3&quant=int8]                         a slice of a quantized model of ours
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from sqluice.errors import ModelError, ModelRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

PlaceKind: TypeAlias = Literal["hub", "local", "gguf", "package", "http", "replay", "artifact"]

FILES: tuple[PlaceKind, ...] = ("local", "gguf", "replay", "artifact")
"""Kinds whose name is a path."""

DEFAULTS = ("loopback", "packages", "hub", "cwd")
"""Words an allow list may hold beside hosts, folders and packages; `default` stands for all of them."""

LOAD_OPTIONS = ("dtype", "device", "threads", "thinking", "quant")
QUANT = ("int8",)
ENDPOINT_OPTIONS = (
    *("api_key_env", "concurrency", "timeout", "deadline"),
    *("price_in", "price_out", "price_cached", "batch"),
)

_HUB = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")
_REVISION = re.compile(r"^[\w][\w./-]*$")
_BITS = re.compile(r"\d(\.\d+)?")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}
_KNOWN_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Place:
    """A parsed model URI. `name` is the hub name, resolved path, package name or base URL."""

    kind: PlaceKind
    uri: str
    name: str
    revision: str = ""
    model: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file or folder, for the kinds that are one."""
        return Path(self.name)

    @property
    def host(self) -> str:
        """`host` or `host:port` of an endpoint."""
        parts = urlsplit(self.name)
        return f"{parts.hostname or ''}:{parts.port}" if parts.port else parts.hostname or ""


def parse(uri: str) -> Place:
    """The place `uri` names; `ModelError` says what is wrong with it and how it should look."""
    scheme, colon, rest = uri.partition(":")
    if not uri.strip() or (colon and not rest):
        raise ModelError(f"{uri!r} names no model; e.g. package:default, hf:org/name or ./model.gguf")
    if scheme in ("http", "https"):
        return _endpoint(uri)
    if scheme == "artifact":
        name, options = _fragment(uri, rest, (*LOAD_OPTIONS, "bits"))
        return Place("artifact", uri, _resolved(name), options=options)
    if scheme == "package":
        name, options = _fragment(uri, rest)
        return Place("package", uri, name, options=options)
    if scheme == "replay":
        return Place("replay", uri, _resolved(rest))
    if scheme in ("hf", "gguf"):
        return _weights(uri, rest, scheme)
    if _looks_like_path(uri):
        return _weights(uri, uri, "")
    if _HUB.match(uri) and "/" in uri:
        raise ModelError(f"no model or folder {uri!r}; a model of the hub is written hf:{uri}")
    raise ModelError(
        f"no model {uri!r}: register it with connection.register_model, or name a place: package:default,"
        " hf:org/name, a path, http://host/v1#model, replay:file.parquet"
    )


def _weights(uri: str, rest: str, scheme: str) -> Place:
    """A hub name, a folder or a file of weights."""
    name, options = _fragment(uri, rest)
    suffix = Path(name).suffix.lower()
    if scheme == "gguf" or (suffix == ".gguf" and scheme == ""):
        if "quant" in options:
            raise ModelError(f"{uri}: a GGUF file has its own precision; leave quant out")
        return Place("gguf", uri, _resolved(name), options=options)
    base, _, revision = name.partition("@")
    if scheme == "hf" and not _looks_like_path(name) and _HUB.match(base):
        if revision and not _REVISION.match(revision):
            raise ModelError(f"{uri}: {revision!r} is not a revision; expected hf:org/name@branch-tag-or-commit")
        return Place("hub", uri, base, revision=revision, options=options)
    if not _looks_like_path(name):
        raise ModelError(f"{uri}: expected hf:org/name[@revision] or a path that exists")
    return Place("local", uri, _resolved(name), options=options)


def _endpoint(uri: str) -> Place:
    """A URL whose fragment is the model's name and whose query holds our own options."""
    try:
        parts = urlsplit(uri)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ModelError(f"not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ModelError(
            "a model URL holds no user name or password: put the key into an environment variable and name"
            " that variable,"
            f" e.g. {parts.scheme}://{parts.hostname}{port}{parts.path}?api_key_env=MY_KEY#model"
        )
    if not parts.hostname or not parts.fragment or ".." in unquote(parts.path).split("/"):
        raise ModelError(f"{uri}: expected http(s)://host/v1#model")
    options = _options(parts.query, ENDPOINT_OPTIONS, "the URL")
    if not re.fullmatch(r"[A-Za-z_]\w*|", options.get("api_key_env", "")):
        raise ModelError("api_key_env takes the name of an environment variable, never the key itself")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
    return Place("http", uri, base, model=unquote(parts.fragment), options=options)


def _fragment(uri: str, rest: str, known: tuple[str, ...] = LOAD_OPTIONS) -> tuple[str, dict[str, str]]:
    """`name#dtype=bf16` as the name and its checked options."""
    name, _, fragment = rest.partition("#")
    options = _options(fragment, known, uri)
    if "dtype" in options:
        options["dtype"] = _DTYPES.get(options["dtype"], options["dtype"])
        if options["dtype"] not in _KNOWN_DTYPES:
            raise ModelError(f"{uri}: dtype is one of {', '.join(_KNOWN_DTYPES)}")
    for number in ("threads", "thinking"):
        if not options.get(number, "0").isdigit():
            raise ModelError(f"{uri}: {number} takes a whole number")
    if options.get("quant", QUANT[0]) not in QUANT:
        raise ModelError(
            f"{uri}: quant is {', '.join(QUANT)}; for fewer bits, make an artifact: sqluice models quantize"
        )
    if not _BITS.fullmatch(options.get("bits", "8")):
        raise ModelError(f"{uri}: bits takes a number such as 3 or 3.5")
    return name, options


def at_bits(uri: str, bits: float) -> str:
    """The slice of `bits` bits of the artifact that `uri` names; `ModelError` when it names no artifact."""
    if not uri.startswith("artifact:"):
        raise ModelError(f"option bits is for slices of an artifact, and {uri} is none; name artifact:<file>")
    name, _, fragment = uri.partition("#")
    kept = [part for part in fragment.split("&") if part and not part.startswith("bits=")]
    return f"{name}#{'&'.join([f'bits={bits:g}', *kept])}"


def _options(text: str, known: tuple[str, ...], where: str) -> dict[str, str]:
    """`a=1&b=2` as a dict; a name that is not in `known` is an error (without its value: it may be a key)."""
    options = dict(parse_qsl(text, keep_blank_values=True)) if "=" in text else dict.fromkeys(filter(None, [text]), "")
    for name, value in options.items():
        if name not in known:
            raise ModelError(f"unknown option {name!r} in {where}: it takes {', '.join(known)}")
        if not value:
            raise ModelError(f"option {name} in {where} has no value")
    return options


def _looks_like_path(name: str) -> bool:
    plain = name.partition("#")[0]
    written = plain.startswith((".", "/", "~")) or plain.lower().endswith((".gguf", ".safetensors"))
    return bool(plain) and (written or Path(plain).exists())


def _resolved(path: str) -> str:
    """Absolute, with `~`, `..` and symbolic links resolved, so that an allow list cannot be walked around."""
    return str(Path(path).expanduser().resolve())


def is_loopback(host: str) -> bool:
    """Whether `host` (no port) is this machine by name or by literal address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Allowed:
    """The places one connection may take models from.

    Entries: a host (`api.example.com`, with or without `:port`) or URL prefix; a folder; `package:name`;
    `hf:org/name` (`*` matches anything); and the words `loopback`, `packages`, `hub`, `cwd` or `default` (all
    four). What the environment variable SQLUICE_ALLOW_MODELS lists, comma separated, is added.
    """

    def __init__(self, entries: Sequence[str] | None = None) -> None:
        named = os.environ.get("SQLUICE_ALLOW_MODELS", "")
        given = ["default"] if entries is None else list(entries)
        self.entries = [*given, *(part.strip() for part in named.split(",") if part.strip())]
        self._words = {word for entry in self.entries for word in (DEFAULTS if entry == "default" else (entry,))}

    def check(self, place: Place) -> None:
        """`ModelRefusedError` with the line to add when `place` is not allowed."""
        if getattr(self, f"_{'path' if place.kind in FILES else place.kind}")(place):
            return
        add = self._entry_for(place)
        line = f"connect(allow_models={[*self.entries, add]!r})"
        raise ModelRefusedError(
            f"{_what(place)} is not among the places models may come from; to allow it: {line},"
            f" or set SQLUICE_ALLOW_MODELS={add}"
        )

    def _entry_for(self, place: Place) -> str:
        if place.kind == "http":
            return place.host
        if place.kind in ("hub", "package"):
            return f"{'hf' if place.kind == 'hub' else 'package'}:{place.name}"
        return str(place.path if place.path.is_dir() else place.path.parent)

    def _http(self, place: Place) -> bool:
        host = urlsplit(place.name).hostname or ""
        if is_loopback(host) and "loopback" in self._words:
            return True
        return any(
            entry in (host, place.host) or ("://" in entry and _below(place.name, entry)) for entry in self.entries
        )

    def _hub(self, place: Place) -> bool:
        return "hub" in self._words or self._matches(f"hf:{place.name}")

    def _package(self, place: Place) -> bool:
        return "packages" in self._words or self._matches(f"package:{place.name}")

    def _matches(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, entry) for entry in self.entries)

    def _path(self, place: Place) -> bool:
        folders = [Path(entry).expanduser() for entry in self.entries if "/" in entry and ":" not in entry]
        folders += [Path(entry) for entry in self.entries if entry in (".", "..")]
        if "cwd" in self._words:
            folders.append(Path.cwd())
        return any(place.path.is_relative_to(folder.resolve()) for folder in folders)


def _below(url: str, prefix: str) -> bool:
    """Whether `url` is `prefix` or a path below it (never a longer host name)."""
    prefix = prefix.rstrip("/")
    return url == prefix or url.startswith(prefix + "/")


def _what(place: Place) -> str:
    if place.kind == "http":
        return f"host {place.host}"
    return f"{'folder of ' if place.kind in FILES else ''}{place.uri}"
