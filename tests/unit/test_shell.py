"""The shell: cutting scripts, dot commands, completion, and Ctrl-C on a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from scripted import WordModel

import sqluice
from sqluice.engine.completing import SqlCompleter, identifier, matching
from sqluice.engine.progress import ProgressBar
from sqluice.engine.running import err_console
from sqluice.engine.script import Statement, is_complete, split
from sqluice.engine.shell import Quit, Shell, pieces, prompt_session

if TYPE_CHECKING:
    from collections.abc import Iterator


# Cutting a script


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;", ["SELECT 1", "SELECT 2"]),
        (";;  ; -- nothing\n;", []),
        ("SELECT ';' -- ;\n; SELECT 2", ["SELECT ';' -- ;", "SELECT 2"]),
        ("SELECT 'it''s; fine'; SELECT 2", ["SELECT 'it''s; fine'", "SELECT 2"]),
        ("SELECT E'a\\';b'; SELECT 2", ["SELECT E'a\\';b'", "SELECT 2"]),
        ('SELECT "a;""b"; SELECT 2', ['SELECT "a;""b"', "SELECT 2"]),
        ("/* ; /* ; */ ; */ SELECT 1; SELECT 2", ["/* ; /* ; */ ; */ SELECT 1", "SELECT 2"]),
        ("SELECT $$;$$; SELECT $q$;$$;$q$", ["SELECT $$;$$", "SELECT $q$;$$;$q$"]),
        ("SELECT $1; SELECT a$b; SELECT $2", ["SELECT $1", "SELECT a$b", "SELECT $2"]),
        ("a AI_JOIN b ON PROMPT('{0};{1}', a.x, b.y);", ["a AI_JOIN b ON PROMPT('{0};{1}', a.x, b.y)"]),
    ],
)
def test_split(text: str, statements: list[str]) -> None:
    found = split(text)
    assert [piece.sql for piece in found.all()] == statements
    assert not found.open
    for piece in found.all():
        assert text[piece.offset :].startswith(piece.sql)


@pytest.mark.parametrize(
    ("text", "missing"),
    [("SELECT 'a;", "quote"), ('SELECT "a;', "quote"), ("SELECT 1 /* ;", "comment"), ("SELECT $a$;", "$a$")],
)
def test_split_names_what_is_open(text: str, missing: str) -> None:
    found = split(text)
    assert missing in found.open
    assert found.rest == Statement(text, 0)
    assert not is_complete(text)


@pytest.mark.parametrize("text", ["", "  \n", ".help", "SELECT 1;", "SELECT 1; -- done", "SELECT 1;\n/* done */"])
def test_complete(text: str) -> None:
    assert is_complete(text)


def test_a_long_literal_is_cut_in_linear_time() -> None:
    begun = time.monotonic()
    assert len(split(f"SELECT '{'x;' * 5_000_000}'; SELECT 2").all()) == 2
    assert time.monotonic() - begun < 2


def test_pieces_keep_dots_inside_statements() -> None:
    text = ".mode csv\nSELECT 1\n.5 AS x;\n.timer off\nSELECT 2"
    assert pieces(text) == [".mode csv\n", "SELECT 1\n.5 AS x;\n", ".timer off\n", "SELECT 2"]


# Statements and dot commands


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))
    con = sqluice.connect(ai_oracle="scripted")
    con.register_model("scripted", WordModel())
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    yield Shell(con, ProgressBar(err_console()), console=console)
    con.close()


def printed(shell: Shell) -> str:
    file = shell._console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_statement_draws_a_table(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.feed("SELECT 41 + 1 AS answer, NULL::VARCHAR AS nothing; SELECT 'x' AS second;")
    assert re.search(r"│ +answer │ nothing │", printed(shell))
    assert re.search(r"42 │ NULL", printed(shell))
    assert "second" in printed(shell)
    assert capsys.readouterr().err.count("1 row ") == 2


def test_ai_statement_counts_its_calls(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.feed("SELECT x FROM (VALUES ('good'), ('bad'), ('good')) t(x) WHERE AI_FILTER('Good?', x);")
    assert printed(shell).count("│ good") == 2
    assert "2 model calls" in capsys.readouterr().err


def test_errors_are_shown_and_the_shell_lives(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert not shell.feed("SELEC 1;")
    assert not shell.feed("SELECT * FROM nowhere;")
    assert shell.feed("SELECT 'alive' AS x;")
    assert "alive" in printed(shell)
    assert capsys.readouterr().err.count("error: ") == 2


def test_tables_and_schema(shell: Shell) -> None:
    shell.feed("CREATE TABLE films (title VARCHAR, year INTEGER); CREATE VIEW old AS FROM films;")
    shell.feed(".tables")
    assert re.search(r"films +│ table", printed(shell))
    assert re.search(r"old +│ view", printed(shell))
    shell.feed(".schema films")
    assert re.search(r"films +│ year +│ INTEGER", printed(shell))
    assert shell.feed(".schema o'dd")


def test_mode_timer_report(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.feed(".mode jsonl")
    shell.feed("SELECT 1 AS a;")
    assert '{"a": 1}\n' in printed(shell)
    shell.feed(".mode parquet")
    shell.feed(".timer off")
    shell.feed(".report")
    shell.feed("SELECT 2 AS a;")
    shell.feed(".nothing")
    err = capsys.readouterr().err
    assert ".mode is one of table, csv, json, jsonl" in err
    assert "timer off" in err
    assert err.rstrip().endswith("no command .nothing; .help lists them")
    assert shell.options.mode == "jsonl"


def test_read(shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.sql"
    script.write_text(".mode csv\nSELECT 1 AS a;\nSELECT oops;\nSELECT 3 AS c;")
    shell.feed(f".read {script}")
    assert "a\n1\n" in printed(shell)
    assert "c\n3\n" not in printed(shell), "reading stops at the first error"
    assert not shell.feed(".read /no/such/file")
    assert "No such file" in capsys.readouterr().err


def test_quit_and_help(shell: Shell) -> None:
    shell.feed(".help")
    for command in shell._commands:
        assert f".{command}" in printed(shell) or command == "exit"
    with pytest.raises(Quit):
        shell.feed(".quit")


# Completion


def test_completion(shell: Shell) -> None:
    shell.feed('CREATE TABLE reviews ("the text" VARCHAR, stars INTEGER);')
    completer = SqlCompleter(shell.con)

    def offered(text: str) -> list[str]:
        return [found.text for found in completer.get_completions(Document(text), None)]  # type: ignore[arg-type]

    assert offered("SELECT * FROM revi") == ["reviews"]
    assert offered("SELECT sta")[0] == "stars"
    assert offered('SELECT "the') == ['"the text"']
    assert "AI_FILTER(" in offered("SELECT ai_f")
    assert offered("SET ai_ora") == ["ai_oracle"]
    assert offered("reset AI_ORA") == ["ai_oracle"]
    assert offered(".ta") == [".tables"]
    assert offered("SELECT * FROM ai.dec") == ["ai.decisions"]
    assert "SELECT" in offered("sel")
    assert offered("SELECT 1 ") == []


def test_completion_pieces() -> None:
    assert matching("a", [("ab", "x"), ("AB", "y"), ("b", "z"), ("ab", "later")]) == [
        ("ab", "x"),
        ("AB", "y"),
    ]
    assert identifier('odd "name"') == '"odd ""name"""'


