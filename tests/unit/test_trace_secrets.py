"""Secrets in SQL, settings, names of models and errors never reach the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from sqluice.engine.trace import TraceFolder
from sqluice.engine.trace_schema import TABLES, redact
from sqluice.workers.protocol import Batch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("text", [
    "api_key=s3cret", "api_key = 's3cret''s3cret'", 'api_key="s3cret"', "API-KEY => 's3cret'", "{'api_key': 's3cret'}",
    "OPENAI_API_KEY=s3cret", "CREATE SECRET x (TYPE s3, SECRET 's3cret')", "Authorization: Bearer s3cret-abcdef",
    "bearer s3cretabcdef", "https://me:s3cret@host/x", "?token=s3cret&x=1", "sk-s3cretabcdefghijklmnop",
    "PASSWORD := $$s3cret$$", "aws_secret_access_key: s3cret",
])  # fmt: skip
def test_secrets_are_replaced(tmp_path: Path, text: str) -> None:
    assert "s3cret" not in redact(text)
    assert "***" in redact(text)
    folder = TraceFolder(tmp_path / "trace")
    run = folder.begin(f"SELECT 1 -- {text}", {"ai_x": text, "ai_api_key": "s3cret"})
    op = run.operator("AI_FILTER", f"openai:{text}", "r", "t")
    op.add_decisions([b"0123456789abcdef"], np.ones(1, np.int64), tier="oracle", status="failed", errors={0: text})
    op.add_batches([Batch(1, 1.0, 2.0, error=text)])
    report = run.finish("error", text)
    assert "s3cret" not in str(report) + str(report.to_dict())
    for table in TABLES:
        rows = [pq.read_table(path).to_pylist() for path in (folder.path / table).glob("*.parquet")]
        assert any(rows)
        assert "s3cret" not in str(rows)


@pytest.mark.parametrize("text", [
    "SELECT max_tokens, api_key_env FROM t", "api_key_env='OPENAI_KEY'", "AI_COMPLETE('x', max_tokens := 5)",
    "ai_budget = '500 calls'", "SELECT token FROM t WHERE tokens = 5", "https://host:80/a@b",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
