"""`ai_workers` is read, or refused with what is allowed."""

from __future__ import annotations

import pytest

import sqluice
from sqluice.errors import ProgrammingError
from sqluice.workers.where import Shape, parse


def test_places() -> None:
    assert parse("local").kind == "local"
    assert parse("RAY").kind == "ray"
    assert parse("auto").kind == "auto"
    assert parse("3") == parse("ray?workers=3")
    assert parse("ray://head.example:10001?gpus=1").address == "ray://head.example:10001"
    assert parse("ray://[::1]:10001").address == "ray://[::1]:10001"


def test_options_hold_for_all_models_or_for_one_role() -> None:
    where = parse("ray?workers=4&gpus=1&proxy.gpus=0.25&proxy.workers=2&embedder.gpus=0&timeout=5")
    assert where.shape("oracle") == Shape(4, 1.0, 1.0, 5.0)
    assert where.shape("proxy") == Shape(2, 1.0, 0.25, 5.0)
    assert where.shape("embedder") == Shape(4, 1.0, 0.0, 5.0)
    assert parse("auto").shape("oracle") == Shape(0, 1.0, 0.0, 60.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cluster", "it is local, ray, auto"),
        ("", "it is local, ray, auto"),
        ("0", "at least 1"),
        ("2?cpus=1", "options are written"),
        ("local?workers=2", "takes no options"),
        ("ray://head", "ray://host:port"),
        ("ray://head:99999", "ray://host:port"),
        ("ray?workers=none", "workers takes a whole number from 1, not 'none'"),
        ("ray?workers=0", "a whole number from 1"),
        ("ray?cpus=-1", "cpus takes a number of CPUs"),
        ("ray?gpus=1.5", "gpus takes"),
        ("ray?timeout=0", "seconds above 0"),
        ("ray?cpu=1", "unknown option 'cpu'"),
        ("ray?judge.cpus=1", "unknown option"),
        ("ray?cpus=1&cpus=2", "twice"),
        ("ray?", "unknown option ''"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_set(value: str, said: str) -> None:
    with pytest.raises(ProgrammingError, match=f"^ai_workers cannot be .*{said}"):
        parse(value)
    with pytest.raises(ProgrammingError, match=r"(?s)ai_workers cannot be .*at line 1"):
        sqluice.connect().cursor().execute(f"SET ai_workers = '{value}'")
    with pytest.raises(ProgrammingError, match="ai_workers cannot be"):
        sqluice.connect(ai_workers=value)
