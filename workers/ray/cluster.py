"""Starting, joining and leaving Ray. Nothing here runs before a question needs a worker.

A Ray of this machine belongs to this process: no usage statistics, no dashboard, a small object store, and it ends
with the process. A cluster that was running already is joined and left as it is; workers that this process placed
there end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from sqluice.errors import BrokenModelError, MissingExtraError, OperationalError
from sqluice.workers.failures import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqluice.workers.where import Where

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Of a Ray of this machine. What travels is two micro-batches a worker; what does not fit spills to disk."""

CORES_COUNT = 4
"""Times that a Ray of this machine counts each core: models are asked in turns, so that each may have workers for all
cores."""

PATIENCE_HERE, PATIENCE = 3.0, 30.0
"""Seconds that the head of a Ray of this machine, or of a cluster, may not answer. After 60 Ray ends the process."""

_CONNECT_SECONDS = 5.0
_guard = threading.Lock()
_started = _own = False
_users = 0
_left = threading.Condition()
_gone = threading.Event()


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
        if _gone.is_set():
            ray.shutdown()
            _gone.clear()
        if ray.is_initialized():
            return ray
        if where.address:
            _reach(where.address)
            return _joined(ray, where.address)
        if where.kind == "auto":
            named = os.environ.get("RAY_ADDRESS", "")
            if ":" in named:
                _reach(named)
            return _joined(ray, "auto", may_miss=not named)
        return _local(ray)


def _local(ray: Any) -> Any:
    """A Ray of this machine."""
    global _started, _own
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
    _own = True
    _watch_head(ray, PATIENCE_HERE)
    return ray


def _joined(ray: Any, address: str, *, may_miss: bool = False) -> Any | None:
    """A cluster that runs already."""
    try:
        ray.init(address=address, **_quiet())
    except ConnectionError as error:
        if may_miss:
            return None
        raise OperationalError(f"no Ray cluster at {_told(address)}: {describe(error)}") from error
    except Exception as error:  # version mismatch, no grpc, authentication
        raise OperationalError(f"the Ray cluster at {_told(address)} cannot be joined: {describe(error)}") from error
    if not address.startswith("ray://"):
        _watch_head(ray, PATIENCE)
    return ray


@contextlib.contextmanager
def using() -> Iterator[None]:
    """While somebody uses Ray, a cluster whose head is gone is not left behind their back."""
    global _users
    with _left:
        _users += 1
    try:
        yield
    finally:
        with _left:
            _users -= 1
            _left.notify_all()


def is_gone() -> bool:
    """Whether the head of the cluster is gone."""
    return _gone.is_set()


def check() -> None:
    """`BrokenModelError` once the head of the cluster is gone."""
    if _gone.is_set():
        raise BrokenModelError("the head of the Ray cluster is gone, and its workers with it; answers so far are kept")


def _watch_head(ray: Any, patience: float) -> None:
    """Watch the head from a thread: where it is gone, Ray would end this process with it."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    threading.Thread(target=_watch, args=(ray, host, int(port), patience), name="sqluice-ray", daemon=True).start()


def _watch(ray: Any, host: str, port: int, patience: float) -> None:
    heard = time.monotonic()
    while time.monotonic() - heard < patience:
        time.sleep(1)
        if not ray.is_initialized():
            return
        if _answers(host, port):
            heard = time.monotonic()
    _gone.set()
    with _left:
        _left.wait_for(lambda: not _users)
    with _guard:
        if _gone.is_set():  # else somebody has joined another one
            ray.shutdown()


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


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
        client = "; is its client server on (ray start --head --ray-client-server-port 10001)?"
        more = client if address.startswith("ray://") else ""
        raise OperationalError(f"no Ray cluster answers at {address}: {describe(error)}{more}") from None


def leave(*, only_own: bool = False) -> None:
    """End the Ray of this machine that this process started, or leave the cluster it joined."""
    global _own
    import ray

    with _guard:
        if ray.is_initialized() and (_own or not only_own):
            ray.shutdown()
            _own = False
