"""What is installed: every package, every data file, and clear words where an extra is missing."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import sqluice
from sqluice.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {name: ROOT / path for name, path in CONFIG["tool"]["setuptools"]["package-dir"].items()}
DATA = sorted(path for folder in FOLDERS.values() for path in folder.glob("data/*") if path.is_file())


def folders() -> dict[str, Path]:
    """Each package of ours, by the folders that hold Python files."""
    return {
        ".".join([name, *file.parent.relative_to(folder).parts]): file.parent
        for name, folder in FOLDERS.items()
        for file in folder.rglob("*.py")
    }


def modules() -> list[str]:
    """The import name of every module."""
    found = []
    for name, folder in folders().items():
        found += [name if file.stem == "__init__" else f"{name}.{file.stem}" for file in folder.glob("*.py")]
    return sorted(set(found) - {"sqluice.engine.__main__"})


def test_the_packages_listed_are_the_folders() -> None:
    listed = CONFIG["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders())
    assert len(set(listed)) == len(listed)
    assert [name for name, folder in folders().items() if not (folder / "__init__.py").is_file()] == []
    assert (FOLDERS["sqluice"] / "py.typed").is_file()


def test_modules_are_found_where_they_are() -> None:
    assert len(modules()) > 50
    for name in folders():
        assert importlib.util.find_spec(name) is not None, name
    found = {info.name for info in pkgutil.walk_packages(sqluice.__path__, "sqluice.")}
    assert found >= {name for name in modules() if name.count(".") == 1 and name not in FOLDERS}


def test_the_public_names() -> None:
    names = sqluice.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(sqluice, name) is not None, name
    public = {
        name
        for name, value in vars(sqluice).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("sqluice")
    }
    assert public - set(names) <= {"TYPE_CHECKING", "annotations"}
    assert set(dir(sqluice)) == set(names)
    assert sqluice.__version__ == CONFIG["project"]["version"]
    with pytest.raises(AttributeError, match="nothing_like_that"):
        sqluice.nothing_like_that  # noqa: B018


@pytest.mark.parametrize("name", ["torch", "ray"])
def test_the_version_of_a_heavy_library_stands_in_one_place(name: str) -> None:
    pinned = re.compile(rf"\b{name}\s*(==|>=|~=|<)\s*[0-9]")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    places = []
    for path in map(Path, filter(None, tracked)):
        if path.suffix in (".py", ".toml", ".md", ".yml", ".yaml", ".txt", ".cfg") or path.name == "Makefile":
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines() if (ROOT / path).is_file() else []
            places += [f"{path}:{number}" for number, line in enumerate(lines, 1) if pinned.search(line)]
    assert len(places) == 1, places
    assert places[0].startswith("pyproject.toml:")


def test_extras_that_errors_name_exist() -> None:
    extras = set(CONFIG["project"]["optional-dependencies"])
    named = set()
    for folder in FOLDERS.values():
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            named |= set(re.findall(r"MissingExtraError\([^\n]*?, [\"'](\w+)[\"']\)", text))
            named |= set(re.findall(r"sqluice\[(\w+)\]", text))
    assert named
    assert named <= extras
    error = MissingExtraError("this", "local")
    assert error.extra == "local"
    assert "pip install 'sqluice[local]'" in str(error)


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs {error.name}")
    assert doctest.testmod(module).failed == 0


# ---- without an extra


BLOCKED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {blocked} else real(name, package)
"""
LOCAL = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "xllamacpp", "ray")


def without(code: str, tmp_path: Path, blocked: tuple[str, ...] = LOCAL) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own in which some libraries are not installed."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SQLUICE_HOME": str(tmp_path / "home")},
        timeout=60,
    )


def test_every_module_but_those_of_the_extra_is_imported_without_it(tmp_path: Path) -> None:
    code = f"""
import importlib
for name in {modules()!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error.name)
"""
    done = without(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT AI_FILTER('x')",
        "SELECT AI_EMBED('x')",
        "SELECT AI_FILTER(PROMPT('{0}', 'x'), {'model': 'hf:org/name'})",
        "SELECT AI_FILTER(PROMPT('{0}', 'x'), {'model': './m.gguf'})",
    ],
)
def test_a_model_without_its_extra_says_what_to_install(tmp_path: Path, sql: str) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code = f"""
import sqluice
con = sqluice.connect()
print(con.execute("SELECT 42").fetchall())
try:
    con.execute({sql!r}).fetchall()
except sqluice.Error as error:
    print(type(error).__name__, error)
con.close()
"""
    done = without(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[(42,)]"
    assert lines[1].startswith("MissingExtraError")
    assert "pip install 'sqluice[local]'" in lines[1]


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built of a copy of the project, so that no build folder is left beside the sources."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "project"
    for path in ("pyproject.toml", "README.md", "LICENSE", *CONFIG["tool"]["setuptools"]["package-dir"].values()):
        _copy(ROOT / path, copy / path)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(place)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (found,) = place.glob("*.whl")
    return found


def _copy(source: Path, target: Path) -> None:
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copyfile(source, target)


@pytest.mark.slow
def test_the_wheel_holds_every_module(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in folders().items():
        missing = {f"{name.replace('.', '/')}/{file.name}" for file in folder.glob("*.py")} - held
        assert missing == set()
    assert "sqluice/py.typed" in held
    assert not [name for name in held if name.startswith(("tests", "engine/", "build"))]


@pytest.mark.slow
def test_the_wheel_holds_the_data(wheel: Path) -> None:
    assert DATA
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"sqluice/engine/data/{path.name}" for path in DATA} <= held


def installed(wheel: Path, tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed wheel in front of everything, away from the project's folder."""
    target = tmp_path / "site"
    if not target.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(wheel),
        ]
        subprocess.run(pip, check=True, capture_output=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(target), "SQLUICE_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )


@pytest.mark.slow
def test_the_wheel_works_away_from_the_project(wheel: Path, tmp_path: Path) -> None:
    where = installed(
        wheel, tmp_path, "-c", "import sqluice.engine.cli as cli, sqluice; print(sqluice.__file__, cli.__file__)"
    )
    assert where.stdout.split() == [str(tmp_path / "site/sqluice" / name) for name in ("__init__.py", "engine/cli.py")]
    code = "from sqluice.engine.cli import main; import sys; sys.exit(main(['query', 'SELECT 42 AS a']))"
    done = installed(wheel, tmp_path, "-c", code)
    assert (done.returncode, "42" in done.stdout) == (0, True), done.stderr
    names: Any = [name for name in modules() if name != "sqluice"]
    every = installed(wheel, tmp_path, "-c", f"import importlib; [importlib.import_module(n) for n in {names!r}]")
    assert every.returncode == 0, every.stderr
