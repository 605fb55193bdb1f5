"""The batch API of OpenAI and of servers that copy it: a file of requests, answered within a day at a lower price.

POST /files, POST /batches, GET /batches/ID until it is over, GET /files/ID/content. A batch carries a digest of its
requests as metadata. Who asks the same again, after an interruption or from another machine, finds the batch by it at
the server and takes it up: nothing is kept here. An interruption ends the waiting and not the batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from sqluice.errors import BrokenModelError
from sqluice.workers.endpoints.transport import RefusedError, Request, encoded, json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.workers.endpoints.transport import Transport

FIRST_POLL, LAST_POLL = 1.0, 30.0
"""Seconds between two looks at a batch: at first, and at most."""

MARK = "sqluice"
"""Under which a batch's metadata holds the digest of its requests."""

_PATH = "/chat/completions"
_PAGES, _PAGE = 10, 100
_UNDER_WAY = {"validating", "in_progress", "finalizing"}
_FETCHED = {"completed", "expired", "cancelled"}
"""Statuses of batches that are over and may have answers."""


async def run(
    transport: Transport, payloads: Sequence[dict[str, Any]], window: str, under_way: Callable[[int], None]
) -> list[dict[str, Any] | str]:
    """The answer to each payload, or why it has none. `under_way` is told how many are done.

    `BrokenModelError` where the server has no batch API or refuses the batch.
    """
    lines = _lines(transport.base, payloads)
    mark = hashlib.blake2b(lines + transport.base.encode(), digest_size=16).hexdigest()
    try:
        batch = await _found(transport, mark) or await _created(transport, lines, window, mark)
        batch = await _over(transport, batch, under_way)
        answers: dict[int, dict[str, Any] | str] = {}
        for file in ("error_file_id", "output_file_id"):
            if batch.get(file):
                answers |= await _answers(transport, str(batch[file]))
    except RefusedError as error:
        missing = error.status in (404, 405, 501)
        why = "has no batch API; leave out the option batch" if missing else "refused the batch"
        raise BrokenModelError(f"{transport.where} {why}: {error}") from None
    left = f"the batch {batch.get('id')} is {batch.get('status')} and has no answer to this row"
    return [answers.get(at, left) for at in range(len(payloads))]


def _lines(base: str, payloads: Sequence[dict[str, Any]]) -> bytes:
    """The file of requests, one JSON object a line."""
    url = urlsplit(base).path + _PATH
    return b"".join(
        encoded({"custom_id": str(at), "method": "POST", "url": url, "body": payload}) + b"\n"
        for at, payload in enumerate(payloads)
    )


async def _found(transport: Transport, mark: str) -> dict[str, Any] | None:
    """A batch of the same requests that is under way, or over without a failure."""
    after = ""
    for _ in range(_PAGES):
        page = await _asked(transport, "GET", f"/batches?limit={_PAGE}{after}")
        batches = [batch for batch in page.get("data", []) if isinstance(batch, dict)]
        for batch in batches:
            counts = batch.get("request_counts") or {}
            whole = batch.get("status") == "completed" and not counts.get("failed")
            if (batch.get("metadata") or {}).get(MARK) == mark and (whole or batch.get("status") in _UNDER_WAY):
                return batch
        if not page.get("has_more") or not batches:
            return None
        after = f"&after={quote(str(batches[-1].get('id')))}"
    return None


async def _created(transport: Transport, lines: bytes, window: str, mark: str) -> dict[str, Any]:
    """A new batch of `lines`."""
    edge = secrets.token_hex(16)
    body = b"".join(
        (
            f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'.encode(),
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{mark}.jsonl"\r\n'.encode(),
            b"Content-Type: application/jsonl\r\n\r\n" + lines + f"\r\n--{edge}--\r\n".encode(),
        )
    )
    form = f"multipart/form-data; boundary={edge}"
    file = await transport.send(Request("POST", "/files", json_object, body, form))
    asked = {
        "input_file_id": file.get("id"),
        "endpoint": urlsplit(transport.base).path + _PATH,
        "completion_window": window,
        "metadata": {MARK: mark},
    }
    return await _asked(transport, "POST", "/batches", asked)


async def _over(transport: Transport, batch: dict[str, Any], under_way: Callable[[int], None]) -> dict[str, Any]:
    """The batch when it is over."""
    pause = FIRST_POLL
    while batch.get("status") in _UNDER_WAY or batch.get("status") == "cancelling":
        counts = batch.get("request_counts") or {}
        under_way(int(counts.get("completed") or 0) + int(counts.get("failed") or 0))
        await asyncio.sleep(pause)
        pause = min(LAST_POLL, pause * 1.5)
        batch = await _asked(transport, "GET", f"/batches/{quote(str(batch.get('id')))}")
    if batch.get("status") not in _FETCHED:
        said = [str(one.get("message", "")) for one in (batch.get("errors") or {}).get("data", [])]
        why = "; ".join(dict.fromkeys(said)) or "no reason given"
        raise BrokenModelError(f"{transport.where}: the batch {batch.get('id')} is {batch.get('status')}: {why[:200]}")
    return batch


async def _answers(transport: Transport, file: str) -> dict[int, dict[str, Any] | str]:
    """What a file of answers says, by the number of the request."""
    lines = await transport.send(Request("GET", f"/files/{quote(file)}/content", _parsed))
    found: dict[int, dict[str, Any] | str] = {}
    for line in lines:
        number = str(line.get("custom_id"))
        if number.isdigit():
            found[int(number)] = _body(line, transport.where)
    return found


def _body(line: dict[str, Any], where: str) -> dict[str, Any] | str:
    """The answer in a line, or why it has none."""
    response, error = line.get("response") or {}, line.get("error")
    body = response.get("body")
    if response.get("status_code") == 200 and isinstance(body, dict):
        return body
    told = error or (body.get("error") if isinstance(body, dict) else None) or {}
    said = told.get("message") if isinstance(told, dict) else told
    return f"{where} answered {response.get('status_code', 'nothing')}: {said or 'no reason given'}"


def _parsed(body: bytes) -> list[dict[str, Any]]:
    try:
        return [json_object(line) for line in body.splitlines() if line.strip()]
    except ValueError:
        raise ValueError("is not one JSON object a line") from None


async def _asked(transport: Transport, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return await transport.send(Request(method, path, json_object, None if body is None else encoded(body)))
