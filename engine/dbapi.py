"""Python's database interface, PEP 249: `connect`, `Connection`, `Cursor`.

Beyond the PEP: results as Arrow, pandas and polars, `report`, `interrupt`, tables and models by name. A thin face
over `Session`: it checks what it is given and keeps one result a cursor.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import sqluice.errors
from sqluice import config as settings_of
from sqluice.engine.dbapi_types import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    checked_params,
    describe,
    for_frames,
)
from sqluice.engine.outcome import BATCH_ROWS, Outcome, Rows
from sqluice.errors import InterfaceError, OperationalError, ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.engine.dbapi_types import Description, Params, Row
    from sqluice.engine.report import Report
    from sqluice.engine.session import Session
    from sqluice.types import Progress

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Connection",
    "Cursor",
    "Date",
    "DateFromTicks",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "connect",
]

_OPTIONS = ("database", "read_only", "config", "allow_models", "progress")


def connect(
    database: str | Path = ":memory:",
    *,
    read_only: bool = False,
    config: Mapping[str, Any] | None = None,
    allow_models: Sequence[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **settings: Value,
) -> Connection:
    """Open a database file, or one in memory.

    `config` is DuckDB's own, `settings` are `ai_...` names as in `SET`. `allow_models` lists where models may come
    from beyond the safe places (`'default'` stands for those). `progress` is called while AI expressions run.
    """
    if isinstance(allow_models, str):
        raise InterfaceError(f"allow_models is a list: [{allow_models!r}]")
    checked = {name.lower(): _setting(name, value) for name, value in settings.items()}
    from sqluice.engine.session import Session

    return Connection(
        Session(
            os.fspath(database),
            read_only=read_only,
            config=None if config is None else dict(config),
            allow_models=None if allow_models is None else list(allow_models),
            progress=progress,
            settings=checked,
        )
    )


def _setting(name: str, value: Value) -> Value:
    """The checked value of a keyword argument that is no parameter of `connect`."""
    if name.lower() not in settings_of.SETTINGS:
        import difflib

        near = difflib.get_close_matches(name.lower(), [*_OPTIONS, *settings_of.SETTINGS], n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InterfaceError(f"connect() knows no argument {name}{hint}")
    return settings_of.parse(name, value)


class Connection:
    """A connection to one database, made by `connect`. One thread at a time; `interrupt` may come from any."""

    Warning = sqluice.errors.Warning
    Error = sqluice.errors.Error
    InterfaceError = sqluice.errors.InterfaceError
    DatabaseError = sqluice.errors.DatabaseError
    DataError = sqluice.errors.DataError
    OperationalError = sqluice.errors.OperationalError
    IntegrityError = sqluice.errors.IntegrityError
    InternalError = sqluice.errors.InternalError
    ProgrammingError = sqluice.errors.ProgrammingError
    NotSupportedError = sqluice.errors.NotSupportedError

    def __init__(self, session: Session) -> None:
        self._session = session
        # DuckDB complains on standard error about connections with functions that are open at exit.
        self._close = weakref.finalize(self, session.close)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._close.alive

    @property
    def in_transaction(self) -> bool:
        """Whether BEGIN was executed and neither COMMIT nor ROLLBACK since."""
        return not self.closed and self._session.in_transaction

    def cursor(self) -> Cursor:
        """A new cursor. All cursors of a connection share its transaction."""
        self._open_session()
        return Cursor(self)

    def execute(self, sql: str, params: Params | None = None) -> Cursor:
        """Run `sql` on a new cursor."""
        return self.cursor().execute(sql, params)

    def commit(self) -> None:
        """End the transaction that BEGIN started; without one, nothing."""
        self._open_session().commit()

    def rollback(self) -> None:
        """Undo the transaction that BEGIN started; without one, nothing."""
        self._open_session().rollback()

    def close(self) -> None:
        """Close the database; an open transaction is rolled back. A second `close` is an `InterfaceError`."""
        self._open_session()
        self._close()

    def interrupt(self) -> None:
        """Stop the running statement, from any thread; it raises `InterruptedQueryError`."""
        if not self.closed:
            self._session.interrupt()

    def register_model(self, name: str, model: object, *, price: float | tuple[float, float] | None = None) -> None:
        """Let SQL use `model`, an object with `score`, `generate` or `embed`, under `name`.

        `price` is in US dollars per million tokens: one number, or one for input and one for output.
        """
        session = self._open_session()
        if not any(callable(getattr(model, method, None)) for method in ("score", "generate", "embed")):
            raise InterfaceError(f"a model has a method score, generate or embed; {type(model).__name__} has none")
        session.register_model(name, model, *_prices(price))

    def register(self, name: str, table: object) -> None:
        """Let SQL read a pandas, polars or Arrow object as the table `name`."""
        self._open_session().register(name, table)

    def unregister(self, name: str) -> None:
        """Forget the table `name` that was registered."""
        self._open_session().unregister(name)

    def __enter__(self) -> Self:
        self._open_session()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or roll back after an error; then close."""
        if self.closed:
            return
        try:
            if kind is None:
                self.commit()
            else:
                self.rollback()
        finally:
            self.close()

    def _open_session(self) -> Session:
        if self.closed:
            raise InterfaceError("the connection is closed")
        return self._session


