"""Budgets of calls, money and time: hard caps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqluice.errors import Error
from sqluice.types import ModelInfo
from support.numbers import POSITIVE, ROWS, Model, connected, exact, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from sqluice import Connection
    from sqluice.types import Prompt


@pytest.fixture
def oracle() -> Model:
    return Model()


@pytest.fixture
def con(oracle: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    connection = connected(oracle)
    yield connection
    connection.close()


@pytest.mark.parametrize("calls", [1, 40, 700, 1500])
def test_a_budget_of_calls_is_a_hard_cap(con: Connection, oracle: Model, calls: int) -> None:
    run(con, f"SET ai_budget = '{calls} calls'")
    rows, report = run(con, f"SELECT id, {POSITIVE} FROM t")
    assert len(oracle.asked) <= calls
    assert report.label == "uncertified(budget)" if calls < 700 else report.label
    assert sum(answer is None for _, answer in rows) == 0
    run(con, "RESET ai_budget")
    right = len(set(rows) & exact(con, f"SELECT id, {POSITIVE} FROM t")) / ROWS
    assert right > (0.9 if calls > 600 else 0.5)


def test_a_budget_that_does_for_all_changes_nothing(con: Connection, oracle: Model) -> None:
    _, report = run(con, "SELECT id FROM t WHERE AI_FILTER(s, {'budget': 100000}) AND id < 100")
    assert report.label == "exact"
    assert len(oracle.asked) == len(set(oracle.asked)) == 100


def test_what_a_budget_leaves_unanswered_is_null_and_says_so(con: Connection, oracle: Model) -> None:
    run(con, "SET ai_budget = '10 calls'")
    rows, report = run(con, "SELECT AI_SCORE(s) FROM t WHERE id < 50")
    assert report.label == "uncertified(budget)"
    assert len(oracle.asked) == 10
    assert sum(score is None for (score,) in rows) == 40
    states, _ = run(
        con, f"SELECT status, reason, count(*) FROM ai.decisions WHERE run_id = '{report.run_id}' GROUP BY ALL"
    )
    assert set(states) == {("answered", "exact", 10), ("capped", "budget", 40)}
    assert report.warnings == 1


def test_attempts_that_are_repeated_count(con: Connection) -> None:
    oracle = Model(info=ModelInfo(name="oracle", revision="4"))
    tries: list[int] = []
    inner = oracle.score

    def failing(prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        tries.append(len(prompts))
        if any(prompt.args[0].endswith("3") for prompt in prompts):
            raise RuntimeError("no")
        return inner(prompts, choices)

    oracle.score = failing  # type: ignore[method-assign]
    con.register_model("oracle", oracle)
    run(con, "SET ai_budget = '200 calls'")
    run(con, "SELECT AI_SCORE(s) FROM t WHERE id < 500")
    assert sum(tries) <= 200


@pytest.mark.parametrize("budget", ["0 calls", "5 apples", "1.5 calls", "-3 calls"])
def test_a_budget_that_is_none(con: Connection, budget: str) -> None:
    with pytest.raises(Error, match="ai_budget"):
        run(con, f"SET ai_budget = '{budget}'")


def test_a_budget_of_money(con: Connection) -> None:
    oracle = Model(info=ModelInfo(name="oracle", revision="5", price_in=1000.0))
    con.register_model("oracle", oracle)
    run(con, "SET ai_budget = '3 usd'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    assert report.cost_usd <= 3
    assert report.label == "uncertified(budget)"


@pytest.mark.parametrize("calls", [10, 500, 1500])
def test_a_budget_for_two_predicates(con: Connection, oracle: Model, calls: int) -> None:
    run(con, f"SET ai_budget = '{calls} calls'")
    both = f"{POSITIVE} AND AI_FILTER(PROMPT('is the second of {{0}} high?', s))"
    _, report = run(con, f"SELECT id FROM t WHERE {both}")
    assert len(oracle.asked) <= calls
    assert report.label.startswith("uncertified(")


def test_rows_that_the_budget_left_out_are_no_answers(con: Connection) -> None:
    """A NULL of the oracle leaves the contract; one that the budget made does not."""
    oracle = Model(info=ModelInfo(name="oracle", revision="8"))
    inner, tries = oracle.score, [0]

    def failing(prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        tries[0] += 1
        if tries[0] % 3 == 0:
            raise RuntimeError("no")
        return inner(prompts, choices)

    oracle.score = failing  # type: ignore[method-assign]
    con.register_model("oracle", oracle)
    run(con, "SET ai_budget = '2300 calls'")
    _, report = run(con, f"SELECT id FROM t WHERE {POSITIVE}")
    capped, _ = run(con, f"SELECT count(*) FROM ai.decisions WHERE run_id = '{report.run_id}' AND status = 'capped'")
    assert capped[0][0] == 0 or report.label == "uncertified(budget)"
    assert capped[0][0] == 0 or not any(one.reached for one in report.operators[0].cascades)
