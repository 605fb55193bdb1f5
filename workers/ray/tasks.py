"""Runs plain functions as Ray tasks, some at a time, and hands over what they returned as it comes.

Tasks ask for no CPU: they wait for models most of the time, and actors that hold every CPU would otherwise keep them
from starting at all.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from sqluice.errors import OperationalError
from sqluice.workers.ray.cluster import join
from sqluice.workers.ray.manager import manager_of
from sqluice.workers.where import Where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RETRIES = 3
"""How often a task is begun anew when its process dies."""

LEAST, MOST = 2, 64
"""Tasks at a time."""


class Tasks:
    """Tasks of one function on a cluster."""

    def __init__(self, function: Callable[[Any], Any], address: str | None = None) -> None:
        """Joins the cluster at `address`, or starts Ray on this machine. `OperationalError` when that fails."""
        found = join(Where("auto") if address == "auto" else Where("ray", address or ""))
        if found is None:
            raise OperationalError("no Ray cluster runs here; name its address, or leave --address out")
        self._ray: Any = found
        self._manager = manager_of(found)  # so that models' workers outlive the first task that asks one
        self._remote = self._ray.remote(
            num_cpus=0, max_retries=RETRIES, retry_exceptions=False, scheduling_strategy="SPREAD"
        )(function)
        self._running: dict[Any, Any] = {}

    def room(self) -> int:
        """How many more tasks to submit now."""
        cpus = int(self._ray.cluster_resources().get("CPU", LEAST))
        return max(LEAST, min(MOST, cpus)) - len(self._running)

    def submit(self, name: str, argument: Any) -> None:
        """Begin a task; its result comes back under `name`."""
        self._running[self._remote.remote(argument)] = name

    def finished(self, seconds: float) -> Iterator[tuple[str, Any]]:
        """Names and results of tasks that end within some seconds; an exception is a result."""
        if not self._running:
            return
        ready, _ = self._ray.wait(list(self._running), timeout=seconds, num_returns=1)
        for reference in ready:
            name = self._running.pop(reference)
            yield name, self._result(reference)

    def _result(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.WorkerCrashedError as error:
            return OperationalError(f"its process died {RETRIES + 1} times: {str(error).splitlines()[0]}")
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ImportError):
                return OperationalError(f"a worker lacks a package: {cause}; install sqluice there, as it is here")
            return OperationalError(f"{type(cause).__name__}: {str(cause).splitlines()[0]}")
        except exceptions.RayError as error:
            return OperationalError(f"Ray: {str(error).splitlines()[0]}")

    def stop(self) -> None:
        """End what is running."""
        for reference in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)
        self._running.clear()
