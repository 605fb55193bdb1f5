"""Runs a statement optimized and row by row, and tells how the two differ."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

import sqluice
from sqluice.engine import statement as engine_statement
from sqluice.engine.statement import NOT_PLANNED
from sqluice.optimizer.ast import has_site
from sqluice.optimizer.rules import order_conjuncts
from support.scripted import ScriptedModel, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from property.data import Table
    from property.queries import Statement
    from sqluice.optimizer.plan import Plan, Stage
    from sqluice.types import Prompt

_OTHERS = r"\b(LIMIT|LEFT|RIGHT|FULL|SEMI|ANTI|false|NULL|v\d+|unnest|HAVING|OVER|n)\b"


class Model(ScriptedModel):
    """Says yes to a share of all prompts that the question decides, by the whole prompt, so that two questions about
    one text differ. Prompts with the word nan fail."""

    def __init__(self) -> None:
        super().__init__(_yes, name="oracle")

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities, float32 [n, k]."""
        fine = [p for p in prompts if not any("nan" in arg for arg in p.args)]  # the others are asked again, alone
        self.counts.add([("score", p.template, p.args, tuple(choices)) for p in fine])
        scores = np.array([self._scores(p.text, choices) for p in prompts], np.float32).reshape(len(prompts), -1)
        scores[[any("nan" in arg for arg in p.args) for p in prompts]] = np.nan
        return scores


_SHARES = {"ripe?": percent("20"), "short?": percent("85")}


def _yes(text: str) -> float:
    rule = next((rule for word, rule in _SHARES.items() if word in text), percent("50"))
    return rule(text)


@dataclass(slots=True)
class Result:
    """What one run gave: an error, or names, types and rows; and what it cost."""

    error: str | None = None
    broken: bool = False
    """Whether DuckDB says that the error is a bug of its own."""
    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    unplanned: str = ""
    prompts: int = 0
    distinct: int = 0


class Difference(AssertionError):
    """The two modes do not agree; the text tells the data and the SQL to rerun it."""


class Pair:
    """One connection on which both modes run in turn."""

    def __init__(self) -> None:
        self.model = Model()
        self.made: list[str] = []
        self.checked = 0
        self.broken: list[str] = []
        """Statements on which DuckDB itself breaks, row by row."""
        self._open()

    def _open(self) -> None:
        self.con = sqluice.connect(ai_cache="off", ai_mode="exact", ai_trace="off")
        self.con.register_model("oracle", self.model)
        self.cursor = self.con.cursor()
        self.cursor.execute("SET ai_oracle = 'oracle'")
        self.cursor.execute("SET ai_embedder = 'oracle'")
        self.cursor.execute("SET ai_max_cross_calls = 100000")
        self.cursor.execute("SELECT AI_EMBED('once a session, to learn the length')").fetchall()

    def _again(self) -> None:
        """A fresh database with the same tables: DuckDB refuses everything on one that it has found broken."""
        self.con.close()
        self._open()
        for text in self.made:
            self.cursor.execute(text)

    def close(self) -> None:
        """Close the connection."""
        self.con.close()

    def make(self, tables: list[Table]) -> None:
        """Fresh tables."""
        self.made = [text for table in tables for text in table.statements()]
        for text in self.made:
            self.cursor.execute(text)

    def add_view(self, text: str) -> bool:
        """A view; whether DuckDB took it."""
        try:
            self.cursor.execute(text)
        except sqluice.Error:
            return False
        self.made.append(text)
        return True

    def run(self, mode: str, statement: Statement) -> Result:
        """Run a statement in one mode; a write is rolled back."""
        self.cursor.execute(f"SET ai_plan = '{mode}'")
        self.model.counts.reset()
        result = Result()
        try:
            if statement.reads is not None:
                self.cursor.execute("BEGIN")
            self.cursor.execute(statement.text)
            if statement.reads is not None:
                self.cursor.execute(f'FROM "{statement.reads.strip(chr(34))}"')
            _read(self.cursor, result)
            result.unplanned = next((text for _, text in self.cursor.messages if NOT_PLANNED in text), "")
        except sqluice.Error as error:
            result.error = f"{type(error).__name__}: {error}"
            result.broken = isinstance(error.__cause__, duckdb.InternalException | duckdb.FatalException)
        finally:
            result.prompts, result.distinct = self.model.counts.prompts, len(self.model.counts.distinct)
            if statement.reads is not None:
                self.con.rollback()
        return result

    def check(self, statement: Statement) -> Result:
        """`Difference` unless both modes agree; returns the optimized result. Where DuckDB itself breaks on the
        row-wise statement there is nothing to compare with: `broken` counts it."""
        plans = _Plans()
        with plans:
            found, wanted = self.run("optimized", statement), self.run("rowwise", statement)
        self.checked += 1
        if wanted.broken and (found.error is None or found.broken):
            self.broken.append(statement.text)
            self._again()
            return found
        said = differences(statement, found, wanted)
        if not said and statement.whole is not None and found.error is None:
            whole = self.run("rowwise", _whole(statement))
            if Counter(keys(found.rows)) - Counter(keys(whole.rows)):
                said = "rows that the query without LIMIT does not have"
        if not said and found.error is None and plans.lifted:
            said = _cost(found, wanted, compared=_is_one_block(statement.text), learning=plans.learning)
        if said:
            raise Difference(self.report(statement, said, found, wanted))
        return found

    def report(self, statement: Statement, said: str, found: Result, wanted: Result) -> str:
        """All that a rerun needs."""
        data = ";\n".join(self.made)
        return f"{said}\n{data};\n\n{statement.text}\n\noptimized: {_shown(found)}\nrow-wise:  {_shown(wanted)}"


