"""Cut a script into statements, without parsing them.

The cut knows DuckDB's quotes ('..', E'..', ".."), dollar quotes and nested comments, and nothing else, so
that AI syntax DuckDB's parser does not know (AI_JOIN) passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<escaped> (?<![\w$])[eE]'(?:[^'\\]|\\.|'')*(?P<escaped_end>'?) )
    | (?P<text>    '[^']*(?:''[^']*)*(?P<text_end>'?) )
    | (?P<name>    "[^"]*(?:""[^"]*)*(?P<name_end>"?) )
    | (?P<line>    --[^\n]* )
    | (?P<block>   /\* )
    | (?P<dollar>  (?<![\w$])\$(?:[^\W\d]\w*)?\$ )
    | (?P<end>     ; )
    """,
    re.VERBOSE | re.DOTALL,
)
_BLANK = re.compile(r"\s+|--[^\n]*|/\*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement without its semicolon, and the offset in the script where its text begins."""

    sql: str
    offset: int


@dataclass(frozen=True, slots=True)
class Script:
    """Statements that end with a semicolon, then what is left. `open` names an unclosed quote or comment."""

    statements: list[Statement]
    rest: Statement | None
    open: str = ""

    def all(self) -> list[Statement]:
        """Every statement, the unfinished last one included."""
        return [*self.statements, *([self.rest] if self.rest else [])]


def split(text: str) -> Script:
    """Cut `text` at its semicolons; pieces of only blanks and comments are dropped."""
    found: list[Statement] = []
    start = position = 0
    blank, unclosed = True, ""
    while match := _TOKEN.search(text, position):
        blank = blank and not text[position : match.start()].strip()
        kind = match.lastgroup or ""
        kind = kind.removesuffix("_end")
        position = match.end()
        if kind == "end":
            if not blank:
                found.append(_statement(text, start, match.start()))
            start, blank = position, True
        elif kind == "block":
            position, unclosed = _comment_end(text, position)
        elif kind == "dollar":
            position, unclosed = _dollar_end(text, position, match.group())
        elif kind != "line":
            unclosed = "" if match.group(f"{kind}_end") else "a quote"
        blank = blank and kind in ("line", "block", "end")
    blank = blank and not text[position:].strip()
    return Script(found, None if blank else _statement(text, start, len(text)), unclosed)


def is_complete(text: str) -> bool:
    """Whether a shell may run `text` as it stands: a dot command, nothing, or SQL up to a semicolon."""
    if text.lstrip().startswith("."):
        return True
    script = split(text)
    return script.rest is None and not script.open


def beginning(sql: str) -> int:
    """Where a statement's first word stands, behind blanks and comments."""
    position = 0
    while match := _BLANK.match(sql, position):
        position = _comment_end(sql, match.end())[0] if match.group().endswith("/*") else match.end()
    return position


def _statement(text: str, start: int, end: int) -> Statement:
    piece = text[start:end]
    return Statement(piece.strip(), start + len(piece) - len(piece.lstrip()))


def _comment_end(text: str, position: int) -> tuple[int, str]:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, position)
        if edge is None:
            return len(text), "a comment"
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
    return position, ""


def _dollar_end(text: str, position: int, tag: str) -> tuple[int, str]:
    end = text.find(tag, position)
    return (len(text), f"a {tag} quote") if end < 0 else (end + len(tag), "")
