"""Joules: counters of RAPL and NVML, what is fitted to them, budgets, and what the trace says where there are none."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sqluice
from sqluice import config, errors
from sqluice.engine.operators.watch import Meter
from sqluice.engine.statistics import Statistics
from sqluice.optimizer.effort import LEAST_BATCHES, Effort, Sample, fit
from sqluice.workers import energy
from sqluice.workers.protocol import Batch
from support.scripted import ScriptedModel, percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqluice.types import Prompt

RANGE = 1000


def zone(root: Path, place: str, name: str, microjoules: int) -> Path:
    folder = root / place
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the kernel's."""
    root = tmp_path / "powercap"
    root.mkdir()
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


class Burning(ScriptedModel):
    """A model whose package draws 5 microjoules a prompt."""

    def __init__(self, counter: Path | None = None, revision: str = "r1") -> None:
        super().__init__(percent("50"), name="oracle", revision=revision)
        self.counter = counter

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(prompt.text) for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        if self.counter is not None:
            now = int(self.counter.read_text())
            self.counter.write_text(str((now + 5 * len(prompts)) % (RANGE + 1)))
        return super().score(prompts, choices)


def asked(model: ScriptedModel, *, rows: int = 64, **settings: Any) -> Any:
    """A cursor that has asked about some rows."""
    con = sqluice.connect(**{"ai_cache": "off", "ai_mode": "exact", "ai_oracle": "oracle", **settings})
    con.register_model("oracle", model)
    cursor = con.cursor()
    cursor.execute(f"SELECT AI_FILTER('row ' || i || repeat('x', i)) FROM range({rows}) r(i)").fetchall()
    return cursor


def ops(cursor: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = cursor.execute(
        f"SELECT joules, joules_source FROM ai.ops WHERE run_id = '{cursor.report.run_id}'"
    ).fetchall()
    return found


def test_packages_and_memory_are_added_and_wrap_around(powercap: Path) -> None:
    package = zone(powercap, "intel-rapl:0", "package-0", 900)
    zone(powercap, "intel-rapl:0:0", "core", 5)
    memory = zone(powercap, "intel-rapl:0:1", "dram", 10)
    zone(powercap, "intel-rapl:1", "psys", 7)
    sensor = energy.sensor("cpu")
    assert sensor is not None
    assert sensor.source == "rapl"
    assert sensor.joules() == 0
    (package / "energy_uj").write_text("99")  # 101 to the top, which is 0 again, and 99 more
    (memory / "energy_uj").write_text("30")
    assert sensor.joules() == pytest.approx((200 + 20) / 1e6)


def test_no_sensor_is_no_number(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.sensor("cpu") is None
    assert energy.sensor("remote") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.sensor("cuda:3") is None
    assert ops(asked(Burning())) == [(None, None)]


def test_a_counter_that_may_not_be_read(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(powercap, "intel-rapl:0", "package-0", 1)

    def refuse(_: Path) -> int:
        raise PermissionError

    monkeypatch.setattr(energy, "_number", refuse)
    assert energy.sensor("cpu") is None


def test_a_gpu_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fake = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda gpu: seen.extend([gpu]),
        nvmlDeviceGetTotalEnergyConsumption=lambda _: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    energy._nvml.cache_clear()
    sensor = energy.sensor("cuda:1")
    energy._nvml.cache_clear()
    assert sensor is not None
    assert (seen, sensor.source, sensor.joules()) == ([7], "nvml", 2.5)


def test_the_trace_holds_what_was_drawn(powercap: Path) -> None:
    counter = zone(powercap, "intel-rapl:0", "package-0", 990) / "energy_uj"
    cursor = asked(Burning(counter))
    ((joules, source),) = ops(cursor)
    assert joules == pytest.approx(64 * 5 / 1e6)
    assert source == "rapl"
    assert cursor.execute("SELECT sum(joules) FROM ai.batches").fetchone() == (pytest.approx(joules),)


def test_a_budget_of_joules_is_kept(powercap: Path) -> None:
    counter = zone(powercap, "intel-rapl:0", "package-0", 0) / "energy_uj"
    cursor = asked(Burning(counter), ai_budget="0.0002 J")
    assert cursor.report.operators[0].calls <= 40
    assert cursor.report.operators[0].calls >= 8
    assert cursor.report.label == "uncertified(budget)"


def test_without_a_sensor_a_budget_of_joules_is_refused(powercap: Path) -> None:
    with pytest.raises(errors.NotSupportedError, match=r"needs the joules of oracle, and nothing tells them"):
        asked(Burning(revision="never measured"), ai_budget="2 kJ")


def test_what_a_sensor_told_earlier_is_modelled_later(powercap: Path) -> None:
    statistics = Statistics(config.home() / "statistics.sqlite")
    rows = [("modelled cpu", 10, n * 10, 0, 0.1, n * 10 * 2e-6, "rapl") for n in range(1, 40)]
    statistics.learn({}, {}, {}, rows)
    ((joules, source),) = ops(asked(Burning(revision="modelled")))
    assert source == "modelled (rapl)"
    assert joules == pytest.approx(sum(len(f"row {i}") + i for i in range(64)) * 2e-6, rel=0.1)
    cursor = asked(Burning(revision="modelled"), ai_budget=f"{joules / 2:.9f} J")
    assert 8 <= cursor.report.operators[0].calls < 64


def test_coefficients_are_found_again_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    true = Effort((0.01, 0.2, 0.05, 0.4, 0.1, 0.0), 0, 0)
    samples = []
    for _ in range(200):
        rows, n_in, n_out = int(rng.integers(1, 64)), int(rng.integers(10, 3000)), int(rng.integers(0, 500))
        spent = true.of(rows, rows * n_in, rows * n_out) * float(rng.normal(1, 0.02))
        samples.append(Sample(rows, rows * n_in, rows * n_out, spent))
    found = fit(samples)
    assert found is not None
    assert min(found.coefficients) >= 0
    for n_in, n_out in ((20, 0), (800, 100), (2500, 400)):
        assert found.of(1, n_in, n_out) == pytest.approx(true.of(1, n_in, n_out), rel=0.05)
    assert fit(samples[: LEAST_BATCHES - 1]) is None
    assert fit([replace(one, spent=0.0) for one in samples]) is None


def test_a_sensor_that_goes_away_says_nothing_more() -> None:
    class Gone:
        source = "rapl"

        def joules(self) -> float:
            raise OSError

    meter, batch = Meter(Gone()), Batch(2, 0, 1)
    meter.begin()
    meter.end(batch)
    assert batch.joules is None
    assert not meter.knows


def test_another_machine_is_not_measured_by_this_one(powercap: Path) -> None:
    zone(powercap, "intel-rapl:0", "package-0", 5)
    meter, batch = Meter(energy.sensor("cpu")), Batch(2, 0, 1, worker="node-2/0")
    meter.begin()
    meter.end(batch)
    assert batch.joules is None


def test_a_priced_model_that_counts_no_tokens_is_not_free() -> None:
    con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_oracle="oracle")
    con.register_model("oracle", ScriptedModel(percent("50")), price=(10.0, 0.0))
    cursor = con.cursor()
    cursor.execute("SELECT AI_FILTER(repeat('word ', 80) || i) FROM range(50) r(i)").fetchall()
    assert cursor.report is not None
    assert cursor.report.tokens_in == 0
    assert cursor.report.cost_usd == pytest.approx(50 * 100 * 10 / 1e6, rel=0.1)
