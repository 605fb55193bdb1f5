"""One Ray on this machine for all tests of jobs; models are scripted."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray that sees the helpers of these tests."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    from sqluice.workers.ray.cluster import join, leave
    from sqluice.workers.where import Where

    leave()  # the Ray of other tests does not see these helpers
    ray = join(Where("ray"))
    assert ray is not None
    yield ray.get_runtime_context().gcs_address
    leave()
