"""Runs a job: partitions as Ray tasks, each committed when it is finished, then what puts them together.

    job = Job(request, Path("out"))
    report = job.run()

Only this process commits, and only one process at a time runs a job (`folder.JobFolder`), so that a task that was given
up, or belongs to a driver that is gone, can do no harm: nobody reads what it writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from sqluice.engine.budget import Budget
from sqluice.engine.jobs import learning
from sqluice.engine.jobs import plan as planning
from sqluice.engine.jobs.folder import RESULT, JobFolder, check_place, write_json
from sqluice.engine.jobs.task import run, written
from sqluice.engine.operators.applying import BY_POLICY
from sqluice.errors import InterruptedQueryError, OperationalError
from sqluice.optimizer.cascade.constraints import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqluice.engine.jobs.plan import Request
    from sqluice.engine.jobs.task import Work
    from sqluice.optimizer.cascade.policy import Policy, Proof

GIVE_UP_AFTER = 3
"""Partitions that fail until the job begins no other."""

TICK = 0.2
"""Seconds between looks at what is finished."""

_LABELS = re.compile(r", [\d,]+ labels\)")
_SUMS = ("rows", "calls", "cached", "failed_rows", "tokens_in", "tokens_out", "cost_usd")


class Pool(Protocol):
    """Where tasks run (`workers.ray.tasks.Tasks`)."""

    def room(self) -> int:
        """How many more tasks to submit now."""
        ...

    def submit(self, name: str, argument: Any) -> None:
        """Begin a task."""
        ...

    def finished(self, seconds: float) -> Iterator[tuple[str, Any]]:
        """Names and results of tasks that end within some seconds."""
        ...

    def stop(self) -> None:
        """End what is running."""
        ...


@dataclass(frozen=True)
class JobState:
    """Where a job is. Sums are over finished partitions, those of earlier attempts included; `seconds` and rates are
    this attempt's."""

    status: str = "running"
    partitions: int = 0
    done: int = 0
    rows_in: int = 0
    rows_total: int = 0
    rows: int = 0
    calls: int = 0
    cached: int = 0
    failed_rows: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    rows_per_s: float = 0.0
    eta_s: float | None = None
    label: str | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    pid: int = 0
    host: str = ""
    updated: float = 0.0


