"""Models by name: what a connection registered, and what URIs stand for.

One `Registry` belongs to one connection. Models that we load ourselves are shared by the whole process, keyed
by their place and options, and stay loaded until `unload_all`.
"""

from __future__ import annotations

import difflib
import importlib.util
import threading
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from sqluice.errors import Error, InterfaceError, MissingExtraError, ModelError
from sqluice.types import ModelInfo
from sqluice.workers import fetch, thinking
from sqluice.workers.failures import describe
from sqluice.workers.places import FILES, Allowed, Place, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.workers.protocol import Model

OPERATIONS = ("score", "generate", "embed")


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model of ours. `threads` 0 takes every core; `thinking` are the tokens that a model which thinks
    before it answers may spend on that, a row; `quant` is empty or `int8`."""

    threads: int = 0
    dtype: str = "auto"
    device: str = "auto"
    thinking: int = thinking.BUDGET
    quant: str = ""


@dataclass(frozen=True)
class Recipe:
    """How to load a model of ours, here or on a worker; it was allowed and looked for here."""

    place: Place
    options: LoadOptions

    def load(self, progress: Callable[..., None] | None = None) -> Model:
        """The model, loaded at most once a process."""
        return _shared(self.place, self.options, progress)


class _WithInfo:
    """A registered object under an `info` of ours; everything else is the object's own."""

    def __init__(self, model: object, info: ModelInfo) -> None:
        self.info = info
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __reduce__(self) -> tuple[object, ...]:
        return _WithInfo, (self._model, self.info)

    def __repr__(self) -> str:
        return f"<registered model {self.info.name}>"


class Registry:
    """The models one connection can name. `allow_models` is explained at `places.Allowed`."""

    def __init__(self, allow_models: Sequence[str] | None = None) -> None:
        self._allowed = Allowed(allow_models)
        self._registered: dict[str, Model] = {}

    def register(self, name: str, model: object, *, price_in: float = 0.0, price_out: float = 0.0) -> None:
        """Make `model`, any object with `score`, `generate` or `embed`, known as `name`.

        Prices are US dollars per million tokens. The object is never changed; a second registration under
        the same name replaces the first. `InterfaceError` when it is no model.
        """
        if not isinstance(name, str) or not name.strip():
            raise InterfaceError("a model is registered under a name that is not empty")
        if not _offers(model):
            raise InterfaceError(
                f"{type(model).__name__} is no model: it has none of the methods {', '.join(OPERATIONS)}"
            )
        info = _info(name, model, price_in, price_out)
        same = info is getattr(model, "info", None)
        self._registered[name] = cast("Model", model if same else _WithInfo(model, info))

    def is_registered(self, uri: str) -> bool:
        """Whether `uri` is a name given to `register`."""
        return uri in self._registered

    def check(self, uri: str, *, needs: str | None = None) -> None:
        """Plan-time check that loads nothing: the name or URI is known or well formed, allowed, present where
        that is cheap to see, and able to do `needs` (`score`, `generate` or `embed`) where that is known.

        `ModelError`, `ModelRefusedError` or `MissingExtraError`, each with its remedy.
        """
        registered = self._registered.get(uri)
        if registered is not None:
            _check_offers(uri, _offers(registered), needs)
            return
        place = self._place(uri)
        self._allowed.check(place)
        _check_present(place)
        _check_offers(uri, _abilities(place), needs)

    def load(self, uri: str, options: LoadOptions, progress: Callable[..., None] | None = None) -> Model:
        """The model named `uri`, loaded at most once a process. Raises what `check` raises, and `ModelError`
        or `WeightsError` when loading fails. `progress` is told of weights being fetched."""
        found = self.find(uri, options)
        return found.load(progress) if isinstance(found, Recipe) else found

    def find(self, uri: str, options: LoadOptions) -> Model | Recipe:
        """The object registered as `uri`, or how to load what it stands for. Raises what `check` raises."""
        registered = self._registered.get(uri)
        if registered is not None:
            return registered
        place = self._place(uri)
        self._allowed.check(place)
        _check_present(place)
        return Recipe(place, _merged(options, place))

    def list(self) -> list[dict[str, object]]:
        """Every model known here: `uri, kind, where, size` (bytes or None), `present, licence`."""
        rows = [_row(name, "registered", "this connection", None, "") for name in sorted(self._registered)]
        known = {row["uri"] for row in rows}
        return rows + [row for row in [*_packaged(), *_loaded()] if row["uri"] not in known]

    def _place(self, uri: str) -> Place:
        try:
            return parse(uri)
        except ModelError as error:
            near = difflib.get_close_matches(uri, [*self._registered, *_package_uris()], n=2, cutoff=0.7)
            if not near:
                raise
            raise ModelError(f"{error}; did you mean {' or '.join(near)}?") from None


