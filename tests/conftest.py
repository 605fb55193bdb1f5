"""What every test shares: a state folder of its own, hypothesis profiles, a connection on scripted models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import sqluice
from sqluice import config
from sqluice.workers.pools import pool_of
from support.scale import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqluice import Connection

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_COMMON = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("ci", _COMMON, derandomize=True, database=None, max_examples=100)
settings.register_profile("nightly", _COMMON, max_examples=1000)
settings.load_profile("nightly" if NIGHTLY else "ci")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces and cached answers of the tests go to a fresh folder; weights are those of the person."""
    real = config.home()
    home = tmp_path_factory.mktemp("home")
    for child in real.iterdir() if real.is_dir() else ():
        if child.name in ("models", "weights", "packages"):
            (home / child.name).symlink_to(child)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLUICE_HOME", str(home))
        yield


@pytest.fixture
def con() -> Iterator[Connection]:
    """A fresh database in memory: exact answers, no answer cache."""
    connection = sqluice.connect(ai_cache="off", ai_mode="exact")
    yield connection
    connection.close()


TWO_WORKERS = "ray?workers=2&cpus=0.5"


@pytest.fixture
def on_workers() -> Iterator[Callable[..., Connection]]:
    """Makes connections to an oracle on two Ray workers, or elsewhere. The first one starts Ray, which stays for the
    session; workers end with the test."""
    pytest.importorskip("ray")
    opened: list[Connection] = []
    places: set[str] = set()

    def make(model: object, where: str = TWO_WORKERS, **settings: object) -> Connection:
        given = {"ai_cache": "off", "ai_mode": "exact", "ai_oracle": "oracle", "ai_workers": where, **settings}
        opened.append(sqluice.connect(**given))  # type: ignore[arg-type]
        opened[-1].register_model("oracle", model)
        places.add(where)
        return opened[-1]

    yield make
    for connection in opened:
        if not connection.closed:
            connection.close()
    for where in places:
        pool_of(where).close()
