"""DuckDB's errors as ours: the class, the message and the place, on what DuckDB really raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import pytest

from sqluice import errors
from sqluice.engine.duckdb_errors import translate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHAIN = "id + " * 60


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS id, 'x' AS s")
        connection.execute("CREATE TABLE pk (a INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO pk VALUES (1)")
        yield connection


def bound(con: duckdb.DuckDBPyConnection, sql: str) -> errors.Error:
    """The same by `con.sql`, where DuckDB marks no place and only names what is wrong."""
    with pytest.raises(duckdb.Error) as caught:
        con.sql(sql)
    return translate(caught.value, sql)


def failure(con: duckdb.DuckDBPyConnection, sql: str) -> errors.Error:
    with pytest.raises(Exception) as caught:
        con.execute(sql).fetchall()
    translated = translate(caught.value, sql)
    assert translated.__cause__ is caught.value
    return translated


def place(error: errors.Error) -> tuple[int | None, int | None]:
    return error.line, error.column


@pytest.mark.parametrize(
    ("sql", "kind", "line", "column"),
    [
        ("SELECT nothing FROM t", errors.ProgrammingError, 1, 8),
        ("SELECT id,\n       nothing\nFROM t", errors.ProgrammingError, 2, 8),
        ("SELECT 'nothing' /* nothing */, nothing -- nothing\nFROM t", errors.ProgrammingError, 1, 33),
        ('SELECT $$nothing$$, "nothing" FROM t', errors.ProgrammingError, 1, 21),
        ("SELECT t.nope FROM t", errors.ProgrammingError, 1, 8),
        ("SELECT x.id FROM t", errors.ProgrammingError, 1, 8),
        ("SELECT a.id, b.id, id FROM t a, t b", errors.ProgrammingError, 1, 20),
        ("SELECT 1\nFROM missing", errors.ProgrammingError, 2, 6),
        ("SELECT ai_fliter(s) FROM t", errors.ProgrammingError, 1, 8),
        ("SELECT lower(1, 2, 3)", errors.ProgrammingError, 1, 8),
        ("SELEC 1", errors.ProgrammingError, 1, 1),
        ("SELECT 1\nFRM t WHERE x", errors.ProgrammingError, 2, 5),
        (f"SELECT {CHAIN} 1 FRM t y", errors.ProgrammingError, 1, 315),
        (f"SELECT '漢字', {CHAIN} nothing FROM t", errors.ProgrammingError, 1, 315),
        ("CREATE TABLE t (a INTEGER)", errors.ProgrammingError, 1, 14),
        ("SELECT * FROM 'no/such.parquet'", errors.OperationalError, 1, 15),
        ("SELECT 1 +\n  CAST('x' AS INTEGER)", errors.DataError, None, None),
        ("INSERT INTO pk VALUES (1)", errors.IntegrityError, None, None),
        ("INSERT INTO pk VALUES (NULL)", errors.IntegrityError, None, None),
        ("COMMIT", errors.OperationalError, None, None),
        ("SELECT error('boom')", errors.DataError, None, None),
        ("SELECT 127::TINYINT + 1::TINYINT", errors.DataError, None, None),
    ],
)
def test_kind_and_place(
    con: duckdb.DuckDBPyConnection, sql: str, kind: type, line: int | None, column: int | None
) -> None:
    error = failure(con, sql)
    assert type(error) is kind
    if line is not None:
        assert place(error) == (line, column)


@pytest.mark.parametrize(
    ("sql", "line", "column"),
    [
        ("SELECT id,\n       nothing\nFROM t", 2, 8),
        ("SELECT 'nothing' /* nothing */, nothing -- nothing\nFROM t", 1, 33),
        ("SELECT E'\\'nothing', $$nothing$$, \"nothing\" FROM t", 1, 35),
        ("SELECT t.nope FROM t", 1, 8),
        ("SELECT id AS x, x.id FROM t", 1, 17),
        ("SELECT a.id, b.id, id FROM t a, t b", 1, 20),
        ("SELECT missing_ FROM missing", 1, 22),
        ("SELECT 'ai_fliter(', 1 AS ai_fliter, ai_fliter(s) FROM t", 1, 38),
        ("SELECT 1 AS lower, lower(1, 2, 3) FROM t", 1, 20),
        ("SELECT * FROM read_csv('x.csv', nope = 1)", 1, 33),
        ("SELECT * FROM read_parquet('no/such.parquet')", 1, 28),
        ("SELECT id FROM t WHERE nothing = 'nothing'", 1, 24),
    ],
)
def test_names_are_found_outside_of_literals_and_comments(
    con: duckdb.DuckDBPyConnection, sql: str, line: int, column: int
) -> None:
    assert place(bound(con, sql)) == (line, column)


def test_the_message_shows_the_source_line_and_keeps_the_hint(con: duckdb.DuckDBPyConnection) -> None:
    text = str(failure(con, "SELECT id,\n  nothing\nFROM t"))
    assert text.startswith('Binder Error: Referenced column "nothing" not found')
    assert 'Candidate bindings: "id"' in text
    assert text.endswith("\n  at line 2, column 3:\n    nothing\n    ^")
    assert "LINE" not in text


def test_a_mark_of_duckdbs_becomes_ours(con: duckdb.DuckDBPyConnection) -> None:
    text = str(failure(con, "SELECT 1\n  FRM x y"))
    assert text.endswith("\n  at line 2, column 7:\n    FRM x y\n        ^")
    assert "LINE" not in text


def test_a_file_that_is_no_parquet_is_named(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "fake.parquet"
    path.write_text("not parquet" * 10)
    assert "fake.parquet" in str(failure(con, f"SELECT * FROM read_parquet('{path}')"))


MARKED = "Parser Error: syntax error\n\nLINE 2: {}\n        {}^^^"


def test_without_the_sql_duckdbs_own_line_is_shown() -> None:
    error = translate(duckdb.ParserException(MARKED.format("ab cde", "   ")))
    assert place(error) == (2, 4)
    assert str(error).endswith("\n  at line 2, column 4:\n  ab cde\n     ^")


def test_an_excerpt_cut_at_its_left_is_found_in_the_line() -> None:
    sql = f"SELECT 1,\n{CHAIN}cde + 1"
    error = translate(duckdb.ParserException(MARKED.format("... + id + id + cde + 1", " " * 16)), sql)
    assert place(error) == (2, len(CHAIN) + 1)


def test_a_line_that_is_not_in_the_sql_places_its_word_only_if_that_is_unique() -> None:
    marked = duckdb.ParserException(MARKED.format("rewritten cde", " " * 10))
    assert place(translate(marked, "SELECT\n\n  cde")) == (3, 3)
    unknown = translate(marked, "SELECT cde, cde")
    assert place(unknown) == (None, None)
    assert "LINE" not in str(unknown)


def test_wide_characters_count_two_cells_and_tabs_none() -> None:
    error = translate(duckdb.ParserException(MARKED.format("\t漢字 cde", " " * 5)), "SELECT\n\t漢字 cde")
    assert place(error) == (2, 5)


def test_parameters_are_programming_errors(con: duckdb.DuckDBPyConnection) -> None:
    for params in ([1], [1, 2, 3], {"a": 1}):
        with pytest.raises(duckdb.Error) as caught:
            con.execute("SELECT ?, ?", params)
        assert type(translate(caught.value)) is errors.ProgrammingError


def test_errors_in_an_arrow_stream_have_their_kind(con: duckdb.DuckDBPyConnection) -> None:
    relation = con.sql("SELECT CASE WHEN i = 250000 THEN CAST('x' || i AS INTEGER) ELSE i END FROM range(300000) r(i)")
    with pytest.raises(Exception) as caught:
        relation.to_arrow_reader(100).read_all()
    assert type(translate(caught.value)) is errors.DataError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("INTERRUPT Error: Interrupted!"), errors.InterruptedQueryError),
        (OSError("Out of Memory Error: could not allocate"), errors.OperationalError),
        (OSError("disk full"), errors.OperationalError),
        (ValueError("what"), errors.DataError),
        (KeyError("what"), errors.InternalError),
        (KeyboardInterrupt(), errors.InterruptedQueryError),
        (duckdb.InternalException("INTERNAL Error: x"), errors.InternalError),
        (duckdb.FatalException("FATAL Error: x"), errors.InternalError),
        (duckdb.NotImplementedException("Not implemented Error: x"), errors.NotSupportedError),
        (duckdb.DependencyException("Dependency Error: x"), errors.DatabaseError),
        (duckdb.InvalidInputException("Invalid Input Error: database is read-only"), errors.OperationalError),
        (duckdb.OutOfRangeException("x"), errors.DataError),
        (duckdb.Error("x"), errors.DatabaseError),
    ],
)
def test_kinds(error: BaseException, kind: type) -> None:
    assert type(translate(error)) is kind


def test_our_own_errors_pass() -> None:
    error = errors.ModelError("gone")
    assert translate(error) is error


def test_our_error_inside_a_traceback_is_found() -> None:
    text = (
        "Invalid Input Error: reading failed: Traceback (most recent call last):\n  x\nsqluice.errors.ModelError: gone"
    )
    error = translate(OSError(text))
    assert type(error) is errors.ModelError
    assert str(error) == "gone"