def _prices(price: float | tuple[float, float] | None) -> tuple[float, float]:
    pair = price if isinstance(price, tuple) else (price or 0.0, price or 0.0)
    if len(pair) != 2 or not all(isinstance(one, (int, float)) and one >= 0 for one in pair):
        raise InterfaceError(f"price is a number, or a pair of numbers, not below 0; not {price!r}")
    return float(pair[0]), float(pair[1])


class Cursor:
    """Runs statements and hands out what the last one left. Rows are read as they are fetched."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.messages: list[tuple[type, str]] = []
        self.closed = False
        self._outcome: Outcome | None = None
        self._rows: Rows | None = None

    @property
    def description(self) -> Description | None:
        """Seven values a column, the name and the DuckDB type first; None after a statement without rows."""
        if self._outcome is None or self._outcome.columns is None:
            return None
        return describe(self._outcome.columns)

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed; -1 for queries, and where DuckDB does not tell."""
        return -1 if self._outcome is None else self._outcome.rowcount

    @property
    def rownumber(self) -> int | None:
        """How many rows were fetched one by one, that is the next row's index; None without a result."""
        return None if self._rows is None else self._rows.taken

    @property
    def report(self) -> Report | None:
        """What the last statement's AI expressions did; None when it had none."""
        return None if self._outcome is None else self._outcome.report

    def execute(self, sql: str, params: Params | None = None) -> Cursor:
        """Run `sql` and return this cursor.

        A sequence fills `?` and `$1`, a mapping fills `$name`.
        """
        session = self._ready()
        self._take(session.execute(_text(sql), checked_params(params)))
        return self

    def executemany(self, sql: str, seq_of_params: Iterable[Params]) -> Cursor:
        """Run `sql` once for each set of parameters; `rowcount` is the sum."""
        session = self._ready()
        self._take(session.executemany(_text(sql), [checked_params(params) for params in seq_of_params]))
        return self

    def fetchone(self) -> Row | None:
        """The next row; None after the last."""
        rows = self._result().take(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """The next `size` rows (`arraysize` when None), fewer at the end."""
        wanted = self.arraysize if size is None else size
        if wanted < 0:
            raise ProgrammingError(f"fetchmany takes a number of rows, not {wanted}")
        return self._result().take(wanted)

    def fetchall(self) -> list[Row]:
        """All remaining rows."""
        return self._result().take(None)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def fetch_record_batch(self, rows_per_batch: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """The remaining rows as Arrow batches of `rows_per_batch` rows (the last may be shorter), read lazily.

        The reader lives on when the cursor is dropped, and ends when the cursor is closed or executes again.
        """
        return self._result().reader(rows_per_batch, keep=self.connection)

    def fetch_arrow_table(self) -> pa.Table:
        """The remaining rows as an Arrow table."""
        return self.fetch_record_batch().read_all()

    def df(self) -> pd.DataFrame:
        """The remaining rows as a pandas data frame; sums of integers are integers, dates are datetime64."""
        self._result()
        try:
            import pandas as pd  # noqa: F401 - asked for before any row is read
        except ImportError:
            raise OperationalError("df() needs pandas: pip install pandas") from None
        return self._for_frames().to_pandas(date_as_object=False)

    def pl(self) -> pl.DataFrame:
        """The remaining rows as a polars data frame."""
        self._result()
        try:
            import polars as pl
        except ImportError:
            raise OperationalError("pl() needs polars: pip install polars") from None
        frame = pl.from_arrow(self._for_frames())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def setinputsizes(self, sizes: Sequence[object]) -> None:  # noqa: ARG002 - PEP 249
        """Nothing: PEP 249 allows it."""
        self._check_open()

    def setoutputsize(self, size: int, column: int | None = None) -> None:  # noqa: ARG002 - PEP 249
        """Nothing: values are never cut."""
        self._check_open()

    def interrupt(self) -> None:
        """Stop the statement that runs on this connection."""
        self.connection.interrupt()

    def close(self) -> None:
        """Give up the rows not fetched. Further use of the cursor is an `InterfaceError`; `close` is not."""
        self.closed = True
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        outcome = getattr(self, "_outcome", None)
        if outcome is not None and not outcome.handed_out and not self.connection.closed:
            outcome.close()

    def _check_open(self) -> Session:
        if self.closed:
            raise InterfaceError("the cursor is closed")
        return self.connection._open_session()  # noqa: SLF001 - one module, one pair

    def _ready(self) -> Session:
        """The session, for a new statement: what the last one left is dropped."""
        session = self._check_open()
        self._drop()
        self.messages = []
        return session

    def _drop(self) -> None:
        outcome, self._outcome, self._rows = self._outcome, None, None
        if outcome is not None:
            outcome.close()

    def _take(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.messages = outcome.messages
        if outcome.columns is None:
            outcome.close()
        else:
            self._rows = Rows(outcome)

    def _result(self) -> Rows:
        self._check_open()
        if self._rows is None:
            raise InterfaceError("the last statement left no rows" if self._outcome else "execute a query first")
        return self._rows

    def _for_frames(self) -> pa.Table:
        assert self._outcome is not None and self._outcome.columns is not None
        return for_frames(self.fetch_arrow_table(), self._outcome.columns)


def _text(sql: object) -> str:
    if not isinstance(sql, str):
        raise InterfaceError(f"SQL is a str, not {type(sql).__name__}")
    return sql
