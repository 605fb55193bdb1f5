"""`sqluice job`: jobs on the command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.engine.jobs.api import run_job, state_of
from sqluice.engine.jobs.folder import JobFolder
from sqluice.engine.progress import bar_on, duration
from sqluice.errors import OperationalError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from sqluice.engine.jobs.driver import JobState


def summary(state: JobState) -> str:
    """A state in a few lines."""
    left = "" if state.status != "running" or state.eta_s is None else f", {duration(state.eta_s)} left"
    lines = [
        f"job {state.status}: {state.done:,} of {state.partitions:,} partitions, {state.rows_in:,} of"
        f" {state.rows_total:,} rows, {state.rows_per_s:,.1f} rows/s{left}",
        f"  {state.rows:,} rows written, {state.calls:,} calls ({state.cached:,} more answered by the cache),"
        f" {state.tokens_in + state.tokens_out:,} tokens, {state.cost_usd:.4f} USD",
    ]
    if state.failed_rows:
        lines.append(f"  {state.failed_rows:,} rows have no answer")
    if state.label:
        lines.append(f"  {state.label}")
    lines += [f"  warning: {text}" for text in state.warnings]
    if state.error:
        lines.append(f"  {state.error}")
    if state.status in ("stopped", "failed", "cancelled", "interrupted"):
        lines.append("  --resume goes on with it")
    return "\n".join(lines)


def command(args: argparse.Namespace, settings: dict[str, Any], allow_models: list[str] | None) -> int:
    """`sqluice job ..`; the exit code."""
    from sqluice.engine.running import err_console, say

    out = Path(args.output)
    if args.action == "cancel":
        folder = JobFolder(out)
        folder.job()
        if not folder.is_running():
            raise OperationalError(f"the job in {out} is not running")
        folder.cancel()
        say(f"{out}: asked to end; what is finished is kept")
        return 0
    if args.action == "status":
        state = state_of(out)
        print(json.dumps(asdict(state)) if args.json else summary(state))  # noqa: T201 - the command's output
        return 0
    with Bar(err_console()) as bar:
        state = run_job(
            _sql(args.sql),
            args.input,
            out,
            address=args.address,
            partitions=args.partitions,
            resume=args.resume,
            budget=args.budget,
            allow_models=allow_models,
            on_state=bar,
            **settings,
        )
    say(summary(state))
    return 0


def _sql(given: str) -> str:
    """A file's text; SQL itself where there is no such file and it has blanks."""
    path = Path(given)
    if any(mark.isspace() for mark in given) and not path.exists():
        return given
    return path.read_text(encoding="utf-8-sig")


class Bar:
    """Progress of a job: a bar on a terminal, else a line every minute."""

    EVERY = 60.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Any = None
        self._task: Any = None
        self._told = time.monotonic()

    def __call__(self, state: JobState) -> None:
        if not self._console.is_terminal:
            if time.monotonic() - self._told >= self.EVERY:
                self._told = time.monotonic()
                self._console.print(summary(state).splitlines()[0], highlight=False, markup=False)
            return
        if self._bar is None:
            self._bar = bar_on(self._console)
            self._bar.start()
            self._task = self._bar.add_task("job", total=state.rows_total, note="")
        left = "" if state.eta_s is None else f"  {duration(state.eta_s)} left"
        note = (
            f"{state.done}/{state.partitions} partitions  {state.rows_per_s:,.1f} rows/s{left}  {state.calls:,} calls"
            f"  {state.cost_usd:.2f} USD"
        )
        self._bar.update(self._task, completed=state.rows_in, note=note)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
