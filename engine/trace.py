"""What a run leaves behind: the tables of schema `ai`, append-only Parquet in a folder.

- One file a run and table. A file has its final name only when the run is over; until then it is
  `<run id>.parquet.partial`, locked by the process that writes it.
- Decisions stream out in row groups, so a run's memory does not grow with its rows.
- Nothing here fails a query: what cannot be written becomes one warning of the run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from sqluice.engine.report import CascadeReport, Report, totals
from sqluice.engine.trace_names import new_run_id
from sqluice.engine.trace_schema import (
    TABLES,
    Labels,
    Stream,
    batch_of,
    clean,
    doubles,
    hexes,
    redact,
    redact_settings,
    schema,
    sparse,
    strings,
    sweep,
    tidy,
    timestamps,
    view,
    write_empty,
)
from sqluice.workers.protocol import RETRY, WASTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from sqluice.config import Value
    from sqluice.workers.protocol import Batch

Mode: TypeAlias = Literal["on", "off", "text"]
Status: TypeAlias = Literal["ok", "error", "interrupted"]

TIERS = ("oracle", "proxy", "cache", "head", "rule")
_REASONS = {"cache": "cache hit", "rule": "rule"}
_STATES = {"failed": "failed", "capped": "budget", "cut": "token limit"}


class TraceFolder:
    """The folder of one database's traces. It need not exist until something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._prepared = False

    def views(self) -> list[str]:
        """Statements that make `ai.runs` and the others in an attached catalog `ai`. Run them again after the
        first `prepare`: views over a folder that did not exist are empty."""
        return [view(table, self.path / table) for table in TABLES]

    def prepare(self) -> str | None:
        """Make the folders, a file without rows in each, and sweep up what dead processes left.

        A warning where that failed, else None. Several processes may do this at once.
        """
        from pyarrow.lib import ArrowException

        try:
            for table in TABLES:
                folder = self.path / table
                folder.mkdir(parents=True, exist_ok=True)
                write_empty(folder, table)
                sweep(folder)
        except (OSError, ArrowException) as error:
            return _failure(error)
        self._prepared = True
        return None

    def begin(self, sql: str, settings: Mapping[str, Value], *, mode: Mode = "on") -> RunTrace:
        """Start the trace of one statement. Under mode 'off' it counts and writes nothing."""
        run = RunTrace(self.path, sql, settings, mode)
        if mode != "off" and not self._prepared:
            warning = self.prepare()
            if warning:
                run.give_up(warning)
        return run


