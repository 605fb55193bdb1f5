"""The folder of a job: what was asked for, what is finished, and the output.

    OUT/part-00000.parquet ..      the rows of each partition, or
    OUT/result.parquet             the one result, where partitions are put together
    OUT/_sqluice/job.json          what the job is; written once
    OUT/_sqluice/done/00007.json   partition 7 is finished: the only word that counts
    OUT/_sqluice/rows/..           rows on their way: named after the attempt that wrote them
    OUT/_sqluice/state.json        progress, for `job status`
    OUT/_sqluice/lock              held by the process that runs the job; free when it is gone, however it went
    OUT/_sqluice/cancel            somebody wants the job to end

A partition is committed by renaming its record into `done`. Its rows are complete on disk before, and get their public
name after; `recover` repeats that last step, so that a crash at any point leaves every row once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqluice.errors import OperationalError, ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOME = "_sqluice"
RESULT = "result"
"""The record and the file of what puts partitions together."""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The folder `out`; `merged` says that partitions are not the output themselves."""

    out: Path
    merged: bool = False

    @property
    def home(self) -> Path:
        """What is ours in the folder."""
        return self.out / HOME

    @property
    def rows(self) -> Path:
        """Where attempts write."""
        return self.home / "rows"

    def exists(self) -> bool:
        """Whether a job has begun here."""
        return (self.home / "job.json").exists()

    def create(self, job: dict[str, Any]) -> None:
        """Begin a job: `job.json` comes last, and whole."""
        (self.home / "done").mkdir(parents=True, exist_ok=True)
        self.rows.mkdir(exist_ok=True)
        write_json(self.home / "job.json", job)

    def job(self) -> dict[str, Any]:
        """What the job is. `OperationalError` where no job has begun."""
        try:
            found = json.loads((self.home / "job.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise OperationalError(f"{self.out} holds no job") from None
        return dict(found)

    def commit(self, name: str, record: dict[str, Any]) -> None:
        """`name` is finished; `record['file']` is the file in `rows`."""
        for kind in ("file", "seen"):
            if kind in record:
                sync(self.rows / record[kind])
        write_json(self.home / "done" / f"{name}.json", record)
        self._publish(name, record)

    def done(self) -> dict[str, dict[str, Any]]:
        """Records of what is finished, by name."""
        found = sorted((self.home / "done").glob("*.json"))
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}

    def path(self, name: str, record: dict[str, Any]) -> Path:
        """Where the finished rows of `name` are."""
        public = self.public(name)
        return self.rows / record["file"] if public is None else public

    def recover(self) -> dict[str, dict[str, Any]]:
        """After a crash: give finished rows their names, drop what no record names, and forget records whose rows are
        gone. What is finished, by name."""
        found = {}
        for name, record in self.done().items():
            self._publish(name, record)
            if self.path(name, record).exists():
                found[name] = record
            else:
                (self.home / "done" / f"{name}.json").unlink()
        self.sweep(found)
        return found

    def sweep(self, found: dict[str, dict[str, Any]]) -> None:
        """Drop rows that no record names."""
        named = {record[kind] for record in found.values() for kind in ("file", "seen") if kind in record}
        for path in self.rows.iterdir():
            if path.name not in named:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def public(self, name: str) -> Path | None:
        """Where everybody looks for the rows of `name`; None where they are only on their way to the result."""
        if name == RESULT:
            return self.out / "result.parquet"
        return None if self.merged else self.out / f"part-{name}.parquet"

    def _publish(self, name: str, record: dict[str, Any]) -> None:
        public = self.public(name)
        if public is not None and (self.rows / record["file"]).exists():
            (self.rows / record["file"]).replace(public)
            sync(self.out)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the job. `OperationalError` when another process does."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise OperationalError(f"the job in {self.out} is running: sqluice job status {self.out}") from None
            (self.home / "cancel").unlink(missing_ok=True)
            yield

    def is_running(self) -> bool:
        """Whether a process holds the job."""
        if not (self.home / "lock").exists():
            return False
        with (self.home / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def cancel(self) -> None:
        """Ask the process that runs the job to end it."""
        (self.home / "cancel").touch()

    def is_cancelled(self) -> bool:
        """Whether somebody did."""
        return (self.home / "cancel").exists()

    def tell(self, state: dict[str, Any]) -> None:
        """Write progress."""
        write_json(self.home / "state.json", state, durable=False)

    def state(self) -> dict[str, Any]:
        """Progress as last written; empty before."""
        try:
            return dict(json.loads((self.home / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}


def check_place(out: Path, *, resume: bool) -> None:
    """`ProgrammingError` when a job cannot begin in `out`."""
    if "://" in str(out) or ":/" in str(out):
        raise ProgrammingError(f"--output {out}: jobs write to a folder (of a shared file system, on a cluster)")
    if out.exists() and not out.is_dir():
        raise ProgrammingError(f"--output {out} is a file; it takes a folder")
    folder = JobFolder(out)
    if folder.exists() and not resume:
        done, job = len(folder.done()), folder.job()
        raise ProgrammingError(
            f"{out} holds a job already, {done} of {len(job['partitions'])} partitions finished:"
            " --resume goes on with it, another --output begins anew"
        )
    others = [path.name for path in out.iterdir() if path.name != HOME] if out.is_dir() else []
    if others and not folder.exists():
        raise ProgrammingError(f"--output {out} is not empty ({others[0]}); name a new folder")


def write_json(path: Path, value: dict[str, Any], *, durable: bool = True) -> None:
    """The file appears whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    if durable:
        sync(part)
    part.replace(path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
