"""The embedded models, once for all tests of this folder. Skipped where the extra or the weights are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sqluice
from sqluice.workers import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice import Connection

REVIEWS = Path(__file__).parents[2] / "engine" / "data" / "reviews.csv"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf")


def missing() -> str:
    """Why the embedded models cannot run here; empty when they can."""
    absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        return f"the extra 'local' is not installed: no {', '.join(absent)}"
    gone = [name for name in fetch.ALIASES if not fetch.present(name)]
    return f"no weights of {', '.join(gone)}: sqluice models fetch {gone[0]}" if gone else ""


def opened(**settings: Any) -> Connection:
    """Forty reviews, as many good as bad ones, in table `r` (id, text, gold)."""
    con = sqluice.connect(**{"ai_cache": "off", "ai_mode": "exact", "ai_trace": "text", **settings})
    con.execute(
        "CREATE TABLE r AS SELECT review_id AS id, text, sentiment = 'positive' AS gold FROM ("
        f"  SELECT *, row_number() OVER (PARTITION BY sentiment ORDER BY md5(review_id::VARCHAR)) AS n FROM '{REVIEWS}'"
        ") WHERE n <= 20 ORDER BY id"
    )
    return con


@pytest.fixture(scope="session")
def local(own_home: None) -> Iterator[Connection]:
    """A connection on the embedded models."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    con = opened()
    yield con
    con.close()