@dataclass
class Job:
    """One attempt at a job. `make_pool` makes what runs its tasks; `on_state` is told of progress."""

    request: Request
    out: Path
    make_pool: Callable[[Callable[[Any], Any]], Pool]
    resume: bool = False
    on_state: Callable[[JobState], None] | None = None
    _failures: dict[str, str] = field(default_factory=dict)
    _policies: dict[str, Policy] = field(default_factory=dict)
    _told: dict[str, Any] = field(default_factory=dict)
    """What is kept beside the policies: the round, the label once it is proven, calls for learning."""
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _first: int = 0
    """Rows that earlier attempts had finished."""

    def run(self) -> JobState:
        """Do what is left of it. What is finished stays, whatever happens.

        `ProgrammingError` and `NotSupportedError` before anything is written; `OperationalError` for a job that is not
        the one in the folder, and for partitions that failed; `InterruptedQueryError` when it was cancelled.
        """
        check_place(self.out, resume=self.resume)
        self._plan = planning.plan(self.request)
        self._folder = JobFolder(self.out, merged=self._plan.final is not None)
        with self._folder.locked():
            self._begin()
            try:
                self._tell("running")
                self._learn()
                self._partitions()
                while not self._prove():
                    self._partitions()
                self._finish()
            except BaseException as error:
                self._tell(_status(error), error=_line(error))
                raise
            return self._tell("done")

    def _begin(self) -> None:
        if self._folder.exists():
            planning.check_same(self._folder.job(), self._plan)
            cut = self._folder.job()["partitions"]
            if cut != self._plan.to_json()["partitions"]:
                self._plan = replace(self._plan, partitions=planning.partitions_of(cut))
            self._records = self._folder.recover()
        else:
            self._folder.create(self._plan.to_json())
        self._first = self._rows_in()

    def _learn(self) -> None:
        """The policies of the job's cascades, learnt once. Partitions of an earlier round are to be done again."""
        if self._kept.exists():
            self._policies, self._told = learning.from_json(self._kept.read_text(encoding="utf-8"))
        else:
            self._policies, self._told = learning.learn(self._plan, self.request)
            self._told["round"] = 0
            self._keep()
        self._records = {name: one for name, one in self._records.items() if self._counts(one)}

    def _counts(self, record: dict[str, Any]) -> bool:
        """Whether a finished partition is of this round, and what it has seen is there while that is needed."""
        if record["round"] != self._told["round"]:
            return False
        return "seen" not in record or "label" in self._told or (self._folder.rows / record["seen"]).exists()

    def _prove(self) -> bool:
        """What partitions prove together; False where they are to be done again, at a higher rate."""
        if not self._policies or "label" in self._told:
            return True
        files = [str(self._folder.rows / one["seen"]) for one in self._records.values()]
        proofs = learning.proofs(self._policies, files, self._told["round"])
        sure = all(one.holds for one in proofs.values())
        if not sure and self._told["round"] + 1 < len(learning.SHARES):
            self._policies = learning.more(self._policies)
            self._told["round"] += 1
            self._keep()
            self._records = {}
            return False
        labels = [record.get("label") for record in self._records.values()]
        self._told["label"] = _proven(self._policies, proofs, labels)
        self._keep()
        return True

    @property
    def _kept(self) -> Path:
        return self._folder.home / "policies.json"

    def _keep(self) -> None:
        write_json(self._kept, learning.to_json(self._policies, **self._told))

    def _partitions(self) -> None:
        """Run the partitions that are not finished."""
        waiting = [one for one in self._plan.partitions if one.name not in self._records]
        if RESULT in self._records or not waiting or self._is_enough():
            return
        pool = self.make_pool(run)
        budget, running = _Ledger(self.request.budget, self._records.values()), set[str]()
        rows = {one.name: one.rows for one in self._plan.partitions}
        try:
            while waiting or running:
                while waiting and pool.room() > 0 and len(self._failures) < GIVE_UP_AFTER and not self._is_enough():
                    partition = waiting.pop(0)
                    work = self._plan.work(self.request, partition, str(self._folder.rows.resolve()), self._policies)
                    share = budget.lease(work.name, partition.rows, sum(one.rows for one in waiting) + partition.rows)
                    pool.submit(work.name, work if share is None else _with_budget(work, share))
                    running.add(work.name)
                if not running:
                    break
                for name, result in pool.finished(TICK):
                    running.discard(name)
                    self._took(name, rows[name], result)
                    budget.settle(name, result)
                if self._folder.is_cancelled():
                    raise InterruptedQueryError("the job was cancelled; --resume goes on with it")
                self._tell("running")
                if self._is_enough():
                    break
        finally:
            pool.stop()
        if self._failures:
            name, why = next(iter(self._failures.items()))
            raise OperationalError(
                f"{len(self._failures)} of {len(rows)} partitions failed, {len(self._records)} are finished and kept;"
                f" partition {name}: {why}"
            )

    def _took(self, name: str, rows: int, result: Any) -> None:
        """One partition is over."""
        if isinstance(result, BaseException):
            self._failures[name] = f"{type(result).__name__}: {result}"
        elif "failed" in result:
            self._failures[name] = str(result["failed"])
        else:
            record = {**result, "rows_in": rows, "round": self._told["round"]}
            self._folder.commit(name, record)
            self._records[name] = record

    def _is_enough(self) -> bool:
        """Whether the first partitions satisfy a LIMIT."""
        if self._plan.enough is None:
            return False
        found = 0
        for one in self._plan.partitions:
            record = self._records.get(one.name)
            if record is None:
                return found >= self._plan.enough
            found += record["rows"]
        return False

    def _finish(self) -> None:
        """Put partitions together where they are not the result, and drop what is no longer needed."""
        if self._plan.final is not None and RESULT not in self._records:
            paths = []
            for one in self._plan.partitions:
                record = self._records.get(one.name)
                if record is None:
                    break  # a LIMIT had enough
                paths.append(str(self._folder.path(one.name, record).resolve()))
            views = planning.parts_view(paths)
            left = _Ledger(self.request.budget, self._records.values()).lease(RESULT, 1, 1)
            work = self._plan.whole(self.request, views, RESULT, self._plan.final, str(self._folder.rows))
            path = self._folder.rows / f"{RESULT}-{os.getpid()}.parquet"
            try:
                record = written(work if left is None else _with_budget(work, left), path)
                record |= {"rows_in": 0, "round": self._told["round"]}
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            self._folder.commit(RESULT, record)
            self._records[RESULT] = record
        self._folder.sweep({})

    def _label(self, parts: dict[str, dict[str, Any]]) -> str | None:
        """What the result can be trusted for."""
        label = self._told.get("label") or _label([record.get("label") for record in parts.values()])
        certain = label is None or label == "exact" or self._plan.same_rows or label.startswith("uncertified(")
        return label if certain else "uncertified(composition)"

    def _rows_in(self) -> int:
        return sum(record["rows_in"] for record in self._records.values())

    def _tell(self, status: str, error: str = "") -> JobState:
        """Write and report where the job is."""
        parts = {name: record for name, record in self._records.items() if name != RESULT}
        sums = {name: sum(record[name] for record in self._records.values()) for name in _SUMS}
        if RESULT in self._records:
            sums["rows"] = self._records[RESULT]["rows"]
        total, rows_in = sum(one.rows for one in self._plan.partitions), self._rows_in()
        seconds = time.monotonic() - self._started
        rate = (rows_in - self._first) / seconds if seconds > 0 else 0.0
        state = JobState(
            status,
            partitions=len(self._plan.partitions),
            done=len(parts),
            rows_in=rows_in,
            rows_total=total,
            seconds=round(seconds, 3),
            rows_per_s=round(rate, 3),
            eta_s=round((total - rows_in) / rate, 1) if rate > 0 else None,
            label=self._label(parts),
            error=error,
            warnings=tuple(dict.fromkeys(text for one in self._records.values() for text in one["warnings"])),
            output=tuple(sorted(path.name for path in map(self._folder.public, self._records) if path is not None)),
            pid=os.getpid(),
            host=socket.gethostname(),
            updated=time.time(),
            **{**sums, "calls": sums["calls"] + self._told.get("learning_calls", 0)},
        )
        with contextlib.suppress(OSError):  # a disk that is full stops the rows, which say so
            self._folder.tell(asdict(state))
        if self.on_state is not None:
            self.on_state(state)
        return state


