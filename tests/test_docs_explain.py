"""The statements of docs/explain.md print what stands below them. `SQLUICE_COMPLETE=1` writes it there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import sqluice
from support.scripted import scripted

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parents[1] / "docs" / "explain.md"
BLOCK = re.compile(r"```sql\n(?P<sql>.*?)\n```\n(?:\n```text\n(?P<text>.*?)\n```\n)?", re.DOTALL)


def explained(con: sqluice.Connection, sql: str) -> str:
    """The plan in words; stages are numbered from one."""
    request = sql if sql.startswith("EXPLAIN") else f"EXPLAIN {sql}"
    ((text,),) = con.execute(request).fetchall()
    return re.sub(r"__s\d+_", "__s1_", str(text))


def test_explain_says_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path))
    page = PAGE.read_text(encoding="utf-8")
    tables, *blocks = list(BLOCK.finditer(page))
    con = sqluice.connect(ai_cache="off")
    con.register_model("oracle", scripted("oracle", "percent 50"))
    con.execute("SET ai_oracle = 'oracle'")
    con.execute(tables["sql"])
    assert len(blocks) >= 6
    found = {block["sql"]: explained(con, block["sql"]) for block in blocks}
    con.close()
    if os.environ.get("SQLUICE_COMPLETE"):
        for sql, text in found.items():
            whole = re.compile(re.escape(f"```sql\n{sql}\n```\n") + r"(\n```text\n.*?\n```\n)?", re.DOTALL)
            page = whole.sub(lambda _: f"```sql\n{sql}\n```\n\n```text\n{text}\n```\n", page)  # noqa: B023
        PAGE.write_text(page, encoding="utf-8")
    else:
        assert {block["sql"]: block["text"] for block in blocks} == found
