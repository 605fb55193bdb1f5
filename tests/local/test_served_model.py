"""The embedded models behind a real HTTP server, a process of its own: with log-probabilities, without, with faults."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from local.conftest import missing, opened
from sqluice.types import Prompt
from sqluice.workers import package, registry
from sqluice.workers.endpoints import http

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.local

SCRIPT = Path(__file__).parents[1] / "support" / "openai_server.py"
QUESTION = "Is this review positive? {0}"
ROWS = 8
SOME = f"SELECT id, left(text, 80) AS text FROM r ORDER BY id LIMIT {ROWS}"
SQL = f"SELECT id, AI_FILTER(PROMPT('{QUESTION}', text)) AS f FROM ({SOME}) AS some ORDER BY id"


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The base URL of a server process."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-P", str(SCRIPT), *options]  # its folder has a module named numbers
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.strip().isdigit(), "the server did not start"
            yield f"http://127.0.0.1:{line.strip()}/v1"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def base(own_home: None) -> Iterator[str]:
    with served() as url:
        yield url
    registry.unload_all()


def answers(url: str, options: str = "") -> tuple[list[Any], Any, list[Any]]:
    """Answers about some reviews, the report, and what each input was given in the trace."""
    con = opened(ai_oracle=f"{url}?timeout=200&deadline=400&concurrency=4{options}#smollm2")
    cursor = con.execute(SQL)
    rows, report = cursor.fetchall(), cursor.report
    decided = con.execute(
        "SELECT input_hash, score, answer, status, n_rows, tokens_in FROM ai.decisions"
        " WHERE run_id = (SELECT max(run_id) FROM ai.runs) ORDER BY 1"
    ).fetchall()
    con.close()
    return rows, report, decided


def test_faults_change_no_answer_of_a_real_model(base: str) -> None:
    rows, report, decided = answers(base, "&price_in=1&price_out=2&price_cached=0.1")
    assert len(rows) == len(decided) == ROWS
    assert {row[3] for row in decided} == {"answered"}
    assert sum(row[4] for row in decided) == ROWS
    assert all(0 < row[1] < 1 and row[1] not in (0.001, 0.999) for row in decided), "scores are log-probabilities"
    assert report.tokens_in > ROWS * 20
    assert 0 < report.cost_usd < (report.tokens_in + 2 * report.tokens_out) / 1e6, "cached tokens cost less"
    with served("--fault-every", "3") as url:
        again, faulty, there = answers(url)
    assert again == rows
    assert [row[2:] for row in there] == [row[2:] for row in decided]
    assert [row[1] for row in there] == pytest.approx([row[1] for row in decided], abs=1e-3)
    assert faulty.tokens_in == report.tokens_in


def test_without_logprobs_the_words_decide() -> None:
    with served("--without", "logprobs", "--without", "schema") as url:
        rows, _, decided = answers(url)
        assert len(rows) == ROWS
        assert {round(row[1], 3) for row in decided if row[1] is not None} <= {0.001, 0.999}
        assert {row[3] for row in decided} <= {"answered", "failed"}


def test_a_schema_holds_a_real_model(base: str) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    model = http.load(base, "smollm2", {})
    told = model.generate([Prompt("What is the mood? {0}", ("A lovely day.",))], max_tokens=40, schema=schema)
    assert told[0].finish_reason == "stop"
    assert '"mood"' in told[0].text
    assert "json" not in model.info.extra
    model.close()


def test_embeddings_are_those_of_the_model_itself(base: str) -> None:
    texts = ["A lovely day.", "The parcel is late.", "Rain again"]
    model: Any = package.load("embedder")
    served_model = http.load(base, "minilm", {})
    assert np.abs(served_model.embed(texts) - model.embed(texts)).max() < 1e-4
    served_model.close()


def test_a_batch_of_a_real_model(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LEAST_BATCH", ROWS)
    rows, _, decided = answers(base)
    batched, _, there = answers(base, "&batch=24h")
    assert batched == rows
    assert [row[2:] for row in there] == [row[2:] for row in decided]