@dataclass
class OpTrace:
    """Counters of one AI operator.

    `add_batches` and `add_decisions` count what they are given: seconds_busy, tokens_in, tokens_out and
    pad_tokens from batches; distinct_inputs, calls, cached, failed and rows_by_tier from decisions (`add_rows`
    adds to the last two). The caller sets the rest. calls, cached and distinct_inputs count distinct inputs; other
    counts are rows.
    """

    run: RunTrace = field(repr=False)
    number: int
    function: str
    model: str
    revision: str
    template_digest: str
    estimates: dict[str, float]
    free_text: bool = False
    rows_in: int = 0
    rows_out: int = 0
    nulls: int = 0
    distinct_inputs: int = 0
    calls: int = 0
    cached: int = 0
    scored: int = 0
    failed: int = 0
    rows_by_tier: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    retries: int = 0
    pad_tokens: int = 0
    seconds_busy: float = 0.0
    seconds_queue: float = 0.0
    seconds_load: float = 0.0
    cost_usd: float = 0.0
    joules: float | None = None
    joules_source: str | None = None
    flop: float | None = None
    bytes_moved: float | None = None
    bound: str = "unknown"
    batches: int = 0
    cascades: list[CascadeReport] = field(default_factory=list)
    more_rows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)

    @property
    def padded_tokens(self) -> int:
        """Input tokens the model computed, padding included."""
        return self.tokens_in + self.pad_tokens

    @property
    def padding(self) -> float:
        """Share of padding among the padded tokens."""
        return self.pad_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def add_batches(self, batches: Sequence[Batch]) -> None:
        """Count and record attempts at micro-batches."""
        first, self.batches = self.batches, self.batches + len(batches)
        counted = [batch for batch in batches if batch.outcome != WASTED]
        self.tokens_in += sum(batch.tokens_in for batch in counted)
        self.tokens_out += sum(batch.tokens_out for batch in counted)
        self.tokens_cached += sum(batch.tokens_cached for batch in counted)
        self.retries += sum(batch.rows for batch in batches if batch.outcome == RETRY)
        self.pad_tokens += sum(batch.pad_tokens for batch in counted)
        self.seconds_busy += sum(batch.ended - batch.started for batch in counted)
        self._add_joules(batches)
        if batches and self.run.records:
            self.run.record("batches", _batch_columns(self, batches, first))

    def _add_joules(self, batches: Sequence[Batch]) -> None:
        for batch in (one for one in batches if one.joules is not None):
            self.joules = (self.joules or 0.0) + (batch.joules or 0.0)
            told = (self.joules_source or batch.joules_source).split(", ")
            self.joules_source = ", ".join(sorted({*told, batch.joules_source}))

    def add_decisions(
        self,
        hashes: Sequence[bytes] | pa.Array,
        n_rows: np.ndarray,
        *,
        tier: Sequence[str] | str,
        reason: str = "exact",
        thresholds: tuple[float, float] | None = None,
        scores: np.ndarray | None = None,
        raw_scores: np.ndarray | None = None,
        answers: pa.Array | None = None,
        status: Sequence[str] | str = "answered",
        errors: Mapping[int, str] | None = None,
        tokens_in: np.ndarray | None = None,
        tokens_out: np.ndarray | None = None,
        texts: Sequence[str] | None = None,
    ) -> int:
        """Count and record the decisions on some distinct inputs; `n_rows` is each one's multiplicity so far
        (`add_rows` adds to it). Returns the place of the first one among the operator's decisions.

        `reason` is why the oracle or a tier below it decided; `thresholds` are `tau_low` and `tau_high`.
        `status` is `answered`, `failed`, `capped` where a budget was spent before the input was asked about, or `cut`
        where a token limit cut its answer: that becomes `capped` too, and counts as a call.
        Scores that are NaN become NULL. `errors` is keyed by position. `texts` is kept only under
        `ai_trace = 'text'`, and so are the answers of free-text functions, which may repeat a row's text.
        """
        first, n = self.distinct_inputs, len(hashes)
        if not n:
            return first
        tiers, states = Labels.of(tier, n), Labels.of(status, n)
        self._count(n_rows, tiers, states)
        if not self.run.records:
            return first
        text = self.run.mode == "text"
        columns: dict[str, object] = {
            "run_id": self.run.run_id,
            "op": self.number,
            "input_hash": hexes(hashes),
            "n_rows": np.asarray(n_rows, dtype=np.int64),
            "tier": tiers.column(),
            "score": doubles(scores, n),
            "raw_score": doubles(raw_scores, n),
            **{
                name: doubles(np.full(n, value), n)
                for name, value in zip(("tau_low", "tau_high"), thresholds or (), strict=False)
            },
            "reason": _reasons(tiers, states, reason).column(),
            "answer": answers if text or not self.free_text else None,
            "status": Labels(["capped" if name == "cut" else name for name in states.names], states.codes).column(),
            "error": sparse({row: tidy(said) or "" for row, said in (errors or {}).items()}, n),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "text": strings(texts) if text and texts is not None else None,
        }
        self.run.record("decisions", batch_of("decisions", columns, n))
        return first

    def add_rows(self, places: np.ndarray, n_rows: np.ndarray, tiers: Sequence[str] | str, failed: np.ndarray) -> None:
        """More rows of inputs that are decided: int64 [n] places and rows, [n] tiers, bool [n]. Rows may be negative:
        they were counted and are not wanted after all."""
        rows = np.asarray(n_rows, dtype=np.int64)
        labels = Labels.of(tiers, len(rows))
        for name in labels.names:
            self.rows_by_tier[name] = self.rows_by_tier.get(name, 0) + int(rows[labels.are(name)].sum())
        self.failed += int(rows[failed].sum())
        if self.run.records and len(rows):
            self.more_rows.append((np.asarray(places, dtype=np.int64), rows))

    def _count(self, n_rows: np.ndarray, tiers: Labels, states: Labels) -> None:
        self.distinct_inputs += len(n_rows)
        self.failed += int(n_rows[states.are("failed")].sum())
        sent = ~states.are("capped")
        for name in tiers.names:
            here = tiers.are(name)
            self.rows_by_tier[name] = self.rows_by_tier.get(name, 0) + int(n_rows[here].sum())
            self.calls += int((here & sent).sum()) if name == "oracle" else 0
            self.cached += int(here.sum()) if name == "cache" else 0

    def row(self) -> dict[str, object]:
        """The operator's row of `ai.ops`."""
        row: dict[str, object] = {name: getattr(self, name, None) for name in TABLES["ops"]}
        tiers = {f"rows_{tier}": self.rows_by_tier.get(tier, 0) for tier in TIERS}
        estimates = {
            "est_rows": self.estimates.get("rows"),
            "est_calls": self.estimates.get("calls"),
            "bytes": self.bytes_moved,
        }
        labels = {
            "contract": "; ".join(one.contract for one in self.cascades) or None,
            "label": "; ".join(one.label for one in self.cascades) or None,
            "scorer": "; ".join(one.scorer or "none" for one in self.cascades) or None,
            "labels": sum(one.labels for one in self.cascades) if self.cascades else None,
        }
        return {**row, **tiers, **estimates, **labels, "run_id": self.run.run_id, "op": self.number}


