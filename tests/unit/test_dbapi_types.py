"""Python values out of Arrow are those of DuckDB's own `fetchall`."""

from __future__ import annotations

import datetime
import time
import uuid
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sqluice
from sqluice.engine.dbapi_types import describe, exportable, for_frames, row_reader

VALUES = [
    "NULL",
    "true",
    "1::TINYINT",
    "18446744073709551615::UBIGINT",
    "170141183460469231731687303715884105727::HUGEINT",
    "(-5)::HUGEINT",
    "340282366920938463463374607431768211455::UHUGEINT",
    "123456789012345678901234567890::BIGNUM",
    "1.5::FLOAT",
    "'nan'::DOUBLE",
    "1.50::DECIMAL(10, 2)",
    "'it''s'",
    "''",
    "'a'::ENUM('a', 'b')",
    "'101'::BIT",
    "'\\xAA\\x00'::BLOB",
    "'4ac7a9e9-607c-4c8a-84f3-843f0191e3fd'::UUID",
    "'{\"a\": 1}'::JSON",
    "DATE '2020-02-29'",
    "DATE 'infinity'",
    "DATE '5000-01-01 (BC)'",
    "TIME '01:02:03.5'",
    "'01:02:03+02'::TIMETZ",
    "TIMESTAMP '2020-01-01 01:02:03.000004'",
    "TIMESTAMP '20000-01-01'",
    "TIMESTAMP '-infinity'",
    "TIMESTAMP_S '2020-01-01 00:00:00'",
    "TIMESTAMP_MS '2020-01-01 00:00:00.5'",
    "TIMESTAMP_NS '2020-01-01 00:00:00.123456789'",
    "TIMESTAMPTZ '2020-01-01 00:00:00+00'",
    "INTERVAL '1 month 2 days 3 seconds'",
    "INTERVAL '-1 day -3.5 seconds'",
    "[1, NULL, 2]",
    "[]",
    "[1, 2]::INTEGER[2]",
    "['4ac7a9e9-607c-4c8a-84f3-843f0191e3fd'::UUID, NULL]",
    "[1::HUGEINT]",
    "[DATE 'infinity']",
    "{'a': 1, 'b': [2::HUGEINT, NULL]}",
    "{'a': {'b': INTERVAL 1 DAY}}",
    "{'a': '101'::BIT, 'b c': ['01:02:03+02'::TIMETZ]}",
    "MAP {'a': 1, 'b': NULL}",
    "MAP {'a': [5::HUGEINT]}",
    "MAP {[1]: 2}",
    "MAP {}",
    "MAP {'a': TIMESTAMP_NS '2020-01-01 00:00:00.123456789'}",
    "[[1, 2]::INTEGER[2]]",
    "union_value(k := 1)",
]


def through_arrow(relation: Any) -> list[tuple[Any, ...]]:
    columns = list(zip(relation.columns, relation.types, strict=True))
    read = row_reader(columns)
    return [row for batch in exportable(relation).to_arrow_reader(1000) for row in read(batch)]


if duckdb.__version__ < "2":
    VALUES.remove("TIMESTAMPTZ '2020-01-01 00:00:00+00'")  # its own fetchall needs pytz


@pytest.mark.parametrize("value", VALUES)
def test_values_are_duckdbs(value: str) -> None:
    with duckdb.connect() as con:
        sql = f"SELECT {value} AS v, NULL::INTEGER AS n UNION ALL SELECT NULL, 2"
        expected = con.sql(sql).fetchall()
        found = through_arrow(con.sql(sql))
    assert repr(found) == repr(expected)


@pytest.mark.skipif(duckdb.__version__ < "2", reason="tuples are structs there")
def test_tuples_and_variants() -> None:
    with duckdb.connect() as con:
        sql = "SELECT row(1, 'x') AS r, {'a': [1, NULL]}::VARIANT AS v"
        assert through_arrow(con.sql(sql)) == con.sql(sql).fetchall() == [((1, "x"), {"a": [1, None]})]


