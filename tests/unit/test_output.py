"""Writers, the table drawer and the progress bar."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sqluice.engine import output, progress, table
from sqluice.errors import DataError, OperationalError
from sqluice.types import Progress

if TYPE_CHECKING:
    from pathlib import Path


def written(data: pa.Table, form: str, batch: int = 2) -> str:
    out = io.BytesIO()
    rows = output.write(data.to_reader(max_chunksize=batch), form, out)
    assert rows == data.num_rows
    return out.getvalue().decode()


def drawn(data: pa.Table, width: int = 60, **options: int) -> tuple[str, table.Drawn]:
    text = io.StringIO()
    result = table.draw(data.to_reader(), Console(file=text, width=width), **options)
    return text.getvalue(), result


MIXED = pa.table(
    {
        "n": pa.array([1, None, -3], pa.int64()),
        "t": pa.array(["a,b", "", None]),
        "f": pa.array([0.1, float("nan"), 2.0], pa.float32()),
        "l": pa.array([[0.1, None], [], None], pa.list_(pa.float32())),
        "b": pa.array([True, False, None]),
    }
)


def test_csv_keeps_null_apart_from_empty_text() -> None:
    assert written(MIXED, "csv").splitlines() == [
        "n,t,f,l,b",
        '1,"a,b",0.1,"[0.1, null]",true',
        ',"",nan,[],false',
        "-3,,2.0,,",
    ]


@pytest.mark.parametrize("text", ['say "hi"', "two\nlines", "cr\rhere", " padded ", "ünï — 漢字 🙂", ";'\\", ""])
def test_csv_survives_a_reader(text: str) -> None:
    body = written(pa.table({"x": [text], 'we"ird, name': [text]}), "csv")
    header, row = csv.reader(io.StringIO(body, newline=""))
    assert header == ["x", 'we"ird, name']
    assert row == [text, text]


def test_json_forms() -> None:
    expected = [
        {"n": 1, "t": "a,b", "f": 0.1, "l": [0.1, None], "b": True},
        {"n": None, "t": "", "f": None, "l": [], "b": False},
        {"n": -3, "t": None, "f": 2.0, "l": None, "b": None},
    ]
    assert json.loads(written(MIXED, "json")) == expected
    assert [json.loads(line) for line in written(MIXED, "jsonl").splitlines()] == expected


@pytest.mark.parametrize(("form", "text"), [("json", "[]\n"), ("jsonl", ""), ("csv", "n,t,f,l,b\n")])
def test_no_rows(form: str, text: str) -> None:
    assert written(MIXED.slice(0, 0), form) == text


def test_json_keeps_columns_of_one_name_and_exact_numbers() -> None:
    data = pa.Table.from_arrays(
        [
            pa.array([decimal.Decimal("12.50")], pa.decimal128(6, 2)),
            pa.array([decimal.Decimal(2**100)], pa.decimal128(38, 0)),
            pa.array([decimal.Decimal("0.12345678901234567890")], pa.decimal128(38, 20)),
        ],
        names=["a", "a", "a"],
    )
    assert json.loads(written(data, "jsonl")) == {"a": 12.5, "a_1": 2**100, "a_2": "0.12345678901234567890"}


def test_distinct_names_avoid_names_that_exist() -> None:
    assert output.distinct_names(["a", "a", "a_1", "a"]) == ["a", "a_2", "a_1", "a_3"]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([b"a\x00\\"]), "a\\x00\\x5C"),
        (pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)]), "2024-01-02 03:04:05"),
        (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        (pa.array([2**63 - 1], pa.timestamp("us")), "infinity"),
        (pa.array([-(2**63) + 1], pa.timestamp("us")), "-infinity"),
        (pa.array([1], pa.timestamp("us", tz="UTC")), "1970-01-01 00:00:00.000001+00"),
        (
            pa.array([(14, 3, 3_723_000_000_000)], pa.month_day_nano_interval()),
            "1 year 2 months 3 days 01:02:03",
        ),
        (pa.array([(0, 0, -1_500_000_000)], pa.month_day_nano_interval()), "-00:00:01.5"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), '{"k": 1}'),
        (pa.array([{"x": 0.1}], pa.struct({"x": pa.float32()})), '{"x": 0.1}'),
    ],
)
def test_text_of_values(array: pa.Array, text: str) -> None:
    ((value,),) = output.rows_of(pa.record_batch([array], names=["x"]))
    assert output.cell(value) == text


def test_parquet_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with output.atomic(path) as file:
        assert output.write(MIXED.to_reader(max_chunksize=1), "parquet", file) == 3
    assert str(pq.read_table(path).to_pylist()) == str(MIXED.to_pylist())
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert path.stat().st_mode & 0o044, "as readable as any other file"


def test_parquet_names_the_column_it_cannot_hold() -> None:
    data = pa.table({"span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(DataError, match=r'"span".*cast it to VARCHAR'):
        output.write(data.to_reader(), "parquet", io.BytesIO())


def test_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), output.atomic(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


def test_atomic_names_the_place_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "out.csv"
    with pytest.raises(OperationalError, match=r"missing/out\.csv"), output.atomic(path):
        pass


def test_table_shows_types_nulls_and_counts() -> None:
    text, result = drawn(MIXED)
    lines = text.splitlines()
    assert "bigint" in lines[2]
    assert "varchar" in lines[2]
    assert "float[]" in lines[2]
    assert "NULL" in lines[5]
    assert str(result) == "3 rows"


def test_table_cuts_rows_and_wide_text() -> None:
    data = pa.table({"id": [1, 2, 3], "text": ["x" * 10_000_000] * 3})
    text, result = drawn(data, max_rows=2)
    assert str(result) == "3 rows (2 shown)"
    assert max(map(len, text.splitlines())) <= 60
    assert "…" in text


def test_table_leaves_out_middle_columns() -> None:
    text, result = drawn(pa.table({f"c{i}": [i] for i in range(40)}))
    assert "c0" in text
    assert "c39" in text
    assert max(map(len, text.splitlines())) <= 60
    assert result.columns_shown < result.columns == 40


def test_row_text_cannot_steer_the_terminal() -> None:
    text, _ = drawn(pa.table({"x\x1b[2J": ["\x1b[31mred\x07\r\n[bold]not markup[/bold] \u202eflip"]}), width=100)
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert "\\x1b[31mred\\x07\\r\\n[bold]not markup[/bold]" in text


@pytest.mark.parametrize(
    ("needs", "width", "given"),
    [([3, 4], 80, [3, 4]), ([3, 100], 40, [3, 31]), ([50, 50], 40, [17, 17]), ([9, 9, 9], 5, [1, 1, 1])],
)
def test_share(needs: list[int], width: int, given: list[int]) -> None:
    assert table.share(needs, width) == given


def test_progress_note() -> None:
    now = Progress(operator="AI_FILTER", done=40, total=200, calls=38, cached=2, seconds=4.0)
    assert progress.note(now) == "40/200 rows  10.0 rows/s  16 s left  38 calls  2 cached"
    early = Progress(operator="AI_FILTER", done=0, total=None, calls=0, cached=0, seconds=0.0)
    assert progress.note(early) == "0 rows  0 calls"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.421, "0.42 s"), (3.25, "3.2 s"), (12, "12 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_the_bar_waits_and_stays_off_pipes() -> None:
    now = 0.0
    at = Progress(operator="AI_FILTER", done=1, total=2, calls=1, cached=0, seconds=1.0)
    screen = io.StringIO()
    bar = progress.ProgressBar(Console(file=screen, force_terminal=True, width=100), clock=lambda: now)
    with bar:
        bar(at)
        assert screen.getvalue() == ""
        now = 1.5
        bar(at)
    assert "1/2 rows" in screen.getvalue()
    pipe = io.StringIO()
    with progress.ProgressBar(Console(file=pipe), patience=0) as quiet:
        quiet(at)
    assert pipe.getvalue() == ""


def test_fetching_weights_says_so_once_in_a_pipe() -> None:
    pipe = io.StringIO()
    with progress.FetchBar(Console(file=pipe)) as bar:
        for done in range(5):
            bar(done, 5, "default [1/2]")
    assert pipe.getvalue() == "fetching default [1/2]\n"
