"""docs/sql.md says of each construct whether it has a stage or runs row by row; its examples prove it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sqluice
from support.scripted import scripted

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = (Path(__file__).parents[1] / "docs" / "sql.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?P<construct>[^|]+) \| (?P<how>[^|]+) \| `(?P<sql>[^|]+)` \|$", TABLE, re.MULTILINE)


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqluice.Connection]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLUICE_HOME", str(tmp_path_factory.mktemp("home")))
        connection = sqluice.connect(ai_cache="off")
        connection.register_model("oracle", scripted("oracle", "percent 50"))
        connection.execute("SET ai_oracle = 'oracle'")
        connection.execute("CREATE TABLE t AS SELECT i AS id, 'row ' || i AS s, i % 5 AS k FROM range(20) r(i)")
        connection.execute("CREATE TABLE r AS SELECT i AS id, 'word ' || i AS w, i % 5 AS k FROM range(10) r(i)")
        yield connection
        connection.close()


def test_there_are_examples_of_both() -> None:
    assert len(ROWS) > 25
    assert {how.startswith("row by row") for _, how, _ in ROWS} == {True, False}


@pytest.mark.parametrize(("construct", "how", "sql"), ROWS, ids=[re.sub(r"\W+", "-", row[0])[:50] for row in ROWS])
def test_the_table_is_right(con: sqluice.Connection, construct: str, how: str, sql: str) -> None:
    con.execute("SET ai_plan = 'optimized'")
    ((text,),) = con.execute(f"EXPLAIN (FORMAT JSON) {sql}").fetchall()
    plan = json.loads(str(text))
    by_rows = how.startswith("row by row")
    assert bool(plan["rowwise"]) == by_rows, f"{construct}: {plan['rowwise']}"
    assert bool(plan["stages"]) != by_rows
    answers = {}
    for mode in ("optimized", "rowwise"):
        con.execute(f"SET ai_plan = '{mode}'")
        con.execute("BEGIN")
        found = con.execute(sql)
        answers[mode] = sorted(map(repr, found.fetchall())) if found.description else found.rowcount
        con.execute("ROLLBACK")
    assert answers["optimized"] == answers["rowwise"]
