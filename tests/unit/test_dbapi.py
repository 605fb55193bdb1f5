"""The face: connections and cursors over a small session with DuckDB behind it. (Queries that ask models: test_sql.)"""

from __future__ import annotations

import datetime
import gc
import sys
import types
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

import sqluice
from sqluice.engine import dbapi
from sqluice.engine.duckdb_errors import translate
from sqluice.engine.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeSession:
    """The part of a session that the face relies on; it writes down how it is used."""

    def __init__(self, database: str = ":memory:", **options: Any) -> None:
        self.database = database
        self.options = options
        self.con = duckdb.connect(database)
        self.calls: list[Any] = []
        self.done: list[BaseException | None] = []
        self.in_transaction = False
        self._active: Outcome | None = None

    def execute(self, sql: str, params: Any = None) -> Outcome:
        if self._active is not None:
            self._active.detach()
        self.calls.append((sql, params))
        if sql.startswith("INSERT"):
            return Outcome(None, None, rowcount=self.con.execute(sql, params).fetchall()[0][0])
        try:
            relation = self.con.sql(sql) if params is None else self.con.sql(sql, params=params)
        except duckdb.Error as error:
            raise translate(error, sql) from error
        self._active = self._outcome(relation)
        return self._active

    def _outcome(self, relation: Any) -> Outcome:
        if relation is None or relation.columns == ["Count"]:
            return Outcome(None, None)
        columns = list(zip(relation.columns, relation.types, strict=True))
        messages: list[tuple[type, str]] = [(sqluice.Warning, "careful")]
        return Outcome(columns, relation.to_arrow_reader, messages=messages, on_done=self.done.append)

    def executemany(self, sql: str, params: Any) -> Outcome:
        return Outcome(None, None, rowcount=sum(self.execute(sql, one).rowcount for one in params))

    def commit(self) -> None:
        self.calls.append("commit")

    def rollback(self) -> None:
        self.calls.append("rollback")

    def close(self) -> None:
        self.calls.append("close")
        if self._active is not None:
            self._active.close()
        self.con.close()

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def register_model(self, *args: Any) -> None:
        self.calls.append(args)

    def register(self, name: str, table: Any) -> None:
        self.con.register(name, table)

    def unregister(self, name: str) -> None:
        self.con.unregister(name)


def connection_on(session: Any) -> dbapi.Connection:
    return dbapi.Connection(session)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def con(session: FakeSession) -> Iterator[dbapi.Connection]:
    connection = connection_on(session)
    yield connection
    if not connection.closed:
        connection.close()


# ---- connect


