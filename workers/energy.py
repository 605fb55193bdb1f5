"""Joules that this machine's CPU or GPU has drawn, where something counts them.

RAPL counts the packages and memory of the whole machine (`/sys/class/powercap`; on many machines only root may read
it), NVML one GPU (the package `nvidia-ml-py`). Without a sensor there is no number: nothing here guesses.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
_COUNTED = ("package", "dram")


class Sensor(Protocol):
    """`joules` counts up from some moment; `source` names who counts."""

    source: str

    def joules(self) -> float:
        """Joules so far; `OSError` when the sensor is gone."""
        ...


class Rapl:
    """Intel's and AMD's counters of microjoules, which start again from 0 at `max_energy_range_uj`."""

    source = "rapl"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = [(zone / "energy_uj", _number(zone / "max_energy_range_uj") + 1) for zone in zones]
        self._last = [_number(path) for path, _ in self._zones]
        self._total = 0
        self._lock = threading.Lock()

    def joules(self) -> float:
        """Joules of all zones since this was made."""
        with self._lock:
            for at, (path, range_uj) in enumerate(self._zones):
                now = _number(path)
                self._total += (now - self._last[at]) % range_uj
                self._last[at] = now
            return self._total / 1e6


class Nvml:
    """One GPU's counter of millijoules since its driver was loaded (Volta and newer)."""

    source = "nvml"

    def __init__(self, nvml: Any, gpu: int) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByIndex(gpu)

    def joules(self) -> float:
        """Joules of the GPU."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from error


def sensor(device: str) -> Sensor | None:
    """What counts the joules of `cpu` or `cuda[:n]`; None where nothing does, or for other devices."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return _rapl(POWERCAP)
    return _nvml(_gpu(int(number or 0))) if kind == "cuda" and (number or "0").isdigit() else None


@functools.cache
def _rapl(root: Path) -> Rapl | None:
    try:
        zones = [zone for zone in sorted(root.glob("*rapl:*")) if _name(zone).startswith(_COUNTED)]
        return Rapl(zones) if zones else None
    except (OSError, ValueError):  # not for this user, or not what it says it is
        return None


@functools.cache
def _nvml(gpu: int) -> Nvml | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        found = Nvml(pynvml, gpu)
        found.joules()
    except (OSError, pynvml.NVMLError):
        return None
    return found


def _gpu(number: int) -> int:
    """The GPU that CUDA calls `number`, as the driver counts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return int(visible[number]) if number < len(visible) and visible[number].strip().isdigit() else number


def _name(zone: Path) -> str:
    return (zone / "name").read_text().strip()


def _number(path: Path) -> int:
    return int(path.read_text())
