"""Texts of the default model: in slots as one at a time, and cut ones are no answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sqluice.types import Prompt
from sqluice.workers import forms, torch_slots
from sqluice.workers.registry import LoadOptions, Registry

if TYPE_CHECKING:
    from sqluice import Connection

pytestmark = pytest.mark.local

ROWS, MOST = 8, 12
MOST_FLIPS = 4
"""Texts of 8 that may differ in bfloat16: sums are rounded in another order beside other rows. None in float32."""


@pytest.mark.parametrize(("dtype", "most_flips"), [("float32", 0), ("bfloat16", MOST_FLIPS)])
def test_texts_are_those_of_one_row_at_a_time(
    local: Connection, dtype: str, most_flips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_slots, "SLOTS", 5)
    model: Any = Registry(["default"]).load("package:default", LoadOptions(dtype=dtype))
    texts = [text for (text,) in local.execute(f"SELECT text FROM r ORDER BY id LIMIT {ROWS}").fetchall()]
    prompts = [Prompt("Name what this is about in three words: {0}", (text,), kind="complete") for text in texts]
    together = model.generate(prompts, max_tokens=MOST)
    lm, tokens = model._lm, model._tokens
    flips = 0
    for prompt, said in zip(prompts, together, strict=True):
        shared, own = tokens.chat(forms.messages(prompt))
        (alone,) = lm.write([[*shared, *own]], MOST)
        text = tokens.text([token for token in alone if token not in lm.stops]).strip()
        assert said.tokens_in == len(shared) + len(own)
        assert (said.finish_reason == "length") == (alone[-1] not in lm.stops) or said.text != text
        flips += said.text != text
    print(f"{dtype}: {flips} of {ROWS} texts differ")
    assert flips <= most_flips


def test_rows_in_slots_through_sql(local: Connection) -> None:
    cursor = local.execute(
        "SELECT id, AI_COMPLETE(PROMPT('Name what this is about: {0}', text), {'max_tokens': 6}) FROM"
        " (SELECT * FROM r ORDER BY id LIMIT 6)"
    )
    rows = cursor.fetchall()
    report = cursor.report
    assert report is not None
    states = local.execute(
        "SELECT status, reason, count(*), min(tokens_out), max(tokens_out) FROM ai.decisions"
        " WHERE run_id = ? GROUP BY ALL ORDER BY ALL",
        [report.run_id],
    ).fetchall()
    assert sum(count for _, _, count, _, _ in states) == 6
    for status, reason, count, least, most in states:
        if status == "capped":
            assert (reason, least, most) == ("token limit", 6, 6)
            assert sum(said is None for _, said in rows) == count
        else:
            assert status == "answered"
            assert most <= 6
    (sums,) = local.execute(
        "SELECT tokens_out = (SELECT sum(tokens_out) FROM ai.decisions WHERE run_id = $1)"
        " FROM ai.ops WHERE run_id = $1",
        [report.run_id],
    ).fetchall()
    assert sums == (True,)
