"""An endpoint that drops, garbles, stalls or refuses in the middle of a query costs the rows it concerns."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

import sqluice
from sqluice.workers.endpoints import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqluice import Connection

ROWS = 30
BAD = {7, 19}
"""Rows whose requests go wrong, each time they are tried."""

Trouble: TypeAlias = "Callable[[Handler, bytes], None]"


class Endpoint(ThreadingHTTPServer):
    """Likes even numbers. What `trouble` does happens to requests about rows in `bad`, `times` times a row."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble: Trouble | None = None
        self.bad = set(BAD)
        self.times = 1_000_000
        self.seen: dict[int, int] = {}
        self.lock = threading.Lock()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1?timeout=1&deadline=3#scripted"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        row = int(payload["messages"][-1]["content"].split()[-1])
        with self.server.lock:
            seen = self.server.seen[row] = self.server.seen.get(row, 0) + 1
        body = json.dumps(said(row)).encode()
        if self.server.trouble is not None and row in self.server.bad and seen <= self.server.times:
            self.server.trouble(self, body)
        else:
            self.answer(200, body)

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        """Send a response that says it has `length` bytes."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def said(row: int) -> dict[str, Any]:
    """A chat completion with log-probabilities."""
    first, other = ("yes", "no") if row % 2 == 0 else ("no", "yes")
    top = [{"token": first, "logprob": -0.1}, {"token": other, "logprob": -2.4}]
    content = [{"token": first, "logprob": -0.1, "top_logprobs": top}]
    choice = {"message": {"content": first}, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}


def dropped(handler: Handler, _: bytes) -> None:
    handler.close_connection = True
    handler.connection.close()


def cut(handler: Handler, body: bytes) -> None:
    handler.answer(200, body[: len(body) // 2], len(body))
    handler.close_connection = True


def garbled(handler: Handler, body: bytes) -> None:
    handler.answer(200, b"\xff\xfe" + body[::-1])


def empty(handler: Handler, _: bytes) -> None:
    handler.answer(200, b"{}")


def stalled(handler: Handler, _: bytes) -> None:
    time.sleep(1.5)
    dropped(handler, b"")


def broken(handler: Handler, _: bytes) -> None:
    handler.answer(500, b'{"error": {"message": "out of order"}}')


def refused(handler: Handler, _: bytes) -> None:
    handler.answer(400, b'{"error": {"message": "I do not like this text"}}')


TROUBLES: list[Trouble] = [dropped, cut, garbled, empty, broken, refused]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(transport, "BACKOFF", 0.01)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def con(endpoint: Endpoint, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    connection = sqluice.connect(ai_cache="memory", ai_mode="exact", ai_oracle=endpoint.uri)
    connection.execute(f"CREATE TABLE t AS SELECT i AS id, 'row ' || i AS s FROM range({ROWS}) r(i)")
    yield connection
    connection.close()


SQL = "SELECT id, AI_FILTER(PROMPT('Is it even? {0}', s)) AS f FROM t ORDER BY id"


def expected(lost: set[int]) -> list[tuple[int, bool | None]]:
    return [(row, None if row in lost else row % 2 == 0) for row in range(ROWS)]


@pytest.mark.parametrize("plan", ["optimized", "rowwise"])
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_lasting_trouble_costs_its_rows_only(con: Connection, endpoint: Endpoint, trouble: Trouble, plan: str) -> None:
    con.execute(f"SET ai_plan = '{plan}'")
    endpoint.trouble = trouble
    cursor = con.execute(SQL)
    assert cursor.fetchall() == expected(BAD)
    assert cursor.messages
    failed = "SELECT count(*) FROM ai.decisions WHERE status = 'failed' AND error IS NOT NULL"
    assert con.execute(failed).fetchall() == [(len(BAD),)]
    assert con.execute("SELECT status FROM ai.runs").fetchall() == [("ok",)]
    errors = [text for (text,) in con.execute("SELECT error FROM ai.decisions WHERE error IS NOT NULL").fetchall()]
    assert not [text for text in errors if "row 7" in text or "row 19" in text], "an error repeats a row's text"
    # When the endpoint is well again, only what failed is asked.
    endpoint.trouble = None
    endpoint.seen.clear()
    assert con.execute(SQL).fetchall() == expected(set())
    assert set(endpoint.seen) == BAD


@pytest.mark.parametrize("trouble", [dropped, cut, garbled, broken], ids=lambda trouble: trouble.__name__)
def test_passing_trouble_costs_nothing(con: Connection, endpoint: Endpoint, trouble: Trouble) -> None:
    endpoint.trouble, endpoint.times = trouble, 1
    cursor = con.execute(SQL)
    assert cursor.fetchall() == expected(set())
    assert cursor.messages == []
    assert {row: endpoint.seen[row] for row in BAD} == dict.fromkeys(BAD, 2)


@pytest.mark.slow
def test_a_stalled_answer_costs_its_row(con: Connection, endpoint: Endpoint) -> None:
    endpoint.trouble = stalled
    started = time.monotonic()
    assert con.execute(SQL).fetchall() == expected(BAD)
    assert time.monotonic() - started < 10


def test_raise_stops_the_query_and_keeps_the_answers(con: Connection, endpoint: Endpoint) -> None:
    con.execute("SET ai_on_error = 'raise'")
    endpoint.trouble = refused
    with pytest.raises(sqluice.OperationalError, match="AI_FILTER failed on a row"):
        con.execute(SQL)
    endpoint.trouble = None
    endpoint.seen.clear()
    assert con.execute(SQL).fetchall() == expected(set())
    assert set(endpoint.seen) == BAD


def test_an_endpoint_that_is_gone_is_an_error_not_a_column_of_null(con: Connection, endpoint: Endpoint) -> None:
    con.execute("INSERT INTO t SELECT i, 'row ' || i FROM range(100, 200) r(i)")
    endpoint.trouble, endpoint.bad = refused, set(range(200))
    with pytest.raises(sqluice.OperationalError, match="answered none"):
        con.execute(SQL)


def test_a_write_that_meets_trouble_is_whole(con: Connection, endpoint: Endpoint) -> None:
    endpoint.trouble = dropped
    con.execute("CREATE TABLE made AS SELECT id, AI_FILTER(PROMPT('Is it even? {0}', s)) AS f FROM t")
    assert con.execute("SELECT count(*), count(f), count(*) FILTER (f) FROM made").fetchall() == [
        (ROWS, ROWS - len(BAD), ROWS // 2)
    ]
