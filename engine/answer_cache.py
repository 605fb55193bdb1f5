"""Answers kept between queries: blobs under 16-byte keys.

- `DiskCache` is one SQLite file that several processes and threads share. Entries stand in the order they were
  last wanted; when the file passes its bound, the front of that order goes. It never fails a query: trouble
  costs answers and becomes a warning.
- `pack_*` and `unpack_*` turn answers into values and back, a batch at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from sqluice.types import Completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

KEY_BYTES = 16
MAX_BYTES = 2 << 30
KEEP = 0.9
"""Share of the bound that is left after old entries have gone."""

_OVERHEAD = 150  # bytes of Python objects around an entry in memory
_CORRUPT = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB
_BUSY = (5, 6)
_WAIT = 0.5  # seconds that SQLite waits for a lock, during which Ctrl-C waits too
_TRIES = 20
_HEADER = struct.Struct("<BII")
_FINISH: tuple[str, ...] = ("stop", "length")

T = TypeVar("T")


class AnswerCache(Protocol):
    """Where answers are kept. Keys are those of `key`; at most some 16,000 a call."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        ...

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep `values[i]` under `keys[i]`, in place of what was there."""
        ...

    def close(self) -> None:
        """Let go of files and memory; later calls find and keep nothing."""
        ...


def scope(revision: str, spec_repr: str) -> bytes:
    """16 bytes that stand for a model's revision and the constant part of an expression."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in (revision, spec_repr):
        data = part.encode("utf-8", "surrogatepass")
        state.update(b"%d:" % len(data) + data)
    return state.digest()


def key(scope: bytes, digest: bytes) -> bytes:
    """The key of a row's digest within a scope."""
    return hashlib.blake2b(scope + digest, digest_size=KEY_BYTES).digest()


def keys(scope: bytes, digests: Sequence[bytes]) -> list[bytes]:
    """`key` of each digest."""
    blake2b = hashlib.blake2b
    return [blake2b(scope + digest, digest_size=KEY_BYTES).digest() for digest in digests]


def open_cache(where: str, path: Path, warnings: Callable[[str], None] | None = None) -> AnswerCache:
    """The cache that setting `ai_cache` names: 'disk' (a file at `path`), 'memory' or 'off'."""
    if where == "disk":
        return DiskCache(path, warnings=warnings)
    return MemoryCache() if where == "memory" else NoCache()


class NoCache:
    """Keeps nothing."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """None for every key."""
        return [None] * len(keys)

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Forget `values`."""

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryCache:
    """Keeps at most about `max_bytes` in this process; what was wanted least recently goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max = max_bytes
        self._bytes = 0
        self._values: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        values = self._values
        with self._lock:
            found = [values.pop(key, None) for key in dict.fromkeys(keys)]
            at = dict(zip(dict.fromkeys(keys), found, strict=True))
            values.update((key, value) for key, value in at.items() if value is not None)  # now the youngest
        return [at[key] for key in keys]

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep `values[i]` under `keys[i]`."""
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                self._drop(key)
                self._values[key] = value
                self._bytes += len(key) + len(value) + _OVERHEAD
            if self._bytes > self._max:
                while self._values and self._bytes > KEEP * self._max:
                    self._drop(next(iter(self._values)))

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values = {}
            self._bytes = 0

    def _drop(self, key: bytes) -> None:
        old = self._values.pop(key, None)
        if old is not None:
            self._bytes -= len(key) + len(old) + _OVERHEAD


