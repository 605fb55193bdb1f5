"""Weights that are damaged, missing or out of reach: an error that says what to do, and no answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from local.conftest import missing
from sqluice import config
from sqluice.errors import WeightsError
from sqluice.workers import fetch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.local

ASK = """
import sqluice, sys
con = sqluice.connect(ai_cache="off", ai_trace="off")
try:
    print(con.execute(sys.argv[1]).fetchall())
except sqluice.Error as error:
    print(type(error).__name__, error)
con.close()
"""
FILTER = "SELECT AI_FILTER('Is this good? Yes it is.')"


def ask(home: Path, sql: str = FILTER, **environment: str) -> str:
    """What a process with its own home folder, and without any package index, says."""
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, sql],
        capture_output=True,
        text=True,
        env={**os.environ, **nowhere, "SQLUICE_HOME": str(home), **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path, own_home: None) -> Path:
    """A home folder with a copy of the default model's weights that is its own."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    target = tmp_path / "home" / "weights" / fetch.resolve("default")
    shutil.copytree(fetch.folder("default"), target)
    (target / fetch.MARKER).unlink()
    return tmp_path / "home"


def change_a_byte(home: Path) -> Path:
    (path,) = home.rglob("*.gguf")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return path


@pytest.mark.slow
def test_a_byte_that_differs_is_found(copy: Path) -> None:
    change_a_byte(copy)
    said = ask(copy)
    assert said.startswith("WeightsError")
    assert "sqluice models fetch" in said
    assert "SET ai_oracle" in said


@pytest.mark.slow
def test_verify_names_the_file_and_the_remedy(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLUICE_HOME", str(copy))
    assert fetch.verify("default").is_file()
    path = change_a_byte(copy)
    with pytest.raises(WeightsError) as caught:
        fetch.verify("default")
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert "sqluice models fetch default" in str(caught.value)


@pytest.mark.slow
def test_damage_is_told_from_absence(copy: Path) -> None:
    change_a_byte(copy)
    assert "are not here" not in ask(copy)


@pytest.mark.slow
def test_a_file_that_was_cut_is_found(copy: Path) -> None:
    (path,) = copy.rglob("*.gguf")
    os.truncate(path, path.stat().st_size - 1)
    assert ask(copy).startswith("WeightsError")


def test_no_weights_and_no_index(tmp_path: Path, own_home: None) -> None:
    if missing():
        pytest.skip(missing())
    said = ask(tmp_path / "home")
    assert said.startswith("WeightsError")
    assert "sqluice models fetch" in said
    assert "check the network" in said


def test_a_home_that_cannot_be_written(tmp_path: Path, own_home: None) -> None:
    if missing():
        pytest.skip(missing())
    (tmp_path / "home").write_text("a file where a folder should be")
    said = ask(tmp_path / "home")
    assert said.startswith("WeightsError")
    assert "SQLUICE_HOME" in said


def test_a_hub_out_of_reach(tmp_path: Path, own_home: None) -> None:
    if missing():
        pytest.skip(missing())
    sql = "SELECT AI_FILTER(PROMPT('{0}', 'x'), {'model': 'hf:nobody/nothing-at-all'})"
    said = ask(tmp_path, sql, HF_HOME=str(tmp_path / "hub"))
    assert said.startswith("WeightsError")
    assert "nobody/nothing-at-all" in said
    assert "hub" in said
    assert "Traceback" not in said


def test_the_home_of_the_tests_is_not_the_persons() -> None:
    assert (config.home() / "weights").is_symlink() or not (config.home() / "weights").exists()
