"""AI functions on a plain DuckDB connection: row semantics, no optimizer.

`sqluice.udfs.install(con, ai_oracle='..')` is the door; this module can be called as well, since an import of it
takes the function's place in the package. DuckDB hands every argument over as a column, so what must be constant
(options, labels, model, template) is checked to be the same on each row of a batch. DuckDB calls from several
threads, and keeps of an exception only its text.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from sqluice import config
from sqluice.errors import DataError, InternalError, NotSupportedError, ProgrammingError
from sqluice.udfs.ai_embed import embedding
from sqluice.udfs.answers import arrow_type, cosine
from sqluice.udfs.columns import PROMPT_TYPE, argument, distinct, plain, texts
from sqluice.udfs.options import NotConstantError
from sqluice.udfs.prompts import prompt_value
from sqluice.udfs.signatures import bind
from sqluice.udfs.spec import Const, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.udfs.spec import Arg, Bound, Spec

RETURNS = {
    "ai_filter": "BOOLEAN",
    "ai_classify": "VARCHAR",
    "ai_classify_multi": "VARCHAR[]",
    "ai_score": "DOUBLE",
    "ai_complete": "VARCHAR",
    "ai_embed": "FLOAT[]",
    "ai_similarity": "DOUBLE",
    "ai_count_tokens": "INTEGER",
    "prompt": PROMPT_TYPE,
}


class Runtime(Protocol):
    """What answers questions; `engine` makes it from the settings."""

    def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
        """An answer of `arrow_type(spec)` for each row of `columns` (one list per argument); no columns: one
        answer to a constant question. Rows are distinct and hold no None. Raises `sqluice.errors.Error`."""
        ...


Factory: TypeAlias = "Callable[[dict[str, Value], Sequence[str] | None], Runtime]"
_factory: Factory | None = None


def set_runtime_factory(factory: Factory) -> None:
    """Name what makes a runtime from settings; `sqluice.engine.runtime` does so when it is imported."""
    global _factory
    _factory = factory


def install(con: Any, *, allow_models: Sequence[str] | None = None, **settings: Value) -> None:
    """Make the AI functions callable on the DuckDB connection `con`; again: with the new settings.

    `allow_models` lists the places models may come from, as for `sqluice.connect`. `settings` are those of `SET`
    (`ai_oracle='..'`). `ProgrammingError` for an unknown setting or a bad value, and when another cursor of the same
    database has installed them.
    """
    checked = {config.lookup(name).name: config.parse(name, value) for name, value in settings.items()}
    for name, (function, returns) in functions_for(_runtime(checked, allow_models)).items():
        register(con, name, function, returns)


def _runtime(settings: dict[str, Value], allow_models: Sequence[str] | None) -> Runtime:
    if _factory is None:
        importlib.import_module("sqluice.engine.runtime")
    if _factory is None:
        raise InternalError("sqluice.engine.runtime registered no runtime")
    return _factory(settings, allow_models)


def register(con: Any, name: str, function: Callable[..., object], returns: str) -> None:
    """Make one function known to `con`, in place of an earlier one of ours."""
    import duckdb

    with contextlib.suppress(duckdb.InvalidInputException):  # it is not there yet
        con.remove_function(name)
    try:
        con.create_function(name, function, None, returns, type="arrow", null_handling="special", side_effects=True)
    except (duckdb.CatalogException, duckdb.NotImplementedException) as error:
        raise ProgrammingError(
            f"{name} exists already: another cursor of this database installed it; install on that one ({error})"
        ) from error


def functions_for(runtime: Runtime) -> dict[str, tuple[Callable[..., object], str]]:
    """Name -> (function over Arrow columns, SQL type it returns). The runtime is asked by one thread at a time.

    DuckDB evaluates the annotations of these functions, so they name nothing that is imported lazily.
    """
    guarded = _Guarded(runtime)
    functions: dict[str, Callable[..., object]] = {name: _scalar(name, guarded) for name in RETURNS}
    functions["ai_similarity"] = _similarity(guarded)
    functions["prompt"] = _prompt
    return {name: (function, RETURNS[name]) for name, function in functions.items()}


class _Guarded:
    """A runtime behind a lock, its answers checked: DuckDB would cast a wrong type without a word."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()

    def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
        """As `Runtime.answer`; `InternalError` for answers of a wrong type or number."""
        with self._lock:
            found = self._runtime.answer(spec, columns)
        rows = len(columns[0]) if columns else 1
        if len(found) != rows or not _fits(found.type, arrow_type(spec)):
            raise InternalError(f"{spec.function}: {len(found)} answers of type {found.type} to {rows} questions")
        return found


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(found == wanted or (pa.types.is_fixed_size_list(found) and pa.list_(found.value_type) == wanted))


