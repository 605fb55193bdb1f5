"""What runs have learnt, kept between them: shares of yes answers by predicate, costs and heads by question, seconds
and joules by model.

One SQLite file in the state folder. Trouble with it costs what was learnt, never a query.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Literal

from sqluice.optimizer.effort import Sample, fit
from sqluice.optimizer.statistics import Remembered, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sqluice.optimizer.effort import Effort

_TABLES = """
CREATE TABLE IF NOT EXISTS shares
    (fingerprint TEXT PRIMARY KEY, yes REAL, inputs REAL, rows REAL, updated REAL, revision TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (question TEXT PRIMARY KEY, found TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS efforts
    (model TEXT, rows REAL, tokens_in REAL, tokens_out REAL, seconds REAL, joules REAL, source TEXT);
CREATE INDEX IF NOT EXISTS efforts_of ON efforts (model);
CREATE TABLE IF NOT EXISTS costs (question TEXT PRIMARY KEY, seconds REAL, usd REAL, calls REAL) WITHOUT ROWID;
"""
_ADD_COSTS = """
INSERT INTO costs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    seconds = seconds / 2 + excluded.seconds, usd = usd / 2 + excluded.usd, calls = calls / 2 + excluded.calls
"""
_FORGET = """
DELETE FROM efforts WHERE model = ? AND rowid NOT IN
    (SELECT rowid FROM efforts WHERE model = ? ORDER BY rowid DESC LIMIT ?)
"""
KEPT_EFFORTS = 512
"""Newest micro-batches of a model that are kept."""

WAIT = 0.5
"""Seconds that another process is waited for."""

MOST_INPUTS = 10_000.0
"""Older inputs fade once this many were seen."""


class Statistics:
    """The file of one person. It is opened for each use, which is once or twice a statement."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def shares(self, fingerprints: list[str]) -> dict[str, Remembered]:
        """What is known of some predicates."""
        rows = self._rows("shares", "fingerprint", fingerprints)
        return {name: Remembered(Share(yes, inputs), *rest) for name, yes, inputs, *rest in rows}

    def costs(self, questions: list[str]) -> dict[str, tuple[float, float]]:
        """Seconds and US dollars a call of some questions."""
        rows = self._rows("costs", "question", questions)
        return {name: (seconds / calls, usd / calls) for name, seconds, usd, calls in rows if calls}

    def head(self, question: str) -> dict[str, Any] | None:
        """The head that a cascade has left of a question."""
        for _, found in self._rows("heads", "question", [question]):
            with contextlib.suppress(ValueError):
                head: dict[str, Any] = json.loads(found)
                return head
        return None

    def effort(self, model: str, what: Literal["seconds", "joules"]) -> tuple[Effort | None, str]:
        """What an answer of a model takes, and who counted it; None where too little is known. `model` is a revision
        with its device."""
        rows = [row for row in self._rows("efforts", "model", [model]) if what == "seconds" or row[5] is not None]
        at = 4 if what == "seconds" else 5
        samples = [Sample(int(row[1]), int(row[2]), int(row[3]), float(row[at])) for row in rows]
        return fit(samples), ", ".join(sorted({row[6] for row in rows if row[6]}))

    def learn(
        self,
        shares: Mapping[str, tuple[Share, float, str]],
        costs: Mapping[str, tuple[float, float, int]],
        heads: Mapping[str, dict[str, Any]],
        efforts: Sequence[tuple[object, ...]] = (),
    ) -> None:
        """Add what a run saw: shares with the rows before them and the models' revision; seconds, US dollars and
        calls; heads; micro-batches with their model, rows, tokens in and out, seconds, joules and who counted them."""
        known = self.shares(list(shares))
        now = time.time()
        rows = []
        for name, (share, before, revision) in shares.items():
            same = name in known and known[name].revision == revision
            both = known[name].share.plus(share) if same else share
            fade = min(1.0, MOST_INPUTS / both.inputs) if both.inputs else 1.0
            rows.append((name, both.yes * fade, both.inputs * fade, before, now, revision))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=WAIT)) as db:
                db.execute("PRAGMA synchronous = OFF")  # it can be learnt again
                db.executescript(_TABLES)
                with db:
                    db.executemany("INSERT OR REPLACE INTO shares VALUES (?, ?, ?, ?, ?, ?)", rows)
                    db.executemany(_ADD_COSTS, [(name, *values) for name, values in costs.items()])
                    found = [(name, json.dumps(head)) for name, head in heads.items()]
                    db.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?)", found)
                    db.executemany("INSERT INTO efforts VALUES (?, ?, ?, ?, ?, ?, ?)", efforts)
                    db.executemany(_FORGET, [(name, name, KEPT_EFFORTS) for name in {one[0] for one in efforts}])
        except (OSError, sqlite3.Error):
            return  # the disk is full, or another process writes: nothing is learnt

    def _rows(self, table: str, key: str, names: list[str]) -> list[tuple[Any, ...]]:
        if not names or not self._path.exists():
            return []
        marks = ", ".join("?" * len(names))
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=WAIT)) as db:
                return db.execute(f"SELECT * FROM {table} WHERE {key} IN ({marks})", names).fetchall()
        except sqlite3.Error:
            return []
