"""AI expressions as DuckDB functions: what the planner leaves in a statement, and the whole of it in row-wise mode.

One function for each SQL type, whose first argument is the number of the question, serves every call with its exact
type: `__ai_boolean(3, s)`. DuckDB evaluates them row by row, in its own order and only where its plan gets to.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from sqluice.optimizer.ast import ERROR, PINNED, args_of, is_pinned, is_site, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.udfs.spec import Spec

FUNCTIONS = {
    "BOOLEAN": "__ai_boolean",
    "VARCHAR": "__ai_varchar",
    "VARCHAR[]": "__ai_varchars",
    "DOUBLE": "__ai_double",
    "INTEGER": "__ai_integer",
    "FLOAT[]": "__ai_floats",
}
ERRORS = "__ai_error_text"
PROBE = "_probe"
"""Ends the names of functions that answer NULL: DuckDB may fold calls with constants when it only describes a query."""

STABLE = "_stable"
"""Ends the names of the functions that DuckDB takes for free of side effects. It allows no others inside a window; the
others are never pushed below a join, duplicated or folded while a plan is made."""


def typed(node: exp.Expr, specs: Sequence[Spec], sql_type: Callable[[int], str], *, ending: str = "") -> exp.Expr:
    """A copy of `node` in which every AI expression is a call that DuckDB can bind and run.

    `ending` chooses which: `STABLE` where DuckDB allows no side effects (an alias names the call), `PROBE` for a look
    at types.
    """

    def change(part: exp.Expr) -> exp.Expr:
        if not (is_site(part) or is_pinned(part)):
            return part
        number = spec_of(part)
        texts = [exp.cast(arg.copy(), "varchar") for arg in args_of(part)]
        args = [exp.Literal.number(number), *texts]
        kind = ending or (STABLE if part.find_ancestor(exp.Window) else "")
        if part.this in (ERROR, PINNED[ERROR]):
            return exp.Anonymous(this=ERRORS + kind, expressions=args)
        name = FUNCTIONS[specs[number].returns] + kind
        call = exp.Anonymous(this=name, expressions=args)
        if specs[number].operation == "embed":
            return exp.cast(call, sql_type(number), dialect="duckdb")
        return call

    # Bottom-up, so that an AI expression in another's arguments is changed before its text is copied.
    root = node.copy()
    for part in reversed(list(root.walk(bfs=True))):
        new = change(part)
        if new is not part:
            if part is root:
                root = new
            else:
                part.replace(new)
    return root


class Functions:
    """The functions on one DuckDB connection. `current` is asked for each batch of rows; what it raises is kept in
    `failure`, since DuckDB passes on only the text."""

    def __init__(self, current: Callable[[int, list[list[str | None]], int, bool], Any]) -> None:
        self._current = current
        self._lock = threading.RLock()
        self.failure: BaseException | None = None

    def register(self, con: Any) -> None:
        """Make the functions known to `con`."""
        for returns, name in FUNCTIONS.items():
            _create(con, name, self._function(error=False), returns)
            _create(con, name + STABLE, self._function(error=False), returns, volatile=False)
            _create(con, name + PROBE, _nothing, returns, volatile=False)
        _create(con, ERRORS, self._function(error=True), "VARCHAR")
        _create(con, ERRORS + STABLE, self._function(error=True), "VARCHAR", volatile=False)
        _create(con, ERRORS + PROBE, _nothing, "VARCHAR", volatile=False)

    def _function(self, *, error: bool) -> Callable[..., Any]:
        def answer(*columns):  # type: ignore[no-untyped-def]
            with self._lock:
                try:
                    number, *texts = (column.to_pylist() for column in columns)
                    return self._current(int(number[0]), texts, len(number), error)
                except BaseException as failure:
                    self.failure = failure
                    raise

        return answer


def _nothing(*columns):  # type: ignore[no-untyped-def]
    import pyarrow as pa

    return pa.nulls(len(columns[0]))


def _create(con: Any, name: str, function: Callable[..., Any], returns: str, *, volatile: bool = True) -> None:
    con.create_function(name, function, None, returns, type="arrow", null_handling="special", side_effects=volatile)