class RunTrace:
    """The trace of one statement. `rows` (of the result), `label`, `contract` and `degraded` may be set until
    `finish`; `label` starts as 'exact'. `warnings` counts each warning's text.
    Several threads may record at once; the counters of one operator belong to one thread."""

    def __init__(self, folder: Path, sql: str, settings: Mapping[str, Value], mode: Mode) -> None:
        self.run_id = new_run_id()
        self.sql = clean(redact(sql))
        self.mode = mode
        self.label: str | None = "exact"
        self.contract: str | None = None
        self.degraded = False
        self.rows: int | None = None
        self.warnings: dict[str, int] = {}
        self.operators: list[OpTrace] = []
        self._settings = redact_settings(settings)
        self._started = time.time()
        self._clock = time.perf_counter()
        self._lock = threading.RLock()
        self._folder = folder
        self._streams = {table: Stream(folder / table, table, self.run_id) for table in TABLES}
        self._report: Report | None = None
        self.records = mode != "off"

    def operator(
        self,
        function: str,
        model: str,
        revision: str,
        template_digest: str,
        estimates: dict[str, float] | None = None,
        *,
        free_text: bool = False,
    ) -> OpTrace:
        """The next operator of this run, numbered from 0. `estimates` may have `rows` and `calls`; `free_text`
        says that an answer may repeat a row's text."""
        with self._lock:
            number = len(self.operators)
            op = OpTrace(self, number, function, redact(model), revision, template_digest, estimates or {}, free_text)
            self.operators.append(op)
        return op

    def warn(self, text: str) -> None:
        """Count a warning."""
        with self._lock:
            self.warnings[text] = self.warnings.get(text, 0) + 1

    def finish(self, status: Status, error: str | None = None) -> Report:
        """Write what is left, make the files visible, and say what the run did. Later calls change nothing."""
        with self._lock:
            if self._report is None:
                self._report = self._summary(status)
                try:
                    with self._writing():
                        self._publish(self._report, error)
                except BaseException:  # half a run is worse than none
                    self.give_up("the trace was not written: interrupted")
                    raise
                self._report = replace(self._report, recorded=self.records, warnings=sum(self.warnings.values()))
                self.records = False
            return self._report

    def record(self, table: str, rows: pa.RecordBatch) -> None:
        """Add rows to a table of this run."""
        with self._lock, self._writing():
            self._streams[table].append(rows)

    def give_up(self, warning: str) -> None:
        """Write nothing more about this run."""
        self.warn(warning)
        self.records = False
        for stream in self._streams.values():
            stream.discard()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a failure to write into a warning."""
        from pyarrow.lib import ArrowException

        try:
            yield
        except (OSError, ArrowException, UnicodeError) as error:
            self.give_up(_failure(error))

    def _summary(self, status: Status) -> Report:
        facts = (self.run_id, self.sql, status, time.perf_counter() - self._clock)
        label, warnings = self.label if status == "ok" else None, sum(self.warnings.values())
        report = Report(*facts, label=label, warnings=warnings, recorded=False, **totals(self.operators))
        return replace(report, degraded=self.degraded)

    def _publish(self, report: Report, error: str | None) -> None:
        if not self.records:
            return
        same = ("run_id", "sql", "status", "seconds", "label", "calls", "warnings")
        run: dict[str, object] = {name: getattr(report, name) for name in same}
        run |= {name: getattr(self, name) for name in ("contract", "degraded", "rows")}
        run |= {
            "started": _utc(self._started),
            "ended": _utc(self._started + report.seconds),
            "spent_usd": report.cost_usd,
            "error": clean(tidy(error) or "") or None,
            "versions": json.dumps(_versions()),
            "settings": json.dumps(self._settings),
        }
        self._add_rows()
        self._streams["ops"].append(_rows("ops", [op.row() for op in self.operators]))
        self._streams["runs"].append(_rows("runs", [run]))
        for stream in self._streams.values():
            stream.close()
        for table in ("decisions", "batches", "ops", "runs"):  # a run that can be seen is there as a whole
            self._streams[table].publish()

    def _add_rows(self) -> None:
        """Write the decisions again where inputs came again after they were decided."""
        more = {op.number: _summed(op.more_rows) for op in self.operators if op.more_rows}
        if not more:
            return
        before, after = self._streams["decisions"], Stream(self._folder / "decisions", "decisions", self.run_id, "-2")
        seen = dict.fromkeys(more, 0)
        try:
            for batch in before.read():
                after.append(_with_more(batch, more, seen))
        except BaseException:
            after.discard()
            raise
        self._streams["decisions"] = after
        before.discard()


def _summed(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct places in order, and the rows of each."""
    places, inverse = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    rows = np.zeros(len(places), dtype=np.int64)
    np.add.at(rows, inverse, np.concatenate([part[1] for part in parts]))
    return places, rows


