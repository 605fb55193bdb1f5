"""What an endpoint offers beyond plain answers: batches, schemas, prices, limits, and keys that nobody sees."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

import sqluice
from sqluice.errors import BrokenModelError, InterruptedQueryError, ModelError
from sqluice.types import Prompt
from sqluice.workers import registry
from sqluice.workers.endpoints import batch_api, http, rate_limits, transport
from sqluice.workers.endpoints.json_answer import bare, misfit
from sqluice.workers.endpoints.limiter import Limiter
from sqluice.workers.pool import LocalPool
from support import openai_server
from support.openai_server import Server, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqluice.workers.endpoints.http import Endpoint

KEY = "sk-not-for-your-eyes-0123456789"
YES_NO = ("yes", "no")
SCHEMA: dict[str, object] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Watch:
    """Interrupts after so many looks."""

    def __init__(self, looks: int = 10**9) -> None:
        self.looks = looks
        self.told: list[int] = []

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise InterruptedQueryError("interrupted")

    def done(self, batch: object) -> None:
        pass

    def under_way(self, rows: int) -> None:
        self.told.append(rows)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)
    monkeypatch.setattr(batch_api, "FIRST_POLL", 0.05)
    running = Server(openai_server.even).started()
    yield running
    running.shutdown()
    running.server_close()
    registry.unload_all()


def prompts(n: int) -> list[Prompt]:
    return [Prompt("Is it even? {0}", (f"row {at}",)) for at in range(n)]


def score(model: Endpoint, n: int, watch: Watch | None = None) -> Any:
    return LocalPool().score(model, prompts(n), YES_NO, watch or Watch())


# ---- batches


def batched(server: Server) -> Endpoint:
    return http.load(server.base, "m", {"batch": "24h"})


def test_a_batch_answers_as_single_requests_do(server: Server) -> None:
    single, model = http.load(server.base, "m", {}), batched(server)
    one = score(single, 150)
    server.attempts.clear()
    watch = Watch()
    server.batch_seconds = 0.3
    asked = score(model, 150, watch)
    assert asked.errors == {}
    assert asked.values.tolist() == one.values.tolist()
    assert asked.tokens_in.tolist() == one.tokens_in.tolist()
    assert list(server.attempts) == ["row 0"], "one request finds out what the server understands"
    (batch,) = server.batches.values()
    assert batch["completion_window"] == "24h"
    assert watch.told
    assert all(0 <= done <= 149 for done in watch.told)
    single.close()
    model.close()


def test_an_interrupted_batch_goes_on_and_is_taken_up(server: Server) -> None:
    server.batch_seconds = 1.5
    model = batched(server)
    with pytest.raises(InterruptedQueryError) as caught:
        score(model, 150, Watch(10))
    model.close()
    asked = vars(caught.value)["asked"]
    assert len(asked.errors) >= 149
    again = batched(server)  # as another process would
    assert score(again, 150).errors == {}
    assert len(server.batches) == 1, "the batch of before was taken up"
    assert score(again, 149).errors == {}
    assert len(server.batches) == 2, "other requests are another batch"
    again.close()


def test_a_row_that_fails_in_a_batch_costs_that_row(server: Server) -> None:
    def chat(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = payload["messages"][-1]["content"]
        if text == "row 7":
            return 400, {"error": {"message": f"I do not like '{text} of yours'"}}
        if text == "row 8":
            return 200, said("maybe", [("maybe", 0.9)] if payload.get("logprobs") else [])
        return openai_server.even(payload)

    server.chat = chat
    model = batched(server)
    asked = score(model, 150)
    assert set(asked.errors) == {7, 8}
    assert "answered 400: I do not like" in asked.errors[7]
    assert "row 7" not in asked.errors[7]
    assert "names none of the choices" in asked.errors[8]
    score(model, 150)
    assert len(server.batches) == 2, "a batch with failures is not taken for an answer again"
    model.close()


def test_few_rows_and_embeddings_are_no_batch(server: Server) -> None:
    server.embed = lambda texts: [[1.0, 0.0]] * len(texts)
    model = batched(server)
    assert score(model, http.LEAST_BATCH - 1).errors == {}
    assert model.embed(["a"] * 200).shape == (200, 2)
    assert server.batches == {}
    model.close()


def test_a_server_without_batches_says_so(server: Server) -> None:
    server.has_batches = False
    model = batched(server)
    with pytest.raises(BrokenModelError, match="has no batch API; leave out the option batch"):
        score(model, 150)
    model.close()
    with pytest.raises(ModelError, match="batch takes the server's completion window"):
        http.load(server.base, "m", {"batch": "yes"})


# ---- JSON


def test_a_schema_is_asked_for_and_by_instruction_where_it_is_refused(server: Server) -> None:
    seen: list[dict[str, Any]] = []

    def chat(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(payload)
        if "response_format" in payload:
            return 400, {"error": {"message": "response_format is not supported"}}
        return 200, said('```json\n{"n": 4}\n```')

    server.chat = chat
    model = http.load(server.base, "m", {})
    told = model.generate(prompts(3), max_tokens=9, schema=SCHEMA)
    assert [one.text for one in told] == ['{"n": 4}'] * 3
    assert model.info.extra["json"] == "by instruction"
    assert seen[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert json.dumps(SCHEMA) in seen[-1]["messages"][0]["content"]
    assert [message["role"] for message in seen[-1]["messages"]] == ["system", "user"]
    model.close()


def test_an_answer_that_does_not_fit_is_an_error_of_its_row(server: Server) -> None:
    server.chat = lambda payload: (200, said('{"m": 4}'))
    model = http.load(server.base, "m", {})
    with pytest.raises(ModelError, match="does not fit the JSON schema: the answer has no n"):
        model.generate(prompts(1), max_tokens=9, schema=SCHEMA)
    model.close()


@pytest.mark.parametrize(
    ("text", "schema", "why"),
    [
        ('{"n": 1}', SCHEMA, ""),
        ('{"n": 1.0}', SCHEMA, ""),
        ('{"n": 1.5}', SCHEMA, "n is no integer"),
        ('{"n": true}', SCHEMA, "n is no integer"),
        ('{"n": null}', SCHEMA, "n is no integer"),
        ('{"n": 1', SCHEMA, "it is not JSON"),
        ("[]", SCHEMA, "the answer is no object"),
        ('{"n": 1, "x": 2}', {**SCHEMA, "additionalProperties": False}, "the answer has more than n"),
        (
            '["a", "b"]',
            {"type": "array", "items": {"enum": ["a"]}},
            "an item of the answer is none of the values allowed",
        ),
        ("null", {"type": ["string", "null"]}, ""),
        ('"b"', {"const": "a"}, "the answer is none of the values allowed"),
    ],
)
def test_fitting_a_schema(text: str, schema: dict[str, object], why: str) -> None:
    assert misfit(text, schema) == why
    assert bare(f"```json\n{text}\n```") == bare(text) == text


# ---- limits


def test_what_headers_ask_to_wait() -> None:
    now = 1_790_000_000.0
    date = formatdate(now + 30, usegmt=True)
    asks: list[tuple[dict[str, str], float]] = [
        ({"retry-after": "7"}, 7),
        ({"retry-after": date}, 30),
        ({"retry-after": formatdate(now - 30, usegmt=True)}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "3", "x-ratelimit-reset-tokens": "20s"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(now) + 12)}, 12),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "4"}, 4),
        ({}, 0),
    ]
    for headers, seconds in asks:
        assert rate_limits.asked(headers, now) == pytest.approx(seconds), headers


def test_the_limiter_halves_once_a_round_and_grows_by_one_a_round() -> None:
    limiter = Limiter(16)
    before = time.monotonic()
    limiter.overloaded(before)
    limiter.overloaded(before)
    assert limiter.limit == 8
    for _ in range(8):
        limiter.answered()
    assert 8.9 < limiter.limit < 9.1
    for _ in range(400):
        limiter.answered()
    assert limiter.limit == 16
    for _ in range(9):
        limiter.overloaded(time.monotonic())
    assert limiter.limit == 1


def test_the_limiter_is_fair_and_loses_no_place() -> None:
    async def run() -> None:
        limiter, order = Limiter(2), []

        async def one(number: int) -> None:
            await limiter.acquire()
            order.append(number)
            await asyncio.sleep(0.01)
            limiter.release()

        tasks = [asyncio.create_task(one(number)) for number in range(8)]
        await asyncio.sleep(0.005)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 2, 4, 5, 6, 7]
        await asyncio.wait_for(limiter.acquire(), 1)
        await asyncio.wait_for(limiter.acquire(), 1)

    asyncio.run(run())


def test_answers_are_handed_over_while_others_are_under_way(server: Server) -> None:
    def chat(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if payload["messages"][-1]["content"] == "row 0":
            time.sleep(1.0)
        return openai_server.even(payload)

    server.chat = chat
    model = http.load(server.base, "m", {})
    parts = [rows.tolist() for rows, _ in model.stream("score", prompts(40), choices=YES_NO)]
    assert sorted(row for part in parts for row in part) == list(range(40))
    assert len(parts) > 1, "the slow row holds nobody up"
    assert 0 not in parts[0]
    model.close()


# ---- keys


def test_a_key_is_nowhere_but_in_the_request(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A server that repeats it in bodies and headers, every logger at its most talkative, and tracebacks that show
    variables; EXPLAIN, the report, the files of the trace, of the cache and of the statistics."""
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    keys: list[str] = []

    def echo(handler: openai_server.Handler, _: bytes) -> None:
        keys.append(handler.headers["Authorization"])
        body = json.dumps({"error": {"message": f"what is {keys[-1]}?"}}).encode()
        handler.send(418, body, X_Was=keys[-1])

    server.fault = lambda text, attempt: echo if "3" in text else None
    uri = f"{server.base}?api_key_env=MY_KEY#m"
    con = sqluice.connect(ai_oracle=uri, ai_mode="exact", ai_trace="text")
    con.execute("CREATE TABLE t AS SELECT 'row ' || i AS s FROM range(20) r(i)")
    sql = "SELECT AI_FILTER(PROMPT('Is it even? {0}', s)) AS f FROM t"
    cursor = con.execute(sql)
    tables = [f"SELECT * FROM ai.{table}" for table in ("runs", "ops", "batches", "decisions")]
    told: list[object] = [cursor.fetchall(), cursor.messages, cursor.report]
    told += [con.execute(one).fetchall() for one in (f"EXPLAIN {sql}", f"EXPLAIN ANALYZE {sql}", *tables)]
    con.execute("SET ai_on_error = 'raise'")
    with pytest.raises(sqluice.OperationalError, match="answered 418") as caught:
        con.execute(f"{sql} WHERE s LIKE '%3'").fetchall()
    error: BaseException | None = caught.value
    caught.value.__traceback__ = caught.value.__traceback__.tb_next if caught.value.__traceback__ else None  # not ours
    while error is not None:
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        told += [repr(error), vars(error), getattr(error, "__notes__", ""), "".join(lines)]
        error = error.__cause__ or error.__context__
    (model,) = registry._models.values()
    told += [repr(model), vars(model), vars(model._transport), registry.Registry().list()]  # type: ignore[attr-defined]
    con.close()
    assert set(keys) == {f"Bearer {KEY}"}
    assert "x-was" in caplog.text.lower(), "the headers were logged"
    assert "ai_on_error" in str(told)
    for text in (str(told), caplog.text):
        assert KEY not in text
        assert KEY[:12] not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_key_in_a_url_is_refused_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    con = sqluice.connect()
    con.execute("CREATE TABLE t AS SELECT 'x' AS s")
    for uri in (f"http://127.0.0.1:9/v1?api_key={KEY}#m", f"http://me:{KEY}@127.0.0.1:9/v1#m"):
        for statement in (f"SET ai_oracle = '{uri}'", "SELECT AI_FILTER(PROMPT('q {0}', s)) FROM t"):
            try:
                con.execute(statement)
            except sqluice.Error as error:
                assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in str(con.execute("SELECT * FROM ai.runs").fetchall())
    con.close()


# ---- prices


def test_prices_are_checked() -> None:
    for name in ("price_in", "price_out", "price_cached"):
        for value in ("-1", "much", "nan"):
            with pytest.raises(ModelError, match=re.escape(name)):
                http.load("http://127.0.0.1:9/v1", "m", {name: value})
