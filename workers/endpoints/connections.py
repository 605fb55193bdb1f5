"""The connections of one endpoint, beneath an httpx client.

httpx's own pool looks at every connection for every request, three times: at 32 connections a request costs 3.6 ms of
CPU, with the list of idle ones here 0.8 (httpx 0.28, httpcore 1.0). How many requests there are at once is the
limiter's business, so nobody ever waits for a connection. It knows no proxies: with one, httpx's pool does it.
"""

from __future__ import annotations

from typing import Any

import httpcore
import httpx

EXPIRES = 15.0
"""Seconds until an idle connection is given up; servers close theirs sooner or later."""


class Connections(httpx.AsyncBaseTransport):
    """Connections of HTTP/1.1 to one origin; the one used last is used first. Answers are read whole."""

    def __init__(self, url: str) -> None:
        parts = httpx.URL(url)
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._origin = httpcore.Origin(parts.scheme.encode(), parts.raw_host, self._port)
        self._ssl = httpx.create_ssl_context() if parts.scheme == "https" else None
        self._idle: list[httpcore.AsyncHTTPConnection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange; `httpx.TransportError` where it fails."""
        url, asked = request.url, request.headers.raw
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=self._port, target=url.raw_path)
        content: Any = request.stream
        connection = await self._taken()
        try:
            response = await connection.handle_async_request(
                httpcore.Request(request.method, target, headers=asked, content=content, extensions=request.extensions)
            )
            body = await response.aread()
            await response.aclose()
        except _FAILURES as error:
            await connection.aclose()
            kind = getattr(httpx, type(error).__name__, httpx.TransportError)  # httpx uses the same names
            raise kind(str(error), request=request) from None
        except BaseException:  # cancelled: half an answer is still to come on it
            await connection.aclose()
            raise
        if connection.is_idle():
            self._idle.append(connection)
        return httpx.Response(response.status, headers=response.headers, content=body, request=request)

    async def aclose(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _taken(self) -> httpcore.AsyncHTTPConnection:
        """An idle connection that the server has not closed, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore.AsyncHTTPConnection(self._origin, ssl_context=self._ssl, keepalive_expiry=EXPIRES)


_FAILURES = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)
