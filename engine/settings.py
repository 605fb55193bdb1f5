"""`SET ai_...`, `RESET ai_...` and `ai_settings()`: the session's AI settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqluice import config
from sqluice.engine.script import beginning
from sqluice.errors import ProgrammingError, programming_error
from sqluice.workers import where

if TYPE_CHECKING:
    from sqluice.config import Value

_GAP = r"(?:\s|--[^\n]*|/\*.*?\*/)"
_END = _GAP + r"*;?\s*\Z"
_VALUE = r"(?P<value>'(?:[^']|'')*'|[^\s';]+)"
_SET = re.compile(
    rf"SET{_GAP}+(?:(?:SESSION|LOCAL|GLOBAL){_GAP}+)?(?P<name>ai_\w+){_GAP}*(?:=|\bTO\b){_GAP}*{_VALUE}{_END}",
    re.IGNORECASE | re.DOTALL,
)
_RESET = re.compile(rf"RESET{_GAP}+(?:(?:SESSION|GLOBAL){_GAP}+)?(?P<name>ai_\w+){_END}", re.IGNORECASE | re.DOTALL)
_MENTION = re.compile(r"\bai_settings\s*\(", re.IGNORECASE)
_QUOTED = re.compile(r"'((?:[^']|'')*)'\Z")


class Settings:
    """The values of one session's AI settings."""

    def __init__(self, given: dict[str, Value] | None = None) -> None:
        self._first = {name: _checked(name, value) for name, value in (given or {}).items()}
        self._values: dict[str, Value] = {}

    def values(self) -> dict[str, Value]:
        """Every setting with its value."""
        defaults = {name: setting.default for name, setting in config.SETTINGS.items()}
        return {**defaults, **{name.lower(): value for name, value in self._first.items()}, **self._values}

    def apply(self, sql: str) -> bool:
        """Do `SET ai_..` or `RESET ai_..`; False when `sql` is neither. `ProgrammingError` names the place."""
        start = beginning(sql)
        match = _SET.match(sql, start) or _RESET.match(sql, start)
        if match is None:
            return False
        name = match["name"].lower()
        try:
            if "value" in match.groupdict():
                self._values[name] = _checked(name, _value(match["value"]))
            else:
                self._values[name] = config.lookup(name).default
        except ProgrammingError as error:
            raise programming_error(sql, match.start("name"), str(error)) from None
        return True

    def macro(self, sql: str) -> str | None:
        """The statement that makes `ai_settings()` give today's values, where `sql` asks for them."""
        if not _MENTION.search(sql):
            return None
        values = self.values()
        rows = [
            f"({_text(name)}, {_text(_shown(values[name]))}, {_text(setting.type.__name__)}, "
            f"{_text(_shown(setting.default))}, {_text(setting.help)})"
            for name, setting in config.SETTINGS.items()
        ]
        return (
            "CREATE OR REPLACE TEMP MACRO ai_settings() AS TABLE "
            f'SELECT * FROM (VALUES {", ".join(rows)}) AS s(name, value, type, "default", help)'
        )


def _checked(name: str, value: Value) -> Value:
    """The value of a setting; `ProgrammingError` says what is allowed."""
    parsed = config.parse(name, value)
    if name.lower() == "ai_workers":
        where.parse(str(parsed))
    return parsed


def _value(text: str) -> Value:
    quoted = _QUOTED.match(text)
    if quoted:
        return quoted[1].replace("''", "'")
    return None if text.upper() in ("NULL", "DEFAULT") else text


def _shown(value: Value) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _text(value: str | None) -> str:
    return "NULL::VARCHAR" if value is None else "'" + value.replace("'", "''") + "'"