class _Ledger:
    """A budget shared out to partitions by their rows: what they have together never exceeds it."""

    def __init__(self, budget: str | None, records: Any) -> None:
        self._budget = None if budget is None else Budget.of(budget)
        self._left = 0.0 if self._budget is None else self._budget.amount
        self._leased: dict[str, float] = {}
        for record in records:
            self._left -= self._spent(record)

    def lease(self, name: str, rows: int, waiting: int) -> str | None:
        """The budget of one partition; None without one."""
        if self._budget is None:
            return None
        unit, left = self._budget.unit, max(self._left, 0.0)
        if unit in ("s", "min", "h"):
            return f"{left:f} {unit}"
        share = left * rows / max(waiting, 1)
        share = int(share) if unit == "calls" else share
        self._left -= share
        self._leased[name] = share
        return f"{share} calls" if unit == "calls" else f"{share:f} {unit}"

    def settle(self, name: str, result: Any) -> None:
        """What a partition did not use comes back."""
        if name in self._leased:
            used = self._spent(result) if isinstance(result, dict) and "calls" in result else self._leased[name]
            self._left += max(self._leased.pop(name) - used, 0.0)

    def _spent(self, record: dict[str, Any]) -> float:
        if self._budget is None or self._budget.unit not in ("calls", "usd"):
            return 0.0
        return float(record["calls"] if self._budget.unit == "calls" else record["cost_usd"])


def _with_budget(work: Work, share: str) -> Work:
    return replace(work, settings={**work.settings, "ai_budget": share})


def _label(labels: list[str | None]) -> str | None:
    """What the result can be trusted for, from what its parts can: parts that each keep a contract keep it together."""
    found = sorted({one for one in labels if one is not None})
    contracts = {_LABELS.sub("", one) for one in found if one.startswith("certified(")}
    if len(found) == 1:
        return found[0]
    if len(contracts) == 1 and all(one == "exact" or one.startswith("certified(") for one in found):
        return f"{contracts.pop()} in each partition)"
    return next((one for one in found if one.startswith("uncertified(")), None)


def _proven(policies: dict[str, Policy], proofs: dict[str, Proof], labels: list[str | None]) -> str:
    """What the result can be trusted for, where cascades are proven for the whole job."""
    if any(one not in (BY_POLICY, "exact") for one in labels) or len(policies) > 1:
        return "uncertified(composition)"
    (policy,), (proof,) = policies.values(), proofs.values()
    return f"certified({told(policy.contract)}, {proof.labels:,} labels)" if proof.holds else "uncertified(unfinished)"


def _status(error: BaseException) -> str:
    if isinstance(error, InterruptedQueryError):
        return "cancelled"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
