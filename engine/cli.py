"""The `sqluice` command.

Standard output carries data and nothing else; progress, warnings, reports and errors go to standard error.
Exit codes: 0 done, 1 the query or a model failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sqluice import __version__
from sqluice.engine import models_command
from sqluice.errors import Error, InterruptedQueryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.config import Value
    from sqluice.engine.dbapi import Connection, Cursor
    from sqluice.engine.progress import ProgressBar
    from sqluice.types import Progress

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
SUFFIXES = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SCREEN_ROWS = 60


class UsageError(Exception):
    """The command line is wrong in a way argparse cannot see."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = "to run SQL: sqluice query SQL; " if "COMMAND" in message else ""
        self.exit(2, f"error: {message}\n({hint}all options: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="sqluice",
        description="SQL over tables that hold text. Without a command: the interactive shell.",
        epilog="Example: sqluice query \"SELECT AI_FILTER('Paris is in France.')\"",
    )
    parser.add_argument("--version", action="version", version=f"sqluice {__version__}")
    _add_connection_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    query = commands.add_parser("query", help="run SQL and write the result to standard output")
    _add_sql(query)
    query.add_argument("--format", choices=FORMATS, help="table unless the name of --output says otherwise")
    query.add_argument("--output", metavar="FILE", help="write there; the file appears whole or not at all")
    query.add_argument("--report", action="store_true", help="afterwards print rows by tier, calls, tokens, time")
    _add_connection_options(query)

    explain = commands.add_parser("explain", help="print the plan of a query")
    _add_sql(explain)
    explain.add_argument("--analyze", action="store_true", help="run the query and add what was measured")
    explain.add_argument("--json", action="store_true", help="the plan as JSON")
    _add_connection_options(explain)

    demo = commands.add_parser("demo", help="a first query on the embedded model, with its accuracy")
    _add_connection_options(demo, database=False)

    _add_job(commands)

    models_command.add_parser(commands, _add_connection_options)
    return parser


def _add_job(commands: Any) -> None:
    job = commands.add_parser("job", help="run SQL over many files, partition by partition on Ray")
    actions = job.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    run = actions.add_parser("run", help="run a job, or go on with one")
    run.add_argument("sql", metavar="FILE", help="the SELECT, and what comes before it; or SQL itself")
    run.add_argument(
        "--input",
        metavar="[NAME=]PATTERN",
        action="append",
        required=True,
        help="Parquet files, read as the table NAME (input); the first is cut into partitions; repeatable",
    )
    run.add_argument("--address", help="a Ray cluster: auto, or host:port; Ray is started on this machine without one")
    run.add_argument("--partitions", metavar="N", type=int, help="how many; found from the rows without it")
    run.add_argument("--resume", action="store_true", help="go on with the job that --output holds")
    run.add_argument("--budget", help="what all partitions together may spend: '500 calls', '2.50 usd', '10 min'")
    _add_connection_options(run, database=False)
    status = actions.add_parser("status", help="where a job is")
    status.add_argument("--json", action="store_true", help="as JSON")
    cancel = actions.add_parser("cancel", help="end a job; what is finished is kept")
    run.add_argument("--output", metavar="FOLDER", required=True, help="a new folder, for the rows and the job's state")
    for action in (status, cancel):
        action.add_argument("output", metavar="FOLDER", help="the job's folder")
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def _add_sql(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sql", metavar="SQL", nargs="?", help="the statements; - reads standard input")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the statements from FILE")


def _add_connection_options(parser: argparse.ArgumentParser, *, database: bool = True) -> None:
    """Options of every command that opens a connection; they may stand before or after the command."""
    keep = argparse.SUPPRESS
    group = parser.add_argument_group("connection")
    if database:
        group.add_argument("--db", metavar="FILE", default=keep, help="DuckDB database file; in memory if absent")
    group.add_argument("--oracle", metavar="URI", default=keep, help="model that answers: same as --set ai_oracle=URI")
    group.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=keep,
        help="a setting, e.g. ai_threads=2; repeatable",
    )
    group.add_argument(
        "--allow-model",
        metavar="PLACE",
        action="append",
        default=keep,
        help="also take models from this host, folder or package; repeatable",
    )
    group.add_argument("--debug", action="store_true", default=keep, help="show tracebacks")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _dispatch(args)
    except BrokenPipeError:
        _discard_stdout()
        return 0
    except UsageError as error:
        _say(f"error: {error}")
        return 2
    except (KeyboardInterrupt, InterruptedQueryError):
        _say("interrupted")
        return 130
    except Exception as error:
        if getattr(args, "debug", False):
            raise
        _say(_message(error))
        return 1


