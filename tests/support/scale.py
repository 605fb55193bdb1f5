"""How much a test repeats: `make test` has ten minutes, `make nightly` has hours."""

from __future__ import annotations

import os

NIGHTLY = bool(os.environ.get("SQLUICE_NIGHTLY"))


def repeats(usual: int, nightly: int) -> int:
    """Repetitions of a test in this run."""
    return nightly if NIGHTLY else usual
