"""A registered model on its way to Ray workers: pickled with the code of its own module.

Workers import what is installed. A class from a script, a notebook or a folder beside them is not, so its module (its
whole package) travels with the object; other modules that it imports have to be there.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import ModelError
from sqluice.workers.failures import describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def pickled(uri: str, model: object) -> bytes:
    """`model` for the wire; `ModelError` when it cannot be pickled."""
    from ray import cloudpickle

    try:
        with _by_value(_own_module(model), cloudpickle):
            return bytes(cloudpickle.dumps(model))
    except Exception as error:
        raise ModelError(
            f"model {uri} cannot be sent to Ray workers: {describe(error)}; a registered object has to be picklable:"
            " open files, locks and connections on first use, or SET ai_workers = 'local'"
        ) from error


def _own_module(model: object) -> ModuleType | None:
    """The top package of the model's class, where it is installed nowhere."""
    inner = getattr(model, "_model", model)  # what the registry wraps
    package = sys.modules.get(type(inner).__module__.partition(".")[0])
    file = getattr(package, "__file__", None)
    if package is None or file is None or package.__name__ in ("__main__", "sqluice"):
        return None
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return None if any(Path(file).resolve().is_relative_to(folder) for folder in installed) else package


@contextlib.contextmanager
def _by_value(module: ModuleType | None, cloudpickle: Any) -> Iterator[None]:
    if module is None or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