# The prompt


def test_prompt_reads_lines_until_a_semicolon(shell: Shell, tmp_path: Path) -> None:
    with create_pipe_input() as keys:
        session = prompt_session(shell, input=keys, output=DummyOutput())
        keys.send_text("SELECT 'a;\rb' AS x\r, 7 AS y;\r\x04")
        assert shell.loop(session) == 0
    assert re.search(r"a;\\nb +│ +7 │", printed(shell))
    assert "SELECT 'a;" in (tmp_path / "home" / "history").read_text()


def test_ctrl_c_at_the_prompt_clears_the_line(shell: Shell) -> None:
    with create_pipe_input() as keys:
        session = prompt_session(shell, input=keys, output=DummyOutput())
        keys.send_text("SELECT 'lost'\x03SELECT 'kept' AS x;\r\x04")
        assert shell.loop(session) == 0
    assert "kept" in printed(shell)
    assert "lost" not in printed(shell)


SLOW_SHELL = """
import sys
sys.path.insert(0, {tests!r})
import sqluice
from scripted import WordModel
from sqluice.engine.progress import ProgressBar
from sqluice.engine.running import err_console
from sqluice.engine.shell import Shell
bar = ProgressBar(err_console())
con = sqluice.connect(ai_oracle="slow", progress=bar)
con.register_model("slow", WordModel(delay=0.02))
sys.exit(Shell(con, bar).run())
"""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, code: str, home: Path) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "SQLUICE_HOME": str(home), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 20.0) -> float:
        """Seconds until `text` appears in what was not yet waited for."""
        begun = time.monotonic()
        while text not in self.seen:
            left = seconds - (time.monotonic() - begun)
            assert left > 0, f"no {text!r} in {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
                if "\x1b[6n" in self.seen:  # the program asks where the cursor is
                    self.send("\x1b[1;1R")
                    self.seen = self.seen.replace("\x1b[6n", "")
        self.seen = self.seen[self.seen.index(text) + len(text) :]
        return time.monotonic() - begun

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(SLOW_SHELL.format(tests=str(Path(__file__).parent)), tmp_path)
    yield opened
    opened.close()


@pytest.mark.slow
def test_ctrl_c_cancels_the_query_and_not_the_shell(terminal: Terminal) -> None:
    terminal.wait_for("Ctrl-D quits")
    terminal.wait_for("sqluice>")
    terminal.send("SELECT count(*) FROM range(5000) t(i) WHERE AI_FILTER('Good?', 'row ' || i);\r")
    terminal.wait_for("rows/s")
    terminal.send("\x03")
    assert terminal.wait_for("cancelled") < 2
    terminal.wait_for("sqluice>")
    terminal.send("SELECT 'still ' || 'here' AS x;\r")
    terminal.wait_for("still here")
    terminal.wait_for("sqluice>")
    terminal.send("\x04")
    assert terminal.process.wait(10) == 0