class DiskCache:
    """Keeps answers in an SQLite file of at most about `max_bytes`.

    A key's first 8 bytes find an entry, the other 8 confirm it: integers are the quickest index SQLite has.
    `seq` grows with every entry that is written or, when old, wanted again, so the oldest entries are the
    first pages of the table, and deleting them frees whole pages. A damaged file is renamed to
    `<name>.corrupt-<time>` and started anew. `warnings` is called with each kind of trouble once.
    """

    def __init__(
        self, path: Path, max_bytes: int = MAX_BYTES, *, warnings: Callable[[str], None] | None = None
    ) -> None:
        self.path = path.absolute()
        self._max = max_bytes
        self._warnings = warnings
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0
        self._inode = 0
        self._closed = False
        self._of_parent: list[sqlite3.Connection] = []

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        ids, checks = _split(keys)
        found = self._guarded("read", lambda db: self._find(db, ids)) or {}
        if not found:
            return [None] * len(keys)
        values: list[bytes | None] = []
        for id_, check in zip(ids.tolist(), checks.tolist(), strict=True):
            entry = found.get(id_)
            values.append(entry[1] if entry is not None and entry[0] == check else None)
        return values

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep `values[i]` under `keys[i]`. What cannot be kept is forgotten, with a warning."""
        ids, checks = _split(keys)
        order = np.argsort(ids, kind="stable")  # neighbours in the index are written together
        rows = list(zip(ids[order].tolist(), checks[order].tolist(), [values[i] for i in order.tolist()], strict=True))
        if len(rows) != len(values):
            raise ValueError(f"{len(keys)} keys and {len(values)} values")
        if rows:
            self._guarded("write", lambda db: self._insert(db, rows))

    def close(self) -> None:
        """Close the file; later calls find and keep nothing."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _find(self, db: sqlite3.Connection, ids: np.ndarray) -> dict[int, tuple[int, bytes]]:
        wanted = "[" + ",".join(map(str, np.sort(ids).tolist())) + "]"
        rows = db.execute(
            "SELECT e.id, e.chk, e.value, e.seq FROM json_each(?) AS j CROSS JOIN answers AS e ON e.id = j.value",
            [wanted],
        ).fetchall()
        if rows:
            self._renew(db, [row[3] for row in rows])
        return {row[0]: (row[1], row[2]) for row in rows}

    def _renew(self, db: sqlite3.Connection, seqs: list[int]) -> None:
        """Move entries of the older half to the end, once the file is half full."""
        if _used_bytes(db) * 2 < self._max:
            return
        first, last = db.execute("SELECT min(seq), max(seq) FROM answers").fetchone()
        old = sorted({seq for seq in seqs if seq < (first + last) // 2})
        if not old:
            return
        with contextlib.suppress(sqlite3.OperationalError), _transaction(db):  # a read must not wait for this
            last = db.execute("SELECT max(seq) FROM answers").fetchone()[0]
            moves = [(last + at, seq) for at, seq in enumerate(old, 1)]
            db.executemany("UPDATE answers SET seq = ? WHERE seq = ?", moves)

    def _insert(self, db: sqlite3.Connection, rows: list[tuple[int, int, bytes]]) -> None:
        with _transaction(db):
            db.executemany("INSERT OR REPLACE INTO answers (id, chk, value) VALUES (?, ?, ?)", rows)
        if _used_bytes(db) > self._max:
            self._evict(db, 4 * len(rows))

    def _evict(self, db: sqlite3.Connection, enough: int) -> None:
        """Delete the oldest entries down to the bound, then on to `KEEP` of it or `enough` entries (no put
        shall wait for a tenth of a large file), and give back pages beyond the bound.

        In small transactions: other processes get their turn between them.
        """
        while (used := _used_bytes(db)) > KEEP * self._max and (used > self._max or enough > 0):
            first, last = db.execute("SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM answers").fetchone()
            step = min(20_000, max(1, (last - first) // 50))
            with _transaction(db):
                gone = db.execute("DELETE FROM answers WHERE seq < ?", [first + step]).rowcount
            enough -= gone
            if gone < 1:
                break
        size = _pragma(db, "page_size")
        over = _pragma(db, "page_count") - self._max // size
        if over > 0:
            db.executescript(f"PRAGMA incremental_vacuum({over})")  # `execute` frees a single page

    def _guarded(self, what: str, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """`action` on the open file; None, and a warning, where that is not possible."""
        with self._lock:
            for attempt in range(_TRIES):
                try:
                    db = self._connection()
                    return None if db is None else action(db)
                except (sqlite3.Error, OSError) as error:
                    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                    if code in _CORRUPT and attempt < 2:
                        self._start_anew()
                    elif code not in _BUSY or attempt == _TRIES - 1:
                        self._warn(f"cannot {what} the answer cache {self.path}: {error}", kind=f"{what} {code}")
                        return None
        return None

    def _connection(self) -> sqlite3.Connection | None:
        """The open file; opened again after a fork, rolled back after an interruption."""
        if self._closed:
            return None
        if self._db is not None and self._pid != os.getpid():
            self._of_parent.append(self._db)  # closing it here would drop the parent's locks
            self._db = None
        if self._db is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._pid = os.getpid()
            self._db = _open(self.path)
            self._inode = self.path.stat().st_ino
        if self._db.in_transaction:
            self._db.rollback()
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None and self._pid == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _start_anew(self) -> None:
        """Move a damaged file aside, unless another process has done so."""
        self._disconnect()
        with contextlib.suppress(OSError):
            if self._inode and self.path.stat().st_ino != self._inode:
                return
            aside = f"{self.path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
            for tail in ("-wal", "-shm"):  # first, so that nobody reads them into the next file
                self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
            self.path.replace(self.path.with_name(aside))
            self._warn(f"the answer cache {self.path} was damaged; it is kept as {aside}, and a new one started")

    def _warn(self, text: str, kind: str = "") -> None:
        if self._warnings is not None and (kind or text) not in self._warned:
            self._warned.add(kind or text)
            self._warnings(text)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -65536")
        db.execute("PRAGMA wal_autocheckpoint = 8192")
        db.execute("PRAGMA journal_size_limit = 33554432")
        db.execute(
            "CREATE TABLE IF NOT EXISTS answers"
            " (seq INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, chk INTEGER NOT NULL, value BLOB NOT NULL)"
        )
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _split(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of each key as int64."""
    joined = b"".join(keys)
    if len(joined) != KEY_BYTES * len(keys):
        raise ValueError(f"a key of the answer cache has {KEY_BYTES} bytes")
    halves = np.frombuffer(joined, dtype="<i8").reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


def pack_scores(values: np.ndarray, raw: np.ndarray) -> list[bytes]:
    """A value a row of two float32 [n, k] arrays: calibrated scores, then raw ones."""
    return pack_vector(np.concatenate([values, raw], axis=1))


def unpack_scores(blobs: Sequence[bytes], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [n, k] arrays; `ValueError` when a value is not one of `pack_scores` for k choices."""
    both = unpack_vector(blobs, 2 * k)
    return both[:, :k], both[:, k:]


def pack_vector(vectors: np.ndarray) -> list[bytes]:
    """A value a row of a float32 [n, d] array."""
    data = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    width = 4 * vectors.shape[1]
    return [data[at : at + width] for at in range(0, width * len(vectors), width)] if width else [b""] * len(vectors)


def unpack_vector(blobs: Sequence[bytes], d: int | None = None) -> np.ndarray:
    """Float32 [n, d]; `d` None takes the width of the first. `ValueError` when a value has another width."""
    width = 4 * d if d is not None else len(blobs[0]) if blobs else 0
    if width % 4 or any(len(blob) != width for blob in blobs):
        raise ValueError(f"values of {width} bytes expected")
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), width // 4).astype(np.float32)


def pack_text(completion: Completion) -> bytes:
    """One completion: text, tokens, and why it ended."""
    head = _HEADER.pack(_FINISH.index(completion.finish_reason), completion.tokens_in, completion.tokens_out)
    return head + completion.text.encode("utf-8", "surrogatepass")


def unpack_text(blob: bytes) -> Completion:
    """The completion that `pack_text` packed; `ValueError` when it did not."""
    try:
        finish, tokens_in, tokens_out = _HEADER.unpack_from(blob)
        text = blob[_HEADER.size :].decode("utf-8", "surrogatepass")
        return Completion(text, "length" if _FINISH[finish] == "length" else "stop", tokens_in, tokens_out)
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a completion: {error}") from None
