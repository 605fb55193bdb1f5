"""Starting Ray on this machine, or joining a cluster. Nothing here phones home."""

from __future__ import annotations

import os
from typing import Any

from sqluice.errors import OperationalError

OBJECT_STORE_BYTES = 256 * 2**20


def start(address: str | None = None) -> Any:
    """The module `ray`, connected: to what it is connected to already, to the cluster at `address`, or to one that is
    started on this machine. `OperationalError` without the package, or when nobody answers at `address`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise OperationalError("this needs Ray: pip install 'sqluice[ray]'") from None
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if address is None:
            ray.init(**quiet, object_store_memory=OBJECT_STORE_BYTES)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        where = "on this machine" if address is None else f"at {address}"
        raise OperationalError(f"no Ray {where}: {str(error).splitlines()[0]}") from error
    return ray