def _offers(model: object) -> tuple[str, ...]:
    return tuple(name for name in OPERATIONS if callable(getattr(model, name, None)))


def _info(name: str, model: object, price_in: float, price_out: float) -> ModelInfo:
    """The object's own `info` when it fits; else one made from whatever fields its `info` has."""
    info = getattr(model, "info", None)
    if not isinstance(info, ModelInfo):
        given = {f.name: getattr(info, f.name) for f in fields(ModelInfo) if hasattr(info, f.name)}
        info = ModelInfo(**{"name": name, **given})
    if price_in or price_out:
        info = replace(info, price_in=price_in, price_out=price_out)
    return info


def _check_offers(uri: str, offers: Sequence[str], needs: str | None) -> None:
    if needs is not None and offers and needs not in offers:
        raise ModelError(
            f"model {uri} has no method {needs} (it has {', '.join(offers)}); name a model that does,"
            f" e.g. {'package:embedder' if needs == 'embed' else 'package:default'}"
        )


def _abilities(place: Place) -> tuple[str, ...]:
    """What a place can do as far as its URI tells; empty when only loading would tell."""
    if place.kind == "package":
        return ("embed",) if fetch.resolve(place.name) == "minilm" else ("score", "generate")
    return ("score", "generate") if place.kind in ("replay", "gguf") else ()


