"""The `sqluice` command: output, errors, exit codes, pipes and Ctrl-C; its help against docs/cli.md."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from scripted import WordModel

import sqluice
from sqluice import config
from sqluice.engine import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqluice.engine.dbapi import Connection
    from sqluice.types import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection of the command knows the model `scripted`."""
    opened = cli.open_connection

    def open_with_model(args: argparse.Namespace, progress: Callable[[Progress], None] | None) -> Connection:
        con = opened(args, progress)
        con.register_model("scripted", WordModel())
        return con

    monkeypatch.setattr(cli, "open_connection", open_with_model)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sqluice {sqluice.__version__}\n"


def test_version_loads_nothing_heavy() -> None:
    heavy = ("duckdb", "pyarrow", "numpy", "sqlglot", "rich", "torch", "httpx")
    code = (
        "import sys; from sqluice.engine.cli import main; main(['--version']);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_table_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["query", "SELECT 41 + 1 AS answer"]) == 0
    out, err = capsys.readouterr()
    assert "answer" in out
    assert "42" in out
    assert err == ""


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT i, 'row ' || i AS text FROM range(3) t(i) ORDER BY i"
    assert cli.main(["query", sql, "--format", "csv"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:] == [[str(i), f"row {i}"] for i in range(3)]
    assert cli.main(["query", sql, "--format", "json"]) == 0
    rows = [{"i": i, "text": f"row {i}"} for i in range(3)]
    assert json.loads(capsys.readouterr().out) == rows
    assert cli.main(["query", sql, "--format", "jsonl"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet", "txt"])
def test_output_file_takes_its_format_from_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    assert cli.main(["query", "SELECT 7 AS seven", "--output", str(path)]) == 0
    if suffix == "parquet":
        assert pq.read_table(path).to_pylist() == [{"seven": 7}]
    else:
        assert "7" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "home"] == [path.name]


def test_a_failing_query_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.parquet"
    path.write_text("old")
    assert cli.main(["query", "SELECT CAST('x' AS INTEGER)", "--output", str(path)]) == 1
    assert path.read_text() == "old"
    assert "error: " in capsys.readouterr().err


def test_ai_query_with_report(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT x FROM (VALUES ('good'), ('bad'), (NULL)) t(x) WHERE AI_FILTER('Good?', x)"
    assert cli.main(["query", sql, "--oracle", "scripted", "--format", "csv", "--report"]) == 0
    out, err = capsys.readouterr()
    assert out == "x\ngood\n"
    assert "oracle" in err


def test_statements_from_a_file_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.sql"
    script.write_text("CREATE TABLE t AS SELECT 5 AS a;\n-- the sum; really\nSELECT sum(a) AS s FROM t;\n")
    assert cli.main(["query", "-f", str(script), "--format", "csv"]) == 0
    assert capsys.readouterr().out == "s\n5\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 6 AS b"))
    assert cli.main(["query", "-", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "b\n6\n"


def test_database_file_and_options_before_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = str(tmp_path / "my.duckdb")
    assert cli.main(["query", "--db", db, "CREATE TABLE t AS SELECT 5 AS a"]) == 0
    assert cli.main(["--db", db, "query", "FROM t", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "a\n5\n"


def test_settings(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT name, value FROM ai_settings() WHERE name IN ('ai_seed', 'ai_oracle') ORDER BY name"
    options = ["--set", "ai_seed=7", "--set", "ai_oracle=other", "--oracle", "scripted", "--format", "csv"]
    assert cli.main(["query", sql, *options]) == 0
    assert capsys.readouterr().out == "name,value\nai_oracle,scripted\nai_seed,7\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["query"], "the SQL is empty"),
        (["query", "  ;; -- nothing"], "the SQL is empty"),
        (["query", "SELECT 1", "--set", "ai_sed=1"], "did you mean ai_seed"),
        (["query", "SELECT 1", "--set", "ai_seed"], "NAME=VALUE"),
        (["query", "SELECT 1", "--set", "ai_mode=fast"], "exact, cascade, auto"),
        (["query", "SELECT 1", "-f", "x.sql"], "not both"),
        (["query", "SELECT 1", "--format", "xml"], "invalid choice"),
        (["explain", "SELECT 1; SELECT 2"], "one statement"),
        (["SELECT 1"], "sqluice query"),
        (["models"], "ACTION"),
    ],
)
def test_wrong_usage_is_2(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert hint in err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["query", "SELECT * FROM nowhere"], "nowhere"),
        (["query", "SELECT AI_FILTER(PROMPT('{0} {1}', 'x'))"], "line 1, column"),
        (["query", "SELECT 1;\nSELECT oops;"], "in the statement at line 2"),
        (["query", "-f", "/no/such/file.sql"], "/no/such/file.sql"),
        (["query", "SELECT AI_FILTER('x')", "--oracle", "nobody"], "nobody"),
        (["query", "SELECT AI_FILTER('x')", "--oracle", "https://example.com/v1#m"], "example.com"),
        (["query", "SELECT 1", "--output", "/no/such/folder/x.csv"], "/no/such/folder/x.csv"),
    ],
)
def test_errors_are_1_with_one_message(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert hint in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(sqluice.Error):
        cli.main(["query", "SELECT * FROM nowhere", "--debug"])


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT i FROM range(4) t(i) WHERE i < 2 AND AI_FILTER('Good?', 'row ' || i)"
    assert cli.main(["explain", sql, "--oracle", "scripted"]) == 0
    assert "AI_FILTER" in capsys.readouterr().out
    assert cli.main(["explain", sql, "--oracle", "scripted", "--analyze"]) == 0
    assert "AI_FILTER" in capsys.readouterr().out
    for options in (["--json"], ["--json", "--analyze"]):
        assert cli.main(["explain", sql, "--oracle", "scripted", *options]) == 0
        assert json.loads(capsys.readouterr().out)


def test_models_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    assert "package:default" in capsys.readouterr().out


def test_unknown_weights_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "verify", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_shell_from_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(".mode csv\nSELECT 1 AS a;\nSELECT 2 AS b"))
    assert cli.main([]) == 0
    assert capsys.readouterr().out == "a\n1\nb\n2\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT oops; SELECT 2 AS b;"))
    assert cli.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")


# Processes: pipes and signals


@contextlib.contextmanager
def started(*argv: str, home: Path, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, killed at the end of the block."""
    command = [
        sys.executable,
        "-c",
        code or "import sys; from sqluice.engine.cli import main; sys.exit(main())",
    ]
    env = {**os.environ, "SQLUICE_HOME": str(home)}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("form", ["csv", "jsonl", "table"])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, form: str) -> None:
    rows = 2_000_000 if form != "table" else 20_000
    with started("query", f"FROM range({rows})", "--format", form, home=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


SLOW = """
import sys
sys.path.insert(0, {tests!r})
from scripted import WordModel
from sqluice.engine import cli
opened = cli.open_connection
def slow(args, progress):
    con = opened(args, progress)
    con.register_model("slow", WordModel(delay=0.02))
    print("ready", file=sys.stderr, flush=True)
    return con
cli.open_connection = slow
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(5000) t(i) WHERE AI_FILTER('Good?', 'row ' || i)",
        "SELECT count(*) FROM range(100000000) a, range(1000) b WHERE a.range * b.range % 7 = 3",
    ],
)
def test_ctrl_c_stops_within_a_second_with_130(tmp_path: Path, sql: str) -> None:
    code = SLOW.format(tests=str(Path(__file__).parent))
    with started("query", sql, "--oracle", "slow", home=tmp_path, code=code) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == "ready\n"
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(20) == 130
        assert time.monotonic() - begun < 2
        assert process.stdout.read() == ""
        assert process.stderr.read().startswith("interrupted")