class _Plans:
    """Watches whether the plans that are made leave nothing to the row-wise functions."""

    def __init__(self) -> None:
        self.lifted = False
        self.learning = 0
        """Questions that may be asked to learn in which order to ask."""

    def __enter__(self) -> None:
        self.before = engine_statement.Lifter.lift

        def lift(lifter: Any, tree: Any) -> Plan:
            plan = self.before(lifter, tree)
            self.lifted = not plan.rowwise
            self.learning = 64 if any(_has_choice(stage) for stage in plan.stages) else 0
            return plan

        engine_statement.Lifter.lift = lift  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        engine_statement.Lifter.lift = self.before  # type: ignore[method-assign]


def differences(statement: Statement, found: Result, wanted: Result) -> str:
    """What is different; empty when both are right."""
    if found.unplanned:
        return found.unplanned
    if (found.error is None) != (wanted.error is None):
        return "one mode raises"
    if found.error is not None:
        return ""
    if found.names != wanted.names:
        return "names of columns"
    if found.types != wanted.types:
        return "types of columns"
    if statement.whole is not None:
        return "" if len(found.rows) == len(wanted.rows) else "number of rows"
    if statement.ordered:
        return "" if keys(found.rows) == keys(wanted.rows) else "rows or their order"
    return "" if Counter(keys(found.rows)) == Counter(keys(wanted.rows)) else "rows"


def _is_one_block(text: str) -> bool:
    """Whether DuckDB has no other block of the statement to look at first, which may spare it this one."""
    return text.count("SELECT") == 1 and not re.search(_OTHERS, text)


def _has_choice(stage: Stage) -> bool:
    return sum(map(has_site, order_conjuncts.leaves(stage.filters).values())) > 1


def _cost(found: Result, wanted: Result, *, compared: bool, learning: int) -> str:
    if found.prompts > found.distinct:
        return f"a question was asked twice ({found.prompts} prompts, {found.distinct} questions)"
    if compared and found.distinct > wanted.distinct + learning:
        return f"{found.distinct} questions, {wanted.distinct} row by row"
    return ""


def keys(rows: list[tuple[Any, ...]]) -> list[str]:
    """Rows as texts that can be compared; numbers of floating point to nine digits."""
    return [repr(_key(row)) for row in rows]


def _key(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.9g}"
    if isinstance(value, list | tuple):
        return [_key(one) for one in value]
    if isinstance(value, dict):
        return {name: _key(one) for name, one in value.items()}
    return value


def shape(text: str) -> str:
    """A statement without its literals."""
    return re.sub(r"\b\d+\b", "0", re.sub(r"'(?:[^']|'')*'", "''", text))


def _read(cursor: Any, result: Result) -> None:
    table = cursor.fetch_arrow_table()
    result.names = list(table.schema.names)
    result.types = [str(one.type) for one in table.schema]
    result.rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _whole(statement: Statement) -> Statement:
    from property.queries import Statement as Made

    return Made(statement.whole or statement.text)


def _shown(result: Result) -> str:
    if result.error is not None:
        return result.error
    return f"{result.names} {result.types} {result.rows[:30]} ({result.distinct} questions)"
