"""What goes wrong on the way to an endpoint leaves no trace in the answers, or stops the query and keeps them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

import sqluice
from sqluice.workers import registry
from sqluice.workers.endpoints import http, transport
from support import numbers, openai_server
from support.openai_server import PASSING, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqluice import Connection
    from support.openai_server import Fault

DISTINCT = 60
ROWS = 3 * DISTINCT
SQL = "SELECT id, AI_FILTER(PROMPT('Is it even? {0}', s)) AS f FROM t ORDER BY id"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)
    running = Server(openai_server.even).started()
    yield running
    running.shutdown()
    running.server_close()
    registry.unload_all()


def opened(server: Server, path: Path, options: str = "timeout=2&deadline=60", **settings: Any) -> Connection:
    """A connection whose oracle is the server; table t holds each text three times, and NULL ten times."""
    uri = f"{server.base}?{options}&price_in=2&price_out=10&price_cached=1#scripted"
    con = sqluice.connect(**{"ai_cache": "memory", "ai_mode": "exact", "ai_oracle": uri, **settings})
    con.execute(f"CREATE TABLE t AS SELECT i AS id, 'row ' || i % {DISTINCT} AS s FROM range({ROWS}) r(i)")
    con.execute(f"INSERT INTO t SELECT {ROWS} + i, NULL FROM range(10) r(i)")
    return con


@pytest.fixture
def con(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    connection = opened(server, tmp_path)
    yield connection
    connection.close()


def expected(lost: frozenset[int] = frozenset()) -> list[tuple[int, bool | None]]:
    answers = [(row, row % DISTINCT % 2 == 0) for row in range(ROWS)]
    return [*answers, *((ROWS + at, None) for at in range(10))]


def sums(con: Connection, table: str, *columns: str) -> tuple[Any, ...]:
    """Sums over the rows of the last run."""
    wanted = ", ".join(f"sum({column})" for column in columns)
    (row,) = con.execute(f"SELECT {wanted} FROM ai.{table} WHERE run_id = (SELECT max(run_id) FROM ai.runs)").fetchall()
    return tuple(row)


def check_the_books(con: Connection, server: Server) -> None:
    """One terminal decision for each distinct input; rows, tokens and money add up, attempts counted apart."""
    decisions = con.execute(
        "SELECT count(*), count(DISTINCT input_hash), sum(n_rows), count(*) FILTER (status = 'answered')"
        " FROM ai.decisions WHERE run_id = (SELECT max(run_id) FROM ai.runs)"
    ).fetchall()
    assert decisions == [(DISTINCT, DISTINCT, ROWS, DISTINCT)]
    tokens = sum(10 + len(f"row {at}") for at in range(DISTINCT))
    assert sums(con, "decisions", "tokens_in", "tokens_out") == (tokens, DISTINCT)
    money = (2 * (tokens - 10 * DISTINCT) + 1 * 10 * DISTINCT + 10 * DISTINCT) / 1e6
    for table in ("batches", "ops"):
        assert sums(con, table, "tokens_in", "tokens_out", "tokens_cached") == (tokens, DISTINCT, 10 * DISTINCT)
        assert sums(con, table, "cost_usd")[0] == pytest.approx(money)
    assert sums(con, "ops", "calls", "failed", "nulls", "retries") == (DISTINCT, 0, 10, server.faults)
    retried = "SELECT sum(rows), count(error) = count(*), sum(seconds) FROM ai.batches WHERE outcome = 'retry'"
    assert con.execute(retried).fetchall() == [(server.faults or None, True, 0.0 if server.faults else None)]
    assert set(server.answered.values()) == {1}, "nothing that was answered is asked again"


@pytest.mark.parametrize("fault", [None, *PASSING], ids=lambda fault: fault.__name__ if fault else "none")
def test_what_passes_leaves_the_answers_of_a_run_without_faults(
    con: Connection, server: Server, fault: Fault | None
) -> None:
    server.fault = lambda text, attempt: fault if attempt == 1 and text.endswith(("3", "8")) else None
    cursor = con.execute(SQL)
    assert cursor.fetchall() == expected()
    assert cursor.messages == []
    assert server.faults == (DISTINCT // 5 if fault else 0)
    check_the_books(con, server)


@pytest.mark.slow
def test_all_faults_at_once_and_again(con: Connection, server: Server) -> None:
    def fault(text: str, attempt: int) -> Fault | None:
        number = int(text.rsplit(maxsplit=1)[-1])
        return PASSING[(number + attempt) % len(PASSING)] if attempt <= number % 4 else None

    server.fault = fault
    assert con.execute(SQL).fetchall() == expected()
    assert server.faults == sum(at % 4 for at in range(DISTINCT))
    check_the_books(con, server)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (openai_server.broken, "has answered nothing for 3 s: .* answered 500: out of order"),
        (openai_server.dropped, "has answered nothing for 3 s: no answer from"),
        (openai_server.revoked, "answered 401: this key was revoked; the last 64 requests were refused"),
        (openai_server.for_hours, "asks to wait 7200 s, longer than the deadline"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_oracle_that_breaks_stops_the_query_and_what_is_done_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, told: str
) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    con = opened(server, tmp_path, "timeout=2&deadline=3&concurrency=16")
    con.execute("INSERT INTO t SELECT 1000 + i, 'more ' || i FROM range(300) r(i)")
    most, seen = 100, iter(range(10**6))
    server.fault = lambda _text, _attempt: fault if next(seen) >= most else None
    with pytest.raises(sqluice.OperationalError, match=told):
        con.execute(SQL).fetchall()
    decided = "SELECT count(*), count(DISTINCT input_hash) FROM ai.decisions WHERE status = 'answered'"
    ((done, distinct),) = con.execute(decided).fetchall()
    assert most - 16 <= len(server.answered) <= most, "those under way are lost"
    assert most - 32 <= done == distinct <= len(server.answered)
    assert con.execute("SELECT status FROM ai.runs").fetchall() == [("error",)]
    server.settle()
    server.attempts.clear()
    server.fault = lambda _text, _attempt: None
    found = con.execute(SQL).fetchall()
    assert found == [*expected(), *((1000 + at, at % 2 == 0) for at in range(300))]
    assert sum(server.attempts.values()) == DISTINCT + 300 - done, "what was answered is not asked again"
    con.close()


def test_a_restart_of_the_server_costs_no_row(con: Connection, server: Server) -> None:
    """Nobody is answered for longer than six tries take."""
    back = time.monotonic() + 1.0
    seen = iter(range(10**6))
    server.fault = lambda _text, _attempt: (
        openai_server.dropped if next(seen) >= 20 and time.monotonic() < back else None
    )
    assert con.execute(SQL).fetchall() == expected()
    assert server.faults


def test_an_overloaded_server_is_asked_less(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    running, most = [0], [0]

    def chat(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with server.lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            over = running[0] > 8
        time.sleep(0.02)
        with server.lock:
            running[0] -= 1
        return (503, {"error": {"message": "too many"}}) if over else openai_server.even(payload)

    server.chat = chat
    con = opened(server, tmp_path, "concurrency=32")
    assert con.execute(SQL).fetchall() == expected()
    assert most[0] > 8, "it was overloaded"
    limiter = registry_endpoint()._transport._limiter
    assert limiter.limit < 24
    con.close()


def registry_endpoint() -> http.Endpoint:
    """The one endpoint that is loaded."""
    (found,) = [model for model in registry._models.values() if isinstance(model, http.Endpoint)]
    return found


@pytest.mark.parametrize("fault", [openai_server.broken, openai_server.revoked], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("after", [0, 150])
def test_a_broken_proxy_means_the_oracle(server: Server, fault: Fault, after: int) -> None:
    oracle = numbers.Model()
    con = numbers.connected(oracle)
    true = numbers.exact(con, f"SELECT id FROM t WHERE {numbers.POSITIVE}")
    oracle.asked.clear()
    seen = iter(range(10**6))
    server.fault = lambda _text, _attempt: fault if next(seen) >= after else None
    con.execute(f"SET ai_proxy = '{server.base}?deadline=1#proxy'")
    cursor = con.execute(f"SELECT id FROM t WHERE {numbers.POSITIVE}")
    assert set(cursor.fetchall()) == true
    assert len(oracle.asked) == len(set(oracle.asked)) == numbers.ROWS
    report: Any = cursor.report
    assert report.label.startswith("exact")
    assert any("went on with the oracle alone" in str(text) for _, text in cursor.messages)
    assert con.execute("SELECT degraded FROM ai.runs ORDER BY started DESC LIMIT 1").fetchall() == [(True,)]
    con.close()


def test_a_proxy_that_is_not_there_means_the_oracle() -> None:
    oracle = numbers.Model()
    con = numbers.connected(oracle)
    con.execute("SET ai_proxy = 'http://127.0.0.1:9/v1#proxy'")
    con.execute(f"SELECT id FROM t WHERE {numbers.POSITIVE}").fetchall()
    assert len(oracle.asked) == numbers.ROWS
    con.close()
