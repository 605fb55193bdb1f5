"""Lay a tree of links that shows the folders as the one package `sqluice`.

mypy and import-linter read files and do not follow the hook of an editable install. Usage::

    python scripts/typing_tree.py build/typing
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def package_dirs(pyproject: Path) -> dict[str, Path]:
    """Package name -> folder, as `[tool.setuptools.package-dir]` says."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    return {name: pyproject.parent / folder for name, folder in table.items()}


def lay(tree: Path, packages: dict[str, Path]) -> None:
    """Make `tree` anew: one folder for the face with links to its files, one link for each other package."""
    shutil.rmtree(tree, ignore_errors=True)
    face = tree / "sqluice"
    face.mkdir(parents=True)
    for name, folder in packages.items():
        if name == "sqluice":
            for file in sorted(folder.iterdir()):
                if file.name != "__pycache__":
                    (face / file.name).symlink_to(file)
        else:
            (face / name.removeprefix("sqluice.")).symlink_to(folder, target_is_directory=True)


if __name__ == "__main__":
    lay(Path(sys.argv[1]), package_dirs(ROOT / "pyproject.toml"))
