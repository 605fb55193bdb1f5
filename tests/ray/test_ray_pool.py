"""Ray workers answer as the pool in process does: same rows, same errors, same counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.scripted import scripted
from support.workers import Plan, Worked, asked, processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqluice import Connection

    Connect = Callable[..., Connection]

pytestmark = pytest.mark.ray

FILTER = "SELECT i FROM range(600) t(i) WHERE AI_FILTER(PROMPT('Is it {0}?', 'row ' || i)) ORDER BY i"


def rows(connection: Connection, sql: str) -> Any:
    return connection.cursor().execute(sql).fetchall()


def test_a_filter_on_two_workers_equals_the_one_in_process(on_workers: Connect, tmp_path: Path) -> None:
    model = Worked(tmp_path, Plan(seconds_a_row=0.001, batch_rows=20))
    there = on_workers(model).cursor()
    found = there.execute(FILTER).fetchall()
    assert len(processes(tmp_path)) == 2
    assert set(asked(tmp_path).values()) == {1}
    assert there.report is not None
    assert there.report.calls == 600
    assert found == rows(on_workers(scripted("oracle", "percent 40"), "local"), FILTER)
