"""What a job is, found once: its statement split over partitions, its files, and what every partition needs to know."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

import sqluice
from sqluice.engine import parsing, script
from sqluice.engine.jobs import inputs
from sqluice.engine.jobs.inputs import Input, Partition
from sqluice.engine.jobs.task import Work, connected
from sqluice.errors import Error, OperationalError, ProgrammingError
from sqluice.optimizer.ast import sql as sql_text
from sqluice.optimizer.partition import PARTS, CannotSplit, Schema, Split, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqluice.config import Value
    from sqluice.engine.dbapi import Connection
    from sqluice.optimizer.cascade.policy import Policy


@dataclass(frozen=True)
class Request:
    """What a person asks for. `models` are registered objects by name; `partitions` None lets the job choose."""

    sql: str
    inputs: tuple[Input, ...]
    partitions: int | None = None
    settings: dict[str, Value] = field(default_factory=dict)
    allow_models: tuple[str, ...] | None = None
    models: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None


@dataclass(frozen=True)
class Plan:
    """A job as data. `final` is None where the rows of partitions are the result; `enough` of the first partitions'
    rows satisfy a LIMIT. `same_rows`: the result has the rows of the partitions, and so inherits their contract."""

    sql: str
    before: tuple[str, ...]
    part: str
    final: str | None
    enough: int | None
    same_rows: bool
    views: dict[str, str]
    driving: str
    partitions: tuple[Partition, ...]
    files: dict[str, list[inputs.File]]

    def whole(self, request: Request, views: Mapping[str, str], name: str = "", sql: str = "", rows: str = "") -> Work:
        """Something that runs once for all partitions, with more views."""
        return Work(
            name,
            sql,
            self.before,
            {**self.views, **views},
            rows,
            request.settings,
            request.allow_models,
            request.models,
            threads=os.cpu_count() or 1,
        )

    def work(self, request: Request, partition: Partition, rows: str, policies: dict[str, Policy]) -> Work:
        """What one partition runs."""
        views = {self.driving: inputs.rows_of(partition.pieces)}
        whole = self.whole(request, views, partition.name, self.part, rows)
        home = os.environ.get("SQLUICE_HOME")
        return replace(whole, threads=1, home=home, policies=policies, partitions=len(self.partitions))

    def to_json(self) -> dict[str, Any]:
        """What `job.json` keeps: enough to tell whether a resumed job is the same one."""
        return {
            "sqluice": sqluice.__version__,
            "sql": self.sql,
            "part": self.part,
            "final": self.final,
            "enough": self.enough,
            "inputs": {name: inputs.to_plain(found) for name, found in self.files.items()},
            "partitions": [[one.rows, [list(piece) for piece in one.pieces]] for one in self.partitions],
        }


def plan(request: Request) -> Plan:
    """Look at the files, check the statement against them, and split it. Nothing is asked.

    `ProgrammingError` for a wrong statement, with its place; `OperationalError` for files that are not there or cannot
    be read; `NotSupportedError` for a statement that cannot be split.
    """
    before, statement = _statements(request.sql)
    for one in request.inputs:
        _ = one.reader  # refuses files of another kind
    with duckdb.connect() as duck:
        for told in filter(inputs.opens, before):
            inputs.run(duck, told)
        found = {one.name: inputs.files(duck, one) for one in request.inputs}
        driving = request.inputs[0]
        cut = inputs.partitions(duck, driving, found[driving.name], request.partitions)
    views = {one.name: inputs.relation(one, found[one.name]) for one in request.inputs}
    with connected(Work("", "", before, views, "", request.settings, request.allow_models, request.models)) as con:
        names = _columns(con, statement)
        made = _split(con, statement, driving.name, names, whole=len(cut) == 1)
    others = {name: select for name, select in views.items() if name != driving.name}
    part = statement if made.final is None else sql_text(made.part)
    final = None if made.final is None else sql_text(made.final)
    same = made.same_rows or len(cut) == 1
    return Plan(request.sql, before, part, final, made.enough, same, others, driving.name, tuple(cut), found)


def _statements(text: str) -> tuple[tuple[str, ...], str]:
    """The statements that come first, and the SELECT."""
    found = [one.sql for one in script.split(text).all()]
    if not found:
        raise ProgrammingError("the SQL of the job is empty")
    return tuple(found[:-1]), found[-1]


def _split(con: Connection, statement: str, driving: str, names: list[str], *, whole: bool) -> Split:
    try:
        tree = parsing.parse(statement)
    except parsing.NotParsed as error:
        if whole:
            return Split(exp.Null())
        raise _refused(str(error)) from error
    if all(table.name.lower() != driving.lower() for table in tree.find_all(exp.Table)):
        raise ProgrammingError(f"the query does not read {driving}, which --input names")
    try:
        made = split(tree, driving, _schema(con), names)
        if made.final is not None:
            _columns(con, sql_text(made.part))
    except (CannotSplit, Error) as error:
        if whole:
            return Split(tree)
        raise _refused(str(error)) from error
    return made


def same_rows(con: Connection, statement: str, driving: str) -> str:
    """Why some row of a query does not come from one row of the table `driving`; empty where each does."""
    try:
        tree = parsing.parse(statement)
        made = split(tree, driving, _schema(con), _columns(con, statement))
    except (CannotSplit, parsing.NotParsed) as error:
        return str(error)
    return "" if made.final is None else "it aggregates, sorts or limits"


def _schema(con: Connection) -> Schema:
    query = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type = 'aggregate'"
    aggregates = frozenset(name for (name,) in con.execute(query).fetchall())
    return Schema(lambda node: _columns(con, sql_text(node)), aggregates, parsing.is_call)


def _refused(why: str) -> Error:
    return sqluice.NotSupportedError(f"the query cannot be split over partitions: {why}; --partitions 1 runs it whole")


def _columns(con: Connection, query: str) -> list[str]:
    return [str(row[0]) for row in con.execute(f"DESCRIBE {query}").fetchall()]


def check_same(before: dict[str, Any], now: Plan) -> None:
    """`OperationalError` where a job that goes on is not the one that began."""
    for name, listed in before["inputs"].items():
        found = inputs.changes([inputs.File(**one) for one in listed], now.files.get(name, []))
        if found:
            raise OperationalError(
                f"input {name} has changed since the job began: {found[0]}"
                f"{f' and {len(found) - 1} more' if len(found) > 1 else ''}; begin anew with another --output"
            )
    if before["sql"] != now.sql:
        raise ProgrammingError("the job in this folder has another query; begin anew with another --output")
    if before["sqluice"] != sqluice.__version__:
        raise OperationalError(
            f"the job was begun by sqluice {before['sqluice']}, and this is {sqluice.__version__};"
            " go on with that version, or begin anew with another --output"
        )


def parts_view(paths: Sequence[str]) -> dict[str, str]:
    """The view that puts partitions together."""
    return {PARTS: f"SELECT * FROM read_parquet({inputs.listed(paths)})"}


def partitions_of(cut: Sequence[Any]) -> tuple[Partition, ...]:
    """Partitions as `job.json` keeps them."""
    found = enumerate(cut)
    return tuple(
        Partition(at, rows, tuple((path, low, high) for path, low, high in pieces)) for at, (rows, pieces) in found
    )