def test_order_and_names_survive_a_cast_to_text() -> None:
    with duckdb.connect() as con:
        relation = con.sql("SELECT i AS \"a b\", '101'::BIT AS b FROM range(5) r(i) ORDER BY i DESC")
        table = exportable(relation).to_arrow_table()
    assert table.column_names == ["a b", "b"]
    assert table["a b"].to_pylist() == [4, 3, 2, 1, 0]
    assert table["b"].to_pylist() == ["101"] * 5


def test_what_arrow_carries_is_left_alone() -> None:
    with duckdb.connect() as con:
        relation = con.sql("SELECT 1 AS a, [uuid()] AS b")
        assert exportable(relation) is relation


def test_types_may_be_given_by_name() -> None:
    read = row_reader([("h", "HUGEINT"), ("u", "mood"), ("l", "UUID[]")])
    zero = "00000000-0000-0000-0000-000000000000"
    batch = pa.record_batch({"h": pa.array([1], pa.decimal128(38, 0)), "u": ["sad"], "l": [[zero]]})
    assert repr(read(batch)) == repr([(1, "sad", [uuid.UUID(zero)])])


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("VARCHAR", sqluice.STRING),
        ("ENUM('a', 'b')", sqluice.STRING),
        ("BLOB", sqluice.BINARY),
        ("DECIMAL(10,2)", sqluice.NUMBER),
        ("HUGEINT", sqluice.NUMBER),
        ("TIMESTAMP WITH TIME ZONE", sqluice.DATETIME),
        ("INTERVAL", sqluice.DATETIME),
    ],
)
def test_type_codes_compare_with_their_family_alone(kind: str, family: object) -> None:
    code = describe([("x", kind)])[0][1]
    others = {sqluice.STRING, sqluice.BINARY, sqluice.NUMBER, sqluice.DATETIME, sqluice.ROWID} - {family}
    assert code == family
    assert not any(code == other for other in others)


def test_nested_types_are_of_no_family() -> None:
    families = (sqluice.STRING, sqluice.BINARY, sqluice.NUMBER, sqluice.DATETIME, sqluice.ROWID)
    assert not any(code == family for code in ("INTEGER[]", "STRUCT(a INTEGER)") for family in families)


def test_precision_and_scale_of_decimals() -> None:
    assert describe([("d", "DECIMAL(10,2)"), ("i", "INTEGER")]) == [
        ("d", "DECIMAL(10,2)", None, None, 10, 2, None),
        ("i", "INTEGER", None, None, None, None, None),
    ]


def test_constructors() -> None:
    ticks = time.mktime((2002, 12, 25, 13, 45, 30, 0, 0, 0))
    assert sqluice.DateFromTicks(ticks) == sqluice.Date(2002, 12, 25) == datetime.date(2002, 12, 25)
    assert sqluice.TimeFromTicks(ticks) == sqluice.Time(13, 45, 30)
    assert sqluice.TimestampFromTicks(ticks) == sqluice.Timestamp(2002, 12, 25, 13, 45, 30)
    assert sqluice.Binary(b"ab") == b"ab"


def test_frames_have_integers_and_durations() -> None:
    with duckdb.connect() as con:
        relation = con.sql(
            "SELECT sum(i) AS s, 170141183460469231731687303715884105727 AS big, "
            "INTERVAL 1 DAY AS d, 1 AS s FROM range(4) r(i)"
        )
        columns = [(name, str(kind)) for name, kind in zip(["s", "big", "d", "s"], relation.types, strict=True)]
        table = for_frames(relation.to_arrow_table(), columns)
    assert [str(field.type) for field in table.schema] == ["int64", "double", "duration[us]", "int32"]
    assert table.column_names == ["s", "big", "d", "s_1"]
    assert table["s"].to_pylist() == [6]
