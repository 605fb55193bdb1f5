"""Every record of every .test file, optimized and row-wise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sql.runner import MODES, Mode, Record, RecordError, Session, read, render

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.test"))}
RECORDS = {name: read(path) for name, path in FILES.items()}


class Run:
    """One file in one mode, and how far it has come. Records before the one asked for run first, so that a
    record can be selected alone."""

    def __init__(self, name: str, mode: Mode) -> None:
        self.key = (name, mode)
        self.session = Session.open(mode)
        self.records = RECORDS[name]
        self.next = 0

    def reach(self, index: int) -> None:
        while self.next <= index:
            record = self.records[self.next]
            self.next += 1
            last = self.next > index
            try:
                if not self.session.skips(record):
                    self.session.run(record)
            except Exception as error:
                if last:
                    if isinstance(error, RecordError):
                        pytest.fail(f"line {record.line}: {error}", pytrace=False)
                    raise


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, Mode], Run]]:
    opened: dict[tuple[str, Mode], Run] = {}
    yield opened
    for run in opened.values():
        run.session.close()


CASES = [
    pytest.param(name, mode, index, id=f"{name}-{mode}-{record.label}")
    for name, records in RECORDS.items()
    for mode in MODES
    for index, record in enumerate(records)
]


@pytest.mark.parametrize(("name", "mode", "index"), CASES)
def test_record(name: str, mode: Mode, index: int, runs: dict[tuple[str, Mode], Run]) -> None:
    for key in [key for key in runs if key != (name, mode)]:
        runs.pop(key).session.close()
    run = runs.get((name, mode))
    if run is None or run.next > index:
        if run is not None:
            run.session.close()
        run = runs[name, mode] = Run(name, mode)
    reason = run.session.skips(run.records[index])
    run.reach(index)
    if reason:
        pytest.skip(reason)


def test_every_query_has_an_answer() -> None:
    open_ones = [
        f"{name}:{record.line}"
        for name, records in RECORDS.items()
        for record in records
        if record.words[0] == "query" and record.expected is None
    ]
    assert not open_ones


def test_values_are_drawn_so_that_they_cannot_be_confused() -> None:
    rows = [(None, "", "NULL text"), (True, 1, 1.5)]
    assert render(rows, "BTT", "nosort") == ["NULL\t(empty)\tNULL text", "true\t1\t1.5"]


def test_a_wrong_type_is_seen() -> None:
    with pytest.raises(RecordError, match="not of type I"):
        render([(True,)], "I", "nosort")


def test_long_results_are_hashed_and_the_hash_depends_on_every_row() -> None:
    rows = [(number,) for number in range(100)]
    first = render(rows, "I", "nosort")
    assert first[0].startswith("100 rows hashing to")
    assert render([*rows[:-1], (0,)], "I", "nosort") != first


def test_records_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.test"
    path.write_text("# a comment\n\nstatement ok\nSELECT 1\n\nquery I\nSELECT 1\n----\n1\n", encoding="utf-8")
    first, second = read(path)
    assert (first.line, second.line) == (3, 6)
    assert second == Record(6, ("query", "I"), ("SELECT 1",), ("1",))
