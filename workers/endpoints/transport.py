"""Requests to a model endpoint: pooled connections, retries, rate limits, and keys that stay secret.

All endpoints of a process share one background thread with an event loop. A request is tried again after connection
errors, time-outs, answers that cannot be read and the statuses 408, 425, 429 and 5xx, with exponential back-off and
full jitter (Brooker 2015, *Exponential Backoff And Jitter*), or after what the server asks for. `RETRIES` times where
the endpoint answers others meanwhile; until the deadline where it answers nobody, and then it is down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import threading
import time
import urllib.request
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from sqluice.errors import BrokenModelError, ModelError
from sqluice.workers.endpoints import rate_limits
from sqluice.workers.endpoints.limiter import Limiter
from sqluice.workers.failures import clean
from sqluice.workers.places import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Future

    import httpx

DEFAULT_KEY = "SQLUICE_API_KEY"
RETRIES = 5
BACKOFF = 0.25
LONGEST_BACKOFF = 8.0

MANY_ROWS = 8
"""Rows that have to fail, with no answer between them, before the endpoint is to blame and not the row."""

REFUSALS = 64
"""Refusals that have nothing to do with the row (a key, an address), with no answer between them, until it is down."""

_ABOUT_THE_ROW = {400, 413, 422}
_AGAIN = {408, 425, 429}
_NEVER_AGAIN = {501, 505}
_BUSY = {408, 429, 503, 504, 529}
_jitter = random.Random()  # noqa: S311 - spreads retries over time, nothing depends on it

T = TypeVar("T")


class RefusedError(ModelError):
    """The endpoint refused one request for good, or retries did not help. `status` is 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """`concurrency` requests at once at most; seconds: `timeout` of one request, `deadline` with its retries."""

    concurrency: int = 32
    timeout: float = 60.0
    deadline: float = 120.0


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """What is sent, and how the body of the answer is read: `read` raises ValueError where it cannot be. No error
    repeats one of `texts`."""

    method: str
    path: str
    read: Callable[[bytes], T]
    body: bytes | None = None
    content_type: str = "application/json"
    texts: Iterable[str] = ()


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why an attempt has no answer, and what the server asks to wait, in seconds."""

    cause: str
    wait: float = 0.0


class _Secret(str):
    """A text whose repr does not tell it, for tracebacks that show variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Transport:
    """Asks paths below one base URL. The key is looked up by the name of its environment variable for every request and
    kept nowhere."""

    def __init__(self, base: str, key_env: str | None, limits: Limits) -> None:
        self.base = base
        self.limits = limits
        self._key_env = key_env
        self._client: httpx.AsyncClient | None = None
        self._limiter = Limiter(limits.concurrency)
        self._not_before = 0.0
        self._answers = self._failing = self._refused = 0

    def __repr__(self) -> str:
        return f"<Transport {self.base}>"

    @property
    def where(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc

    def start(self, work: Awaitable[T], retried: Callable[[str], None] = lambda _cause: None) -> Future[T]:
        """`work` on the background loop; cancel the future to end it. `retried` takes the cause of each
        attempt that failed and may be made again."""
        return asyncio.run_coroutine_threadsafe(_told(work, retried), _loop())

    async def post(self, path: str, payload: dict[str, Any], texts: Iterable[str] = ()) -> dict[str, Any]:
        """The JSON object that POST `path` answers; errors as `send`."""
        return await self.send(Request("POST", path, json_object, encoded(payload), texts=texts))

    async def send(self, request: Request[T]) -> T:
        """What the endpoint answers. `RefusedError` without `texts` or the key in it; `BrokenModelError` where the
        endpoint fails, and not the request."""
        client = self._open()
        first = counted = -1  # answers to anybody when this failed first, and when it was counted as failing
        give_up, tries, attempts = 0.0, 0, 0
        failed = _Failed("")
        while True:
            await self._place(give_up, failed)
            attempts += 1
            try:
                give_up = give_up or time.monotonic() + self.limits.deadline
                await self._held_back()
                answer = await self._try(client, request, give_up)
            finally:
                self._limiter.release()
            if not isinstance(answer, _Failed):
                return answer
            failed = answer
            _retried.get()(failed.cause)
            first = self._answers if first < 0 else first
            if counted != self._answers:
                counted = self._answers
                self._failing += 1
            silent = self._answers > 0 and self._failing >= MANY_ROWS
            if failed.wait > self.limits.deadline:
                raise BrokenModelError(
                    f"{self.where} asks to wait {failed.wait:.0f} s, longer than the deadline of"
                    f" {self.limits.deadline:g} s: {failed.cause}; what was answered is in the cache,"
                    " ask again later or raise the option deadline"
                )
            longest = min(LONGEST_BACKOFF, BACKOFF * 2 ** min(attempts - 1, 16))
            tries += not failed.wait and not silent  # what all others suffer says nothing about this row
            pause = max(failed.wait, _jitter.uniform(0, longest))
            late = time.monotonic() + pause > give_up
            if late and silent and self._answers == first:
                raise BrokenModelError(
                    f"{self.where} has answered nothing for {self.limits.deadline:g} s: {failed.cause};"
                    " what was answered is in the cache, ask again when it is well"
                )
            if late or tries > RETRIES:
                raise RefusedError(f"{failed.cause}; tried {attempts} times")
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connections; a later `send` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open(self) -> httpx.AsyncClient:
        import httpx

        if self._client is None:
            from sqluice.workers.endpoints.connections import Connections

            n = self.limits.concurrency
            self._client = httpx.AsyncClient(
                transport=None if proxied(self.base) else Connections(self.base),
                timeout=httpx.Timeout(self.limits.timeout, connect=min(10.0, self.limits.timeout)),
                limits=httpx.Limits(max_connections=n, max_keepalive_connections=n),
                follow_redirects=False,
                event_hooks={"request": [self._sign]},
            )
            _hide_in_logs(self._key_name)
        return self._client

    async def _place(self, give_up: float, failed: _Failed) -> None:
        """A place among the requests; a retry waits for it no longer than until `give_up`."""
        if not give_up:
            await self._limiter.acquire()
            return
        try:
            await asyncio.wait_for(self._limiter.acquire(), max(0.0, give_up - time.monotonic()))
        except TimeoutError:
            raise RefusedError(f"{failed.cause}; no time was left to try again") from None

    async def _held_back(self) -> None:
        """Wait while the endpoint asked everybody to; a little apart, lest all come back at once."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait * _jitter.uniform(1, 1.1))

    async def _try(self, client: httpx.AsyncClient, request: Request[T], give_up: float) -> T | _Failed:
        """One attempt."""
        import httpx

        key = self._key()
        started = time.monotonic()
        seconds = max(0.01, min(self.limits.timeout, give_up - started))
        headers = {} if request.body is None else {"Content-Type": request.content_type}
        try:
            async with asyncio.timeout(seconds):  # httpx's own starts anew with every byte that arrives
                url = _url(self.base + request.path)
                response = await client.request(request.method, url, content=request.body, headers=headers)
        except TimeoutError:
            self._limiter.overloaded(started)
            return _Failed(f"no answer from {self.where}: Timeout after {seconds:.3g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.TimeoutException):
                self._limiter.overloaded(started)
            said = f"{type(error).__name__} {error}".strip()
            return _Failed(clean(f"no answer from {self.where}: {said}", request.texts, [key]))
        return self._judged(response, request, started, key)

    def _judged(self, response: httpx.Response, request: Request[T], started: float, key: str) -> T | _Failed:
        """The answer of a response; `RefusedError` where another attempt would not help."""
        status = response.status_code
        wait = rate_limits.asked(dict(response.headers), time.time())
        if 0 < wait <= self.limits.deadline:
            self._not_before = max(self._not_before, time.monotonic() + wait)
        if status in _BUSY:
            self._limiter.overloaded(started)
        if status == 200:
            try:
                answer = request.read(response.content)
            except ValueError as error:
                return _Failed(f"{self.where} sent an answer that {error}")
            self._limiter.answered()
            self._answers += 1
            self._failing = self._refused = 0
            return answer
        cause = f"{self.where} answered {status}: {_reason(response.content, key)}"
        cause = clean(cause, request.texts, [key])
        if (status in _AGAIN or status >= 500) and status not in _NEVER_AGAIN:
            return _Failed(cause, wait)
        self._refused += status not in _ABOUT_THE_ROW
        if self._refused >= REFUSALS and self._answers:
            raise BrokenModelError(f"{cause}; the last {self._refused} requests were refused")
        raise RefusedError(cause, status)

    async def _sign(self, request: httpx.Request) -> None:
        key = self._key()
        if key:
            request.headers["Authorization"] = f"Bearer {key}"

    @property
    def _key_name(self) -> str:
        return self._key_env or DEFAULT_KEY

    def _key(self) -> str:
        """The key, "" when there is none. Its name may be told, the key never."""
        name = self._key_name
        key = _Secret(os.environ.get(name, "").strip())
        if self._key_env and not key:
            raise ModelError(f"the environment variable {name} that api_key_env names is not set")
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"the environment variable {name} holds characters that no HTTP header may have")
        return key


@lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    """Parsed once; that takes a good part of a request's time."""
    import httpx

    return httpx.URL(text)


def proxied(url: str) -> bool:
    """Whether the environment names a proxy for `url`; never for this machine."""
    parts = urlsplit(url)
    host, proxies = parts.hostname or "", urllib.request.getproxies()
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return False
    return parts.scheme in proxies or "all" in proxies


def encoded(payload: dict[str, Any]) -> bytes:
    """`payload` as JSON. Lone surrogates, which UTF-8 lacks, stay as escapes."""
    try:
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(payload, separators=(",", ":")).encode()


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; ValueError without its text where there is none."""
    try:
        found = json.loads(body)
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("is JSON, but not an object")
    return found


def _reason(body: bytes, key: str) -> str:
    """The message in an error body: OpenAI's shape, `message`, `detail`, or its beginning. The key is taken
    out before anything is cut, lest a part of it stays."""
    plain = body[:65536].decode("utf-8", "replace")
    plain = plain.replace(key, "***") if key else plain
    try:
        told: Any = json.loads(plain)
    except ValueError:
        told = plain
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and name in told:
            told = told[name]
    return " ".join(str(told).split()) or "no reason given"


_retried: ContextVar[Callable[[str], None]] = ContextVar("retried", default=lambda _cause: None)
"""Who is told of attempts that failed, in all tasks of one `start`."""


async def _told(work: Awaitable[T], retried: Callable[[str], None]) -> T:
    _retried.set(retried)
    return await work


class _Hidden(logging.Filter):
    """Takes keys out of what the HTTP library logs, where a server repeats them. Knows their names alone."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        for key in filter(None, (os.environ.get(name, "").strip() for name in self.names)):
            if key in said:
                said = said.replace(key, "***")
                record.msg, record.args = said, ()
        return True


_hidden = _Hidden()
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")


def _hide_in_logs(name: str) -> None:
    _hidden.names.add(name)
    for logger in _LOGGERS:
        logging.getLogger(logger).addFilter(_hidden)  # a second time changes nothing


_running: tuple[int, asyncio.AbstractEventLoop] | None = None
_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The background event loop of this process, started when first needed."""
    global _running
    with _starting:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sqluice-http", daemon=True).start()
            _running = (os.getpid(), loop)
        return _running[1]
