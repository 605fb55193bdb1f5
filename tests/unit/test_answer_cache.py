"""Kept answers: found again, bounded, shared by processes, and never in the way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqluice.engine import answer_cache
from sqluice.engine.answer_cache import (
    DiskCache,
    MemoryCache,
    NoCache,
    key,
    keys,
    open_cache,
    pack_scores,
    pack_text,
    pack_vector,
    scope,
    unpack_scores,
    unpack_text,
    unpack_vector,
)
from sqluice.types import Completion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqluice.engine.answer_cache import AnswerCache

SCOPE = scope("revision", "spec")
BOUND = 1 << 20


def some(n: int, start: int = 0) -> list[bytes]:
    return keys(SCOPE, [number.to_bytes(16, "big") for number in range(start, start + n)])


def values(n: int, size: int = 16) -> list[bytes]:
    return [number.to_bytes(size, "big") for number in range(n)]


@pytest.fixture(params=["disk", "memory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnswerCache]:
    said: list[str] = []
    cache = open_cache(request.param, tmp_path / "new" / "answers.db", said.append)
    yield cache
    cache.close()
    assert said == []


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def disk(tmp_path: Path, said: list[str]) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path / "answers.db", BOUND, warnings=said.append)
    yield cache
    cache.close()


def test_what_is_put_is_found(cache: AnswerCache) -> None:
    wanted = some(1000)
    assert cache.get(wanted) == [None] * 1000
    cache.put(wanted[::2], values(500))
    found = cache.get(wanted)
    assert found[::2] == values(500)
    assert found[1::2] == [None] * 500
    assert cache.get([]) == []
    cache.put([], [])


def test_a_second_put_replaces_and_repeated_keys_are_answered(cache: AnswerCache) -> None:
    first, second = some(2)
    cache.put([first, second], [b"a", b"b"])
    cache.put([first], [b"c"])
    cache.put([second, second], [b"d", b"e"])
    assert cache.get([second, first, second, some(1, 9)[0]]) == [b"e", b"c", b"e", None]


@given(
    st.lists(
        st.dictionaries(st.integers(0, 5), st.binary(max_size=3), max_size=4).map(
            lambda entries: {number.to_bytes(16, "little"): value for number, value in entries.items()}
        )
    )
)
def test_it_is_a_dictionary(puts: list[dict[bytes, bytes]]) -> None:
    cache, plain = MemoryCache(), {}
    for entries in puts:
        cache.put(list(entries), list(entries.values()))
        plain.update(entries)
    wanted = [number.to_bytes(16, "little") for number in range(6)]
    assert cache.get(wanted) == [plain.get(at) for at in wanted]


def test_keys_that_share_their_first_half_are_not_confused(disk: DiskCache) -> None:
    one, two = b"a" * 8 + b"b" * 8, b"a" * 8 + b"c" * 8
    disk.put([one], [b"1"])
    assert disk.get([two, one]) == [None, b"1"]
    disk.put([two], [b"2"])
    assert disk.get([two, one]) == [b"2", None]


def test_wrong_arguments_are_refused(disk: DiskCache) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        disk.get([b"short"])
    with pytest.raises(ValueError, match="2 keys"):
        disk.put(some(2), [b"", b"", b""])


def test_off_keeps_nothing(tmp_path: Path) -> None:
    cache = open_cache("off", tmp_path / "answers.db")
    assert isinstance(cache, NoCache)
    cache.put(some(2), values(2))
    assert cache.get(some(2)) == [None, None]
    assert list(tmp_path.iterdir()) == []


def test_answers_outlive_the_process_that_bought_them(tmp_path: Path) -> None:
    for _ in range(2):
        cache = DiskCache(tmp_path / "answers.db")
        cache.put(some(10), values(10))
        cache.close()
    cache = DiskCache(tmp_path / "answers.db")
    assert cache.get(some(10)) == values(10)
    cache.close()
    assert cache.get(some(10)) == [None] * 10  # closed: finds nothing, keeps nothing, says nothing
    cache.put(some(10), values(10))


def _fill(path: Path, start: int, together: Any) -> None:
    cache = DiskCache(path, warnings=_fail)
    together.wait()
    for at in range(0, 5000, 250):
        wanted = some(250, start + at)
        cache.put(wanted, values(250))
        assert cache.get(wanted) == values(250)
    cache.close()


def _fail(text: str) -> None:
    raise AssertionError(text)


def test_processes_write_and_read_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    path = tmp_path / "answers.db"
    processes = [context.Process(target=_fill, args=(path, 3000 * number, together)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache = DiskCache(path)
    assert None not in cache.get(some(11_000))
    cache.close()


def test_threads_share_one_cache(cache: AnswerCache) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for at in range(20):
            wanted = some(50, 1000 * number + 50 * at)
            cache.put(wanted, values(50))
            if cache.get(wanted) != values(50):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_opens_the_file_for_itself(disk: DiskCache) -> None:
    disk.put(some(5), values(5))
    child = os.fork()
    if not child:
        ok = disk.get(some(5)) == values(5) and disk._of_parent
        disk.put(some(5, 5), values(5))
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert disk.get(some(10)) == values(5) * 2


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


@pytest.mark.parametrize(("rows", "size"), [(250, 16), (20, 1536), (3, 20_000)])
def test_the_file_stays_within_its_bound(disk: DiskCache, said: list[str], rows: int, size: int) -> None:
    puts = 6 * BOUND // (rows * (size + 60))
    for at in range(puts):
        disk.put(some(rows, rows * at), values(rows, size))
    assert disk.get(some(rows, rows * (puts - 1))) == values(rows, size)
    assert disk.get(some(rows)) == [None] * rows
    disk.close()
    assert 0.5 * BOUND < _size(disk.path) <= BOUND
    assert said == []


def test_a_smaller_bound_shrinks_the_file(tmp_path: Path) -> None:
    for bound in (BOUND, BOUND // 4):
        cache = DiskCache(tmp_path / "answers.db", bound)
        for at in range(40):
            cache.put(some(250, 250 * at), values(250, 100))
        cache.close()
        assert _size(tmp_path / "answers.db") <= bound


def test_a_bound_too_small_for_anything_ends(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "answers.db", 4096)
    cache.put(some(5), values(5))
    assert cache.get(some(5)) == [None] * 5
    cache.close()


def test_one_put_waits_for_few_deletions(disk: DiskCache) -> None:
    at = 0
    while not at or answer_cache._used_bytes(disk._connection()) < BOUND - 20_000:  # type: ignore[arg-type]
        disk.put(some(100, 100 * at), values(100))
        at += 1
    before = disk._db.execute("SELECT count(*) FROM answers").fetchone()[0]  # type: ignore[union-attr]
    disk.put(some(10, 10**6), values(10, 2500))
    after = disk._db.execute("SELECT count(*) FROM answers").fetchone()[0]  # type: ignore[union-attr]
    assert before - 0.05 * before < after < before
    assert answer_cache._used_bytes(disk._db) <= BOUND  # type: ignore[arg-type]


def test_one_value_larger_than_the_bound_ends(disk: DiskCache, said: list[str]) -> None:
    disk.put(some(1), [bytes(2 * BOUND)])
    disk.put(some(1, 1), [b"x"])
    assert disk.get(some(2)) == [None, b"x"]
    disk.close()
    assert _size(disk.path) <= BOUND
    assert said == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_what_is_wanted_stays_what_is_not_goes(tmp_path: Path, kind: str) -> None:
    cache = DiskCache(tmp_path / "answers.db", BOUND) if kind == "disk" else MemoryCache(BOUND)
    kept, idle = some(100), some(100, 100)
    cache.put(kept + idle, values(200, 100))
    for at in range(1, 200):
        cache.put(some(100, 1000 * at), values(100, 100))
        assert cache.get(kept) == values(100, 100), at
    assert cache.get(idle) == [None] * 100
    cache.close()


def test_memory_is_bounded() -> None:
    cache = MemoryCache(BOUND)
    for at in range(100):
        cache.put(some(250, 250 * at), values(250, 100))
        assert cache._bytes <= BOUND
    assert cache._bytes == sum(len(at) + len(value) + 150 for at, value in cache._values.items()) > BOUND // 2


def _damage(path: Path) -> None:
    """Overwrite the middle pages, as a bad disk does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("how", ["not a database", "pages", "garbage while open"])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, said: list[str], how: str) -> None:
    path = tmp_path / "answers.db"
    cache = DiskCache(path, warnings=said.append)
    cache.put(some(2000), values(2000))
    if how != "garbage while open":
        cache.close()
        cache = DiskCache(path, warnings=said.append)
    else:
        db = sqlite3.connect(path)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        cache._db.execute("PRAGMA shrink_memory")  # type: ignore[union-attr]
    if how == "not a database":
        path.write_bytes(b"hello, this is no database" * 1000)
    else:
        _damage(path)
    assert cache.get(some(2000)) == [None] * 2000
    cache.put(some(10), values(10))
    assert cache.get(some(10)) == values(10)
    cache.close()
    assert len(list(tmp_path.glob("answers.db.corrupt-*"))) == 1
    [warning] = said
    assert "was damaged" in warning
    assert "corrupt-" in warning