def _check_present(place: Place) -> None:
    """Files exist, packaged names are known, and the libraries a place needs are installed."""
    if place.kind in FILES and not place.path.exists():
        raise ModelError(f"{place.uri}: no such file or folder: {place.path}")
    if place.kind == "package" and f"package:{place.name}" not in _package_uris():
        known = ", ".join(_package_uris())
        near = difflib.get_close_matches(f"package:{place.name}", _package_uris(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ModelError(f"no embedded model {place.uri}: {hint}there are {known}")
    if place.kind in ("hub", "local", "package", "artifact") and not _installed("torch", "transformers"):
        raise MissingExtraError(f"model {place.uri}", "local")
    if place.kind == "gguf" and not _installed("xllamacpp") and not _installed("torch", "transformers"):
        raise MissingExtraError(f"model {place.uri}", "local")


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _merged(options: LoadOptions, place: Place) -> LoadOptions:
    """`options` with what the URI's own fragment says on top."""
    own = place.options
    return LoadOptions(
        threads=int(own.get("threads", options.threads)),
        dtype=own.get("dtype", options.dtype),
        device=own.get("device", options.device),
        thinking=int(own.get("thinking", options.thinking)),
        quant=own.get("quant", options.quant),
    )


_models: dict[tuple[object, ...], Model] = {}
_locks: dict[tuple[object, ...], threading.Lock] = {}
_guard = threading.Lock()


def _shared(place: Place, options: LoadOptions, progress: Callable[..., None] | None) -> Model:
    """The process-wide model for (place, options); a second caller waits for the first one's load."""
    key = (place.kind, place.name, place.revision, place.model, *_stamp(place))
    key += (tuple(sorted(place.options.items())),) if place.kind in ("http", "replay") else (options,)
    key += (place.options.get("bits", ""),) if place.kind == "artifact" else ()
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        if key not in _models:
            _models[key] = _load(place, options, progress)
        return _models[key]


def _stamp(place: Place) -> tuple[int, ...]:
    """Size and time of a file, so that one that was replaced is loaded anew."""
    if place.kind not in FILES or not place.path.is_file():
        return ()
    stat = place.path.stat()
    return stat.st_size, stat.st_mtime_ns


def _load(place: Place, options: LoadOptions, progress: Callable[..., None] | None) -> Model:
    try:
        if place.kind == "package":
            return _load_package(place, options, progress)
        if place.kind == "http":
            return _load_http(place)
        if place.kind == "replay":
            return _load_replay(place)
        if place.kind == "artifact":
            return _load_artifact(place, options)
        if place.kind == "gguf" and _installed("xllamacpp"):
            return _load_gguf(place, options)
        return _load_weights(place, options)
    except Error:
        raise
    except Exception as error:
        raise ModelError(f"{place.uri} cannot be loaded: {describe(error)}") from error


def _load_weights(place: Place, options: LoadOptions) -> Model:
    from sqluice.workers import hf

    name = str(place.path.parent) if place.path.suffix == ".safetensors" else place.name
    revision = place.revision or None
    return _opened(options, name, hf.load, revision=revision, thinking_tokens=options.thinking)


def _opened(options: LoadOptions, name: str, load: Callable[..., Model], **more: Any) -> Model:
    """What `load` gives under the options that all weights of ours take, its products in the integers they name."""
    how = {"dtype": options.dtype, "device": options.device, "threads": options.threads, **more}
    if not options.quant:
        return load(name, **how)
    from sqluice.workers import int8

    return int8.load(name, load, **how)


def _load_package(place: Place, options: LoadOptions, progress: Callable[..., None] | None) -> Model:
    from sqluice.workers import package

    return _opened(options, place.name, package.load, progress=progress)


def _load_gguf(place: Place, options: LoadOptions) -> Model:
    from sqluice.workers import gguf

    return cast("Model", gguf.load(place.path, threads=options.threads, thinking_tokens=options.thinking))


def _load_http(place: Place) -> Model:
    from sqluice.workers.endpoints import http

    return cast("Model", http.load(place.name, place.model, place.options))


def _load_artifact(place: Place, options: LoadOptions) -> Model:
    from sqluice.workers.quant.serve import load_slice

    bits = float(place.options.get("bits", "0"))
    return _opened(options, str(place.path), load_slice, bits=bits, thinking_tokens=options.thinking)


def _load_replay(place: Place) -> Model:
    from sqluice.workers import replay

    return cast("Model", replay.load(place.path))


def unload_all() -> None:
    """Close and forget every model this process loaded."""
    with _guard:
        models = list(_models.values())
        _models.clear()
        _locks.clear()
    for model in models:
        close = getattr(model, "close", None)
        if callable(close):
            close()


def _row(uri: str, kind: str, where: str, size: int | None, licence: str) -> dict[str, object]:
    return {"uri": uri, "kind": kind, "where": where, "size": size, "present": True, "licence": licence}


def _package_uris() -> tuple[str, ...]:
    return tuple(f"package:{name}" for name in fetch.names())


def _packaged() -> list[dict[str, object]]:
    """The embedded models, whether their weights are on this machine, and where."""
    rows = []
    for name in fetch.names():
        weights = fetch.WEIGHTS[fetch.resolve(name)]
        row = _row(f"package:{name}", "package", str(fetch.folder(name)), weights.size, weights.licence)
        rows.append({**row, "present": fetch.present(name)})
    return rows


def _loaded() -> list[dict[str, object]]:
    """What this process holds in memory beside the embedded models."""
    with _guard:
        keys = list(_models)
    return [
        _row(str(key[1]) + (f"#{key[3]}" if key[3] else ""), str(key[0]), "loaded", None, "")
        for key in keys
        if key[0] != "package"
    ]
