"""The embedded default on Ray workers: the same answers as in process, but for the last digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import sqluice
from sqluice.workers.pools import pool_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.ray, pytest.mark.local, pytest.mark.slow]

SCORE = """
SELECT i, AI_SCORE(PROMPT('Is this review positive? {0}', CASE i % 2 WHEN 0 THEN 'Great food, kind staff, visit ' || i
ELSE 'Never again: cold soup and rude waiters, visit ' || i END)) FROM range(12) t(i) ORDER BY i
"""


def test_scores_are_those_of_this_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("torch")
    found = []
    for where in ("local", "ray?workers=2&cpus=1"):
        with sqluice.connect(ai_workers=where, ai_cache="off", ai_mode="exact", ai_threads=1) as connection:
            cursor = connection.cursor()
            found.append(np.array(cursor.execute(SCORE).fetchall(), np.float64))
            assert cursor.report is not None
            assert cursor.report.tokens_in > 12 * 8
            told = (cursor.report.tokens_in, cursor.report.operators[0].padding)
            found.append(np.array(told))
        pool_of(where).close()
    np.testing.assert_allclose(found[2], found[0], atol=2e-2)
    np.testing.assert_array_equal(found[3], found[1])
    assert ((found[2][:, 1] > 0.5) == (found[0][:, 1] > 0.5)).all()
