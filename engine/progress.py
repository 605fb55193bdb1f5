"""A progress bar on standard error for queries that take longer than a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from sqluice.types import Progress

PATIENCE = 1.0  # seconds before a bar appears


class ProgressBar:
    """Call it with `Progress` values; it draws rows, rows/s, time left and model calls so far.

    Nothing is drawn where the console is no terminal, nor within `patience` seconds of `start`.
    """

    def __init__(
        self, console: Console, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._patience = patience
        self._clock = clock
        self._started = clock()
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def start(self) -> None:
        """A new statement begins: forget what was drawn for the last one."""
        self.stop()
        self._started = self._clock()

    def __call__(self, progress: Progress) -> None:
        if not self._console.is_terminal or self._clock() - self._started < self._patience:
            return
        if self._bar is None:
            self._bar = bar_on(self._console)
            self._bar.start()
        task = self._tasks.get(progress.operator)
        if task is None:
            task = self._tasks[progress.operator] = self._bar.add_task("", total=None, note="")
        self._bar.update(
            task,
            description=progress.operator,
            completed=progress.done,
            total=progress.total,
            note=note(progress),
        )

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        self._tasks = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def note(progress: Progress) -> str:
    """`'40/200 rows  12.5 rows/s  13 s left  38 calls  2 cached'`."""
    total = "" if progress.total is None else f"/{progress.total:,}"
    parts = [f"{progress.done:,}{total} rows"]
    rate = progress.done / progress.seconds if progress.seconds > 0 else 0.0
    if rate > 0:
        parts.append(f"{rate:,.1f} rows/s")
        if progress.total is not None:
            parts.append(f"{duration(max(0, progress.total - progress.done) / rate)} left")
    parts.append(f"{progress.calls:,} calls")
    if progress.cached:
        parts.append(f"{progress.cached:,} cached")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class FetchBar:
    """`cb(done, total, label)` for weights that are being fetched; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, done: int, total: int | None, label: str) -> None:
        if not self._console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = _no_task()
                self._console.print(f"fetching {label}", highlight=False, markup=False)
            return
        if self._bar is None:
            self._bar = _fetch_bar(self._console)
            self._bar.start()
        if label not in self._tasks:
            self._tasks[label] = self._bar.add_task(label, total=total)
        self._bar.update(self._tasks[label], completed=done, total=total)

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class StepBar:
    """`cb(done, total, label)` for long work in few steps; a line a step where there is no terminal. `first`
    stands there until the first step is done."""

    def __init__(self, console: Console, first: str) -> None:
        self._console = console
        self._first = first
        self._bar: RichProgress | None = None

    def __call__(self, done: int, total: int, label: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{label} ({done / max(total, 1):.0%})", highlight=False, markup=False)
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=label)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = bar_on(self._console)
            self._bar.add_task("", total=None, note=self._first)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _no_task() -> TaskID:
    from rich.progress import TaskID

    return TaskID(-1)


def bar_on(console: Console) -> RichProgress:
    """A bar with a description before it and a `note` behind it."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _fetch_bar(console: Console) -> RichProgress:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("fetching {task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
