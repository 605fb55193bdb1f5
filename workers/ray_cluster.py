"""Starting, joining and leaving Ray. Nothing here runs before a question needs a worker.

A Ray of this machine belongs to this process: no usage statistics, no dashboard, a small object store, and it ends
with the process. A cluster that was running already is joined and left as it is; workers that this process placed
there end with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from sqluice.errors import MissingExtraError, OperationalError
from sqluice.workers.failures import describe

if TYPE_CHECKING:
    from sqluice.workers.where import Where

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Of a Ray of this machine. What travels is two micro-batches a worker; what does not fit spills to disk."""

CORES_COUNT = 4
"""Times that a Ray of this machine counts each core: models are asked in turns, so that each may have workers for all
cores."""

_CONNECT_SECONDS = 5.0
_guard = threading.Lock()
_started = False


def join(where: Where) -> Any | None:
    """The `ray` module, with a cluster behind it; None where `where` is auto and there is none.

    A Ray that this process is part of already is used whatever `where` says. `OperationalError` says why a cluster
    cannot be joined, `MissingExtraError` that Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("running models on Ray", "ray") from None
    with _guard:
        if ray.is_initialized():
            return ray
        if where.address:
            _reach(where.address)
            return _joined(ray, where.address)
        if where.kind == "auto":
            return _joined(ray, "auto", may_miss=True)
        return _local(ray)


def _local(ray: Any) -> Any:
    """A Ray of this machine."""
    global _started
    cores = os.cpu_count() or 1
    try:
        ray.init(
            address="local",
            num_cpus=cores * CORES_COUNT,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **_quiet(),
        )
    except Exception as error:
        raise OperationalError(f"Ray cannot be started on this machine: {describe(error)}") from error
    if not _started:
        _started = True
        atexit.register(leave)
    return ray


def _joined(ray: Any, address: str, *, may_miss: bool = False) -> Any | None:
    """A cluster that runs already."""
    try:
        ray.init(address=address, **_quiet())
    except ConnectionError as error:
        if may_miss and "RAY_ADDRESS" not in os.environ:
            return None
        raise OperationalError(f"no Ray cluster at {_told(address)}: {describe(error)}") from error
    except Exception as error:  # version mismatch, no grpc, authentication
        raise OperationalError(f"the Ray cluster at {_told(address)} cannot be joined: {describe(error)}") from error
    return ray


def _quiet() -> dict[str, Any]:
    """What Ray would print goes to Python's logging: standard output belongs to the rows."""
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _logged
    return {"log_to_driver": False, "configure_logging": False}


def _logged(data: dict[str, Any], **_: object) -> None:
    for line in data.get("lines", ()):
        logging.getLogger("sqluice.ray").info("%s", line)


def _told(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", "this machine") if address == "auto" else address


def _reach(address: str) -> None:
    """`OperationalError` at once where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise OperationalError(
            f"no Ray cluster answers at {address}: {describe(error)}; is its client server on"
            " (ray start --head --ray-client-server-port 10001)?"
        ) from None


def leave() -> None:
    """End what this process started or joined."""
    import ray

    with _guard:
        if ray.is_initialized():
            ray.shutdown()
