"""An OpenAI-compatible server for tests: chat completions, embeddings, files and batches, and faults on demand.

In process with a scripted `chat`, or by itself over the embedded models::

    python openai_server.py [--without logprobs] [--without schema] [--fault-every 3]

which prints its port. What a fault does happens instead of answering, to attempts that `Server.fault` picks.
"""

from __future__ import annotations

import argparse
import email.utils
import itertools
import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Chat: TypeAlias = "Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]"
Fault: TypeAlias = "Callable[[Handler, bytes], None]"


class Server(ThreadingHTTPServer):
    """`chat` answers a chat completion with a status and a body. `fault(text, attempt)` is asked before each answer,
    with the user's message and how often it was asked about; what it returns is done instead."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, chat: Chat, embed: Callable[[list[str]], Any] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chat = chat
        self.embed = embed
        self.fault: Callable[[str, int], Fault | None] = lambda _text, _attempt: None
        self.attempts: dict[str, int] = {}
        self.answered: dict[str, int] = {}
        """By the user's message: requests, and whole answers sent."""
        self.faults = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.has_batches = True
        self.batch_seconds = 0.0
        self.lock = threading.Lock()
        self._numbers = itertools.count()

    @property
    def base(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def started(self) -> Server:
        """Serving, in a thread of its own."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news here."""

    def number(self) -> int:
        """A new number."""
        return next(self._numbers)

    def settle(self) -> None:
        """Wait until requests that were on their way have come."""
        before = -1
        while before != (before := sum(self.attempts.values())):
            time.sleep(0.5)

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A new batch, under way."""
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        batch = {
            "id": f"batch-{self.number()}",
            "status": "in_progress",
            "metadata": asked.get("metadata"),
            "completion_window": asked["completion_window"],
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.batches[str(batch["id"])] = batch
        threading.Thread(target=self._run, args=(batch, lines), daemon=True).start()
        return batch

    def _run(self, batch: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        good: list[str] = []
        bad: list[str] = []
        time.sleep(self.batch_seconds)
        for line in reversed(lines):  # answers come in any order
            status, body = self.chat(line["body"])
            told = {"custom_id": line["custom_id"], "response": {"status_code": status, "body": body}, "error": None}
            (good if status == 200 else bad).append(json.dumps(told))
            batch["request_counts"]["completed" if status == 200 else "failed"] += 1
        for name, lines_out in (("output_file_id", good), ("error_file_id", bad)):
            if lines_out:
                batch[name] = f"file-{self.number()}"
                self.files[batch[name]] = "\n".join(lines_out).encode()
        batch["status"] = "completed"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_POST(self) -> None:
        """Chat, embeddings, files, batches."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.removeprefix("/v1")
        if path == "/chat/completions":
            self._chat(json.loads(body))
        elif path == "/embeddings" and self.server.embed is not None:
            texts = json.loads(body)["input"]
            data = [{"index": at, "embedding": row} for at, row in enumerate(self.server.embed(texts))]
            self.json(200, {"data": data, "usage": {"prompt_tokens": 3 * len(texts)}})
        elif path == "/files" and self.server.has_batches:
            edge = self.headers["Content-Type"].partition("boundary=")[2].encode()
            part = next(part for part in body.split(b"--" + edge) if b'name="file"' in part)
            name = f"file-{self.server.number()}"
            self.server.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self.json(200, {"id": name})
        elif path == "/batches" and self.server.has_batches:
            self.json(200, self.server.create(json.loads(body)))
        else:
            self.json(404, {"error": {"message": f"no {path} here"}})

    def do_GET(self) -> None:
        """Batches and files."""
        path = self.path.removeprefix("/v1").partition("?")[0]
        _, kind, *rest = path.split("/")
        if kind == "batches" and self.server.has_batches:
            batches = self.server.batches
            self.json(200, batches[rest[0]] if rest else {"data": list(batches.values())[::-1], "has_more": False})
        elif kind == "files" and rest[0] in self.server.files:
            self.send(200, self.server.files[rest[0]])
        else:
            self.json(404, {"error": {"message": f"no {path} here"}})

    def _chat(self, payload: dict[str, Any]) -> None:
        text = payload["messages"][-1]["content"]
        with self.server.lock:
            attempt = self.server.attempts[text] = self.server.attempts.get(text, 0) + 1
            fault = self.server.fault(text, attempt)
            self.server.faults += fault is not None
        status, body = self.server.chat(payload)
        if fault is not None:
            fault(self, json.dumps(body).encode())
            return
        with self.server.lock:
            self.server.answered[text] = self.server.answered.get(text, 0) + (status == 200)
        self.json(status, body)

    def json(self, status: int, body: dict[str, Any]) -> None:
        """Send a whole answer."""
        self.send(status, json.dumps(body).encode())

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        """Send an answer that says it has `length` bytes."""
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def dropped(handler: Handler, _: bytes) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.close()


def stalled(handler: Handler, body: bytes) -> None:
    """The headers and a part of the answer, and then nothing for a while."""
    handler.send(200, body[:20], len(body))
    time.sleep(3.0)
    handler.close_connection = True


def dripping(handler: Handler, body: bytes) -> None:
    """The answer, byte by byte: no single read takes long."""
    handler.send(200, b"", len(body))
    for at in range(20):
        time.sleep(0.2)
        try:
            handler.wfile.write(body[at : at + 1])
            handler.wfile.flush()
        except OSError:
            break
    handler.close_connection = True


def cut(handler: Handler, body: bytes) -> None:
    """Half of what the headers promise."""
    handler.send(200, body[: len(body) // 2], len(body))
    handler.close_connection = True
    handler.connection.close()


def truncated(handler: Handler, body: bytes) -> None:
    """Half of the JSON, in a response that is whole."""
    handler.send(200, body[: len(body) // 2])


def garbled(handler: Handler, body: bytes) -> None:
    """Bytes that are no JSON."""
    handler.send(200, b"\xff\xfe" + body[::-1])


def garbage(handler: Handler, _: bytes) -> None:
    """Bytes that are no HTTP."""
    handler.wfile.write(b"\x16\x03\x01 what is this\r\n\r\n")
    handler.wfile.flush()
    dropped(handler, b"")


def broken(handler: Handler, _: bytes) -> None:
    """A 500."""
    handler.send(500, b'{"error": {"message": "out of order"}}')


def busy(handler: Handler, _: bytes) -> None:
    """A 429 that asks to wait a while, in seconds."""
    handler.send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.2")


def busy_until(handler: Handler, _: bytes) -> None:
    """A 429 that asks to wait until a date."""
    when = email.utils.formatdate(time.time() + 1.2, usegmt=True)
    handler.send(429, b'{"error": {"message": "slow down"}}', Retry_After=when)


def revoked(handler: Handler, _: bytes) -> None:
    """A 401."""
    handler.send(401, b'{"error": {"message": "this key was revoked"}}')


def for_hours(handler: Handler, _: bytes) -> None:
    """A 429 that asks to wait longer than anybody does."""
    handler.send(429, b'{"error": {"message": "your quota is used up"}}', Retry_After="7200")


PASSING: Sequence[Fault] = (*(dropped, stalled, dripping, cut, truncated, garbled, garbage, broken, busy, busy_until),)


def said(text: str, top: Sequence[tuple[str, float]] = (), tokens_in: int = 11, cached: int = 0) -> dict[str, Any]:
    """A chat completion of one token, with the likely ones in its place."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top:
        tops = [{"token": token, "logprob": math.log(p)} for token, p in top]
        choice["logprobs"] = {"content": [{"token": top[0][0], "logprob": 0, "top_logprobs": tops}]}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": cached}}
    return {"choices": [choice], "usage": usage}


def even(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Likes texts that end in an even number; reads as many tokens as they have characters, ten of them cached."""
    text = payload["messages"][-1]["content"]
    found = re.search(r"(\d+)\D*$", text)
    first, other = ("yes", "no") if int(found.group(1) if found else 1) % 2 == 0 else ("no", "yes")
    top = [(first, 0.9), (other, 0.1)] if payload.get("logprobs") else []
    return 200, said(first, top, 10 + len(text), 10)


def embedded_models(without: Sequence[str]) -> tuple[Chat, Callable[[list[str]], Any]]:
    """The embedded language model on llama.cpp, and the embedder on torch, one request at a time."""
    from sqluice.workers import fetch, gguf, package

    path = fetch.folder("default") / fetch.WEIGHTS[fetch.resolve("default")].main
    server = gguf._serve(path, 1, "")  # two that share a busy core wait for each other
    embedder: Any = package.load("embedder")
    lock = threading.Lock()

    def chat(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "response_format" in payload and "schema" in without:
            return 400, {"error": {"message": "response_format json_schema is not supported"}}
        asked = {name: value for name, value in payload.items() if name != "model"}
        if "logprobs" in without:
            asked = {name: value for name, value in asked.items() if "logprobs" not in name}
        with lock:
            return 200, server.handle_chat_completions(asked)

    def embed(texts: list[str]) -> Any:
        with lock:
            return embedder.embed(texts).tolist()

    return chat, embed


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the embedded models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", action="append", default=[], choices=("logprobs", "schema"))
    parser.add_argument("--fault-every", type=int, default=0, help="every so many texts meet a fault at first")
    args = parser.parse_args(argv)
    server = Server(*embedded_models(args.without))
    faults, texts = itertools.cycle(PASSING), itertools.count(1)

    def fault(_: str, attempt: int) -> Fault | None:
        meets = bool(args.fault_every) and attempt == 1 and next(texts) % args.fault_every == 0
        return next(faults) if meets else None

    server.fault = fault
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
