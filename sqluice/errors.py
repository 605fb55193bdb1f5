"""Every exception SQLuice raises on purpose.

The tree (PEP 249 names, then ours below the one they refine)::

    Exception
    ├── Warning
    └── Error
        ├── InterfaceError              wrong use of the Python interface
        └── DatabaseError
            ├── DataError               a value is out of range or of the wrong kind
            │   └── ContextOverflowError    a prompt does not fit the model's context
            ├── OperationalError        the machine, the network or a model failed
            │   ├── InterruptedQueryError   Ctrl-C or connection.interrupt()
            │   ├── MissingExtraError       an optional dependency is not installed
            │   └── ModelError              a model cannot be found, loaded or asked
            │       ├── WeightsError            weights are missing or do not match their hash
            │       ├── BrokenModelError        a model stopped answering, or no worker of it is left
            │       └── ModelRefusedError       `allow_models` does not list where the model comes from
            ├── IntegrityError          a constraint of a table
            ├── InternalError           a bug: ours or DuckDB's
            ├── ProgrammingError        the SQL is wrong
            └── NotSupportedError       valid, but not something SQLuice does
"""

from __future__ import annotations

import builtins


class Warning(builtins.Warning):  # noqa: A001 - the name PEP 249 fixes
    """Something the user should know; the statement went on."""


class Error(Exception):
    """Base of all errors. ``line`` and ``column`` (1-based) point into the SQL where that is known."""

    def __init__(self, message: str = "", *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class InterfaceError(Error):
    """Wrong use of the Python interface, e.g. a closed cursor."""


class DatabaseError(Error):
    """Base of all errors that concern the database or a model."""


class DataError(DatabaseError):
    """A value is out of range or of the wrong kind."""


class ContextOverflowError(DataError):
    """A rendered prompt is longer than the model's context."""


class OperationalError(DatabaseError):
    """The machine, the network or a model failed."""


class InterruptedQueryError(OperationalError):
    """The query was interrupted; what was answered so far is in the cache."""


class MissingExtraError(OperationalError):
    """An optional dependency is needed and not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'sqluice[{extra}]'")
        self.extra = extra


class ModelError(OperationalError):
    """A model cannot be found, loaded or asked."""


class WeightsError(ModelError):
    """Weights are missing, or do not match the hash that is known for them."""


class BrokenModelError(ModelError):
    """A model answered none of its first rows, an endpoint stopped answering, or no worker of a model is left. A
    cascade whose proxy breaks goes on with the oracle alone."""


class ModelRefusedError(ModelError):
    """The place a model comes from is not in ``allow_models``."""


class IntegrityError(DatabaseError):
    """A constraint of a table was violated."""


class InternalError(DatabaseError):
    """A bug in SQLuice or DuckDB."""


class ProgrammingError(DatabaseError):
    """The SQL is wrong: syntax, names, argument counts or types."""


class NotSupportedError(DatabaseError):
    """The request is valid, but SQLuice does not do it."""


def at(sql: str, offset: int) -> tuple[int, int]:
    """Line and column (both 1-based) of a character offset in `sql`."""
    head = sql[:offset]
    return head.count("\n") + 1, offset - (head.rfind("\n") + 1) + 1


def underline(sql: str, offset: int, message: str) -> str:
    """`message` with its position and the source line, the place marked below it."""
    line, column = at(sql, offset)
    text = sql.splitlines()[line - 1] if sql else ""
    start = max(0, column - 60)
    shown = text[start : start + 100]
    return f"{message}\n  at line {line}, column {column}:\n  {shown}\n  {' ' * (column - 1 - start)}^"


def programming_error(sql: str, offset: int, message: str) -> ProgrammingError:
    """A `ProgrammingError` that carries and shows its place in `sql`."""
    line, column = at(sql, offset)
    return ProgrammingError(underline(sql, offset, message), line=line, column=column)
