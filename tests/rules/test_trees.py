"""Guards, and reading trees that hold AI expressions."""

from __future__ import annotations

import pytest
import sqlglot
from sqlglot import exp

from sqluice.optimizer import ast, guards

AGGREGATES = frozenset({"sum", "max", "bool_or"})


def tree(text: str) -> exp.Expr:
    return sqlglot.parse_one(text, dialect="duckdb")


def needs(text: str) -> dict[str, str | None]:
    """The guard of each question of an expression, by the number of the question."""
    found = guards.collect([tree(text)], AGGREGATES)
    texts = {}
    for need in found.values():
        guard = need.guard()
        texts[str(ast.spec_of(need.site))] = None if guard is None else ast.sql(guard)
    return texts


TRUE, NOT_FALSE = "COALESCE(CAST((a) AS BOOLEAN), FALSE)", "COALESCE(CAST((a) AS BOOLEAN), TRUE)"


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("__ai(1, s)", None),
        ("NOT __ai(1, s) IS NULL", None),
        ("CASE WHEN a THEN __ai(1, s) END", TRUE),
        ("CASE WHEN a THEN 0 ELSE __ai(1, s) END", f"NOT {TRUE}"),
        ("CASE WHEN __ai(1, s) THEN a END", None),
        ("IF(a, __ai(1, s), 0)", TRUE),
        ("COALESCE(a, __ai(1, s))", "((a) IS NULL)"),
        ("a OR __ai(1, s)", f"NOT {TRUE}"),
        ("__ai(1, s) OR a", f"NOT {TRUE}"),
        ("a AND __ai(1, s)", NOT_FALSE),
        ("__ai(1, s) OR (a AND __ai(1, s))", None),
        ("a IN (SELECT 1) AND __ai(1, s)", None),
        ("CASE WHEN max(k) > 1 THEN __ai(1, s) END", None),
        ("CASE WHEN row_number() OVER () > 1 AND a THEN __ai(1, s) END", None),
        ("CASE WHEN max(k) > 1 THEN sum(__ai(1, s)) END", None),
        ("CASE WHEN a THEN sum(__ai(1, s)) OVER () END", None),
        ("sum(__ai(1, s)) FILTER (WHERE a)", TRUE),
        ("sum(k) FILTER (WHERE __ai(1, s))", None),
        ("CASE WHEN a THEN array_filter(l, 1) = __ai(1, s) END", TRUE),
    ],
)
def test_when_a_question_is_needed(text: str, guard: str | None) -> None:
    assert needs(text) == {"1": guard}


def test_a_guard_may_hold_another_question() -> None:
    found = needs("CASE WHEN __ai(1, s) THEN __ai(2, s) END")
    assert found == {"1": None, "2": "COALESCE(CAST((__AI(1, s)) AS BOOLEAN), FALSE)"}


def test_inner_questions_come_first() -> None:
    assert list(needs("__ai(1, __ai(2, s))")) == ["2", "1"]


def test_questions_that_guard_each_other_are_asked_where_the_rest_of_the_guard_holds() -> None:
    found = guards.collect([tree("(a AND __ai(1, s) AND __ai(2, s)) OR (b AND __ai(2, s) AND __ai(1, s))")])
    first, second = found.values()
    assert first.waits_for() & {guards.key(second.site)}
    assert second.waits_for() & {guards.key(first.site)}
    weaker = first.guard(unknown=found.keys())
    assert weaker is not None
    assert not ast.has_site(weaker)


def test_an_answer_and_its_error_are_one_question() -> None:
    assert guards.key(tree("__ai(1, s)")) == guards.key(tree("__ai_error(1, s)"))


def test_levels() -> None:
    outer = tree("SELECT __ai(1, s) FROM t WHERE id IN (SELECT id FROM r WHERE __ai(2, w))")
    assert [ast.spec_of(site) for site in ast.own_sites(outer)] == [1]
    assert ast.has_site(outer, deep=True)
    (inner,) = ast.nested_queries(outer)
    assert [ast.spec_of(site) for site in ast.own_sites(inner.unnest())] == [2]


def test_replaced_leaves_the_tree_and_nested_queries_alone() -> None:
    before = tree("SELECT a, (SELECT a FROM r) FROM t")
    after = ast.replaced(before, lambda node: exp.column("b") if isinstance(node, exp.Column) else None)
    assert ast.sql(before) == "SELECT a, (SELECT a FROM r) FROM t"
    assert ast.sql(after) == "SELECT b, (SELECT a FROM r) FROM t"


def test_conjuncts_and_back() -> None:
    parts = ast.conjuncts(tree("a = 1 AND (b OR c) AND (d AND NOT e)"))
    assert [ast.sql(part) for part in parts] == ["a = 1", "(b OR c)", "d", "NOT e"]
    whole = ast.conjunction([part.copy() for part in parts])
    assert whole is not None
    assert ast.sql(whole) == "(a = 1) AND (b OR c) AND d AND NOT e"
    assert ast.conjunction([]) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sum(a) + max(b)", ["SUM(a)", "MAX(b)"]),
        ("sum(a) FILTER (WHERE b)", ["SUM(a) FILTER(WHERE b)"]),
        ("sum(a) OVER (ORDER BY max(b))", ["MAX(b)"]),
        ("sum(sum(a)) OVER ()", ["SUM(a)"]),
        ("lower(a) || (SELECT max(b) FROM t)", []),
    ],
)
def test_aggregates_of_a_level(text: str, found: list[str]) -> None:
    assert [ast.sql(call) for call in ast.aggregate_calls(tree(text), AGGREGATES)] == found


@pytest.mark.parametrize(
    ("text", "cheap"), [("a + 1", True), ("random() < a", False), ("__ai(1, a)", False), ("a IN (SELECT 1)", False)]
)
def test_what_duckdb_decides_alone(text: str, cheap: bool) -> None:
    assert ast.is_cheap(tree(text)) is cheap


def test_commas_and_filtering_joins() -> None:
    joins = tree("SELECT 1 FROM a, b JOIN c ON true SEMI JOIN d ON true CROSS JOIN e").args["joins"]
    assert [ast.is_comma(join) for join in joins] == [True, False, False, False]
    assert [ast.is_filtering(join) for join in joins] == [False, False, True, False]
    select = tree("SELECT 1 FROM a, b SEMI JOIN d ON true")
    assert isinstance(select, exp.Select)
    assert [ast.source_alias(item) for item in ast.sources(select)] == ["a", "b"]
