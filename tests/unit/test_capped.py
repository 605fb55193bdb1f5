"""A text that a token limit cut is no answer: NULL, a warning, status `capped`; from the model and from the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import sqluice
from sqluice.errors import OperationalError
from sqluice.types import Completion, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqluice import Connection
    from sqluice.types import Prompt

STATES = """SELECT status, reason, tier, count(*), sum(n_rows), count(error), sum(d.tokens_out)
    FROM ai.decisions d WHERE run_id = ? GROUP BY ALL ORDER BY ALL"""


class Wordy:
    """Repeats its text, cut after `max_tokens` words."""

    info = ModelInfo("wordy", revision="1", context_tokens=1000)

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        found = []
        for prompt in prompts:
            words = prompt.args[0].split()
            said = words[:max_tokens]
            end = "stop" if len(words) <= max_tokens else "length"
            found.append(Completion(" ".join(said), end, len(words), len(said)))  # type: ignore[arg-type]
        return found


@pytest.fixture
def con() -> Iterator[Connection]:
    connection = sqluice.connect(ai_mode="exact", ai_trace="text", ai_cache="memory")
    connection.register_model("wordy", Wordy())
    connection.execute("SET ai_oracle = 'wordy'")
    connection.execute("CREATE TABLE t AS SELECT i, repeat('w ', i % 5 + 1) AS s FROM range(20) r(i)")
    yield connection
    connection.close()


def test_cut_rows_are_null_and_capped(con: Connection) -> None:
    query = "SELECT i, AI_COMPLETE(PROMPT('Repeat: {0}', s), {'max_tokens': 3}) FROM t ORDER BY i"
    for tier, reason in (("oracle", "exact"), ("cache", "cache hit")):
        cursor = con.execute(query)
        for i, said in cursor.fetchall():
            assert said == (" ".join(["w"] * (i % 5 + 1)) if i % 5 < 3 else None)
        report = cursor.report
        assert report is not None
        states = con.execute(STATES, [report.run_id]).fetchall()
        tokens = (6, 6) if tier == "oracle" else (0, 0)
        assert states == [
            ("answered", reason, tier, 3, 12, 0, tokens[0]),
            ("capped", "token limit", tier, 2, 8, 2, tokens[1]),
        ]
        operator = report.operators[0]
        assert (operator.calls, operator.cached) == ((5, 0) if tier == "oracle" else (0, 5))
        assert operator.failed == 0
        assert any("cut by the token limit of 3 tokens" in text for _, text in cursor.messages)


def test_the_error_can_be_had_and_can_stop_the_query(con: Connection) -> None:
    query = "SELECT AI_COMPLETE(PROMPT('Repeat: {0}', s), {'max_tokens': 3, 'errors': true}) AS c FROM t WHERE i = 4"
    ((found,),) = con.execute(query).fetchall()
    assert found["value"] is None
    assert "cut by the token limit" in found["error"]
    con.execute("SET ai_on_error = 'raise'")
    with pytest.raises(OperationalError, match="cut by the token limit of 3 tokens: raise max_tokens"):
        con.execute("SELECT AI_COMPLETE(PROMPT('Repeat: {0}', s), {'max_tokens': 3}) FROM t").fetchall()
