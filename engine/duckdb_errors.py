"""DuckDB's errors as PEP 249 ones that point into the SQL.

DuckDB raises its own classes, or, through an Arrow stream, `OSError` with the same text. It marks a place with
`LINE 2: ...` and a caret (columns count the text it was given, or its own rendering of it), or only names what it
did not find. `translate` finds that place in the SQL the person wrote; where it cannot, no place is given.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sqluice import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS: dict[str, type[errors.Error]] = {
    **dict.fromkeys(
        ("parser", "syntax", "binder", "catalog", "invalidtype", "parameternotresolved"), errors.ProgrammingError
    ),
    "constraint": errors.IntegrityError,
    **dict.fromkeys(("conversion", "outofrange", "typemismatch", "mismatchtype", "invalidinput"), errors.DataError),
    "interrupt": errors.InterruptedQueryError,
    **dict.fromkeys(
        ("io", "http", "outofmemory", "connection", "resourceinuse", "transaction", "transactioncontext"),
        errors.OperationalError,
    ),
    "serialization": errors.OperationalError,
    **dict.fromkeys(("internal", "fatal"), errors.InternalError),
    "notimplemented": errors.NotSupportedError,
}
_PREFIX = re.compile(r"\s*([A-Za-z][A-Za-z/ -]*?) Error: ")
# What DuckDB files under "Invalid Input" although no value is at fault.
_INVALID_INPUT = (
    (re.compile(r"Values were not provided|count mismatch|excess parameters"), errors.ProgrammingError),
    (re.compile(r"read-only|Python exception|Python object"), errors.OperationalError),
)
_OURS = re.compile(r"^sqluice\.errors\.(\w+): (.*)\Z", re.MULTILINE | re.DOTALL)

_MARK = re.compile(r"^LINE (\d+): (.*)\n( *)(\^+)[ ]*$", re.MULTILINE)
_NEAR = re.compile(r'at or near "(.+?)"')
_HIDDEN = re.compile(
    r"(?P<text>[eE]'(?:[^'\\]|\\.|'')*'?|'[^']*(?:''[^']*)*'?)"
    r"|(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"
    r"|(?P<dollar>(?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z))"
    r'|(?P<name>"[^"]*(?:""[^"]*)*"?)',
    re.DOTALL,
)
# How DuckDB names what it did not find, the most telling form first; a `(` or `.` must follow that name in the SQL.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r'[Tt]able "(?P<table>[^"]+)" does not have a column (?:named|with name) "(?P<name>[^"]+)"'), ""),
    (re.compile(r'Referenced table "(?P<name>[^"]+)" not found'), r"(?=\s*\.)"),
    (re.compile(r"(?:Function|Macro) with name \"?(?P<name>[\w.]+)\"? does not exist"), r"(?=\s*\()"),
    (re.compile(r"'(?P<name>\w+)\("), r"(?=\s*\()"),
    (re.compile(r'with name "?(?P<name>[^"\s]+)"?'), ""),
    (re.compile(r'column "?(?P<name>[^"\s]+)"? not found'), ""),
    (re.compile(r'column name "(?P<name>[^"]+)"'), ""),
    (re.compile(r'"(?P<name>[^"]+)"'), ""),
)


def translate(error: BaseException, sql: str | None = None) -> errors.Error:
    """The `sqluice` error for what DuckDB (or Arrow, reading from DuckDB) raised; `error` is its cause.

    An error of ours comes back as it is. `sql` is the text the person wrote.
    """
    if isinstance(error, errors.Error):
        return error
    translated = _ours_inside(str(error)) or _new(error, sql)
    translated.__cause__ = error
    return translated


def _new(error: BaseException, sql: str | None) -> errors.Error:
    kind = _kind(error)
    head, mark = _cut_mark(str(error).rstrip())
    if mark is None:
        name_known = sql is not None and issubclass(kind, (errors.ProgrammingError, errors.OperationalError))
        return _placed(kind, head, sql, _named_offset(head, sql) if sql and name_known else None)
    if sql is None:
        return _unplaced(kind, head, mark)
    offset = _marked_offset(mark, head, sql)
    return _placed(kind, head, sql, offset if offset is not None else _named_offset(head, sql))


def _kind(error: BaseException) -> type[errors.Error]:
    """The class by the words before `Error:`, else by the names of DuckDB's classes."""
    text = str(error)
    prefix = _PREFIX.match(text)
    words = [prefix.group(1)] if prefix else []
    words += [base.__name__.removesuffix("Exception") for base in type(error).__mro__]
    for word in words:
        key = re.sub(r"[^a-z]", "", word.lower())
        if key == "invalidinput":
            return next((kind for pattern, kind in _INVALID_INPUT if pattern.search(text)), errors.DataError)
        if key in _KINDS:
            return _KINDS[key]
    return _foreign(error)


def _foreign(error: BaseException) -> type[errors.Error]:
    """The class for an error that DuckDB does not name: its plain PEP 249 classes, then Python's own."""
    if isinstance(error, KeyboardInterrupt):
        return errors.InterruptedQueryError
    module = type(error).__module__.partition(".")[0]
    if module in ("duckdb", "_duckdb"):
        for base in type(error).__mro__:
            ours = getattr(errors, base.__name__, None)
            if isinstance(ours, type) and issubclass(ours, errors.DatabaseError):
                return ours
        return errors.DatabaseError
    if isinstance(error, (OSError, MemoryError)):
        return errors.OperationalError
    return errors.DataError if isinstance(error, (ValueError, TypeError)) else errors.InternalError


def _ours_inside(text: str) -> errors.Error | None:
    """An error of ours that crossed DuckDB as the last line of a Python traceback."""
    found = _OURS.search(text)
    kind = getattr(errors, found.group(1), None) if found else None
    if found is None or not (isinstance(kind, type) and issubclass(kind, errors.Error)):
        return None
    translated = kind.__new__(kind)
    errors.Error.__init__(translated, found.group(2).strip())
    return translated


