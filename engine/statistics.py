"""What runs have learnt, kept between them: shares of yes answers by predicate, seconds by question.

One SQLite file in the state folder. Trouble with it costs what was learnt, never a query.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

from sqluice.optimizer.statistics import Remembered, Share

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TABLES = """
CREATE TABLE IF NOT EXISTS shares
    (fingerprint TEXT PRIMARY KEY, yes REAL, inputs REAL, rows REAL, updated REAL, revision TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seconds (question TEXT PRIMARY KEY, seconds REAL, calls REAL) WITHOUT ROWID;
"""
MOST_INPUTS = 10_000.0
"""Older inputs fade once this many were seen."""


class Statistics:
    """The file of one person. It is opened for each use, which is once or twice a statement."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def shares(self, fingerprints: list[str]) -> dict[str, Remembered]:
        """What is known of some predicates."""
        marks = ", ".join("?" * len(fingerprints))
        with self._opened() as db:
            if db is None:
                return {}
            rows = db.execute(f"SELECT * FROM shares WHERE fingerprint IN ({marks})", fingerprints).fetchall()
        return {name: Remembered(Share(yes, inputs), *rest) for name, yes, inputs, *rest in rows}

    def seconds(self, questions: list[str]) -> dict[str, float]:
        """Seconds a call of some questions."""
        marks = ", ".join("?" * len(questions))
        with self._opened() as db:
            if db is None:
                return {}
            rows = db.execute(f"SELECT * FROM seconds WHERE question IN ({marks})", questions).fetchall()
        return {name: seconds / calls for name, seconds, calls in rows if calls}

    def learn(self, shares: Mapping[str, tuple[Share, float, str]], seconds: Mapping[str, tuple[float, int]]) -> None:
        """Add what a run saw: shares with the rows before them and the models' revision, seconds and calls."""
        with self._opened(write=True) as db:
            if db is None:
                return
            known = self.shares(list(shares))
            now = time.time()
            for name, (share, rows, revision) in shares.items():
                same = name in known and known[name].revision == revision
                both = known[name].share.plus(share) if same else share
                fade = min(1.0, MOST_INPUTS / both.inputs) if both.inputs else 1.0
                values = (name, both.yes * fade, both.inputs * fade, rows, now, revision)
                db.execute("INSERT OR REPLACE INTO shares VALUES (?, ?, ?, ?, ?, ?)", values)
            for name, (spent, calls) in seconds.items():
                db.execute(
                    "INSERT INTO seconds VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "seconds = seconds / 2 + excluded.seconds, calls = calls / 2 + excluded.calls",
                    (name, spent, calls),
                )
            db.commit()

    @contextlib.contextmanager
    def _opened(self, *, write: bool = False) -> Iterator[sqlite3.Connection | None]:
        try:
            if write:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            elif not self._path.exists():
                yield None
                return
            db = sqlite3.connect(self._path, timeout=1.0)
        except (OSError, sqlite3.Error):
            yield None
            return
        try:
            if write:
                db.execute("PRAGMA synchronous = OFF")  # it can be learnt again
                db.executescript(_TABLES)
            yield db
        except sqlite3.Error:  # another process has it, or it is no database: nothing is learnt
            db.rollback()
        finally:
            db.close()
