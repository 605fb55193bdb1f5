"""What the shell offers after Tab: AI functions, keywords, settings, tables, columns, dot commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prompt_toolkit.completion import Completer, Completion

from sqluice.config import SETTINGS
from sqluice.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from sqluice.engine.dbapi import Connection

AI_FUNCTIONS = (
    "AI_FILTER(",
    "AI_CLASSIFY(",
    "AI_SCORE(",
    "AI_EMBED(",
    "AI_SIMILARITY(",
    "AI_COMPLETE(",
    "AI_COUNT_TOKENS(",
    "PROMPT(",
    "AI_JOIN",
    "ai_settings()",
)
TRACE_TABLES = ("ai.runs", "ai.ops", "ai.batches", "ai.decisions")
DOT_COMMANDS = (".help", ".tables", ".schema", ".mode", ".timer", ".report", ".read", ".quit")
_WORD = re.compile(r'[\w."]*\Z')
_SETTING = re.compile(r"\b(?:SET|RESET)\s+(?:\w*)\Z", re.IGNORECASE)


class SqlCompleter(Completer):
    """Completes the word before the cursor. The catalog is read each time: new tables are known at once."""

    def __init__(self, con: Connection) -> None:
        self._con = con
        self._keywords: list[str] = []

    def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
        """Names that begin with the word before the cursor, the most specific kinds first."""
        before = document.text_before_cursor
        word = _WORD.search(before)
        typed = word.group() if word else ""
        for text, kind in matching(typed, self._offers(before)):
            yield Completion(text, start_position=-len(typed), display_meta=kind)

    def _offers(self, before: str) -> list[tuple[str, str]]:
        if before.startswith(".") and " " not in before:
            return [(name, "command") for name in DOT_COMMANDS]
        settings = [(name, "setting") for name in SETTINGS]
        if _SETTING.search(before):
            return settings
        fixed = [
            *((name, "AI function") for name in AI_FUNCTIONS),
            *((name, "trace") for name in TRACE_TABLES),
        ]
        self._keywords = self._keywords or keywords(self._con)
        return [*catalog(self._con), *fixed, *((word, "keyword") for word in self._keywords)]


def matching(typed: str, offers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The offers that begin with `typed` (any case), each text once; nothing for an empty word."""
    if not typed:
        return []
    low = typed.lower()
    found: dict[str, str] = {}
    for text, kind in offers:
        if text.lower().startswith(low) and text != typed:
            found.setdefault(text, kind)
    return list(found.items())


def catalog(con: Any) -> list[tuple[str, str]]:
    """Tables, views and columns of the connection's database."""
    pairs = _rows(con, "SELECT DISTINCT table_name, column_name FROM duckdb_columns() WHERE NOT internal")
    tables = sorted({identifier(table) for table, _ in pairs})
    columns = sorted({identifier(column) for _, column in pairs})
    return [*((name, "table") for name in tables), *((name, "column") for name in columns)]


def keywords(con: Any) -> list[str]:
    """Every keyword of DuckDB's grammar, in capitals."""
    return [name for (name,) in _rows(con, "SELECT upper(keyword_name) FROM duckdb_keywords() ORDER BY 1")]


def _rows(con: Any, sql: str) -> list[Any]:
    """Rows of a catalog query; none where the catalog cannot be read now, e.g. in an aborted transaction:
    completion must not disturb the prompt."""
    cursor = con.cursor()
    try:
        cursor.execute(sql)
        return list(cursor.fetchall())
    except Error:
        return []
    finally:
        cursor.close()


def identifier(name: str) -> str:
    """`name`, in double quotes where SQL needs them."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'
