"""Every rule against its fixture: a query, what the rule makes of it, and that both give the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlglot

import sqluice.optimizer.rules
from rules.drive import Driver, connection

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.sql"))}
RULES = {path.stem for path in Path(sqluice.optimizer.rules.__file__).parent.glob("[a-z]*.py")}


def pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Before and after, in the order of the file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("--")]
    yield from zip(lines[::2], lines[1::2], strict=True)


CASES = [
    pytest.param(name, before, after, id=f"{name}-{number}")
    for name, path in FIXTURES.items()
    for number, (before, after) in enumerate(pairs(path), 1)
]


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    con = connection()
    yield Driver(con)
    con.close()


@pytest.mark.parametrize(("rule", "before", "after"), CASES)
def test_a_rule_makes_of_a_query_what_the_file_says(driver: Driver, rule: str, before: str, after: str) -> None:
    wanted = sqlglot.parse_one(after, dialect="duckdb").sql("duckdb")
    assert sqlglot.parse_one(driver.apply(rule, before), dialect="duckdb").sql("duckdb") == wanted


@pytest.mark.parametrize(("rule", "before", "after"), CASES)
def test_both_give_the_same(driver: Driver, rule: str, before: str, after: str) -> None:
    (columns, rows), (same_columns, same) = driver.rows(before.rstrip(";")), driver.rows(after.rstrip(";"))
    assert columns == same_columns
    if sqlglot.parse_one(before, dialect="duckdb").args.get("order") is None:
        assert sorted(map(repr, rows)) == sorted(map(repr, same))
    else:
        assert rows == same


def test_every_rule_has_a_fixture() -> None:
    assert FIXTURES.keys() == RULES


def test_a_fixture_shows_where_its_rule_changes_something() -> None:
    for name, path in FIXTURES.items():
        texts = [sqlglot.parse_one(text, dialect="duckdb").sql("duckdb") for pair in pairs(path) for text in pair]
        assert any(before != after for before, after in zip(texts[::2], texts[1::2], strict=True)), name
