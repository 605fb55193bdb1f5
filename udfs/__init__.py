"""AI functions: their signatures, how calls are bound, how scores become answers, plain DuckDB registration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqluice.udfs.install import install

__all__ = ["install"]


def __getattr__(name: str) -> object:
    if name in __all__:
        import importlib

        return importlib.import_module(f"sqluice.udfs.{name}")
    raise AttributeError(f"module 'sqluice.udfs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
