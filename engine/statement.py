"""Runs one statement that holds AI expressions: parse, bind, plan, stages, and what is left of it in DuckDB."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from sqluice.engine import explain, parsing, stored
from sqluice.engine.binding import Binder, Bound
from sqluice.engine.catalog import DuckCatalog, described
from sqluice.engine.execution import Executor
from sqluice.engine.lifting import Lifter
from sqluice.engine.results import drain, outcome_of, peek, rows_outcome
from sqluice.engine.rowwise import PROBE, STABLE, typed
from sqluice.engine.script import beginning
from sqluice.errors import Error
from sqluice.optimizer.ast import is_site, pin, pivots_answers, spec_of
from sqluice.optimizer.ast import sql as sql_text
from sqluice.optimizer.insert_cascades import insert_cascades
from sqluice.optimizer.plan import Plan
from sqluice.udfs.contract import contract_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqluice.engine.outcome import Outcome
    from sqluice.engine.report import Report
    from sqluice.engine.run import Run
    from sqluice.engine.session import Session

    Params = Sequence[object] | Mapping[str, object] | None

_STORED = re.compile(r"CREATE\s+(OR\s+REPLACE\s+)?(TEMP\w*\s+)?(VIEW|MACRO|FUNCTION)\b", re.IGNORECASE)
NOT_PLANNED = "the plan could not be run, and the statement was run row by row instead; please report this"
_EXPLAIN = re.compile(r"EXPLAIN\b", re.IGNORECASE)


@dataclass(slots=True)
class Prepared:
    """A bound statement with the names of its columns (None for a statement without rows)."""

    bound: Bound
    names: list[str] | None


class AiStatement:
    """One execution of one statement."""

    def __init__(self, session: Session, sql: str, params: Params) -> None:
        self.session = session
        self.sql = sql
        self.params = params
        self.con = session.con
        self.run: Run | None = None
        self.plan: Plan | None = None
        self.report: Report | None = None
        self.verbose = False
        self.on_plan: Callable[[Plan, Run], None] | None = None

    def execute(self) -> Outcome:
        """Run it. Errors are ours, with their place in the SQL where it is known."""
        start = beginning(self.sql)
        if _EXPLAIN.match(self.sql, start):
            return self._explain()
        try:
            tree = parsing.parse(self.sql, self.params)
        except parsing.NotParsed:
            return self._as_it_is()
        if _STORED.match(self.sql, start) or _defines_columns(tree):
            self._check(tree)
            return self.session.plain(self.sql, self.params)
        if not self._expanded(tree):
            return self.session.plain(self.sql, self.params)
        return self._described(tree) if isinstance(tree, exp.Describe) else self._run(tree)

    def _described(self, tree: exp.Expr) -> Outcome:
        """DESCRIBE: names and types, without a question."""
        bound = Bound(tree)
        run = self._begin(bound)
        try:
            self._bind(bound, run)
            text = typed(bound.tree, bound.specs, run.sql_type, ending=PROBE).sql(dialect="duckdb")
        finally:
            self.session.end_run()
        return self.session.plain(text)

    def _expanded(self, tree: exp.Expr) -> bool:
        """Put stored definitions in their place; whether there is an AI call then."""
        stored.expand(tree, self.session.views, self.session.macros)
        return bool(parsing.ai_calls(tree))

    def _run(self, tree: exp.Expr) -> Outcome:
        bound = Bound(tree)
        run = self._begin(bound)
        try:
            prepared = self._prepared(bound, run)
            if not bound.specs:
                self.session.end_run()
                return self.session.plain(self.sql, self.params)
            self.plan, prefix = self._plan(bound, run)
            if self.on_plan is not None:
                self.on_plan(self.plan, run)
            try:
                return self._execute(prepared, run, prefix)
            except (duckdb.Error, Error) as error:
                if not _is_unbound(error) or not self.plan.stages or self.session.in_transaction:
                    raise
                run.warn(f"{NOT_PLANNED}: {str(error).splitlines()[0]}")
                run.trace.degraded = True
                self.plan = pinned(bound.tree)
                return self._execute(prepared, run, self.session.prefix())
        except BaseException as error:
            self._over(run, error)
            if isinstance(error, duckdb.Error):
                raise self.session.error(error, self.sql) from error
            raise

    def _execute(self, prepared: Prepared, run: Run, prefix: str) -> Outcome:
        """Run the plan. What it made in the database is gone when this fails."""
        bound, plan = prepared.bound, self.plan
        assert plan is not None
        began = self._begin_transaction()
        executor = Executor(self.con, run, plan, prefix, lambda node: typed(node, bound.specs, run.sql_type))
        try:
            executor.stages()
            text = self._text(executor.statement(), bound, run)
            return self._outcome(text, run, executor, began=began, names=prepared.names)
        except BaseException:
            self._clean(executor, began=began)
            raise

    def _outcome(
        self, text: str, run: Run, executor: Executor | None, *, began: bool, names: list[str] | None = None
    ) -> Outcome:
        """Start the last SQL statement; when its rows are read, the run is over."""
        found: list[Outcome] = []

        def done(error: BaseException | None) -> None:
            run.trace.rows = found[0].rows_read if found else None
            report, messages = self._done(run, executor, began=began, error=error)
            settled.update(report=report, messages=messages)
            for outcome in found:
                outcome.report = report
                outcome.messages += messages

        settled: dict[str, Any] = {}
        translate = partial(self.session.error, sql=self.sql)
        params = None if executor is not None else self.params
        found.append(outcome_of(self.con, text, params, names=names, on_done=done, translate=translate))
        if settled:  # a statement without rows is over already
            found[0].report = settled["report"]
            found[0].messages += settled["messages"]
        return peek(found[0])

    def _text(self, statement: exp.Expr, bound: Bound, run: Run) -> str:
        """The statement for DuckDB. Row-wise functions count as having side effects, so that DuckDB evaluates them
        last and once, but for the rare place where it allows only others."""
        text = typed(statement, bound.specs, run.sql_type).sql(dialect="duckdb")
        can_describe = isinstance(statement, exp.Query) and not pivots_answers(statement)
        if self.plan is not None and self.plan.rowwise and can_describe:
            try:
                described(self.con, text)
            except duckdb.BinderException:
                return typed(statement, bound.specs, run.sql_type, ending=STABLE).sql(dialect="duckdb")
        return text

    def _as_it_is(self) -> Outcome:
        """A statement that sqlglot does not read: DuckDB runs it with the plain AI functions."""
        run = self._begin(Bound(exp.Null()))
        try:
            return self._outcome(self.sql, run, None, began=False)
        except BaseException as error:
            self._fail(run, None, began=False, error=error)
            if isinstance(error, duckdb.Error):
                raise self.session.error(error, self.sql) from error
            raise

    def _begin(self, bound: Bound) -> Run:
        self.run = self.session.begin_run(self.sql, bound.specs)
        return self.run

    def _prepared(self, bound: Bound, run: Run) -> Prepared:
        """Bind and check everything that can be checked before a question is asked."""
        self._bind(bound, run)
        run.check()
        if pivots_answers(bound.tree):
            return Prepared(bound, None)
        shown = typed(bound.tree, bound.specs, run.sql_type, ending=PROBE)
        text = shown.sql(dialect="duckdb")
        try:
            if isinstance(bound.tree, exp.Query):
                names = [name for name, _ in described(self.con, text)]
                return Prepared(bound, self._written_names(len(names)) or names)
            self.con.execute(f"EXPLAIN {text}").fetchall()
        except (duckdb.ParserException, duckdb.NotImplementedException):
            return Prepared(bound, None)
        except duckdb.Error as error:
            raise self.session.error(error, self.sql) from error
        return Prepared(bound, None)

    def _bind(self, bound: Bound, run: Run) -> None:
        catalog = DuckCatalog(self.con, lambda node: typed(node, bound.specs, run.sql_type, ending=PROBE))

        def evaluate(text: str) -> Any:
            rows = self.con.execute(text).fetchall()
            return rows[0][0] if rows else None

        def known(name: str) -> bool:
            found = self.con.execute(
                "SELECT count(*) FROM duckdb_functions() WHERE lower(function_name) = ?", [name.lower()]
            ).fetchall()
            return bool(found[0][0])

        Binder(self.sql, bound, evaluate, known, run.sql_type, catalog).bind()

    def _written_names(self, count: int) -> list[str] | None:
        """The names DuckDB gives the columns of the statement as it was written."""
        if self.params is not None:
            return None
        try:
            names = [name for name, _ in described(self.con, self.sql)]
        except duckdb.Error:
            return None
        return names if len(names) == count else None

    def _plan(self, bound: Bound, run: Run) -> tuple[Plan, str]:
        prefix = self.session.prefix()
        if run.settings["ai_plan"] == "rowwise":
            return pinned(bound.tree), prefix
        catalog = DuckCatalog(self.con, lambda node: typed(node, bound.specs, run.sql_type, ending=PROBE))
        try:
            plan = Lifter(catalog, prefix, verbose=self.verbose).lift(bound.tree)
        except RecursionError:
            return pinned(bound.tree), prefix
        if run.settings["ai_mode"] != "exact":
            found = ((number, contract_of(spec, run.settings)) for number, spec in enumerate(bound.specs))
            contracts = {number: run.shared.contract(one) for number, one in found if one is not None}
            plan.cascades = insert_cascades(plan, contracts, forced=run.settings["ai_mode"] == "cascade")
        if plan.stages and isinstance(bound.tree, exp.Create):
            self._keep_names(bound, run, plan.statement)
        return plan, prefix

    def _keep_names(self, bound: Bound, run: Run, statement: exp.Expr) -> None:
        """DuckDB names a new table's columns as the tables below spell them, which stages do not know."""
        query, made = bound.tree.args.get("expression"), statement.args.get("expression")
        if not isinstance(query, exp.Query) or not isinstance(made, exp.Query) or pivots_answers(query):
            return
        shown = typed(query, bound.specs, run.sql_type, ending=PROBE).sql(dialect="duckdb")
        names = [name for name, _ in described(self.con, shown)]
        if made.named_selects != names:
            columns = [exp.to_identifier(name, quoted=True) for name in names]
            alias = exp.TableAlias(this=exp.to_identifier("q"), columns=columns)
            inner = exp.Subquery(this=made.copy(), alias=alias)
            made.replace(exp.select("*").from_(inner))

    def _check(self, tree: exp.Expr) -> None:
        """Bind the calls of a stored definition, so that a wrong one is refused now."""
        bound = Bound(tree.copy())
        run = self._begin(bound)
        try:
            self._bind(bound, run)
            run.check()
        finally:
            self.session.end_run()

    def _begin_transaction(self) -> bool:
        if self.session.in_transaction:
            return False
        self.con.execute("BEGIN TRANSACTION")
        return True

    def _clean(self, executor: Executor | None, *, began: bool) -> None:
        """Leave nothing in the database."""
        with contextlib.suppress(duckdb.Error):  # the transaction was rolled back already
            if began:
                self.con.execute("ROLLBACK")
            if executor is not None:
                executor.drop()

    def _over(self, run: Run, error: BaseException) -> None:
        """A failed run ends: its trace is written."""
        run.finish(error)
        if self.session.run is run:
            self.session.end_run()

    def _fail(self, run: Run, executor: Executor | None, *, began: bool, error: BaseException) -> None:
        """Leave nothing behind but the trace and the cache."""
        self._clean(executor, began=began)
        self._over(run, error)

    def _done(
        self, run: Run, executor: Executor | None, *, began: bool, error: BaseException | None
    ) -> tuple[Report, list[tuple[type, str]]]:
        """The last row was read, or the result was closed."""
        if error is not None:
            self._fail(run, executor, began=began, error=error)
        else:
            try:
                if executor is not None:
                    executor.drop()
                if began:
                    self.con.execute("COMMIT")
            except duckdb.Error as failure:
                self._fail(run, None, began=began, error=failure)
                raise self.session.error(failure, self.sql) from failure
            run.finish()
            self.session.end_run()
        return run.finish(), run.messages()

    def _explain(self) -> Outcome:
        request = explain.Request.parse(self.sql[beginning(self.sql) :])
        inner = AiStatement(self.session, request.statement, self.params)
        try:
            tree = parsing.parse(request.statement, self.params)
        except parsing.NotParsed:
            return self.session.plain(self.sql, self.params)
        if not inner._expanded(tree):
            return self.session.plain(self.sql, self.params)
        inner.verbose = request.verbose
        found = inner._analyzed(tree) if request.analyze else inner._planned(tree)
        shown = json.dumps(found) if request.json else explain.text(found)
        outcome = rows_outcome({"explain": [shown]})
        if self.run is None and inner.report is not None:
            outcome.report = inner.report
        return outcome

    def _planned(self, tree: exp.Expr) -> dict[str, Any]:
        """The plan as data; nothing is asked and no trace is left."""
        bound = Bound(tree)
        run = self._begin(bound)
        try:
            self._prepared(bound, run)
            plan, _ = self._plan(bound, run)
            return explain.describe(self.con, plan, run, sql_text(plan.statement))
        finally:
            self.session.end_run()

    def _analyzed(self, tree: exp.Expr) -> dict[str, Any]:
        """Run the statement, read its rows to the end, and tell the plan with what was measured."""
        found: dict[str, Any] = {}

        def describe(plan: Plan, run: Run) -> None:
            found.update(explain.describe(self.con, plan, run, sql_text(plan.statement)))

        self.on_plan = describe
        outcome = self._run(tree)
        rows = drain(outcome)
        self.report = outcome.report
        assert self.run is not None
        if outcome.report is not None:
            explain.measured(found, self.run, outcome.report)
            found["measured"]["result_rows"] = rows
        return found


def _is_unbound(error: BaseException) -> bool:
    """Whether DuckDB could not bind a statement of ours."""
    unbound = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException)
    return isinstance(error, unbound) or isinstance(error.__cause__, unbound)


def _defines_columns(tree: exp.Expr) -> bool:
    """Whether AI calls stand in a table's definition (a default, a CHECK, a generated column), not in a query."""
    calls = parsing.ai_calls(tree) if isinstance(tree, exp.Create | exp.Alter) else []
    return any(call.find_ancestor(exp.Query) is None for call in calls)


def pinned(tree: exp.Expr) -> Plan:
    """A plan in which every AI expression stays row-wise."""
    plan = Plan(tree.copy())
    for node in list(plan.statement.walk()):
        if is_site(node):
            plan.rowwise.append((spec_of(node), "the row-wise plan"))
            pin(node)
    return plan
