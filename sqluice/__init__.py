"""SQLuice: batch SQL over tables that hold text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,  # noqa: A004 - the name PEP 249 fixes
)

if TYPE_CHECKING:
    from sqluice.engine.dbapi import (
        BINARY,
        DATETIME,
        NUMBER,
        ROWID,
        STRING,
        Binary,
        Connection,
        Cursor,
        Date,
        DateFromTicks,
        Time,
        TimeFromTicks,
        Timestamp,
        TimestampFromTicks,
        connect,
    )
    from sqluice.engine.jobs.api import run_job
    from sqluice.types import Completion, ModelInfo, Prompt

__version__ = "0.1.0"

apilevel = "2.0"
threadsafety = 1
paramstyle = "qmark"

_LAZY = {
    **dict.fromkeys(
        (
            *("BINARY", "DATETIME", "NUMBER", "ROWID", "STRING", "Binary", "Connection", "Cursor", "Date"),
            *("DateFromTicks", "Time", "TimeFromTicks", "Timestamp", "TimestampFromTicks", "connect"),
        ),
        "sqluice.engine.dbapi",
    ),
    "run_job": "sqluice.engine.jobs.api",
    **dict.fromkeys(("Completion", "ModelInfo", "Prompt"), "sqluice.types"),
}

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Completion",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "ModelInfo",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Prompt",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "__version__",
    "apilevel",
    "connect",
    "paramstyle",
    "run_job",
    "threadsafety",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sqluice' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
