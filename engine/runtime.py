"""What stands behind the functions that `sqluice.udfs.install` puts on a plain DuckDB connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sqluice import config
from sqluice.engine.answer_cache import open_cache
from sqluice.engine.run import Run, Runner
from sqluice.engine.trace import TraceFolder
from sqluice.udfs.install import set_runtime_factory
from sqluice.workers.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.udfs.spec import Spec


class PlainRuntime:
    """Answers batch by batch with the models and the cache of its settings; leaves no trace."""

    def __init__(self, settings: dict[str, Value], allow_models: Sequence[str] | None = None) -> None:
        values = {**{name: setting.default for name, setting in config.SETTINGS.items()}, **settings}
        cache = open_cache(str(values["ai_cache"]), config.home() / "answers.sqlite")
        trace = TraceFolder(config.home() / "traces" / "plain").begin("", values, mode="off")
        self._run = Run(Runner(Registry(allow_models)), [], values, cache, trace)

    def answer(self, spec: Spec, columns: list[list[str | None]]) -> pa.Array:
        """One answer a row; the row's own failure is NULL, or an error under `ai_on_error = 'raise'`."""
        run = self._run
        if spec not in run.specs:
            run.specs.append(spec)
        asker = run.asker(run.specs.index(spec))
        n_rows = np.ones(len(columns[0]) if columns else 1, np.int64)
        return asker.answer(columns, n_rows).values  # type: ignore[arg-type]


set_runtime_factory(PlainRuntime)
