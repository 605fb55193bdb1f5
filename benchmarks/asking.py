"""What benchmarks of queries share: a timed statement under settings, and embeddings by SQL."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqluice import Connection


def timed(con: Connection, sql: str, settings: Mapping[str, str]) -> tuple[list[Any], Any, float]:
    """Rows, the report, seconds."""
    cursor = con.cursor()
    for name, value in settings.items():
        cursor.execute(f"SET {name} = '{value}'")
    started = time.perf_counter()
    cursor.execute(sql)
    rows = cursor.fetchall()
    seconds, report = time.perf_counter() - started, cursor.report
    for name in settings:
        cursor.execute(f"RESET {name}")
    return rows, report, seconds


def embedded(con: Connection, texts: Sequence[str]) -> np.ndarray:
    """Float32 [n, d]."""
    rows = con.cursor().execute(
        "SELECT AI_EMBED(s) FROM (SELECT unnest(?) AS s, unnest(?) AS at) ORDER BY at",
        [list(texts), list(range(len(texts)))],
    )
    return np.array([row for (row,) in rows.fetchall()], np.float32)
