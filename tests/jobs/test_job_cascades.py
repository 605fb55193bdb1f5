"""A job whose question is a cascade: thresholds learnt once, applied by every partition, proven for all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.work import Here
from sqluice.engine.jobs import learning
from sqluice.engine.jobs.driver import Job, JobState
from sqluice.engine.jobs.inputs import Input
from sqluice.engine.jobs.plan import Request
from support.numbers import BLUR, Embedder, Model, noise, quality, values

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 12_000
SQL = "SELECT id FROM input WHERE AI_FILTER(PROMPT('is {0} positive?', s))"
LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Parquet file of ids and texts; some texts come several times."""
    generator = np.random.default_rng(5)
    texts = [f"item 0.{a:06d} and 0.{b:06d}" for a, b in generator.integers(1, 10**6, (ROWS, 2))]
    texts[-200:] = texts[:200]
    path = tmp_path_factory.mktemp("numbers") / "t.parquet"
    pq.write_table(pa.table({"id": np.arange(ROWS), "s": texts}), path, row_group_size=2000)
    return str(path)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(learning, "SAMPLE_ROWS", 3000)
    monkeypatch.setenv("SQLUICE_HOME", str(tmp_path / "home"))


def job(numbers: str, out: Path, sql: str = SQL, **more: Any) -> Job:
    settings: dict[str, Any] = {"ai_oracle": "oracle", "ai_embedder": "embedder", "ai_mode": "cascade"}
    settings |= {"ai_cache": "off", **more.pop("settings", {})}
    models = {"oracle": Model(), "embedder": Embedder()}
    request = Request(sql, (Input.parse(numbers),), more.pop("partitions", 5), settings, models=models)
    return Job(request, out, Here, **more)


def found(out: Path) -> set[Any]:
    return {row[0] for row in duckdb.sql(f"SELECT id FROM read_parquet('{out}/*.parquet')").fetchall()}


def truth(numbers: str) -> set[Any]:
    rows = pq.read_table(numbers).to_pylist()
    return {row["id"] for row in rows if float(values(row["s"])[0] + BLUR * noise(row["s"])) > 0.6}


def test_one_state_for_all_partitions(numbers: str, tmp_path: Path) -> None:
    state = job(numbers, tmp_path / "out").run()
    assert state.label is not None
    assert state.label.startswith("certified(recall >= 0.95, precision >= 0.95, delta 0.05, ")
    recall, precision = quality(found(tmp_path / "out"), truth(numbers))
    assert recall >= 0.95
    assert precision >= 0.95
    assert state.calls < 0.6 * ROWS
    kept = json.loads((tmp_path / "out" / "_sqluice" / "policies.json").read_text())
    (policy,) = kept["policies"].values()
    assert policy["contract"] == {"recall": 0.95, "precision": 0.95, "accuracy": None, "delta": 0.05}
    assert 0 < policy["rate"] < 0.5
    assert not list((tmp_path / "out" / "_sqluice" / "rows").iterdir())


def test_equal_inputs_get_equal_answers_in_whatever_partition(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT id, s, AI_FILTER(PROMPT('is {0} positive?', s)) AS yes FROM input"
    plain = learning.learn
    learnt: list[Any] = []  # how large a sample pays depends on seconds: both jobs get the same policy

    def once(*args: Any) -> Any:
        if not learnt:
            learnt.append(plain(*args))
        return learnt[0][0], dict(learnt[0][1])

    monkeypatch.setattr(learning, "learn", once)
    job(numbers, tmp_path / "one", sql, partitions=2).run()
    job(numbers, tmp_path / "two", sql, partitions=5).run()
    files = [f"read_parquet('{tmp_path}/{name}/*.parquet')" for name in ("one", "two")]
    rows = [duckdb.sql(f"FROM {one} ORDER BY id").fetchall() for one in files]
    assert rows[0] == rows[1]
    answers: dict[str, set[bool]] = {}
    for _, text, yes in rows[0]:
        answers.setdefault(text, set()).add(yes)
    assert all(len(one) == 1 for one in answers.values())


def test_one_label_of_several(numbers: str, tmp_path: Path) -> None:
    sql = f"SELECT id, AI_CLASSIFY(s, {LABELS}) AS k FROM input"
    state = job(numbers, tmp_path / "out", sql, settings={"ai_accuracy": 0.9}).run()
    assert state.label is not None and state.label.startswith("certified(accuracy >= 0.9")
    got = dict(duckdb.sql(f"SELECT id, k FROM read_parquet('{tmp_path}/out/*.parquet')").fetchall())
    right = 0
    for row in pq.read_table(numbers).to_pylist():
        value = float(values(row["s"])[0] + BLUR * noise(row["s"]))
        right += got[row["id"]] == LABELS[int(np.clip(value * 3, 0, 2))]
    assert right >= 0.9 * ROWS
    assert state.calls < 0.7 * ROWS


def test_an_interrupted_job_goes_on_with_its_policy(numbers: str, tmp_path: Path) -> None:
    def stop(state: JobState) -> None:
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(numbers, tmp_path / "out", on_state=stop).run()
    kept = tmp_path / "out" / "_sqluice" / "policies.json"
    before = [one["tau"] for one in json.loads(kept.read_text())["policies"].values()]
    state = job(numbers, tmp_path / "out", resume=True).run()
    assert [one["tau"] for one in json.loads(kept.read_text())["policies"].values()] == before
    assert state.label is not None and state.label.startswith("certified(")
    assert min(quality(found(tmp_path / "out"), truth(numbers))) >= 0.95


def test_a_proof_that_fails_is_tried_at_a_higher_rate(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = learning.learn

    def too_few(*args: Any) -> Any:
        policies, told = plain(*args)
        return {name: one.scaled(1e9) for name, one in policies.items()}, told

    monkeypatch.setattr(learning, "learn", too_few)
    state = job(numbers, tmp_path / "out").run()
    assert state.label == "uncertified(unfinished)", "a rate of next to nothing proves nothing, three times"
    assert state.rows_in == ROWS


def test_a_small_job_keeps_the_contract_in_each_partition(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "SAMPLE_ROWS", 20_000)
    state = job(numbers, tmp_path / "out", partitions=2).run()
    assert state.label == "certified(recall >= 0.95, precision >= 0.95, delta 0.025 in each partition)"
    recall, precision = quality(found(tmp_path / "out"), truth(numbers))
    assert min(recall, precision) >= 0.95


def test_what_does_not_compose_is_said(numbers: str, tmp_path: Path) -> None:
    both = f"{SQL} AND AI_FILTER(PROMPT('is the second of {{0}} positive?', s))"
    assert job(numbers, tmp_path / "out", both).run().label == "uncertified(composition)"


def test_what_is_made_of_the_rows_has_no_contract(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "SAMPLE_ROWS", 20_000)
    sql = SQL.replace("SELECT id", "SELECT count(*) AS id")
    assert job(numbers, tmp_path / "out", sql, partitions=2).run().label == "uncertified(composition)"
