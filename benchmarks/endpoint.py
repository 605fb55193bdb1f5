"""Rows per second of SQL through an OpenAI-compatible endpoint against what the server itself can do.

Usage::

    python benchmarks/endpoint.py [--rows 1600] [--seconds 0.2] [--in-flight 32] [--rounds 3] [--json]

The server is a process of its own that sleeps for its service time (half to one and a half of `--seconds`, by the text)
and answers with log-probabilities. Its capacity is measured by a plain load loop: as many threads as requests are in
flight, each with one connection, no retries, no parsing beyond JSON. Both sides take turns, with texts of their own
each time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QUESTION = "Is this text about the sea? {0}"
LIKELY = math.log(0.9), math.log(0.1)


class Sleeper(ThreadingHTTPServer):
    """Answers after its service time, in as many threads as there are connections."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds = seconds


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: Sleeper

    def do_POST(self) -> None:
        """A chat completion."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.loads(body)["messages"][-1]["content"]
        mark = zlib.crc32(text.encode())
        time.sleep(self.server.seconds * (0.5 + (mark % 1024) / 1024))
        first, other = ("yes", "no") if mark & 1024 else ("no", "yes")
        top = [{"token": first, "logprob": LIKELY[0]}, {"token": other, "logprob": LIKELY[1]}]
        logprobs = {"content": [{"token": first, "logprob": LIKELY[0], "top_logprobs": top}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": first}, "logprobs": logprobs}
        usage = {"prompt_tokens": 40, "completion_tokens": 1}
        told = json.dumps({"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(seconds: float) -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def load_loop(port: int, texts: Sequence[str], in_flight: int) -> float:
    """Seconds that plain threads take for all texts."""
    local = threading.local()

    def one(text: str) -> str:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
        chat = [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
        body = json.dumps({"model": "m", "messages": chat, "max_tokens": 1, "logprobs": True, "top_logprobs": 20})
        local.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return str(json.loads(local.connection.getresponse().read())["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(in_flight) as threads:
        started = time.perf_counter()
        answers = list(threads.map(one, texts))
        seconds = time.perf_counter() - started
    assert len(answers) == len(texts)
    return seconds


def through_sql(con: Any, texts: Sequence[str]) -> float:
    """Seconds that a query over all texts takes."""
    import pyarrow as pa

    con.register("texts", pa.table({"text": texts}))
    started = time.perf_counter()
    cursor = con.execute(f"SELECT count(AI_FILTER(PROMPT('{QUESTION}', text))) FROM texts")
    found = cursor.fetchall()
    seconds = time.perf_counter() - started
    con.unregister("texts")
    assert found == [(len(texts),)]
    return seconds


def compared(rows: int = 1600, seconds: float = 0.2, in_flight: int = 32, rounds: int = 3) -> dict[str, Any]:
    """Both sides, in turns; medians."""
    import sqluice

    rate: dict[str, list[float]] = {"capacity": [], "sql": []}
    with served(seconds) as port, tempfile.TemporaryDirectory() as home:
        uri = f"http://127.0.0.1:{port}/v1?concurrency={in_flight}#sleeper"
        con = sqluice.connect(f"{home}/x.duckdb", ai_cache="off", ai_mode="exact", ai_oracle=uri)
        try:
            through_sql(con, [f"warm {at}" for at in range(2 * in_flight)])
            load_loop(port, [f"warm {at}" for at in range(2 * in_flight)], in_flight)
            for number in range(rounds):
                texts = [f"text {number} {at}" for at in range(rows)]
                for name in sorted(rate, reverse=bool(number % 2)):
                    took = through_sql(con, texts) if name == "sql" else load_loop(port, texts, in_flight)
                    rate[name].append(rows / took)
        finally:
            con.close()
    return {
        "rows": rows,
        "service_seconds": seconds,
        "in_flight": in_flight,
        "capacity_rows_per_s": round(statistics.median(rate["capacity"]), 1),
        "sql_rows_per_s": round(statistics.median(rate["sql"]), 1),
        "endpoint_ratio": round(statistics.median(map(_ratio, rate["sql"], rate["capacity"])), 3),
        "ratios": [round(one, 3) for one in map(_ratio, rate["sql"], rate["capacity"])],
    }


def _ratio(one: float, other: float) -> float:
    return one / other


def measure(rows: int = 1600, seconds: float = 0.2, in_flight: int = 32, rounds: int = 3) -> float:
    """Rows per second of SQL as a share of the server's own capacity."""
    return float(compared(rows, seconds, in_flight, rounds)["endpoint_ratio"])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--seconds", type=float, default=0.2, help="mean service time of the server")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve is not None:
        server = Sleeper(args.serve)
        print(server.server_port, flush=True)
        server.serve_forever()
    found = compared(args.rows, args.seconds, args.in_flight, args.rounds)
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