def test_two_that_find_the_damage_move_it_once(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "answers.db"
    both = [DiskCache(path, warnings=said.append) for _ in range(2)]
    both[0].put(some(2000), values(2000))
    both[0].close()
    both[0] = DiskCache(path, warnings=said.append)
    for cache in both:
        cache._connection()
    _damage(path)
    for at, cache in enumerate(both):
        assert cache.get(some(2000)[9:]) == [None] * 1991
        cache.put(some(4, 4 * at), values(4))
    assert [cache.get(some(8)) for cache in both] == [values(4) * 2] * 2
    for cache in both:
        cache.close()
    assert len(list(tmp_path.glob("answers.db.corrupt-*"))) == 1


def test_a_full_disk_is_one_warning(disk: DiskCache, said: list[str]) -> None:
    disk.put(some(10), values(10))
    disk._db.execute("PRAGMA max_page_count = 20")  # type: ignore[union-attr]
    for at in range(1, 4):
        disk.put(some(100, 100 * at), values(100, 2000))
    [warning] = said
    assert "full" in warning
    assert disk.get(some(10)) == values(10)
    assert disk.get(some(300, 100)) == [None] * 300
    disk._db.execute("PRAGMA max_page_count = 100000")  # type: ignore[union-attr]
    disk.put(some(100, 100), values(100))
    assert disk.get(some(100, 100)) == values(100)


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "answers.db", warnings=said.append)
    for _ in range(2):
        cache.put(some(5), values(5))
    assert len(said) == 1
    assert cache.get(some(5)) == [None] * 5
    cache.close()


