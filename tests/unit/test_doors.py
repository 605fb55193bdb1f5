"""The second door, `sqluice.udfs.install` on plain DuckDB, gives the answers of the first; and importing is light."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sqluice
import sqluice.udfs
from sqluice.types import Prompt
from sqluice.udfs.install import RETURNS
from sqluice.workers.replay import prompt_hash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETUP = (
    "CREATE TABLE t AS SELECT i AS id, CASE WHEN i % 6 = 5 THEN NULL WHEN i % 2 = 0 THEN 'good ' || i % 4 "
    "ELSE 'bad ''row'' {0} ' || i % 4 END AS s FROM range(24) r(i)"
)
TEXTS = [f"good {i}" for i in range(4)] + [f"bad 'row' {{0}} {i}" for i in range(4)]

# The call at door 2, and at door 1 where it has another name there.
CALLS = {
    "ai_filter(s)": "",
    "ai_filter('Is it good?', s)": "",
    "ai_filter(prompt('Is {0} good?', s))": "",
    "ai_filter(prompt('{0}', s), {'model': '$model'})": "",
    "ai_score(s)": "",
    "ai_score(prompt('Is {0} good?', s))": "",
    "ai_classify(s, ['good', 'bad'])": "",
    "ai_classify_multi(s, ['good', 'bad'])": "ai_classify(s, ['good', 'bad'], {'output_mode': 'multi'})",
    "ai_complete(s)": "",
    "ai_count_tokens('ai_filter', s)": "",
    "ai_embed(s)": "",
    "ai_similarity(s, 'good')": "",
}


class Endpoint(ThreadingHTTPServer):
    """A loopback server that speaks as much of the OpenAI interface as the calls need."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#scripted"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        answer = embeddings(payload) if self.path.endswith("/embeddings") else chat(payload)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def chat(payload: dict[str, Any]) -> dict[str, Any]:
    """Likes what is good. Log-probabilities come for every choice that a prompt may ask for."""
    good = "good" in payload["messages"][-1]["content"]
    tokens = {"yes": good, "no": not good, "good": good, "bad": not good}
    top = [{"token": token, "logprob": -0.25 if likely else -2.5} for token, likely in tokens.items()]
    first = next(token for token, likely in tokens.items() if likely)
    choice = {"message": {"role": "assistant", "content": first}, "finish_reason": "stop"}
    if payload.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": first, "logprob": -0.25, "top_logprobs": top}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}


def embeddings(payload: dict[str, Any]) -> dict[str, Any]:
    """Two numbers a text."""
    given = payload["input"] if isinstance(payload["input"], list) else [payload["input"]]
    found = [{"index": i, "embedding": [1.0, 1.0 if "good" in text else -0.5]} for i, text in enumerate(given)]
    return {"data": found, "usage": {"prompt_tokens": len(given)}}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def plain(**settings: Any) -> duckdb.DuckDBPyConnection:
    """Door 2."""
    con = duckdb.connect()
    con.execute(SETUP)
    sqluice.udfs.install(con, **settings)
    return con


def engine(**settings: Any) -> sqluice.Connection:
    """Door 1."""
    con = sqluice.connect(ai_mode="exact", **settings)
    con.execute(SETUP)
    return con


