"""A query that is split over partitions gives the rows of the whole query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqluice.engine import parsing
from sqluice.optimizer.partition import PARTS, CannotSplit, Schema, split
from support.scripted import scripted

if TYPE_CHECKING:
    from sqlglot import exp

    from sqluice import Connection

ROWS, PARTITIONS = 60, 4

SPLITS = [
    "SELECT * FROM input WHERE AI_FILTER(text)",
    "SELECT id, AI_FILTER(text) AS good FROM input WHERE id % 2 = 0",
    "SELECT kind, count(*) FROM input WHERE AI_FILTER(text) GROUP BY kind ORDER BY 2 DESC, 1 LIMIT 3",
    "SELECT AI_CLASSIFY(text, ['good', 'bad']) AS k, count(*) n, avg(x), median(x) FROM input GROUP BY k ORDER BY k",
    "SELECT kind, sum(CASE WHEN AI_FILTER(text) THEN x END) AS s FROM input GROUP BY ALL ORDER BY ALL",
    "SELECT count(*) FILTER (WHERE AI_FILTER(text)), count(DISTINCT kind), max(text) FROM input",
    "SELECT id, text FROM input ORDER BY AI_SCORE(PROMPT('good? {0}', text)) DESC, id LIMIT 5 OFFSET 1",
    "SELECT DISTINCT kind FROM input WHERE AI_FILTER(text) ORDER BY kind",
    "SELECT DISTINCT ON (kind) kind, id FROM input WHERE AI_FILTER(text) ORDER BY kind, x DESC",
    "SELECT id FROM input WHERE AI_FILTER(text) ORDER BY x + 1, id LIMIT 7",
    "SELECT id, id AS again FROM input WHERE AI_FILTER(text) ORDER BY ALL",
    "SELECT i.id, o.label FROM input i LEFT JOIN other o ON i.kind = o.kind WHERE AI_FILTER(i.text)",
    "SELECT i.id, o.label FROM other o JOIN input i USING (kind) WHERE AI_FILTER(i.text)",
    "SELECT i.id, o.label FROM other o RIGHT JOIN input i ON i.kind = o.kind AND AI_FILTER(i.text)",
    "SELECT i.id FROM input i SEMI JOIN other o ON i.kind = o.kind WHERE AI_FILTER(i.text)",
    "SELECT i.id, o.label FROM input i, other o WHERE AI_FILTER(PROMPT('{0} {1}', i.text, o.label))",
    "WITH good AS (SELECT * FROM input WHERE AI_FILTER(text)) SELECT kind, max(x) FROM good GROUP BY kind ORDER BY 1",
    "WITH g AS (SELECT id FROM input WHERE AI_FILTER(text)) SELECT (SELECT count(*) FROM g), (SELECT sum(id) FROM g)",
    "WITH o AS (SELECT * FROM other), g AS (SELECT i.id, o.label FROM input i JOIN o USING (kind)) SELECT * FROM g",
    "SELECT *, row_number() OVER (PARTITION BY kind ORDER BY x) AS rn FROM input WHERE AI_FILTER(text) QUALIFY rn = 1",
    "SELECT id, sum(x) OVER w AS s FROM input WHERE AI_FILTER(text) WINDOW w AS (PARTITION BY kind ORDER BY id)",
    "SELECT count(*) FROM (SELECT * FROM input WHERE AI_FILTER(text)) t JOIN other o USING (kind)",
    "SELECT label FROM other WHERE kind IN (SELECT kind FROM input WHERE AI_FILTER(text))",
    "SELECT upper(kind), string_agg(text, ',' ORDER BY id) FROM input WHERE AI_FILTER(text) GROUP BY upper(kind)",
    "SELECT list_transform(xs, z -> z + 1) AS l, min(id) FROM input WHERE AI_FILTER(text) GROUP BY l ORDER BY 2",
    "SELECT kind FROM input WHERE AI_FILTER(text) UNION ALL SELECT label FROM other",
    "SELECT kind FROM input GROUP BY kind HAVING AI_FILTER(max(text))",
    "SELECT count(*) FROM (SELECT id FROM input WHERE AI_FILTER(text) LIMIT 5)",
    "SELECT s.a, count(*) FROM input WHERE AI_FILTER(text) GROUP BY s.a ORDER BY 1",
    "SELECT kind AS text, count(*) FROM input WHERE AI_FILTER(text) GROUP BY kind ORDER BY text",
    "SELECT i.kind, arg_max(i.id, i.x) FROM input AS i WHERE AI_FILTER(i.text) GROUP BY i.kind HAVING count(*) > 1",
]

REFUSED = {
    "SELECT a.id FROM input a JOIN input b ON AI_FILTER(PROMPT('{0}{1}', a.text, b.text))": "reads input 2 times",
    "SELECT o.label FROM other o LEFT JOIN input i ON AI_FILTER(i.text)": "wrong side of a LEFT JOIN",
    "SELECT i.id FROM input i FULL JOIN other o ON i.kind = o.kind": "wrong side of a FULL JOIN",
    "SELECT label FROM other ANTI JOIN input USING (kind)": "wrong side of a ANTI JOIN",
    "SELECT label FROM other": "does not read input",
    "SELECT count(*), (SELECT max(label) FROM other) FROM input": "a subquery stands beside",
    "WITH input AS (SELECT 1) SELECT * FROM input": "name of a WITH query",
    "SELECT * FROM input USING SAMPLE 3": "a sample",
}


@pytest.fixture
def tables(con: Connection) -> Connection:
    con.register_model("oracle", scripted("oracle", "keyword good"))
    con.execute("SET ai_oracle = 'oracle'")
    con.execute(
        "CREATE TABLE everything AS SELECT i AS id, CASE WHEN i % 3 = 0 THEN 'good ' ELSE 'bad ' END || i AS text,"
        " CASE WHEN i % 7 > 0 THEN chr(97 + (i % 5)::INT) END AS kind, (i * 37 % 60)::DOUBLE AS x, [i, i % 4] AS xs,"
        f" {{'a': i % 3}} AS s FROM range({ROWS}) r(i)"
    )
    labels = "('a', 'one good'), ('b', 'two'), (NULL, 'n')"
    con.execute(f"CREATE TABLE other AS SELECT * FROM (VALUES {labels}) v(kind, label)")
    con.execute("CREATE VIEW input AS SELECT * FROM everything")
    return con


def schema_of(con: Connection) -> Schema:
    aggregates = con.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type = 'aggregate'"
    ).fetchall()

    def columns(query: exp.Expr) -> list[str]:
        return [row[0] for row in con.execute(f"DESCRIBE {query.sql(dialect='duckdb')}").fetchall()]

    return Schema(columns, frozenset(name for (name,) in aggregates), parsing.is_call)


def answered(con: Connection, sql: str) -> tuple[list[str], list[tuple[object, ...]]]:
    cursor = con.execute(sql)
    assert cursor.description is not None
    return [column[0] for column in cursor.description], cursor.fetchall()


@pytest.mark.parametrize("sql", SPLITS)
def test_partitions_together_give_the_rows_of_the_whole(tables: Connection, sql: str) -> None:
    names, rows = answered(tables, sql)
    made = split(parsing.parse(sql), "input", schema_of(tables), names)
    part = made.part.sql(dialect="duckdb")
    for number in range(PARTITIONS):
        first, last = ROWS * number // PARTITIONS, ROWS * (number + 1) // PARTITIONS
        tables.execute(f"CREATE OR REPLACE VIEW input AS SELECT * FROM everything WHERE id >= {first} AND id < {last}")
        how = f"CREATE TABLE {PARTS} AS" if number == 0 else f"INSERT INTO {PARTS}"
        tables.execute(f"{how} {part}")
    final = f"SELECT * FROM {PARTS}" if made.final is None else made.final.sql(dialect="duckdb")
    got_names, got = answered(tables, final)
    assert got_names == names
    in_order = " ORDER BY " in sql.rsplit(")", 1)[-1]
    key = str if not in_order else None
    assert (got if in_order else sorted(got, key=key)) == (rows if in_order else sorted(rows, key=key))
    assert rows, "a test of no rows shows nothing"


@pytest.mark.parametrize("sql", REFUSED)
def test_what_cannot_be_split_is_said(tables: Connection, sql: str) -> None:
    with pytest.raises(CannotSplit, match=REFUSED[sql]):
        split(parsing.parse(sql), "input", schema_of(tables))


def test_a_limit_without_an_order_says_how_many_rows_are_enough(tables: Connection) -> None:
    sql = "SELECT id FROM input WHERE AI_FILTER(text) LIMIT 5 OFFSET 2"
    assert split(parsing.parse(sql), "input", schema_of(tables)).enough == 7