def connected(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> FakeSession:
    fake = types.ModuleType("sqluice.engine.session")
    fake.Session = FakeSession  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sqluice.engine.session", fake)
    with sqluice.connect(*args, **options) as connection:
        session: Any = connection._session
    assert isinstance(session, FakeSession)
    return session


def test_connect_passes_on_what_it_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    session = connected(monkeypatch, tmp_path / "a.db", allow_models=("default", "x"), AI_MODE="EXACT", ai_seed="7")
    assert session.database == str(tmp_path / "a.db")
    assert session.options == {
        "read_only": False,
        "config": None,
        "allow_models": ["default", "x"],
        "progress": None,
        "settings": {"ai_mode": "exact", "ai_seed": 7},
    }


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ai_orcale": "x"}, sqluice.InterfaceError, "did you mean ai_oracle"),
        ({"readonly": True}, sqluice.InterfaceError, "did you mean read_only"),
        ({"zzz": 1}, sqluice.InterfaceError, "no argument zzz"),
        ({"ai_mode": "fast"}, sqluice.ProgrammingError, "ai_mode is one of"),
        ({"allow_models": "hosts"}, sqluice.InterfaceError, r"\['hosts'\]"),
    ],
)
def test_connect_names_what_is_wrong(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        sqluice.connect(**options)


# ---- connections


def test_a_closed_connection_refuses_everything_but_interrupt(con: dbapi.Connection) -> None:
    cursor = con.cursor()
    con.close()
    assert con.closed
    con.interrupt()
    refused = (con.close, con.commit, con.rollback, con.cursor, lambda: con.execute("SELECT 1"), cursor.fetchone)
    for call in refused:
        with pytest.raises(sqluice.InterfaceError, match="the connection is closed"):
            call()
    cursor.close()


def test_a_block_commits_and_closes(session: FakeSession) -> None:
    with connection_on(session) as con:
        con.execute("SELECT 1")
    assert session.calls[1:] == ["commit", "close"]


def test_a_block_that_fails_rolls_back_and_closes(session: FakeSession) -> None:
    with pytest.raises(KeyError), connection_on(session):
        raise KeyError
    assert session.calls == ["rollback", "close"]


def test_a_block_may_close_its_connection(session: FakeSession) -> None:
    with connection_on(session) as con:
        con.close()
    assert session.calls == ["close"]


def test_a_dropped_connection_closes_its_session(session: FakeSession) -> None:
    con = connection_on(session)
    reader = con.execute("SELECT i FROM range(300000) r(i)").fetch_record_batch(1000)
    del con
    gc.collect()
    assert "close" not in session.calls
    assert reader.read_all().num_rows == 300_000
    del reader
    gc.collect()
    assert session.calls[-1] == "close"


def test_interrupt_reaches_the_session(con: dbapi.Connection, session: FakeSession) -> None:
    con.interrupt()
    con.cursor().interrupt()
    assert session.calls == ["interrupt", "interrupt"]


@pytest.mark.parametrize(("price", "passed"), [(None, (0, 0)), (2, (2, 2)), ((1.5, 3), (1.5, 3))])
def test_models_have_prices(con: dbapi.Connection, session: FakeSession, price: Any, passed: Any) -> None:
    model = types.SimpleNamespace(score=print)
    con.register_model("m", model, price=price)
    assert session.calls == [("m", model, *passed)]


def test_what_is_no_model_or_price_is_refused(con: dbapi.Connection) -> None:
    with pytest.raises(sqluice.InterfaceError, match="score, generate or embed"):
        con.register_model("m", object())
    for price in (-1, (1, 2, 3), "x"):
        with pytest.raises(sqluice.InterfaceError, match="price"):
            con.register_model("m", types.SimpleNamespace(score=print), price=price)  # type: ignore[arg-type]


def test_tables_of_python_are_registered(con: dbapi.Connection) -> None:
    import pyarrow as pa

    con.register("numbers", pa.table({"a": [1, 2]}))
    assert con.execute("SELECT sum(a) FROM numbers").fetchall() == [(3,)]
    con.unregister("numbers")
    with pytest.raises(sqluice.ProgrammingError, match="numbers"):
        con.execute("SELECT * FROM numbers")


# ---- statements


def test_parameters_by_position_and_by_name(con: dbapi.Connection) -> None:
    assert con.execute("SELECT ? + 1, ?", (1, "x")).fetchall() == [(2, "x")]
    assert con.execute("SELECT $2, $1", [1, 2]).fetchall() == [(2, 1)]
    assert con.execute("SELECT $a || $b", {"a": "x", "b": "y"}).fetchall() == [("xy",)]
    lazy: Any = iter([5])
    assert con.execute("SELECT ?", lazy).fetchall() == [(5,)]


@pytest.mark.parametrize("params", ["a", b"a", 5])
def test_what_is_no_set_of_parameters_is_refused(con: dbapi.Connection, params: Any) -> None:
    with pytest.raises(sqluice.ProgrammingError, match="a sequence or a mapping"):
        con.execute("SELECT ?", params)


@pytest.mark.parametrize("params", [None, (), (1, 2), {"a": 1}])
def test_a_wrong_number_of_parameters(con: dbapi.Connection, params: Any) -> None:
    with pytest.raises(sqluice.ProgrammingError):
        con.execute("SELECT ?", params).fetchall()


def test_sql_is_text(con: dbapi.Connection) -> None:
    with pytest.raises(sqluice.InterfaceError, match="SQL is a str"):
        con.execute(b"SELECT 1")  # type: ignore[arg-type]


def test_executemany_takes_any_iterable(con: dbapi.Connection) -> None:
    con.execute("CREATE TABLE t (a INTEGER)")
    cursor = con.cursor().executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(3)))
    assert cursor.rowcount == 3
    assert cursor.description is None


def test_a_failed_statement_leaves_no_result(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT 1")
    with pytest.raises(sqluice.ProgrammingError) as caught:
        cursor.execute("SELECT\n  nothing")
    assert (caught.value.line, caught.value.column) == (2, 3)
    assert cursor.description is None
    assert cursor.messages == []
    with pytest.raises(sqluice.InterfaceError, match="execute a query first"):
        cursor.fetchone()


def test_statements_without_rows(con: dbapi.Connection) -> None:
    cursor = con.execute("CREATE TABLE t (a INTEGER)")
    assert (cursor.description, cursor.rowcount, cursor.rownumber) == (None, -1, None)
    assert cursor.execute("INSERT INTO t VALUES (1), (2)").rowcount == 2
    for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetch_arrow_table, cursor.df, cursor.pl):
        with pytest.raises(sqluice.InterfaceError, match="left no rows"):
            fetch()


