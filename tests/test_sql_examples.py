"""Every file of sql_examples/ gives the output that stands beside it.

`SQLUICE_COMPLETE=1 pytest tests/test_sql_examples.py` rewrites the `.out` files. The examples run on the
embedded models; what depends on the machine (plans with seconds, texts a model writes) is not in them.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

import sqluice
from sqluice.engine.running import execute, plan_text, warnings_of
from sqluice.engine.script import split
from sqluice.engine.table import draw
from sqluice.errors import Error, MissingExtraError, WeightsError

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "sql_examples").glob("[0-9][0-9]_*.sql"))
WIDTH = 110


def weights_missing() -> str:
    """Why the embedded models cannot run here; empty when they can."""
    from sqluice.workers import fetch

    try:
        for name in ("default", "embedder"):
            fetch.verify(name)
    except (WeightsError, MissingExtraError) as error:
        return str(error)
    return ""


def transcript(path: Path, database: Path) -> str:
    """What a person sees who runs the file: each statement's first line and its result."""
    con = sqluice.connect(str(database), ai_cache="memory", ai_dtype="float32")
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False)
    try:
        for statement in split(path.read_text()).all():
            console.print(f"> {_headline(statement.sql)}", soft_wrap=True)
            cursor = execute(con, statement.sql)
            if plan_text(cursor) is not None:
                console.print("(a plan; its seconds differ from machine to machine)")
            elif cursor.description is not None:
                console.print(str(draw(cursor.fetch_record_batch(1000), console)))
            for text in warnings_of(cursor):
                console.print("warning: " + text.splitlines()[0], soft_wrap=True)
            console.print()
    finally:
        con.close()
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _headline(sql: str) -> str:
    """The first line that is not a comment."""
    lines = [line for line in sql.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    return lines[0] + (" ..." if len(lines) > 1 else "")


@pytest.mark.local
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := weights_missing():
        pytest.skip(missing)
    monkeypatch.chdir(ROOT)
    try:
        text = transcript(path, tmp_path / "example.duckdb")
    except Error as error:
        raise AssertionError(f"{path.name}: {error}") from error
    expected = path.with_suffix(".out")
    if os.environ.get("SQLUICE_COMPLETE"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_every_example_is_listed_and_has_its_output() -> None:
    listed = (ROOT / "sql_examples" / "README.md").read_text()
    assert len(EXAMPLES) >= 8
    for number, path in enumerate(EXAMPLES, 1):
        assert path.name.startswith(f"{number:02}_")
        assert f"[{path.name}]({path.name})" in listed
        assert path.with_suffix(".out").exists()