def _scalar(name: str, runtime: _Guarded) -> Callable[..., object]:
    def run(*columns: object) -> object:
        arrays = [plain(column) for column in columns]
        return _ask(runtime, _bound(name, [argument(array) for array in arrays]), len(arrays[0]))

    return run


def _bound(name: str, args: list[Arg]) -> Bound:
    """`bind` for the function called `name` here; `DataError` where a constant changes from row to row."""
    multi = name == "ai_classify_multi"
    try:
        bound = bind("AI_CLASSIFY", _several(args)) if multi else bind(name, args)
    except NotConstantError as error:
        raise DataError(f"{error}: it changes from row to row") from error
    if bound.spec.errors:
        raise NotSupportedError(f"{name} returns one type here: leave out errors, or use sqluice.connect()")
    if bound.spec.returns != RETURNS[name]:
        other = "ai_classify" if multi else "ai_classify_multi"
        raise NotSupportedError(f"{name} returns {RETURNS[name]}: call {other} for output_mode of this kind")
    return bound


def _several(args: list[Arg]) -> list[Arg]:
    """The arguments of AI_CLASSIFY with several labels asked for, unless the options say otherwise."""
    if len(args) == 2:
        return [*args, Const({"output_mode": "multi"})]
    if len(args) == 3 and isinstance(args[2], Const) and isinstance(args[2].value, dict):
        return [*args[:2], Const({"output_mode": "multi", **args[2].value})]
    return args


def _ask(runtime: _Guarded, bound: Bound, count: int) -> pa.Array:
    """One answer a row: equal inputs asked once, none for a NULL."""
    import pyarrow as pa

    asked, which = distinct([texts(arg) for arg in bound.args], count)
    if not asked:
        return pa.nulls(count, arrow_type(bound.spec))
    answers = runtime.answer(bound.spec, [list(column) for column in zip(*asked, strict=True)])
    return answers.take(pa.array(which, pa.int64()))


def _similarity(runtime: _Guarded) -> Callable[..., object]:
    def run(*columns: object) -> object:
        import pyarrow as pa

        bound = _bound("ai_similarity", [argument(plain(column)) for column in columns])
        pairs, which = distinct([texts(arg) for arg in bound.args], len(plain(columns[0])))
        if not pairs:
            return pa.nulls(len(which), pa.float64())
        asked, sides = distinct([[text for pair in pairs for text in pair]], 2 * len(pairs))
        vectors = runtime.answer(embedding(bound.spec.model), [[text for (text,) in asked]])
        near = cosine(vectors.take(pa.array(sides[::2])), vectors.take(pa.array(sides[1::2])))
        return near.take(pa.array(which, pa.int64()))

    return run


def _prompt(*columns: object) -> object:
    """The prompt of each row, its arguments as texts; the template is checked here and again where it is used."""
    import pyarrow as pa

    arrays = [plain(column) for column in columns]
    template = argument(arrays[0])
    rest: Sequence[Const | Row] = [Row(array) for array in arrays[1:]]
    try:
        found = prompt_value([template if isinstance(template, Const) else Row(arrays[0]), *rest])
    except NotConstantError as error:
        raise DataError(f"{error}: it changes from row to row") from error
    count = len(arrays[0])
    filled = [texts(arg) for arg in found.args]
    args = [list(row) for row in zip(*filled, strict=True)] if filled else [[]] * count
    kinds = (pa.string(), pa.list_(pa.string()))
    parts = [pa.array([found.template] * count, kinds[0]), pa.array(args, kinds[1])]
    return pa.StructArray.from_arrays(parts, ["template", "args"])


class _Callable(ModuleType):
    def __call__(self, con: Any, *, allow_models: Sequence[str] | None = None, **settings: Value) -> None:
        install(con, allow_models=allow_models, **settings)


sys.modules[__name__].__class__ = _Callable
