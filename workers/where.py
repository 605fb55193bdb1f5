"""Where models run, as `SET ai_workers` names it.

    local                          in this process
    ray, 3, ray?workers=3          a Ray of this machine, started when the first question needs it
    auto                           a running Ray cluster where there is one, else local
    ray://host:10001               a Ray cluster, through its client server

Options follow a question mark: `workers` of each model (as many as fit by default), `cpus` and `gpus` that a worker
holds (fractions are allowed), `timeout` in seconds for finding room. A model's role before a name narrows it down:
`auto?workers=4&gpus=1&proxy.gpus=0.25`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sqluice.errors import ProgrammingError

Kind = Literal["local", "ray", "auto"]

ROLES = ("oracle", "proxy", "embedder")
OPTIONS = ("workers", "cpus", "gpus", "timeout")
SECONDS = 60.0
"""That a model's workers may take to find room, by default."""

_FORMS = "local, ray, auto, ray://host:port or a number of workers"
_ADDRESS = re.compile(r"ray://(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """The workers of one model: how many (0: as many as fit), and what each of them holds."""

    workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    timeout: float = SECONDS

    def each(self) -> str:
        """What one worker holds, in words."""
        holds = [f"{number:g} {unit}" for number, unit in ((self.cpus, "CPU"), (self.gpus, "GPU")) if number]
        return " and ".join(holds) or "no resources"


@dataclass(frozen=True, slots=True)
class Where:
    """A value of `ai_workers`. `address` is empty for a Ray of this machine; `options` are as they were written."""

    kind: Kind
    address: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def shape(self, role: str) -> Shape:
        """The workers of a model in a role, one of `ROLES`."""
        given = dict(self.options)
        text = {name: given.get(f"{role}.{name}", given.get(name, "")) for name in OPTIONS}
        return Shape(
            workers=int(text["workers"] or 0),
            cpus=float(text["cpus"] or 1.0),
            gpus=float(text["gpus"] or 0.0),
            timeout=float(text["timeout"] or SECONDS),
        )


def parse(value: str) -> Where:
    """A value of `ai_workers`, checked; `ProgrammingError` says what is allowed."""
    text = value.strip()
    place, _, query = text.partition("?")
    if place.isdigit():
        if query or not int(place):
            raise _wrong(value, "a number of workers is at least 1, and options are written ray?workers=2&cpus=1")
        return Where("ray", options=(("workers", str(int(place))),))
    address = place if place.lower().startswith("ray://") else ""
    found = _ADDRESS.fullmatch(address)
    if address and (found is None or not 0 < int(found[2]) < 65536):
        raise _wrong(value, "a cluster's address is written ray://host:port")
    kind: Kind | None = {"local": "local", "ray": "ray", "auto": "auto"}.get("ray" if address else place.lower())  # type: ignore[assignment]
    if kind is None:
        raise _wrong(value, f"it is {_FORMS}")
    if kind == "local" and query:
        raise _wrong(value, "local takes no options")
    return Where(kind, address, _options(value, query) if "?" in text else ())


def _options(value: str, query: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, text = part.partition("=")
        role, dot, option = name.rpartition(".")
        if option not in OPTIONS or (dot and role not in ROLES):
            names = f"{', '.join(OPTIONS)}, each alone or after {', '.join(f'{one}.' for one in ROLES)}"
            raise _wrong(value, f"unknown option {name!r}; there are {names}")
        if name in found:
            raise _wrong(value, f"{name} stands there twice")
        if not equals or not _fits(option, text):
            takes = "a whole number from 1" if option == "workers" else "a number" + _FROM[option]
            raise _wrong(value, f"{name} takes {takes}, not {text!r}")
        found[name] = text
    return tuple(found.items())


_FROM = {"cpus": " of CPUs, 0 or more", "gpus": " of GPUs, 0 or more", "timeout": " of seconds above 0"}


def _fits(option: str, text: str) -> bool:
    if option == "workers":
        return re.fullmatch(r"\d{1,6}", text) is not None and int(text) > 0
    if re.fullmatch(r"\d{1,6}(\.\d{1,4})?|\.\d{1,4}", text) is None:
        return False
    number = float(text)
    if option == "gpus" and number > 1 and number % 1:
        return False
    return number > 0 if option == "timeout" else True


def _wrong(value: str, why: str) -> ProgrammingError:
    return ProgrammingError(f"ai_workers cannot be {value!r}: {why}")
