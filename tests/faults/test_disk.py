"""A disk that is full or may not be written costs the trace or the cache, never the query; and one warning tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]

# Files may not grow beyond LIMIT bytes once the connection is open: what a full disk does, for one process.
ASK = """
import json, os, resource, signal, sys
import sqluice
from support.scripted import scripted

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
con = sqluice.connect(os.environ.get("DATABASE", ":memory:"), ai_cache=os.environ.get("CACHE", "off"), ai_mode="exact")
con.register_model("oracle", scripted("oracle", "keyword good"))
con.execute("SET ai_oracle = 'oracle'")
con.execute("CREATE TEMP TABLE t AS SELECT 'good ' || i AS s FROM range(20000) r(i)")
if "LIMIT" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]), resource.RLIM_INFINITY))
said = []
for _ in range(int(os.environ.get("TIMES", "1"))):
    cursor = con.execute("SELECT count(*) FROM t WHERE AI_FILTER(s)")
    rows = cursor.fetchall()
    said.append([rows, [str(text) for _, text in cursor.messages], cursor.report.status, cursor.report.recorded])
runs = con.execute("SELECT count(*) FROM ai.runs").fetchall()
print(json.dumps([said, runs]))
con.close()
"""


def ask(home: Path, **environment: str) -> tuple[list[Any], Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(TESTS), "SQLUICE_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said, runs = json.loads(done.stdout)
    return said, runs


def test_without_a_fault_there_is_no_warning(tmp_path: Path) -> None:
    said, runs = ask(tmp_path / "home", CACHE="disk", TIMES="2")
    assert said == [[[[20000]], [], "ok", True]] * 2
    assert runs == [[2]]


@pytest.mark.parametrize("limit", ["0", "4096", "100000"])
def test_a_full_disk_costs_the_trace(tmp_path: Path, limit: str) -> None:
    said, runs = ask(tmp_path / "home", LIMIT=limit, TIMES="2")
    for rows, _, status, recorded in said:
        assert (rows, status, recorded) == ([[20000]], "ok", False)
    assert runs == [[0]]
    left = [path.name for path in (tmp_path / "home").rglob("*") if path.name.endswith((".partial", ".parquet"))]
    assert [name for name in left if name != "0.parquet"] == []


@pytest.mark.parametrize("limit", ["0", "100000"])
def test_a_full_disk_costs_the_cache(tmp_path: Path, limit: str) -> None:
    said, _ = ask(tmp_path / "home", LIMIT=limit, CACHE="disk", TIMES="2")
    told: list[str] = []
    for rows, messages, status, _ in said:
        assert (rows, status) == ([[20000]], "ok")
        told += [text for text in messages if "cache" in text]
    assert 1 <= len(told) <= 2
    said, _ = ask(tmp_path / "home", CACHE="disk")
    assert said == [[[[20000]], [], "ok", True]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o500)
    try:
        said, runs = ask(home, CACHE="disk")
    finally:
        home.chmod(0o700)
    ((rows, _, status, recorded),) = said
    assert (rows, status, recorded, runs) == ([[20000]], "ok", False, [[0]])


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_a_file_stands_where_the_folder_should_be(tmp_path: Path, cache: str) -> None:
    (tmp_path / "home").write_text("no folder")
    said, runs = ask(tmp_path / "home", CACHE=cache, TIMES="2")
    for rows, _, status, recorded in said:
        assert (rows, status, recorded) == ([[20000]], "ok", False)
    told = [text for _, messages, *_ in said for text in messages if "cache" in text]
    assert len(told) == (2 if cache == "disk" else 0)  # it cannot be read, and it cannot be written
    assert runs == [[0]]


def test_the_trace_beside_a_database_file_may_be_a_file(tmp_path: Path) -> None:
    database = tmp_path / "d.duckdb"
    Path(f"{database}.ai").write_text("no folder")
    said, runs = ask(tmp_path / "home", DATABASE=str(database))
    ((rows, _, status, recorded),) = said
    assert (rows, status, recorded, runs) == ([[20000]], "ok", False, [[0]])


@pytest.mark.parametrize("limit", ["0", "100000", ""])
def test_a_trace_that_is_not_written_is_one_warning(tmp_path: Path, limit: str) -> None:
    home = tmp_path / "home"
    if not limit:
        home.write_text("no folder")
    said, _ = ask(home, TIMES="2", **({"LIMIT": limit} if limit else {}))
    for _, messages, *_ in said:
        assert len([text for text in messages if "trace" in text]) == 1