def test_a_foreign_database_is_left_alone(tmp_path: Path, said: list[str]) -> None:
    db = sqlite3.connect(tmp_path / "answers.db")
    db.execute("CREATE TABLE answers (theirs)")
    db.execute("INSERT INTO answers VALUES (1)")
    db.commit()
    cache = DiskCache(tmp_path / "answers.db", warnings=said.append)
    cache.put(some(5), values(5))
    assert cache.get(some(5)) == [None] * 5
    cache.close()
    assert db.execute("SELECT * FROM answers").fetchall() == [(1,)]
    db.close()
    assert said


def test_a_lock_held_too_long_costs_answers_only(
    disk: DiskCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.put(some(5), values(5))
    monkeypatch.setattr(answer_cache, "_TRIES", 2)
    other = sqlite3.connect(disk.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    disk.put(some(5, 5), values(5))
    assert 0.5 < time.monotonic() - started < 5
    assert disk.get(some(10)) == values(5) + [None] * 5
    other.execute("ROLLBACK")
    disk.put(some(5, 5), values(5))
    assert disk.get(some(10)) == values(5) * 2
    other.close()
    [warning] = said
    assert "locked" in warning


def test_a_lock_held_for_a_while_costs_nothing(disk: DiskCache, said: list[str]) -> None:
    disk.put(some(5), values(5))
    other = sqlite3.connect(disk.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(1.2, lambda: other.execute("ROLLBACK"))
    timer.start()
    disk.put(some(5, 5), values(5))
    timer.join()
    other.close()
    assert disk.get(some(10)) == values(5) * 2
    assert said == []


@pytest.fixture
def alarm() -> Iterator[None]:
    """The alarm clock raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    gc.disable()  # hooks of the garbage collector (hypothesis has one) would swallow it
    yield
    gc.enable()
    signal.signal(signal.SIGALRM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_leaves_all_of_a_put_or_nothing(disk: DiskCache) -> None:
    disk.put(some(10), values(10))
    interrupted = 0
    for at in range(1, 30):
        wanted = some(3000, 10_000 * at)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * at)
            disk.put(wanted, values(3000))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert disk.get(wanted) in (values(3000), [None] * 3000)
    assert interrupted
    disk.put(some(10, 10), values(10))
    assert disk.get(some(10, 10)) == values(10)


def test_an_open_transaction_is_rolled_back(disk: DiskCache) -> None:
    disk.put(some(1), [b"a"])
    db: Any = disk._db
    db.execute("BEGIN IMMEDIATE")  # interrupted just after this
    db.execute("DELETE FROM answers")
    assert disk.get(some(1)) == [b"a"]


def test_scopes_and_keys() -> None:
    assert len(SCOPE) == len(key(SCOPE, b"x" * 16)) == 16
    assert scope("ab", "c") != scope("a", "bc")
    assert keys(SCOPE, [b"x" * 16, b"y" * 16]) == [key(SCOPE, b"x" * 16), key(SCOPE, b"y" * 16)]
    assert len({key(SCOPE, b"x" * 16), key(SCOPE, b"y" * 16), key(scope("revision", "other"), b"x" * 16)}) == 3


@pytest.mark.parametrize(("n", "k"), [(0, 2), (1, 1), (5, 3)])
def test_scores_pack(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    calibrated, raw = rng.random((2, n, k)).astype(np.float32)
    blobs = pack_scores(calibrated, raw)
    assert [len(blob) for blob in blobs] == [8 * k] * n
    again = unpack_scores(blobs, k)
    assert np.array_equal(again[0], calibrated)
    assert np.array_equal(again[1], raw)
    assert again[0].dtype == np.float32
    if n:
        with pytest.raises(ValueError, match="bytes expected"):
            unpack_scores(blobs, k + 1)


def test_vectors_pack() -> None:
    vectors = np.random.default_rng(0).random((4, 7))[::2]
    again = unpack_vector(pack_vector(vectors))
    assert np.array_equal(again, vectors.astype(np.float32))
    assert again.flags.writeable
    assert unpack_vector([], 7).shape == (0, 7)
    with pytest.raises(ValueError, match="bytes expected"):
        unpack_vector([b"1234", b"12345678"])


@given(st.text(st.characters()), st.sampled_from(["stop", "length"]), st.integers(0, 2**32 - 1))
def test_completions_pack(text: str, reason: Any, tokens: int) -> None:
    completion = Completion(text, reason, tokens, 7)
    assert unpack_text(pack_text(completion)) == completion


@pytest.mark.parametrize("blob", [b"", b"12345678", b"\x09" + b"0" * 8, b"\x00" + b"0" * 8 + b"\xff"])
def test_what_is_no_completion_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a completion|decode"):
        unpack_text(blob)