def _dispatch(args: argparse.Namespace) -> int:
    commands: dict[str | None, Callable[[argparse.Namespace], int]] = {
        "query": _query,
        "explain": _explain,
        "demo": _demo,
        "job": _job,
        "models": _models,
        None: _shell,
    }
    return commands[args.command](args)


def _message(error: Exception) -> str:
    if isinstance(error, Error):
        return f"error: {error}"
    if isinstance(error, (OSError, UnicodeDecodeError)):
        return f"error: {error}"
    return f"internal error: {type(error).__name__}: {error}\n(--debug shows where; please report it)"


def _say(text: str) -> None:
    from sqluice.engine.running import say

    say(text)


def _discard_stdout() -> None:
    """The reader of our pipe went away: nothing to say, and no complaint from Python at exit either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def settings_of(args: argparse.Namespace) -> dict[str, Value]:
    """The `ai_*` settings that --set and --oracle give, checked. `UsageError` for a bad one."""
    from sqluice import config

    settings: dict[str, Value] = {}
    for text in getattr(args, "set", []):
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, not {text!r}")
        settings[name.strip().lower()] = _checked(config.parse, name.strip(), value.strip())
    if hasattr(args, "oracle"):
        settings["ai_oracle"] = args.oracle
    return settings


def _checked(parse: Callable[[str, Value], Value], name: str, value: str) -> Value:
    try:
        return parse(name, value)
    except Error as error:
        raise UsageError(str(error)) from None


def allowed_of(args: argparse.Namespace) -> list[str] | None:
    """The places that --allow-model adds to the default ones; None without it."""
    extra = getattr(args, "allow_model", [])
    return ["default", *extra] if extra else None


def open_connection(args: argparse.Namespace, progress: Callable[[Progress], None] | None) -> Connection:
    """The connection that the options describe."""
    import sqluice

    settings: dict[str, Any] = dict(settings_of(args))
    return sqluice.connect(
        getattr(args, "db", ":memory:"),
        progress=progress,
        allow_models=allowed_of(args),
        **settings,
    )


def _source(args: argparse.Namespace) -> str:
    """The SQL text, from the argument, a file or standard input."""
    if args.file is not None and args.sql is not None:
        raise UsageError("give SQL or --file, not both")
    if args.file is not None:
        return Path(args.file).read_text(encoding="utf-8-sig")
    if args.sql == "-" or (args.sql is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    if args.sql is None:
        raise UsageError("no SQL: give it as an argument, with --file, or on standard input")
    return str(args.sql)


def _statements(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Each statement with a note of where it begins (empty when it is the only one)."""
    from sqluice.engine.script import split
    from sqluice.errors import at

    text = _source(args)
    found = split(text).all()
    if not found:
        raise UsageError("the SQL is empty")
    if len(found) == 1 and "\n" not in text[: found[0].offset]:
        return [(found[0].sql, "")]
    where = "" if args.file is None else f" of {args.file}"
    return [(piece.sql, f"in the statement at line {at(text, piece.offset)[0]}{where}: ") for piece in found]


def _query(args: argparse.Namespace) -> int:
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console, execute, running

    form = _format(args)
    statements = _statements(args)
    bar = ProgressBar(err_console())
    con = open_connection(args, bar)
    try:
        for number, (sql, where) in enumerate(statements, 1):
            with _located(where), running(con, bar):
                cursor = execute(con, sql)
                if cursor.description is not None and (number == len(statements) or form == "table"):
                    _write(cursor, form, args.output, bar)
                elif number == len(statements) and args.output:
                    raise UsageError("the last statement returns no rows, so there is nothing to write")
            _after(cursor, report=args.report)
    finally:
        con.close()
    return 0


