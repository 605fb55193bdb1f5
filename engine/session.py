"""One person's connection to one database: settings, models, traces, and how each statement is run.

A statement without AI expressions goes to DuckDB as it is. One with them is parsed, bound, planned and run in stages,
inside one transaction.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from sqluice import config as settings_of
from sqluice.engine import parsing, script
from sqluice.engine.answer_cache import AnswerCache, MemoryCache, NoCache, open_cache
from sqluice.engine.catalog import ai_macros, ai_views
from sqluice.engine.duckdb_errors import translate
from sqluice.engine.outcome import Outcome
from sqluice.engine.results import outcome_of, peek
from sqluice.engine.rowwise import Functions
from sqluice.engine.run import Run, Runner
from sqluice.engine.settings import Settings
from sqluice.engine.statement import AiStatement
from sqluice.engine.statistics import Statistics
from sqluice.engine.trace import TraceFolder
from sqluice.engine.trace_names import session_folder
from sqluice.errors import Error, InterfaceError, InterruptedQueryError, ProgrammingError
from sqluice.udfs.install import functions_for
from sqluice.workers.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.types import Progress
    from sqluice.udfs.spec import Spec

    Params = Sequence[object] | Mapping[str, object] | None

_TRACE = re.compile(r'\b"?ai"?\s*\.\s*"?(runs|ops|batches|decisions)\b', re.IGNORECASE)
_DEFINES = re.compile(r"(CREATE|ALTER|DROP|ATTACH|DETACH|IMPORT|USE|LOAD|ROLLBACK|ABORT|COMMIT|COPY)\b", re.IGNORECASE)
_BEGINS = re.compile(r"(BEGIN|START)\b", re.IGNORECASE)
_ENDS = re.compile(r"(COMMIT|ROLLBACK|ABORT|END)\b", re.IGNORECASE)
_SESSIONS = itertools.count(1)


class Session:
    """What stands behind a DB-API connection. Not for use by two threads at once; `interrupt` may come from any."""

    def __init__(
        self,
        database: str,
        *,
        read_only: bool = False,
        config: dict[str, Any] | None = None,
        allow_models: list[str] | None = None,
        progress: Callable[[Progress], None] | None = None,
        settings: dict[str, Value] | None = None,
    ) -> None:
        self.settings = Settings(settings)
        try:
            self.con = duckdb.connect(database, read_only=read_only, config=config or {})
            self.con.execute("SET python_enable_replacements = false")  # SQL does not see this process's variables
        except duckdb.Error as error:
            raise translate(error) from error
        self.runner = Runner(Registry(allow_models), progress, _fetching())
        self.runner.statistics = Statistics(settings_of.home() / "statistics.sqlite")
        self.in_transaction = False
        self.run: Run | None = None
        self.statement = ""
        self.views: dict[str, str] = {}
        self.macros: dict[str, tuple[list[str], str]] = {}
        self.functions = Functions(self._answer_rows)
        self._generic = _GenericRuntime(self)
        self._active: Outcome | None = None
        self._caches: dict[str, AnswerCache] = {}
        self._trace = TraceFolder(_trace_folder(database))
        self._traced = False
        self._closed = False
        self._counter = itertools.count(1)
        self._register_functions()
        self._look_for_views()

    def execute(self, sql: str, params: Params = None) -> Outcome:
        """Run one statement, or several, of which the last one's outcome is returned."""
        self._check_open()
        self._make_room()
        self.runner.interrupted = False
        statements = script.split(sql).all() if ";" in sql else [script.Statement(sql, 0)]
        if not statements:
            raise ProgrammingError("the statement is empty")
        if len(statements) > 1 and params is not None:
            raise ProgrammingError("parameters go with one statement, and this text holds several")
        outcome = None
        for statement in statements:
            if outcome is not None:
                outcome.close()
            outcome = self._one(statement.sql, params)
        assert outcome is not None
        self._active = outcome
        return outcome

    def executemany(self, sql: str, params: Iterable[Params]) -> Outcome:
        """Run one statement once for each set of parameters; `rowcount` is the sum."""
        total, outcome = 0, None
        for one in params:
            if outcome is not None:
                outcome.close()
            outcome = self.execute(sql, one)
            total = -1 if total < 0 or outcome.rowcount < 0 else total + outcome.rowcount
        if outcome is None:
            return Outcome(None, None, rowcount=0)
        outcome.rowcount = total
        return outcome

    def commit(self) -> None:
        """Commit the open transaction, if there is one."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Roll back the open transaction, if there is one."""
        self._end("ROLLBACK")

    def interrupt(self) -> None:
        """Stop what runs now, from any thread."""
        self.runner.interrupted = True
        self.con.interrupt()

    def close(self) -> None:
        """Close the database. What was not committed is lost."""
        if self._closed:
            return
        self._closed = True
        if self._active is not None:
            self._active.close()
        for cache in self._caches.values():
            cache.close()
        self.con.close()

    def register_model(self, name: str, model: object, price_in: float = 0.0, price_out: float = 0.0) -> None:
        """Make an object known as a model."""
        self._check_open()
        self.runner.registry.register(name, model, price_in=price_in, price_out=price_out)

    def register(self, name: str, table: object) -> None:
        """Make a table of pandas, polars or Arrow known to SQL."""
        self._check_open()
        self._make_room()
        with self._translated():
            self.con.register(name, table)

    def unregister(self, name: str) -> None:
        """Forget a table that was registered."""
        self._check_open()
        self._make_room()
        with self._translated():
            self.con.unregister(name)

    def begin_run(self, sql: str, specs: list[Spec]) -> Run:
        """The run of a statement with AI expressions; row-wise functions answer from it until `end_run`."""
        values = self.settings.values()
        trace = self._trace.begin(sql, values, mode=values["ai_trace"])  # type: ignore[arg-type]
        self.run = Run(self.runner, specs, values, self._cache(str(values["ai_cache"])), trace)
        self.functions.failure = None
        return self.run

    def end_run(self) -> None:
        """No statement with AI expressions runs any more."""
        self.run = None

    def _register_functions(self) -> None:
        """Make AI functions known to DuckDB, before any transaction could roll their registration back."""
        self.functions.register(self.con)
        from sqluice.udfs.install import register

        for name, (function, returns) in functions_for(self._generic).items():
            register(self.con, name, function, returns)

    def prefix(self) -> str:
        """Names of temporary objects begin with this."""
        return f"__s{next(self._counter)}_"

    def error(self, error: BaseException, sql: str) -> Error:
        """The exception of ours for one of DuckDB's; the cause where a function of ours failed inside DuckDB."""
        failure, self.functions.failure = self.functions.failure, None
        if isinstance(failure, Error):
            return failure
        if self.runner.interrupted:
            return InterruptedQueryError("interrupted; answers so far are in the cache")
        return translate(error, sql)

    def _one(self, sql: str, params: Params) -> Outcome:
        self.runner.stop()
        if self.settings.apply(sql):
            return Outcome(None, None)
        self._prepare(sql)
        if parsing.mentions_ai(sql) or self._names_stored(sql):
            return AiStatement(self, sql, params).execute()
        return self.plain(sql, params)

    def plain(self, sql: str, params: Params = None) -> Outcome:
        """Run a statement that is DuckDB's own."""
        self.statement = sql
        found: list[Outcome] = []

        def done(error: BaseException | None) -> None:
            """DuckDB may have called a function of ours: a prepared statement or a column's default holds it."""
            run = self.run
            if run is not None:
                report, messages = run.finish(error), run.messages()
                self.end_run()
                for outcome in found:
                    outcome.report = report
                    outcome.messages += messages

        try:
            found.append(outcome_of(self.con, sql, params, on_done=done, translate=partial(self.error, sql=sql)))
            outcome = peek(found[0])
        except duckdb.Error as error:
            done(error)
            raise self.error(error, sql) from error
        start = script.beginning(sql)
        if _BEGINS.match(sql, start):
            self.in_transaction = True
        elif _ENDS.match(sql, start):
            self.in_transaction = False
        if _DEFINES.match(sql, start):
            self._look_for_views()
        return outcome

    def _prepare(self, sql: str) -> None:
        """What a statement names that must exist first: settings as a table, the trace."""
        macro = self.settings.macro(sql)
        try:
            if macro is not None:
                self.con.execute(macro)
            if _TRACE.search(sql) and not self._traced:
                self._attach_trace()
        except duckdb.Error as error:
            raise self.error(error, sql) from error

    def _attach_trace(self) -> None:
        taken = self.con.execute(
            "SELECT count(*) FROM (SELECT schema_name AS n FROM duckdb_schemas() UNION SELECT database_name "
            "FROM duckdb_databases()) WHERE lower(n) = 'ai'"
        ).fetchall()
        if taken[0][0]:
            return  # a schema or database of the person's own goes first
        self._trace.prepare()
        self.con.execute("ATTACH ':memory:' AS ai (READ_WRITE)")
        for statement in self._trace.views():
            self.con.execute(statement)
        self._traced = not self.in_transaction  # a rollback takes it away

    def _cache(self, where: str) -> AnswerCache:
        if where not in self._caches:
            if where == "off":
                self._caches[where] = NoCache()
            elif where == "memory":
                self._caches[where] = MemoryCache()
            else:
                self._caches[where] = open_cache("disk", settings_of.home() / "answers.sqlite", self._warn)
        return self._caches[where]

    def _warn(self, text: str) -> None:
        if self.run is not None:
            self.run.warn(text)

    def _answer_rows(self, number: int, columns: list[list[str | None]], n: int, error: bool) -> pa.Array:
        assert self.run is not None  # numbered questions stand in statements of ours alone
        return self.run.answer_rows(number, columns, n, error=error)

    def _names_stored(self, sql: str) -> bool:
        """Whether a statement may read a view or call a macro that holds AI calls."""
        low = sql.lower()
        return any(name in low for name in (*self.views, *self.macros))

    def _look_for_views(self) -> None:
        with contextlib.suppress(duckdb.Error):  # in an aborted transaction nothing can be looked up
            self.views = ai_views(self.con)
            self.macros = ai_macros(self.con)

    def _end(self, how: str) -> None:
        self._check_open()
        self._make_room()
        if self.in_transaction:
            self.plain(how)

    def _make_room(self) -> None:
        """Let go of DuckDB's connection: what an earlier statement has not read yet is read now."""
        active, self._active = self._active, None
        if active is not None:
            active.detach()

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except duckdb.Error as error:
            raise translate(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise InterfaceError("the connection is closed")


class _GenericRuntime:
    """Answers the plain functions (`ai_filter(..)` in a macro, say) on a session's own connection."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
        """One answer a row."""
        run = self._session.run or self._session.begin_run(self._session.statement, [])
        if spec not in run.specs:
            run.specs.append(spec)
        try:
            number = run.specs.index(spec)
            return run.answer_rows(number, columns, len(columns[0]) if columns else 1, error=False)
        except BaseException as error:
            self._session.functions.failure = error
            raise


def _fetching() -> Callable[..., None] | None:
    """A progress bar for weights that a first query has to fetch."""
    bar: list[Any] = []

    def show(done: int, total: int | None, label: str) -> None:
        if not bar:
            from sqluice.engine.progress import FetchBar
            from sqluice.engine.running import err_console

            bar.append(FetchBar(err_console()))
        bar[0](done, total, label)
        if total is not None and done >= total:
            bar.pop().stop()

    return show


def _trace_folder(database: str) -> Path:
    """Beside the database file; for one in memory, under the state folder."""
    if database in ("", ":memory:") or database.startswith(":memory:"):
        return session_folder(settings_of.home() / "traces")
    return Path(f"{database}.ai")
