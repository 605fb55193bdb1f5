"""Names of runs and of sessions, which tell whose they are and in what order they came."""

from __future__ import annotations

import datetime
import itertools
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_COUNTER = itertools.count()
KEPT_SESSIONS = 20


def session_folder(parent: Path) -> Path:
    """A folder for the traces of one database in memory, below `parent`. Of those of ended processes the newest
    `KEPT_SESSIONS` stay; the others are removed now."""
    old = sorted(folder for folder in parent.glob("2*") if not _lives(folder.name))
    for folder in old[:-KEPT_SESSIONS]:
        shutil.rmtree(folder, ignore_errors=True)
    return parent / new_run_id()


def _lives(name: str) -> bool:
    """Whether the process that a run's or session's name was made in still runs."""
    try:
        os.kill(int(name.split("-")[1]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def new_run_id() -> str:
    """Sorts by time; unique among processes: `20261124T145324.123456-<pid>-<counter>`."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S.%f}-{os.getpid()}-{next(_COUNTER)}"