class _located:  # noqa: N801 - reads as a verb
    """Puts where a statement of a script begins in front of its errors."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self.where and isinstance(error, Error) and not isinstance(error, InterruptedQueryError):
            error.args = (self.where + str(error), *error.args[1:])


def _format(args: argparse.Namespace) -> str:
    if args.format is None:
        return SUFFIXES.get(Path(args.output).suffix.lower(), "table") if args.output else "table"
    if args.format == "parquet" and not args.output and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: name a file with --output, or pipe it")
    return str(args.format)


def _write(cursor: Cursor, form: str, output: str | None, bar: ProgressBar) -> None:
    """One result, to the file `output` or to standard output."""
    from sqluice.engine import output as writers
    from sqluice.engine.running import BATCH_ROWS, Beside, plan_text

    if form == "table" and output is None and (plan := plan_text(cursor)) is not None:
        print(plan)  # noqa: T201 - the command's output
        return
    reader = cursor.fetch_record_batch(BATCH_ROWS)
    if output is not None:
        with writers.atomic(Path(output)) as file:
            if form == "table":
                _draw_to_file(reader, file)
            else:
                writers.write(reader, form, file)
    elif form == "table":
        _draw(reader)
    else:
        out = Beside(bar, sys.stdout.buffer) if sys.stdout.isatty() else sys.stdout.buffer
        writers.write(reader, form, out)
        sys.stdout.buffer.flush()


def _draw(reader: object) -> None:
    from sqluice.engine.running import out_console
    from sqluice.engine.table import draw

    console = out_console()
    drawn = draw(reader, console, max_rows=SCREEN_ROWS if console.is_terminal else None)
    if drawn.shown < drawn.rows or drawn.columns_shown < drawn.columns:
        _say(f"{drawn}; --format csv or --output FILE gives all")


def _draw_to_file(reader: object, file: object) -> None:
    import io

    from sqluice.engine.running import out_console
    from sqluice.engine.table import draw

    text = io.TextIOWrapper(file, encoding="utf-8")  # type: ignore[type-var]
    draw(reader, out_console(text))
    text.detach()


def _after(cursor: Cursor, *, report: bool) -> None:
    """Warnings, and the report when asked for."""
    from sqluice.engine.running import contract_note, warnings_of

    for text in warnings_of(cursor):
        _say(f"warning: {text}")
    if note := contract_note(cursor):
        _say(note)
    if report and cursor.report is not None:
        _say(str(cursor.report))


def _explain(args: argparse.Namespace) -> int:
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console, execute, running

    statements = _statements(args)
    if len(statements) > 1:
        raise UsageError("explain takes one statement")
    options = [word for word, wanted in (("ANALYZE", args.analyze), ("FORMAT JSON", args.json)) if wanted]
    sql = f"EXPLAIN {'(' + ', '.join(options) + ') ' if options else ''}{statements[0][0]}"
    bar = ProgressBar(err_console())
    con = open_connection(args, bar)
    try:
        with running(con, bar):
            cursor = execute(con, sql)
            plan = "\n".join(str(row[-1]).rstrip("\n") for row in cursor.fetchall())
        print(plan)  # noqa: T201 - the command's output
        _after(cursor, report=False)
    finally:
        con.close()
    return 0


def _demo(args: argparse.Namespace) -> int:
    from sqluice.engine.demo import run

    return run(settings_of(args), allow=getattr(args, "allow_model", []))


def _job(args: argparse.Namespace) -> int:
    from sqluice.engine.jobs.command import command

    return command(args, settings_of(args), allowed_of(args))


def _shell(args: argparse.Namespace) -> int:
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console
    from sqluice.engine.shell import Shell

    bar = ProgressBar(err_console())
    con = open_connection(args, bar)
    try:
        return Shell(con, bar).run()
    finally:
        con.close()


def _models(args: argparse.Namespace) -> int:
    return models_command.command(args, open_connection)


if __name__ == "__main__":
    sys.exit(main())
