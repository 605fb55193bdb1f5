"""A process that is killed in the middle of a query, and processes that share what they keep on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
ROWS = 240

# A model that notes every question it has answered in a file, before it says its answer.
ASK = f"""
import json, os, sys, time
import sqluice
from support.scripted import scripted

model = scripted("oracle", "keyword good")
model.batch_rows = 8
plain = model.score

def score(prompts, choices):
    answers = plain(prompts, choices)
    time.sleep(float(os.environ.get("SECONDS", "0")))
    with open(os.environ["ASKED"], "a") as file:
        file.writelines(json.dumps(prompt.args[0]) + "\\n" for prompt in prompts)
    return answers

model.score = score
con = sqluice.connect(os.environ.get("DATABASE", ":memory:"), ai_cache="disk", ai_mode="exact")
con.register_model("oracle", model)
con.execute("SET ai_oracle = 'oracle'")
row = "CASE WHEN i % 2 = 0 THEN 'good ' ELSE 'bad ' END || i"
con.execute(f"CREATE OR REPLACE TABLE t AS SELECT {{row}} AS s FROM range({ROWS}) r(i)")
cursor = con.execute(os.environ.get("SQL", "SELECT count(*) FROM t WHERE AI_FILTER(s)"))
print(json.dumps([cursor.fetchall(), cursor.report.calls, cursor.report.cached, [str(m) for _, m in cursor.messages]]))
con.close()
"""


def start(home: Path, asked: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that asks; it hears Ctrl-C even where the tests run in the background, where shells turn that off."""
    env = {**os.environ, "PYTHONPATH": str(TESTS), "SQLUICE_HOME": str(home), "ASKED": str(asked), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", ASK],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def result(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until `path` has `count` lines."""
    deadline = time.monotonic() + 60
    while len(lines(path)) < count:
        assert process.poll() is None, "the query was over before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("plan", ["optimized", pytest.param("rowwise", marks=pytest.mark.slow)])
def test_what_a_killed_process_had_answered_is_not_asked_again(tmp_path: Path, plan: str) -> None:
    home, asked = tmp_path / "home", tmp_path / "asked"
    process = start(home, asked, SECONDS="0.05", SQL="SELECT count(*) FROM t WHERE AI_FILTER(s)")
    wait_for(asked, 80, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = lines(asked)
    assert 80 <= len(before) < ROWS
    (answer,), calls, cached, _ = result(start(home, asked))
    assert answer == [ROWS // 2]
    again = lines(asked)[len(before) :]
    assert calls + cached == ROWS
    # The micro-batch that was under way may be asked twice; what was finished before it may not.
    assert len(set(before[:-8]) & set(again)) == 0


def test_a_process_that_is_stopped_by_ctrl_c_keeps_its_answers(tmp_path: Path) -> None:
    home, asked = tmp_path / "home", tmp_path / "asked"
    process = start(home, asked, SECONDS="0.25")
    wait_for(asked, 80, process)
    stopped = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - stopped < 5
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err or "interrupted" in err
    before = lines(asked)
    (answer,), calls, cached, _ = result(start(home, asked))
    assert answer == [ROWS // 2]
    assert calls + cached == ROWS
    assert len(set(before)) == len(before)
    # The model notes a micro-batch before it hands it over: where the signal comes between the two, it is asked again.
    assert cached in (len(before), len(before) - 8)
    again = lines(asked)[len(before) :]
    assert len(set(again)) == len(again) == calls


def test_a_killed_process_leaves_a_database_and_a_trace_that_work(tmp_path: Path) -> None:
    home, asked, database = tmp_path / "home", tmp_path / "asked", tmp_path / "d.duckdb"
    sql = "CREATE OR REPLACE TABLE made AS SELECT s FROM t WHERE AI_FILTER(s)"
    process = start(home, asked, SECONDS="0.05", DATABASE=str(database), SQL=sql)
    wait_for(asked, 40, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    look = "SELECT (SELECT count(*) FROM ai.runs), (SELECT count(*) FROM ai.decisions), (SELECT count(*) FROM"
    tables = f"{look} duckdb_tables() WHERE table_name <> 't' AND NOT temporary)" + " FROM t WHERE AI_FILTER(s) LIMIT 1"
    (row,), *_ = result(start(home, asked, DATABASE=str(database), SQL=tables))
    assert row == [0, 0, 0], "half a run, or half a table, is left"
    folder = Path(f"{database}.ai")
    assert not list(folder.rglob("*.partial")), "what the dead process had begun is swept up"


@pytest.mark.parametrize("seconds", ["0", "0.02"])
def test_two_processes_share_the_cache_at_once(tmp_path: Path, seconds: str) -> None:
    home = tmp_path / "home"
    files = [tmp_path / "one", tmp_path / "two"]
    both = [result(process) for process in [start(home, asked, SECONDS=seconds) for asked in files]]
    for (answer,), calls, cached, messages in both:
        assert answer == [ROWS // 2]
        assert calls + cached == ROWS
        assert messages == []
    third = tmp_path / "three"
    (answer,), calls, cached, _ = result(start(home, third))
    assert (answer, calls, cached) == ([ROWS // 2], 0, ROWS)
    assert lines(third) == []