def test_description_report_and_messages(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT 1.5::DECIMAL(4, 1) AS d, 'x' AS s")
    assert cursor.description == [
        ("d", "DECIMAL(4,1)", None, None, 4, 1, None),
        ("s", "VARCHAR", None, None, None, None, None),
    ]
    assert cursor.report is None
    assert cursor.messages == [(sqluice.Warning, "careful")]
    assert cursor.connection is con


def test_a_closed_cursor_refuses_to_work(con: dbapi.Connection) -> None:
    with con.cursor() as cursor:
        cursor.execute("SELECT 1")
    cursor.close()
    for call in (cursor.fetchone, lambda: cursor.execute("SELECT 1"), lambda: cursor.setinputsizes(())):
        with pytest.raises(sqluice.InterfaceError, match="the cursor is closed"):
            call()


# ---- rows


def test_rows_are_python_values(con: dbapi.Connection) -> None:
    sql = "SELECT sum(i), 1.50::DECIMAL(9, 2), DATE '2020-01-01', {'a': [1]}, MAP {'k': 1}, NULL FROM range(3) r(i)"
    assert con.execute(sql).fetchone() == (3, Decimal("1.50"), datetime.date(2020, 1, 1), {"a": [1]}, {"k": 1}, None)


def test_fetches_mix(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT i FROM range(20000) r(i)")
    assert cursor.rownumber == 0
    assert cursor.fetchone() == (0,)
    assert cursor.fetchmany() == [(1,)]
    cursor.arraysize = 3
    assert cursor.fetchmany() == [(2,), (3,), (4,)]
    assert cursor.fetchmany(0) == []
    assert cursor.rownumber == 5
    assert len(cursor.fetchmany(9000)) == 9000
    assert next(cursor) == (9005,)
    assert cursor.fetchall() == [(i,) for i in range(9006, 20000)]
    assert (cursor.fetchone(), cursor.fetchmany(5), cursor.fetchall(), list(cursor)) == (None, [], [], [])


def test_a_negative_number_of_rows_is_refused(con: dbapi.Connection) -> None:
    with pytest.raises(sqluice.ProgrammingError, match="-1"):
        con.execute("SELECT 1").fetchmany(-1)


def test_two_cursors_read_at_once(con: dbapi.Connection) -> None:
    first = con.execute("SELECT i FROM range(300000) r(i)")
    assert first.fetchone() == (0,)
    assert con.execute("SELECT 42").fetchall() == [(42,)]
    assert len(first.fetchall()) == 299_999


def test_a_cursor_that_is_dropped_closed_or_used_again_gives_up_its_rows(
    con: dbapi.Connection, session: FakeSession
) -> None:
    big = "SELECT i FROM range(300000) r(i)"
    con.execute(big).fetchone()
    gc.collect()
    assert session.done == [None]
    cursor = con.execute(big)
    cursor.execute(big)
    assert session.done == [None, None]
    cursor.close()
    assert session.done == [None, None, None]


# ---- Arrow and data frames


def test_arrow_takes_the_rows_that_are_left(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT i FROM range(20000) r(i)")
    cursor.fetchmany(3)
    reader = cursor.fetch_record_batch(500)
    with pytest.raises(sqluice.InterfaceError, match="handed out as Arrow"):
        cursor.fetchone()
    batches = list(reader)
    assert {len(batch) for batch in batches[:-1]} == {500}
    assert batches[0]["i"][0].as_py() == 3
    assert sum(len(batch) for batch in batches) == 19_997
    assert cursor.fetchall() == []


def test_a_table_and_then_nothing(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT 1 AS a, 'x' AS b")
    assert cursor.fetch_arrow_table().to_pylist() == [{"a": 1, "b": "x"}]
    assert cursor.fetch_arrow_table().num_rows == 0
    assert cursor.fetchone() is None


def test_executing_again_ends_a_reader_with_an_error(con: dbapi.Connection) -> None:
    cursor = con.execute("SELECT i FROM range(300000) r(i)")
    reader = cursor.fetch_record_batch(1000)
    reader.read_next_batch()
    cursor.execute("SELECT 1")
    with pytest.raises(sqluice.InterfaceError, match="ran another statement"):
        reader.read_next_batch()


def test_frames(con: dbapi.Connection) -> None:
    sql = "SELECT sum(i) AS s, DATE '2020-01-01' AS d, 'x' AS t, 1 AS t FROM range(3) r(i)"
    frame = con.execute(sql).df()
    assert list(frame.columns) == ["s", "d", "t", "t_1"]
    assert str(frame["s"].dtype) == "int64"
    assert str(frame["d"].dtype).startswith("datetime64")
    assert con.execute(sql).pl().rows() == [(3, datetime.date(2020, 1, 1), "x", 1)]


@pytest.mark.parametrize(("name", "method"), [("pandas", "df"), ("polars", "pl")])
def test_a_missing_library_is_named_and_no_row_lost(
    con: dbapi.Connection, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    cursor = con.execute("SELECT 1")
    with pytest.raises(sqluice.OperationalError, match=f"pip install {name}"):
        getattr(cursor, method)()
    assert cursor.fetchall() == [(1,)]
