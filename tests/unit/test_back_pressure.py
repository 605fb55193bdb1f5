"""A slow oracle does not make the driver heap up rows: its memory stays flat however many wait."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import sqluice
from sqluice.types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

STATM = Path("/proc/self/statm")
ROWS, CHARACTERS = 200_000, 960
SETTLED = 40_000
"""Rows after which everything is warm: two windows and some of the trace."""

MOST_GROWTH = 64 << 20
"""Bytes; the texts alone are 192 MB, and as Python objects and prompts several times that."""


class Slow:
    """Says yes to every other prompt, five milliseconds a call; notes the size of the process."""

    info = ModelInfo("slow", revision="1")
    batch_rows = 1024

    def __init__(self) -> None:
        self.rows = 0
        self.sizes: list[tuple[int, int]] = []

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        time.sleep(0.005)
        self.rows += len(prompts)
        self.sizes.append((self.rows, int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")))
        return np.tile(np.log(np.array([[0.9, 0.1]], np.float32)), (len(prompts), len(choices) // 2))


@pytest.mark.skipif(not STATM.exists(), reason="the size of a process is read from /proc")
def test_the_drivers_memory_stays_flat_while_a_slow_oracle_drains() -> None:
    model = Slow()
    con = sqluice.connect(ai_mode="exact", ai_cache="off", config={"memory_limit": "256MB", "threads": 1})
    con.register_model("slow", model)
    con.execute("SET ai_oracle = 'slow'")
    text = f"repeat(md5(i::VARCHAR), {CHARACTERS // 32})"
    cursor = con.execute(
        f"SELECT count(*) FROM range({ROWS}) t(i) WHERE AI_FILTER(PROMPT('Is this good? {{0}}', {text}))"
    )
    assert cursor.fetchall() == [(ROWS,)]
    con.close()
    assert model.rows == ROWS
    settled = max(size for rows, size in model.sizes if rows <= SETTLED)
    peak = max(size for rows, size in model.sizes if rows > SETTLED)
    print(f"{settled / 1e6:.0f} MB after {SETTLED:,} rows, at most {peak / 1e6:.0f} MB later")
    assert peak - settled <= MOST_GROWTH
