"""Posting JSON to a model endpoint: pooled connections, retries, rate limits, and keys that stay secret.

All endpoints of a process share one background thread with an event loop. A request is tried again after
connection errors, time-outs, answers that are not JSON and the statuses 408, 425, 429 and 5xx, with
exponential back-off and full jitter, or after what Retry-After asks for, until its deadline.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqluice.errors import ModelError
from sqluice.workers.failures import clean
from sqluice.workers.places import is_loopback

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    import httpx

    from sqluice.workers.protocol import Control

DEFAULT_KEY = "SQLUICE_API_KEY"
RETRIES = 5
BACKOFF = 0.25
LONGEST_BACKOFF = 8.0
_POLL = 0.05
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
_jitter = random.Random()  # noqa: S311 - spreads retries over time, nothing depends on it


class RefusedError(ModelError):
    """The endpoint refused one request for good, or retries did not help. `status` is 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """`concurrency` requests at once; seconds: `timeout` of one request, `deadline` with its retries."""

    concurrency: int = 32
    timeout: float = 60.0
    deadline: float = 120.0


class Transport:
    """Posts to paths below one base URL. The key is looked up by the name of its environment variable for
    every request and kept nowhere."""

    def __init__(self, base: str, key_env: str | None, limits: Limits) -> None:
        self.base = base
        self.limits = limits
        self._key_env = key_env
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None
        self._not_before = 0.0

    def __repr__(self) -> str:
        return f"<Transport {self.base}>"

    def run(self, work: Coroutine[Any, Any, Any], control: Control | None = None) -> Any:
        """The result of `work` on the background loop; `control.check()` is called while waiting, and what it
        raises cancels the requests under way."""
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            while not future.done():
                if control is not None:
                    control.check()
                futures.wait([future], timeout=_POLL)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def post(self, path: str, payload: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
        """The JSON object that POST `path` answers; `RefusedError` without `texts` or the key in it."""
        client, slots = self._open()
        give_up = 0.0
        for attempt in range(RETRIES + 1):
            async with slots:
                give_up = give_up or time.monotonic() + self.limits.deadline
                await self._held_back(give_up)
                answer, cause, wait = await self._try(client, path, payload, texts)
            if answer is not None:
                return answer
            pause = max(wait, _jitter.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2**attempt)))
            if attempt == RETRIES or time.monotonic() + pause > give_up:
                raise RefusedError(f"{cause}; tried {attempt + 1} times")
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connections; a later `post` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        import httpx

        if self._client is None or self._slots is None:
            n = self.limits.concurrency
            self._slots = asyncio.Semaphore(n)
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self.limits.timeout, connect=min(10.0, self.limits.timeout)),
                limits=httpx.Limits(max_connections=n, max_keepalive_connections=n),
                trust_env=not is_loopback(urlsplit(self.base).hostname or ""),
                follow_redirects=False,
            )
        return self._client, self._slots

    async def _held_back(self, give_up: float) -> None:
        """Wait while the endpoint asked everybody to."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, max(0.0, give_up - time.monotonic()) + _POLL))
            if time.monotonic() > give_up:
                raise RefusedError("the endpoint's rate limit outlasts the deadline")

    async def _try(
        self, client: httpx.AsyncClient, path: str, payload: dict[str, Any], texts: Iterable[str]
    ) -> tuple[dict[str, Any] | None, str, float]:
        """One attempt: the answer, or the cause of failing and the seconds to wait at least."""
        import httpx

        key = self._key()
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            response = await client.post(self.base + path, json=payload, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, clean(f"no answer from {self._where()}: {_said(error)}", texts, [key]), 0.0
        wait = _wait_asked(response.headers)
        if wait:
            self._not_before = max(self._not_before, time.monotonic() + min(wait, self.limits.deadline))
        if response.status_code == 200:
            try:
                answer = json.loads(response.content)
            except ValueError:
                return None, f"{self._where()} sent an answer that is not JSON", 0.0
            if isinstance(answer, dict):
                return answer, "", 0.0
            return None, f"{self._where()} sent JSON that is not an object", 0.0
        cause = f"{self._where()} answered {response.status_code}: {_reason(response.content, key)}"
        cause = clean(cause, texts, [key])
        if response.status_code in _AGAIN:
            return None, cause, wait
        raise RefusedError(cause, response.status_code)

    def _where(self) -> str:
        return urlsplit(self.base).netloc

    def _key(self) -> str:
        """The key, "" when there is none. Its name may be told, the key never."""
        name = self._key_env or DEFAULT_KEY
        key = os.environ.get(name, "").strip()
        if self._key_env and not key:
            raise ModelError(f"the environment variable {name} that api_key_env names is not set")
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"the environment variable {name} holds characters that no HTTP header may have")
        return key


def _said(error: Exception) -> str:
    """What a connection error says, at least its name."""
    return f"{type(error).__name__} {error}".strip()


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


def _wait_asked(headers: Any) -> float:
    """Seconds the endpoint asks to wait: Retry-After, or the reset of a limit that is used up."""
    asked = headers.get("retry-after", "")
    if asked:
        try:
            return max(0.0, float(asked))
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            return 0.0
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}") == "0":
            return _seconds(headers.get(f"x-ratelimit-reset-{what}", ""))
    return 0.0


def _seconds(text: str) -> float:
    """`1m30s`, `20ms` or `1.5` in seconds; 0 when it is none of these."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text))


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
