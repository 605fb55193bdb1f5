"""What a server's headers ask to wait: Retry-After in its forms, or the reset of a limit that is used up."""

from __future__ import annotations

import datetime
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_USED_UP = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
)
"""Pairs of headers: what is left of a limit, and when there is more."""

_AN_EPOCH = 1e9
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def asked(headers: Mapping[str, str], now: float) -> float:
    """Seconds to wait from `now` (since the epoch), 0 where nothing is asked. Names of headers are lower case."""
    exact = seconds(headers.get("retry-after-ms", ""), now) / 1000
    if exact:
        return exact
    if headers.get("retry-after"):
        return seconds(headers["retry-after"], now)
    resets = [headers.get(reset, "") for left, reset in _USED_UP if headers.get(left) == "0"]
    return max((seconds(reset, now) for reset in resets), default=0.0)


def seconds(text: str, now: float) -> float:
    """`1.5`, `1m30s`, `20ms`, seconds since the epoch, or a date, as seconds from `now`; 0 when it is none of these."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return max(0.0, float(text) - now if float(text) > _AN_EPOCH else float(text))
    if re.fullmatch(r"(\d+(\.\d+)?(ms|h|m|s))+", text):
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text))
    for parse in (parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            return max(0.0, parse(text).timestamp() - now)
        except ValueError:
            continue
    return 0.0