class _Mark:
    """DuckDB's `LINE n:` block: the line's number, the excerpt without dots, and the marked columns in it."""

    def __init__(self, match: re.Match[str]) -> None:
        self.line = int(match.group(1))
        excerpt = match.group(2).removesuffix("...")
        self.elided = excerpt.startswith("...")
        prefix = len(f"LINE {match.group(1)}: ")
        start = _index_at_width(excerpt, len(match.group(3)) - prefix)
        end = _index_at_width(excerpt, len(match.group(3)) - prefix + len(match.group(4)))
        cut = 3 if self.elided else 0
        self.excerpt = excerpt[cut:]
        self.start, self.end = start - cut, end - cut

    @property
    def token(self) -> str:
        """The text the caret stands under: the word from there on when it is a single caret."""
        if self.end - self.start > 1:
            return self.excerpt[self.start : self.end]
        word = re.match(r"[^\W\d]\w*|\S", self.excerpt[self.start :])
        return word.group() if word else ""


def _cut_mark(text: str) -> tuple[str, _Mark | None]:
    """The message without its `LINE n:` block, and that block."""
    match = _MARK.search(text)
    if match is None:
        return text, None
    head = (text[: match.start()].rstrip() + "\n" + text[match.end() :].strip()).strip()
    return head, _Mark(match)


def _index_at_width(text: str, width: int) -> int:
    """The index in `text` of what a terminal shows `width` cells from its start, as DuckDB counts them."""
    cells = 0
    for index, char in enumerate(text):
        own = _width(char)
        if own and cells >= width:
            return index
        cells += own
    return len(text) + width - cells


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) == "Cc":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _marked_offset(mark: _Mark, head: str, sql: str) -> int | None:
    """Where in `sql` the mark stands: in its line when that is the line DuckDB shows, else its token if unique."""
    near = _NEAR.search(head)
    lines = sql.split("\n")
    if mark.line <= len(lines) and mark.start < len(mark.excerpt):
        place = _only(_flat(lines[mark.line - 1]), _flat(mark.excerpt).rstrip())
        if place == 0 or (place is not None and mark.elided):
            offset = sum(len(line) + 1 for line in lines[: mark.line - 1]) + place + mark.start
            if near is None or sql.startswith(near.group(1), offset):
                return offset
    token = near.group(1) if near else mark.token
    if not re.search(r"\w", token):
        return None
    found = [match.start() for match in _whole(token).finditer(_visible(sql, keep="text"))]
    return found[0] if len(found) == 1 else None


def _only(text: str, part: str) -> int | None:
    """Where `text` holds `part`, if it does so once."""
    place = text.find(part)
    return place if place >= 0 and text.find(part, place + 1) < 0 else None


def _flat(text: str) -> str:
    return re.sub(r"\s", " ", text)


def _named_offset(message: str, sql: str) -> int | None:
    """Where `sql` first holds what the message's first line names: an identifier, or a literal (a file's name)."""
    first = message.partition("\n")[0]
    shown = _visible(sql)
    for pattern, after in _NAMES:
        match = pattern.search(first)
        if match is None:
            continue
        name = match.group("name").strip("\"'")
        for start in _occurrences(name, match.groupdict().get("table"), after, shown):
            return start - (shown[start - 1 : start] == '"')
        literal = sql.find(f"'{name}'")
        if literal >= 0:
            return literal
    return None


def _occurrences(name: str, table: str | None, after: str, shown: str) -> Iterator[int]:
    """Places of `name` in `shown`: with its table's name before it, then unqualified, then anywhere."""
    if table is not None:
        behind = re.compile(rf'(?<![\w$]){re.escape(table)}"?\s*\.\s*"?(?={re.escape(name)}(?![\w$]))', re.IGNORECASE)
        yield from (match.start() for match in behind.finditer(shown))
    yield from (match.start() for match in _whole(name, r"(?<![\w$.])(?<!\.\")", after).finditer(shown))
    yield from (match.start() for match in _whole(name, after=after).finditer(shown))


def _whole(name: str, before: str = r"(?<![\w$])", after: str = "") -> re.Pattern[str]:
    """Matches `name` as a whole word, in any case; `after` must follow it, or its closing quote."""
    follow = f'"?{after}' if after else ""
    return re.compile(rf"{before}{re.escape(name)}(?![\w$]){follow}", re.IGNORECASE)


def _visible(sql: str, keep: str = "") -> str:
    """`sql` with the inside of literals and comments blanked, offsets unchanged; `keep` names a kind to leave."""

    def blank(match: re.Match[str]) -> str:
        kind = next(kind for kind in ("text", "comment", "dollar", "name") if match.group(kind) is not None)
        return match.group() if kind in ("name", keep) else re.sub(r"[^\n]", " ", match.group())

    return _HIDDEN.sub(blank, sql)


def _placed(kind: type[errors.Error], message: str, sql: str | None, offset: int | None) -> errors.Error:
    if sql is None or offset is None or offset > len(sql):
        return kind(message)
    line, column = errors.at(sql, offset)
    return kind(errors.underline(sql, offset, message), line=line, column=column)


def _unplaced(kind: type[errors.Error], message: str, mark: _Mark) -> errors.Error:
    """Without the SQL: DuckDB's own line and excerpt; no column where the excerpt is cut at its left."""
    column = None if mark.elided else mark.start + 1
    where = f"at line {mark.line}" + (f", column {column}" if column else "")
    text = f"{message}\n  {where}:\n  {mark.excerpt}\n  {' ' * mark.start}^"
    return kind(text, line=mark.line, column=column)