def _with_more(
    batch: pa.RecordBatch, more: Mapping[int, tuple[np.ndarray, np.ndarray]], seen: dict[int, int]
) -> pa.RecordBatch:
    """`batch` with `n_rows` of operators in `more` added to; `seen` counts their decisions in earlier batches."""
    import pyarrow as pa

    ops = batch.column("op").to_numpy()
    n_rows = batch.column("n_rows").to_numpy().copy()
    for op, (places, rows) in more.items():
        here = np.flatnonzero(ops == op)
        first, last = np.searchsorted(places, [seen[op], seen[op] + len(here)])
        n_rows[here[places[first:last] - seen[op]]] += rows[first:last]
        seen[op] += len(here)
    at = batch.schema.get_field_index("n_rows")
    return batch.set_column(at, batch.schema.field(at), pa.array(n_rows, batch.schema.field(at).type))


def _reasons(tiers: Labels, states: Labels, reason: str) -> Labels:
    """Why each row was decided as it was: `reason`, the cache, or what kept it from being answered."""
    names = [*(_REASONS.get(tier, reason) for tier in tiers.names), *_STATES.values()]
    codes = tiers.codes
    for code, state in enumerate(_STATES, len(tiers.names)):
        codes = np.where(states.are(state), code, codes)
    return Labels(names, codes)


def _batch_columns(op: OpTrace, batches: Sequence[Batch], first: int) -> pa.RecordBatch:
    """Rows of `ai.batches`, numbered from `first`."""
    same = ("attempt", "rows", "tokens_in", "tokens_out", "tokens_cached", "pad_tokens", "max_tokens", "cost_usd")
    columns: dict[str, object] = {name: [getattr(batch, name) for batch in batches] for name in same}
    columns |= {name: strings([getattr(batch, name) for batch in batches]) for name in ("outcome", "worker")}
    columns |= {
        "run_id": op.run.run_id,
        "op": op.number,
        "batch": range(first, first + len(batches)),
        "started": timestamps([batch.started for batch in batches]),
        "ended": timestamps([batch.ended for batch in batches]),
        "seconds": [batch.ended - batch.started for batch in batches],
        "joules": [batch.joules for batch in batches],
        "error": strings([tidy(batch.error) for batch in batches]),
    }
    return batch_of("batches", columns, len(batches))


def _rows(table: str, rows: list[dict[str, object]]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=schema(table))


def _utc(seconds: float) -> datetime.datetime:
    """Seconds since the epoch as the naive UTC time that TIMESTAMP holds."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)


def _versions() -> dict[str, str]:
    import duckdb

    from sqluice import __version__

    return {"sqluice": __version__, "duckdb": duckdb.__version__, "python": platform.python_version()}


def _failure(error: Exception) -> str:
    return f"the trace could not be written: {redact(str(error))}"