def same(value: Any) -> Any:
    """A value that compares: numbers rounded, lists as lists (door 1 gives embeddings as tuples)."""
    if isinstance(value, list | tuple):
        return [same(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def test_every_function_is_compared() -> None:
    names = {call.split("(")[0] for call in CALLS} | {"prompt"}
    assert names == set(RETURNS)


@pytest.mark.parametrize("call", CALLS)
def test_both_doors_give_one_answer(endpoint: Endpoint, call: str) -> None:
    settings = {"ai_oracle": endpoint.uri, "ai_embedder": endpoint.uri, "ai_cache": "off"}
    second, first = plain(**settings), engine(**settings)
    there = second.execute(f"SELECT id, {call.replace('$model', endpoint.uri)} FROM t ORDER BY id").fetchall()
    here = first.execute(f"SELECT id, {(CALLS[call] or call).replace('$model', endpoint.uri)} FROM t ORDER BY id")
    assert same(there) == same(here.fetchall())
    assert [row[1] is None for row in there] == [i % 6 == 5 for i in range(24)]
    assert len({str(row[1]) for row in there}) > 1, "an answer that never changes proves nothing"
    second.close()
    first.close()


def test_recordings_answer_at_both_doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt("Is {0} good?", (text,)) for text in TEXTS[:-1]]
    scores = [0.9 if "good" in prompt.args[0] else 0.2 for prompt in prompts]
    table = pa.table({"prompt_hash": [prompt_hash(prompt) for prompt in prompts], "score": scores})
    pq.write_table(table, tmp_path / "r.parquet")
    monkeypatch.chdir(tmp_path)
    settings = {"ai_oracle": "replay:r.parquet", "ai_cache": "off"}
    calls = "ai_filter(prompt('Is {0} good?', s)), round(ai_score(prompt('Is {0} good?', s)), 4)"
    sql = f"SELECT id, {calls} FROM t ORDER BY id"
    second, first = plain(**settings), engine(**settings)
    there, here = second.execute(sql).fetchall(), first.execute(sql).fetchall()
    assert there == here
    assert {row[1:] for row in there} == {(True, 0.9), (False, 0.2), (None, None)}
    missing = [row[0] for row in there if row[1] is None]
    assert missing == [i for i in range(24) if i % 6 == 5 or (i % 2 == 1 and i % 4 == 3)]
    with pytest.raises(duckdb.Error, match="not in the recording"):
        raising = plain(**settings, ai_on_error="raise")
        raising.execute(sql).fetchall()
    second.close()
    first.close()


def test_the_second_door_asks_what_is_distinct_and_uses_the_cache(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    con = plain(ai_oracle=endpoint.uri, ai_cache="disk")
    before = endpoint.asked
    con.execute("SELECT ai_filter(s) FROM t").fetchall()
    distinct = con.execute("SELECT count(DISTINCT s) FROM t").fetchall()[0][0]
    assert endpoint.asked - before == distinct
    again = plain(ai_oracle=endpoint.uri, ai_cache="disk")
    again.execute("SELECT ai_filter(s) FROM t").fetchall()
    assert endpoint.asked - before == distinct
    assert not list(tmp_path.rglob("*.parquet")), "the second door leaves no trace"


def test_a_host_that_is_not_allowed_is_refused_at_both_doors() -> None:
    with pytest.raises(sqluice.Error, match="allow"):
        engine(ai_oracle="https://api.example.com/v1#m").execute("SELECT AI_FILTER(s) FROM t")
    with pytest.raises(duckdb.Error, match="allow"):
        plain(ai_oracle="https://api.example.com/v1#m").execute("SELECT ai_filter(s) FROM t").fetchall()


def test_settings_of_the_second_door_are_checked() -> None:
    with pytest.raises(sqluice.ProgrammingError, match="ai_oracle"):
        sqluice.udfs.install(duckdb.connect(), ai_orakle="x")


# ---- importing


HEAVY = ("duckdb", "pyarrow", "torch", "ray", "transformers", "numpy", "sqlglot", "pandas", "polars", "httpx")
IMPORT = """
import sys, time
started = time.perf_counter()
import sqluice
print(time.perf_counter() - started, *sorted(name for name in {heavy} if name in sys.modules))
"""


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    best, loaded = 9.0, ["?"]
    for _ in range(3):
        command = [sys.executable, "-c", IMPORT.format(heavy=HEAVY)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        best, loaded = min(best, float(said[0])), said[1:]
    assert loaded == []
    assert best < 0.5


@pytest.mark.parametrize("statement", ["sqluice.connect().execute('SELECT 1')", "import sqluice.engine.cli"])
def test_plain_sql_and_the_command_line_need_no_models(statement: str) -> None:
    names = "*(m for m in ('torch', 'ray', 'transformers') if m in sys.modules)"
    code = f"import sqluice, sys; exec({statement!r}); print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
