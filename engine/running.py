"""What the command line and the shell share: run one statement so that a person can watch and stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console

    from sqluice.engine.dbapi import Connection, Cursor
    from sqluice.engine.progress import ProgressBar

BATCH_ROWS = 8192
MAX_WARNINGS = 5
ENDLESS = 20_000  # width of a table in cells where there is no terminal


@contextlib.contextmanager
def interruptible(interrupt: Callable[[], object]) -> Iterator[None]:
    """The first Ctrl-C inside the block calls `interrupt`; a second one raises KeyboardInterrupt.

    Signals reach the main thread alone, so elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def running(con: Connection, bar: ProgressBar) -> Iterator[None]:
    """One statement's life: progress drawn after a second, Ctrl-C cancels."""
    with bar, interruptible(con.interrupt):
        yield


def execute(con: Connection, sql: str, params: Sequence[object] | None = None) -> Cursor:
    """A new cursor on which `sql` ran."""
    cursor = con.cursor()
    if params is None:
        cursor.execute(sql)
    else:
        cursor.execute(sql, params)
    return cursor


def plan_text(cursor: Cursor) -> str | None:
    """What EXPLAIN drew, which a table would only box in again; None for any other result."""
    names = [str(column[0]).lower() for column in cursor.description or ()]
    if names not in (["explain_key", "explain_value"], ["explain"], ["plan"]):
        return None
    return "\n".join(str(row[-1]).rstrip("\n") for row in cursor.fetchall())


def warnings_of(cursor: Cursor) -> list[str]:
    """Texts of the cursor's warnings, each once, at most `MAX_WARNINGS` and a count of the others."""
    counts: dict[str, int] = {}
    for entry in getattr(cursor, "messages", None) or ():
        text = str(entry[1] if isinstance(entry, tuple) else entry)
        counts[text] = counts.get(text, 0) + 1
    lines = [text if n == 1 else f"{text} ({n} times)" for text, n in list(counts.items())[:MAX_WARNINGS]]
    if len(counts) > MAX_WARNINGS:
        lines.append(f"{len(counts) - MAX_WARNINGS} more warnings of other kinds")
    return lines


def contract_note(cursor: Cursor) -> str:
    """What the result can be trusted for, where cheaper tiers than the oracle have decided rows; else empty."""
    label = getattr(getattr(cursor, "report", None), "label", None)
    return f"answers {label}" if label and label != "exact" else ""


def printable(lines: Iterable[str]) -> str:
    """Text for a terminal: what a row or a server wrote must not steer it."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in "\n".join(lines))


class Beside:
    """A binary file on the terminal that a progress bar shares: each write takes the bar off the screen."""

    def __init__(self, bar: ProgressBar, file: BinaryIO) -> None:
        self._bar = bar
        self._file = file

    def write(self, data: bytes) -> int:
        """Write `data`; the bar comes back with the next progress."""
        self._bar.stop()
        return self._file.write(data)


def say(text: str) -> None:
    """A message for the person, on standard error."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(printable([text]) + "\n")
        sys.stderr.flush()


def out_console(stream: Any = None) -> Console:
    """A console on standard output: as wide as the terminal, or wide enough for whole values in a pipe."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else ENDLESS
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def err_console() -> Console:
    """A console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)
