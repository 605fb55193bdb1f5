"""Rules of the house that no linter checks: short files, docstrings, links that lead somewhere, no private paths."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PRODUCT = ("sqluice", "engine", "optimizer", "udfs", "workers")
THIRD_PARTY = {Path("tests/dbapi20/dbapi20.py")}  # the public-domain suite of PEP 249, as it was published
MOST_LINES = 500
MOST_ARGUMENTS = 12


def files(*folders: str, ending: str = ".py") -> list[Path]:
    """Files of ours below some folders (all when none is named), relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [Path(name) for name in listed if name.endswith(ending)]
    return sorted(path for path in paths if path not in THIRD_PARTY and (ROOT / path).is_file())


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", files(*PRODUCT, "scripts", "benchmarks", "tests"), ids=str)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(text_of(path).splitlines()) <= MOST_LINES


def documented() -> list[object]:
    """The files that the next test reads."""
    return [pytest.param(path, id=str(path)) for path in files(*PRODUCT, "scripts", "benchmarks")]


@pytest.mark.parametrize("path", documented())
def test_what_is_public_says_what_it_is(path: Path) -> None:
    tree = ast.parse(text_of(path))
    assert ast.get_docstring(tree), "the module has no docstring"
    script = path.parts[0] in ("scripts", "benchmarks")
    silent = [
        name for name, node in public(tree.body) if not ast.get_docstring(node) and not (script and name == "main")
    ]
    assert silent == []


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods; what a class overrides or a property's setter need not repeat it."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", [path for path in files("tests") if path.name != "__init__.py"], ids=str)
def test_every_test_file_says_what_it_tests(path: Path) -> None:
    assert ast.get_docstring(ast.parse(text_of(path)))


@pytest.mark.parametrize("path", files(*PRODUCT), ids=str)
def test_functions_take_few_arguments(path: Path) -> None:
    many = []
    for node in ast.walk(ast.parse(text_of(path))):
        kernel = isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list)
        if isinstance(node, ast.FunctionDef) and not kernel:  # a GPU's kernel takes every pointer and size by itself
            given = [*node.args.posonlyargs, *node.args.args]
            many += [node.name] if len(given) > MOST_ARGUMENTS else []
    assert many == []


# ---- links


LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown page has for its headings."""
    heads = re.findall(r"^#{1,6}\s+(.*?)\s*#*$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", files(ending=".md"), ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(path))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / path.parent / name).resolve() if name else (ROOT / path).resolve()
        outside = not target.is_relative_to(ROOT)
        if (
            outside
            or not target.exists()
            or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    assert broken == []


def test_every_page_of_the_docs_is_linked() -> None:
    linked = set()
    for path in files(ending=".md"):
        names = (link.partition("#")[0] for link in LINK.findall(text_of(path)))
        linked |= {(ROOT / path.parent / name).resolve() for name in names if name and ":" not in name}
    pages = {(ROOT / path).resolve() for path in files("docs", ending=".md") if path.name != "README.md"}
    assert sorted(str(page.relative_to(ROOT)) for page in pages - linked) == []


def test_examples_are_numbered_and_listed() -> None:
    listed = text_of(Path("sql_examples/README.md"))
    examples = files("sql_examples", ending=".sql")
    assert [path.name[:3] for path in examples] == [f"{number:02}_" for number in range(1, len(examples) + 1)]
    assert [path.name for path in examples if path.name not in listed] == []
    assert [
        name for name in re.findall(r"\b\d\d_\w+\.sql\b", listed) if not (ROOT / "sql_examples" / name).exists()
    ] == []


# ---- what must not be there


# Put together, so that this file does not hold what it looks for.
PRIVATE = re.compile(
    "|".join((r"/wor" + "k/", r"/roo" + "t/", r"/tmp/bash" + "_jobs", r"/home/(?!you\b|me\b|user\b)\w+/"))
)
MARKS = re.compile(r"<{7} |>{7} |\b(?:FIX" + r"ME|XX" + r"X|TO" + r"DO)\b")


@pytest.mark.parametrize(
    "ending", [".py", ".md", ".sql", ".out", ".test", ".toml", ".csv", ".yml", ".yaml", "Makefile"]
)
def test_nothing_names_the_machine_it_was_written_on(ending: str) -> None:
    found = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path in files(ending=ending)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("path", files(*PRODUCT), ids=str)
def test_nothing_is_left_to_do_in_the_product(path: Path) -> None:
    assert MARKS.findall(text_of(path)) == []


def test_only_what_talks_to_people_prints() -> None:
    printing = set()
    for path in files(*PRODUCT):
        for node in ast.walk(ast.parse(text_of(path))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("print", "breakpoint")
            ):
                printing.add(str(path))
    talk = ("cli", "shell", "demo", "output", "running", "jobs/command", "models_command")
    assert printing <= {f"engine/{name}.py" for name in talk}


RISKY = re.compile(
    r"\b(?:pickle|marshal|shelve)\.loads?\(|trust_remote_code\s*=\s*True|(?<![.\w])eval\(|(?<![.\w])exec\(|shell\s*=\s*True"
)


@pytest.mark.parametrize("path", files(*PRODUCT), ids=str)
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert RISKY.findall(text_of(path)) == []


HEAVY = {"ray": r"workers/ray/\w+\.py", "torch": r"workers/[\w/]+\.py", "transformers": r"workers/[\w/]+\.py"}


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_are_imported_where_they_belong_and_late(library: str) -> None:
    for path in files(*PRODUCT):
        tree = ast.parse(text_of(path))
        imports = [
            node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and names(node, library)
        ]
        if imports:
            assert re.fullmatch(HEAVY[library], path.as_posix()), f"{path} imports {library}"


def names(node: ast.Import | ast.ImportFrom, library: str) -> bool:
    """Whether an import statement loads `library`."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == library
    return any(alias.name.split(".")[0] == library for alias in node.names)


def test_connections_of_duckdb_are_opened_in_the_engine_alone() -> None:
    opening = {str(path) for path in files(*PRODUCT) if re.search(r"\bduckdb\.connect\(", text_of(path))}
    assert {path.split("/")[0] for path in opening} <= {"engine"}
