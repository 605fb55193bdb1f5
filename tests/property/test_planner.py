"""The planner changes no answer: random statements give the same optimized and row by row.

To look into a failure, run the SQL that it prints in both modes: it makes its own tables, and the model of `compare`
answers by the text alone.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property.compare import Pair, Result, shape
from property.data import MANY, TEXT, Column, Table, tables
from property.nested import Nested
from property.queries import Statement, Statements
from support.scale import repeats

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES: set[str] = set()
RAISED: list[str] = []
LEAST_SHAPES = 500
MOST_BROKEN = 0.002
"""Share of statements on which DuckDB itself may break, so that there is nothing to compare with."""
TIMES = repeats(1, 10)
BATCHES, NESTED, BATCH = 23 * TIMES, 15 * TIMES, 12
WRITES = 4 * TIMES
FIRST_NESTED, FIRST_WRITE = 1_002_005, 2_000_000
SIZES = (0, 0, 0, 1, 1, 2)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def check(pair: Pair, rng: Random, count: int) -> None:
    """Some statements over fresh tables."""
    made = tables(rng)
    pair.make(made)
    view = Statements(rng, made).view()
    if view is not None and pair.add_view(view[0]):
        made.append(view[1])
    for _ in range(count):
        compare(pair, Statements(rng, made, rng.choice(SIZES)).one())


def compare(pair: Pair, statement: Statement) -> None:
    """Check a statement, and count it."""
    found = pair.check(statement)
    SHAPES.add(shape(statement.text))
    if found.error is not None:
        RAISED.append(statement.text)


@pytest.mark.parametrize("seed", range(BATCHES))
def test_both_plans_give_the_same(pair: Pair, seed: int) -> None:
    check(pair, Random(seed), BATCH)


@pytest.mark.parametrize("seed", range(NESTED))
def test_both_plans_give_the_same_where_a_condition_may_move(pair: Pair, seed: int) -> None:
    rng = Random(seed + FIRST_NESTED)
    made = tables(rng, MANY)
    pair.make(made)
    for _ in range(BATCH):
        compare(pair, Nested(rng, made).one())


@pytest.mark.parametrize("seed", range(WRITES))
def test_both_plans_give_the_same_where_a_write_looks_at_other_tables(pair: Pair, seed: int) -> None:
    rng = Random(seed + FIRST_WRITE)
    made = tables(rng)
    pair.make(made)
    found = (Statements(rng, made, 0).write_beside() for _ in range(100 * BATCH))
    for statement in itertools.islice((one for one in found if "AI_" in one.text), BATCH):
        compare(pair, statement)


@settings(max_examples=settings().max_examples // 10)
@given(rng=st.randoms(use_true_random=False))
def test_both_plans_give_the_same_on_a_statement_that_can_shrink(pair: Pair, rng: Random) -> None:
    check(pair, rng, 1)


def test_statements_have_many_shapes_and_few_raise(pair: Pair) -> None:
    if len(SHAPES) < BATCH * 2:
        pytest.skip("counts what the tests above have run")
    assert len(SHAPES) >= LEAST_SHAPES
    assert len(RAISED) < len(SHAPES) / 5
    assert len(pair.broken) <= max(1, MOST_BROKEN * pair.checked), pair.broken


def test_a_statement_on_which_duckdb_breaks_is_counted_and_does_not_end_the_run(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.make([Table("t", (Column("id", "INTEGER"), Column("s", TEXT)), (("1", "'a'"),))])
    before, run = len(pair.broken), Pair.run

    def breaks(self: Pair, mode: str, statement: Statement) -> Result:
        result = run(self, mode, statement)
        return Result("InternalError: INTERNAL Error: x", broken=True) if mode == "rowwise" else result

    monkeypatch.setattr(Pair, "run", breaks)
    statement = Statement("SELECT AI_FILTER(s) FROM t")
    assert pair.check(statement).error is None
    assert pair.broken.pop() == statement.text
    monkeypatch.setattr(Pair, "run", lambda *_: Result("InternalError: of ours"))
    assert pair.check(statement).error is not None
    monkeypatch.undo()
    assert pair.check(statement).error is None
    assert len(pair.broken) == before


FOUND_AT_NIGHT = (
    "DELETE FROM t USING r WHERE ((SELECT true FROM (SELECT * FROM t, unnest([s, 'red']) AS a(v), r a4 WHERE"
    " AI_FILTER(a.v) AND AI_FILTER(t.s)) AS a1 CROSS JOIN t WHERE a1.b AND ((SELECT AI_FILTER(PROMPT('{0} {1}', d.s,"
    " s)) IS NOT NULL AS s FROM r AS d WHERE (CASE d.id WHEN k THEN false ELSE AI_FILTER('short?', s) END) ORDER BY ALL"
    " LIMIT 1)) AND AI_FILTER('short?', a1.v) ORDER BY ALL LIMIT 1))",
)


@pytest.mark.parametrize("text", FOUND_AT_NIGHT)
def test_what_a_nightly_run_has_found(pair: Pair, text: str) -> None:
    columns = (Column("id", "INTEGER"), Column("s", TEXT), Column("k", "INTEGER"))
    pair.make(
        [
            Table("t", columns, (("1", "'it'", "1"), ("2", "'x'", "0"))),
            Table("r", (*columns, Column("b", "BOOLEAN")), (("1", "'red '", "1", "false"),)),
        ]
    )
    assert pair.check(Statement(text, reads="t")).error is None


LONG = "'" + "long text " * 1_000_000 + "'"
OVER_LONG = (
    "SELECT id, AI_FILTER(s), AI_COMPLETE(PROMPT('{0}!', left(s, 9))) FROM long ORDER BY id",
    "SELECT count(*) FROM long a JOIN long b ON a.id < b.id AND AI_FILTER(PROMPT('{0} {1}', a.s, b.s))",
    "SELECT length(max(s)) FROM long GROUP BY AI_FILTER(s) ORDER BY 1",
)


@pytest.mark.parametrize("text", OVER_LONG)
def test_a_text_of_ten_megabytes(pair: Pair, text: str) -> None:
    rows = (("1", LONG), ("2", "'short'"), ("3", "NULL"), ("4", LONG))
    pair.make([Table("long", (Column("id", "INTEGER"), Column("s", TEXT)), rows)])
    assert pair.check(Statement(text, ordered=True)).error is None


@pytest.mark.parametrize(
    ("inside", "joint"), [("AI_FILTER(s)", " AND "), ("AI_FILTER(s)", " OR "), ("id = 1", " OR "), ("id", " + ")]
)
def test_an_expression_of_a_thousand_parts(pair: Pair, inside: str, joint: str) -> None:
    pair.make([Table("deep", (Column("id", "INTEGER"), Column("s", TEXT)), (("1", "'a'"), ("2", "'b'")))])
    text = f"SELECT id, AI_FILTER(s) AS f, {joint.join([inside] * 1000)} AS x FROM deep ORDER BY 1"
    error = pair.check(Statement(text, ordered=True)).error
    assert error is None or "max_expression_depth" in error