# Help and documentation


def named_options(parser: argparse.ArgumentParser, prefix: str = "sqluice") -> dict[str, set[str]]:
    """`{'sqluice query': {'--db', ..}}` for every command of the parser."""
    found = {prefix: {o for action in parser._actions for o in action.option_strings if o.startswith("--")}}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= named_options(child, f"{prefix} {name}")
    return found


def documented_options() -> dict[str, set[str]]:
    """The same, from the headings of docs/cli.md and the options in backquotes below each."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.startswith("`sqluice"):
            found[heading.strip().strip("`")] = set(re.findall(r"`(--[a-z-]+)", body))
    return found


def test_docs_and_help_name_the_same_commands_and_options() -> None:
    documented = documented_options()
    shared = {"--db", "--oracle", "--set", "--allow-model", "--debug", "--help"}
    helped = named_options(cli.build_parser())
    assert set(documented) == set(helped)
    assert shared <= documented["sqluice"]
    for command, options in helped.items():
        own = options - shared if command != "sqluice" else options
        assert documented[command] - (shared if command != "sqluice" else set()) == own, command


def test_docs_name_every_dot_command_and_exit_code() -> None:
    from sqluice.engine.shell import HELP

    text = (ROOT / "docs" / "cli.md").read_text()
    for name in re.findall(r"^\.\w+", HELP, flags=re.MULTILINE):
        assert f"`{name}" in text
    for code in ("0", "1", "2", "130"):
        assert f"| {code} |" in text


def test_every_setting_can_be_given() -> None:
    parser = cli.build_parser()
    for name, setting in config.SETTINGS.items():
        if setting.default is not None:
            args = parser.parse_args(["query", "SELECT 1", "--set", f"{name}={setting.default}"])
            assert cli.settings_of(args) == {name: setting.default}


# The demo


def test_demo_counts_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sqluice.engine import demo
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console, out_console

    con = sqluice.connect(ai_oracle="scripted", ai_cache="memory")
    con.register_model("scripted", WordModel("a"))
    right, labelled = demo.show(con, ProgressBar(err_console()), out_console(sys.stdout), demo.DATA)
    gold = con.execute("SELECT count(*) FILTER ((sentiment = 'positive') = contains(text, 'a')) FROM reviews")
    assert gold.fetchone() == (right,)
    con.close()
    out = capsys.readouterr().out
    assert f"right on {right} of {labelled} labelled rows ({100 * right / labelled:.1f} %)" in out
    assert "EXPLAIN ANALYZE" in out
    assert "ai.decisions" in out


def test_demo_data_is_sound() -> None:
    with (ROOT / "engine" / "data" / "reviews.csv").open(newline="") as file:
        reviews = list(csv.DictReader(file))
    with (ROOT / "engine" / "data" / "products.csv").open(newline="") as file:
        products = {row["product_id"] for row in csv.DictReader(file)}
    assert len(reviews) >= 160
    assert {row["product_id"] for row in reviews} == products
    assert len({row["text"] for row in reviews}) == len(reviews)
    positive = sum(row["sentiment"] == "positive" for row in reviews)
    assert 0.4 < positive / len(reviews) < 0.6
    assert all((int(row["stars"]) > 3) == (row["sentiment"] == "positive") for row in reviews)
