"""Every session setting, once: name, type, default, allowed values, help."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqluice.errors import ProgrammingError

Value: TypeAlias = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One `SET ai_...` name."""

    name: str
    type: type
    default: Value
    help: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("ai_oracle", str, "package:default", "model whose answer is the meaning of an AI expression"),
        Setting("ai_proxy", str, None, "cheap model for cascades; none by default"),
        Setting("ai_embedder", str, "package:embedder", "model for AI_EMBED and AI_SIMILARITY"),
        Setting("ai_mode", str, "auto", "exact asks the oracle about every row", ("exact", "cascade", "auto")),
        Setting("ai_recall", float, 0.95, "recall target of a cascade", low=0, high=1),
        Setting("ai_precision", float, 0.95, "precision target of a cascade", low=0, high=1),
        Setting("ai_accuracy", float, 0.95, "accuracy target of a cascade", low=0, high=1),
        Setting("ai_delta", float, 0.05, "allowed probability of missing a target", low=0, high=1),
        Setting("ai_budget", str, None, "hard cap with its unit: '500 calls', '2.50 usd', '200 kJ', '10 min'"),
        Setting("ai_seed", int, 0, "seed of every sample", low=0),
        Setting("ai_on_error", str, "null", "a failing row gives NULL, or stops the query", ("null", "raise")),
        Setting("ai_workers", str, "local", "where models run: local, ray, auto, ray://host:port, a number"),
        Setting("ai_threads", int, 0, "threads of a local model; 0 takes every core", low=0),
        Setting("ai_dtype", str, "auto", "arithmetic of a local model", ("auto", "float32", "bfloat16", "float16")),
        Setting("ai_device", str, "auto", "auto takes CUDA when there is one; else cpu, cuda, cuda:1"),
        Setting("ai_plan", str, "optimized", "rowwise is the reference interpreter", ("optimized", "rowwise")),
        Setting("ai_max_cross_calls", int, 1_000_000, "a semantic join that needs more calls is refused", low=1),
        Setting("ai_trace", str, "on", "text also stores the rows' text in ai.decisions", ("on", "off", "text")),
        Setting("ai_cache", str, "disk", "where answers are kept between queries", ("off", "memory", "disk")),
    )
}


_UNITS = {
    **dict.fromkeys(("call", "calls"), "calls"),
    "usd": "usd",
    "j": "J",
    "kj": "kJ",
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hour", "hours"), "h"),
}


def budget(value: object) -> str:
    """`'500 calls'` from `500`, `'500 call'` or `' 500  CALLS'`; `ValueError` says what a budget is."""
    given = f"{value} calls" if type(value) is int else value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)\s*", given, re.I) if isinstance(given, str) else None
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError("names an amount and its unit: '500 calls', '2.50 usd', '200 kJ' or '10 min'")
    amount, unit = found[1], _UNITS[found[2].lower()]
    if not float(amount):
        raise ValueError("must be more than 0; leave it out for no limit")
    if unit == "calls" and not amount.isdigit():
        raise ValueError("must be a whole number of calls")
    return f"{amount} {unit}"


def lookup(name: str) -> Setting:
    """The setting called `name` (any case); `ProgrammingError` with the nearest names otherwise."""
    setting = SETTINGS.get(name.lower())
    if setting is None:
        import difflib

        near = difflib.get_close_matches(name.lower(), SETTINGS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "SELECT * FROM ai_settings() lists them"
        raise ProgrammingError(f"unknown setting {name}: {hint}")
    return setting


def parse(name: str, value: Value) -> Value:
    """`value` as the type of setting `name`, checked; `ProgrammingError` says what is allowed."""
    setting = lookup(name)
    if value is None or (isinstance(value, str) and setting.default is None and value.lower() in ("", "none")):
        if setting.default is None:
            return None
        raise ProgrammingError(f"{setting.name} cannot be NULL; RESET {setting.name} restores {setting.default!r}")
    try:
        parsed: Value = setting.type(value)
        if setting.name == "ai_budget":
            return budget(value)
    except (TypeError, ValueError) as error:
        if setting.name == "ai_budget":
            raise ProgrammingError(f"{setting.name} {error}; not {value!r}") from None
        raise ProgrammingError(f"{setting.name} takes a {setting.type.__name__}, not {value!r}") from None
    if isinstance(parsed, str) and setting.values:
        parsed = parsed.lower()
        if parsed not in setting.values:
            raise ProgrammingError(f"{setting.name} is one of {', '.join(setting.values)}; not {value!r}")
    if setting.type is float and not (0 < float(parsed or 0) < 1):
        raise ProgrammingError(f"{setting.name} lies strictly between 0 and 1; not {value!r}")
    if setting.type is int and setting.low is not None and int(parsed or 0) < setting.low:
        raise ProgrammingError(f"{setting.name} is at least {setting.low:g}; not {value!r}")
    return parsed


def home() -> Path:
    """Folder for weights, the answer cache and traces of `:memory:` databases.

    `SQLUICE_HOME` if set, else `$XDG_CACHE_HOME/sqluice`, else `~/.cache/sqluice`.
    """
    named = os.environ.get("SQLUICE_HOME")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqluice"
