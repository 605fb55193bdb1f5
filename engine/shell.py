"""The interactive shell, and the same statements from a pipe.

Ctrl-C at the prompt clears the line; while a query runs it cancels the query and not the shell. Ctrl-D quits.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice import config
from sqluice.engine import output
from sqluice.engine.running import (
    BATCH_ROWS,
    contract_note,
    execute,
    out_console,
    plan_text,
    printable,
    running,
    say,
    warnings_of,
)
from sqluice.engine.script import is_complete, split
from sqluice.engine.table import draw
from sqluice.errors import Error, InterruptedQueryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prompt_toolkit import PromptSession
    from rich.console import Console

    from sqluice.engine.dbapi import Connection, Cursor
    from sqluice.engine.progress import ProgressBar

GREETING = "SQLuice {version}. End SQL with a semicolon; .help lists the commands; Ctrl-D quits."
MODES = ("table", "csv", "json", "jsonl")
SCREEN_ROWS = 60

HELP = """\
.help               this text
.tables             tables and views of the database
.schema [TABLE]     columns of TABLE, or of every table
.mode [FORMAT]      how results are shown: table, csv, json, jsonl
.timer [on|off]     the time below each result
.report [on|off]    the report of the last query; on prints it after each query
.read FILE          run the statements of FILE
.quit               leave (also Ctrl-D)"""


class Quit(Exception):  # noqa: N818 - not an error
    """The person asked to leave."""


@dataclass
class Options:
    """What dot commands change."""

    mode: str = "table"
    timer: bool = True
    report: bool = False


class Shell:
    """Reads statements and dot commands, and shows what they give."""

    def __init__(self, con: Connection, bar: ProgressBar, *, console: Console | None = None) -> None:
        self.con = con
        self.options = Options()
        self._bar = bar
        self._console = console or out_console()
        self._last: Cursor | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "tables": self._tables,
            "schema": self._schema,
            "mode": self._mode,
            "timer": self._timer,
            "report": self._report,
            "read": self._read,
            "quit": self._quit,
            "exit": self._quit,
        }

    def run(self) -> int:
        """Until Ctrl-D or `.quit`; the exit code. From a pipe the first error ends the run with 1."""
        try:
            return self.loop(prompt_session(self)) if sys.stdin.isatty() else self.pipe(sys.stdin.read())
        except Quit:
            return 0

    def loop(self, session: PromptSession[str]) -> int:
        """The read-and-run loop on a terminal."""
        from sqluice import __version__

        say(GREETING.format(version=__version__))
        while True:
            try:
                text = session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return 0
            try:
                self.feed(text)
            except Quit:
                return 0

    def pipe(self, text: str) -> int:
        """Run a whole script: dot commands on lines of their own between statements."""
        for piece in pieces(text):
            if not self.feed(piece):
                return 1
        return 0

    def feed(self, text: str) -> bool:
        """Run a dot command or statements; errors are shown, and make the answer False."""
        try:
            if text.lstrip().startswith("."):
                self.command(text.strip())
            else:
                for statement in split(text).all():
                    self.statement(statement.sql)
        except Quit:
            raise
        except (KeyboardInterrupt, InterruptedQueryError):
            say("cancelled")
            return False
        except (Error, OSError) as error:
            say(f"error: {error}")
            return False
        except Exception as error:  # noqa: BLE001 - a bug of ours costs the statement, not the session
            say(f"internal error: {type(error).__name__}: {error}")
            return False
        return True

    def command(self, line: str) -> None:
        """One dot command. `OSError` and `Error` reach the caller."""
        name, _, argument = line[1:].partition(" ")
        found = self._commands.get(name.lower())
        if found is None:
            say(f"error: no command .{name}; .help lists them")
        else:
            found(argument.strip().rstrip(";").strip())

    def statement(self, sql: str) -> None:
        """Run one statement and show its result, its time and its warnings."""
        begun = time.monotonic()
        with running(self.con, self._bar):
            cursor = execute(self.con, sql)
            self._last = cursor
            footer = self._show(cursor)
        self._foot(footer, time.monotonic() - begun)
        for text in warnings_of(cursor):
            say(f"warning: {text}")
        if self.options.report:
            self._print_report()

    def _show(self, cursor: Cursor) -> str:
        """Print the rows; a footer that counts them."""
        if cursor.description is None:
            return "done" if cursor.rowcount < 0 else f"{cursor.rowcount:,} rows changed"
        if (plan := plan_text(cursor)) is not None:
            self._console.print(printable([plan]), soft_wrap=True)
            return ""
        reader = cursor.fetch_record_batch(BATCH_ROWS)
        if self.options.mode == "table":
            return str(draw(reader, self._console, max_rows=SCREEN_ROWS if self._console.is_terminal else None))
        rows = output.write(reader, self.options.mode, Shown(self._console, self._bar))
        return f"{rows:,} row{'' if rows == 1 else 's'}"

    def _foot(self, footer: str, seconds: float) -> None:
        from sqluice.engine.progress import duration

        calls = int(getattr(self._last and self._last.report, "calls", 0) or 0)
        asked = f"{calls:,} model call{'' if calls == 1 else 's'}" if calls else ""
        note = contract_note(self._last) if self._last is not None else ""
        parts = [footer, duration(seconds) if self.options.timer else "", asked, note]
        say("  ".join(part for part in parts if part))

    def _help(self, _argument: str) -> None:
        self._console.print(HELP)

    def _quit(self, _argument: str) -> None:
        raise Quit

    def _tables(self, _argument: str) -> None:
        self.statement(
            "SELECT schema_name AS schema, table_name AS name, 'table' AS kind FROM duckdb_tables()"
            " UNION ALL SELECT schema_name, view_name, 'view' FROM duckdb_views() WHERE NOT internal"
            " ORDER BY schema, name"
        )

    def _schema(self, argument: str) -> None:
        wanted = f"AND table_name = '{_quoted(argument)}'" if argument else ""
        self.statement(
            "SELECT table_name AS table, column_name AS column, data_type AS type, is_nullable AS nullable"
            f" FROM duckdb_columns() WHERE NOT internal {wanted} ORDER BY table_name, column_index"
        )

    def _mode(self, argument: str) -> None:
        if argument and argument not in MODES:
            say(f"error: .mode is one of {', '.join(MODES)}")
            return
        self.options.mode = argument or self.options.mode
        say(f"mode {self.options.mode}")

    def _timer(self, argument: str) -> None:
        self.options.timer = _switch(argument, self.options.timer)
        say(f"timer {'on' if self.options.timer else 'off'}")

    def _report(self, argument: str) -> None:
        if argument:
            self.options.report = _switch(argument, self.options.report)
            say(f"report {'on' if self.options.report else 'off'}")
        else:
            self._print_report()

    def _print_report(self) -> None:
        report = getattr(self._last, "report", None)
        say("no query has run yet" if report is None else str(report))

    def _read(self, argument: str) -> None:
        if not argument:
            say("error: .read takes the name of a file")
            return
        for piece in pieces(Path(argument).expanduser().read_text(encoding="utf-8-sig")):
            if not self.feed(piece):
                return


class Shown:
    """A binary file over a console: control characters are shown, not obeyed; the bar makes way."""

    def __init__(self, console: Console, bar: ProgressBar) -> None:
        self._console = console
        self._bar = bar

    def write(self, data: bytes) -> int:
        """Decode and print `data`."""
        self._bar.stop()
        self._console.file.write(printable([data.decode("utf-8", "replace")]))
        return len(data)


def pieces(text: str) -> list[str]:
    """A script cut into dot-command lines and runs of SQL between them."""
    found: list[str] = []
    waiting = ""
    for line in text.splitlines(keepends=True):
        if line.startswith(".") and is_complete(waiting):
            found += [waiting, line]
            waiting = ""
        else:
            waiting += line
    return [piece for piece in [*found, waiting] if piece.strip()]


def _switch(argument: str, now: bool) -> bool:
    return {"on": True, "off": False}.get(argument.lower(), not now)


def _quoted(text: str) -> str:
    return text.strip().strip('"').replace("'", "''")


def prompt_session(shell: Shell, **streams: Any) -> PromptSession[str]:
    """A prompt with history, multi-line SQL, completion and colours. `streams`: input and output other than
    the terminal."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.lexers import PygmentsLexer
    from pygments.lexers.sql import SqlLexer  # comes with rich

    from sqluice.engine.completing import SqlCompleter

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return PromptSession(
        message="sqluice> ",
        prompt_continuation=lambda width, _line, _soft: "." * (width - 1) + " ",
        multiline=True,
        key_bindings=keys,
        history=_history(),
        completer=SqlCompleter(shell.con),
        complete_while_typing=False,
        lexer=PygmentsLexer(SqlLexer),
        **streams,
    )


def _history() -> Any:
    """The history file under `config.home()`; in memory where that folder cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = config.home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "history"
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
