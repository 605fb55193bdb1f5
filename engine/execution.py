"""Runs the stages of a plan: spool, ask about what is distinct, join the answers back.

Everything between DuckDB and a model goes through temporary tables on the session's own connection, so that all
fragments of a statement see one snapshot, uncommitted rows and temporary tables included, and what does not fit into
memory spills as DuckDB spills. For a stage `s`:

    s              the rows of the source, numbered by __ord
    <prefix>a<n>   answers of question n by the hash of its arguments, shared by all stages
    <prefix>i<..>  distinct inputs that have no answer yet, numbered, asked in windows
    <prefix>r<..>  rows on their way, after every few questions

A stage's relation is the spooled rows with a column for each answer; it becomes a view (or, after a LIMIT, a table)
under the stage's name with `_out`.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlglot import exp

from sqluice.engine.operators import merging
from sqluice.engine.operators.applying import Applying
from sqluice.engine.operators.ask import marked
from sqluice.engine.operators.cascade import FIRST_LOOK, LEAST_INPUTS, Cascading, may_begin, may_pay, not_begun
from sqluice.engine.operators.filtering import Filtering
from sqluice.engine.operators.inputs import Inputs
from sqluice.engine.operators.joining import MAX_PAIR_ROWS, Joining
from sqluice.engine.operators.pair_join import too_many
from sqluice.engine.operators.top_k import TopK
from sqluice.errors import NotSupportedError
from sqluice.optimizer.ast import is_pinned, is_site, spec_of, sql
from sqluice.optimizer.plan import ORDINAL, Ask, Keep, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa

    from sqluice.engine.operators.ask import Asker
    from sqluice.engine.report import CascadeReport
    from sqluice.engine.run import Given, Run
    from sqluice.optimizer.plan import Cascade, Plan, Step

WINDOW_ROWS = 16_384
WINDOW_BYTES = 64 << 20
MOST_JOINED = 4


class _Window:
    """A relation whose rows change from one statement to the next.

    DuckDB keeps whatever is registered within a transaction until the transaction ends; of this it keeps one object,
    which holds one table at a time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows: pa.Table | None = None
        self._registered = False

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        assert self._rows is not None
        return self._rows.__arrow_c_stream__(requested_schema)

    @contextlib.contextmanager
    def holding(self, con: Any, rows: pa.Table) -> Iterator[str]:
        """The name under which `rows` can be read on `con` inside the block."""
        self._rows = rows
        if not self._registered:
            con.register(self._name, self)
            self._registered = True
        try:
            yield self._name
        finally:
            self._rows = None

    def forget(self, con: Any) -> None:
        """Take the name back."""
        if self._registered:
            con.unregister(self._name)
            self._registered = False


class Executor:
    """Runs one plan on one connection. `typed` turns what is left of AI expressions into DuckDB functions."""

    def __init__(self, con: Any, run: Run, plan: Plan, prefix: str, typed: Callable[[exp.Expr], exp.Expr]) -> None:
        self._con = con
        self._run = run
        self._plan = plan
        self._prefix = prefix
        self._bindable = typed
        self._made: list[tuple[str, str]] = []
        self._answers: set[int] = set()
        self._inputs = 0
        self._passing: list[str] = []
        """The relation on its way through the steps of a stage, where it was spooled."""
        self._undo: list[Callable[[], None]] | None = None
        """What takes back the counts of a try, while there is one."""
        self._window = _Window(f"{prefix}w")
        run.both_ways = _asked_in_stages(plan) & _asked_by_rows(plan)

    def stages(self) -> None:
        """Run every stage; afterwards the plan's statement can run (`statement`)."""
        for stage in self._plan.stages:
            self._run.runner.stop()
            self._stage(stage)

    def statement(self) -> exp.Expr:
        """The plan's statement with stages named as they now stand in the database."""
        return self._renamed(self._plan.statement)

    def drop(self) -> None:
        """Drop what was made, newest first."""
        for kind, name in reversed(self._made):
            self._con.execute(f'DROP {kind} IF EXISTS "{name}"')
        self._made.clear()
        self._window.forget(self._con)

    def _stage(self, stage: Stage) -> None:
        if stage.filters or stage.keeps:
            joining = Joining.of(self, stage, self._run)
            base = (joining and joining.relation()) or Filtering(self, stage, self._run).relation()
        else:
            self.spool(stage)
            base = f'SELECT * FROM "{stage.name}"'
        self._create("VIEW", _out(stage.name), self.steps(stage, stage.asks, base))
        self._passing.clear()  # what the view reads stays until the end

    def spool(self, stage: Stage, most: int | None = None) -> int:
        """Number the rows of the source, at most `most` of them; how many there are."""
        cap = MAX_PAIR_ROWS + 1 if most is None and stage.pairs else most
        source = sql(self.typed(stage.source))
        names = ", ".join(f'"{name}"' for name in stage.columns)
        end = "" if cap is None else f" LIMIT {cap}"
        select = f"SELECT row_number() OVER () AS {ORDINAL}, q.* FROM ({source}) AS q({names}){end}"
        self._create("TABLE", stage.name, select)
        found = self.count(stage.name)
        if stage.pairs and found > MAX_PAIR_ROWS:
            raise NotSupportedError(too_many(f"more than {MAX_PAIR_ROWS:,} pairs of rows"))
        return found

    def keep(self, stage: Stage, name: str, relation: str, *, new: bool) -> int:
        """Add the stage's columns of `relation` to table `name`, which is made first where it is new; how many rows it
        has now."""
        names = ", ".join(f'"{column}"' for column in (ORDINAL, *stage.columns))
        select = f"SELECT {names} FROM ({relation}) AS r"
        if new:
            self._create("TABLE", name, select)
        else:
            self._con.execute(f'INSERT INTO "{name}" {select}')
        self._release()
        return self.count(name)

    def create_table(self, name: str, select: str) -> None:
        """Make a table that is dropped with the others."""
        self._create("TABLE", name, select)
        self._release()

    def fetched(self, select: str) -> pa.Table:
        """All rows of a query."""
        return self._con.sql(select).to_arrow_table()

    def holding(self, rows: pa.Table) -> contextlib.AbstractContextManager[str]:
        """The name under which `rows` can be read inside the block."""
        return self._window.holding(self._con, rows)

    def cascade(self, number: int) -> Cascade | None:
        """The cascade that a question may be, with recall and precision; None where the oracle has to answer."""
        found = None if number in self._run.both_ways else self._plan.cascades.get(number)
        return found if found is not None and found.contract.recall and found.contract.precision else None

    def is_asked_elsewhere(self, number: int) -> bool:
        """Whether a question stands more than once in the plan."""
        trees = [self._plan.statement, *(tree for one in self._plan.stages for tree in _trees(one))]
        sites = [node for tree in trees for node in tree.walk() if is_site(node) or is_pinned(node)]
        asked = sum(ask.spec == number for one in self._plan.stages for ask in one.asks)
        return asked + sum(spec_of(site) == number for site in sites) > 1

    def remember(self, number: int, texts: list[list[str]], given: Given) -> None:
        """Put answers to inputs by their texts, one list an argument, into the table of a question's answers."""
        import pyarrow as pa

        table = self.answers(number)
        args = {f"a{at}": column for at, column in enumerate(texts)}
        with self.holding(pa.table({**args, **_answered(given)})) as name:
            self._con.execute(f'INSERT INTO "{table}" SELECT {self.key(list(args))}, v, e, tier, place FROM "{name}"')

    def drop_table(self, name: str) -> None:
        """Drop a table made here."""
        self._drop("TABLE", name)

    def steps(self, stage: Stage, steps: Sequence[Step], relation: str) -> str:
        """The relation after `steps`; questions are asked on the way. It is spooled after every few of them, or each
        would join all the answers before it again."""
        asked = 0
        for step in steps:
            if isinstance(step, Keep):
                relation = f"SELECT * FROM ({relation}) AS r WHERE {sql(self.typed(step.predicate))}"
                continue
            if asked == MOST_JOINED:
                relation, asked = self._spooled(relation), 0
            relation = self.ask(stage, step, relation)
            asked += 1
        return relation

    def _spooled(self, relation: str) -> str:
        self._inputs += 1
        name = f"{self._prefix}r{self._inputs}"
        self._create("TABLE", name, relation)
        self._release()
        self._passing.append(name)
        return f'SELECT * FROM "{name}"'

    def _release(self) -> None:
        """Drop what nothing reads any more."""
        while self._passing:
            self._drop("TABLE", self._passing.pop())

    @contextlib.contextmanager
    def trying(self) -> Iterator[Callable[[], None]]:
        """What is counted inside the block can be taken back by calling what this gives."""
        undo: list[Callable[[], None]] = []
        self._undo = undo

        def forget() -> None:
            for one in undo:
                one()

        try:
            yield forget
        finally:
            self._undo = None

    def columns(self, select: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each column of a query its values, 0 for NULL, and, bool, where they are NULL."""
        import pyarrow as pa

        table = self._con.sql(select).to_arrow_table().combine_chunks()
        found = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            is_null = column.is_null().to_numpy(zero_copy_only=False)
            none = pa.scalar(0).cast(column.type)
            found[name] = (column.fill_null(none).to_numpy(zero_copy_only=False), is_null)
        return found

    def ask(self, stage: Stage, ask: Ask, relation: str) -> str:
        """Ask about what is distinct and new in `relation`; the relation with the answers joined to it."""
        key = f"__k{ask.name}"
        args = self.texts(ask.args)
        guard = None if ask.guard is None else sql(self.typed(ask.guard))
        hashed = self.key(args)
        if guard is not None:
            hashed = f"CASE WHEN {guard} THEN {hashed} END"
        table = self.answers(ask.spec)
        self._ask_new(stage, ask, args, f"SELECT *, {hashed} AS {key} FROM ({relation}) AS r", key, table)
        error = f", a.e AS {ask.name}_error" if ask.wants_error else ""
        return (
            f"SELECT r.*, a.v AS {ask.name}{error} FROM (SELECT *, {hashed} AS {key} FROM ({relation}) AS r) AS r "
            f'LEFT JOIN "{table}" AS a ON a.k = r.{key}'
        )

    def may_cascade(self, numbers: Iterable[int], rows: int) -> bool:
        """Whether one of some questions may become a cascade on so many rows."""
        many = round(rows * self._run.shared.scale) if rows >= LEAST_INPUTS else rows
        return any(
            self._run.policy(number) is not None or may_pay(cascade, many, self._run.measured(number))
            for number in numbers
            if (cascade := self._plan.cascades.get(number)) is not None
        )

    def texts_of(self, inputs: str, ids: np.ndarray, arity: int) -> list[list[str]]:
        """The arguments of numbered inputs, one list an argument, in the order of `ids`."""
        import pyarrow as pa

        columns = ", ".join(f"i.a{at}" for at in range(arity)) or "i.id"
        with self.holding(pa.table({"id": ids, "at": np.arange(len(ids))})) as name:
            rows = self._con.sql(
                f'SELECT {columns} FROM "{name}" AS w JOIN "{inputs}" AS i ON i.id = w.id ORDER BY w.at'
            ).to_arrow_table()
        return [rows.column(at).to_pylist() for at in range(arity)]

    def texts(self, args: Iterable[exp.Expr]) -> list[str]:
        """SQL of arguments as the texts that a question is asked about."""
        return [f"CAST({sql(self.typed(arg))} AS VARCHAR)" for arg in args]

    @staticmethod
    def key(args: list[str]) -> str:
        """SQL of a hash of the arguments, NULL when one of them is."""
        if not args:
            return "0::UHUGEINT"
        if len(args) == 1:
            return f"md5_number({args[0]})"
        parts = " || ".join(f"strlen({arg})::VARCHAR || ':' || {arg}" for arg in args)
        return f"md5_number({parts})"

    def answers(self, number: int) -> str:
        """The table of the answers to a question: `k` the key of its arguments, `v` the answer, `e` its error."""
        name = f"{self._prefix}a{number}"
        if number in self._answers:
            return name
        columns = f"k UHUGEINT, v {self._run.sql_type(number)}, e VARCHAR, tier UTINYINT, place BIGINT"
        self._con.execute(f'CREATE TEMP TABLE "{name}" ({columns})')
        self._made.append(("TABLE", name))
        self._answers.add(number)
        return name

    def _ask_new(self, stage: Stage, ask: Ask, args: list[str], keyed: str, key: str, table: str) -> None:
        self._inputs += 1
        name = f"{self._prefix}i{self._inputs}"
        distinct, fresh_ones = name + "_all", name + "_new"
        self._create(
            "TABLE",
            distinct,
            f"SELECT {key} AS k, count(*) AS n, min({ORDINAL}) AS o FROM ({keyed}) AS r "
            f"WHERE {key} IS NOT NULL GROUP BY {key}",
        )
        self._create(
            "TABLE",
            fresh_ones,
            f'SELECT row_number() OVER (ORDER BY o) AS id, k, n, o FROM "{distinct}" AS g '
            f'WHERE NOT EXISTS (SELECT 1 FROM "{table}" AS a WHERE a.k = g.k)',
        )
        columns = "".join(f", {arg} AS a{at}" for at, arg in enumerate(args))
        self._create(
            "TABLE",
            name,
            f'SELECT g.id, g.k, g.n{columns} FROM ({keyed}) AS r JOIN "{fresh_ones}" AS g ON r.{ORDINAL} = g.o '
            "ORDER BY g.id",
        )
        if ask.counts:
            self._count_rows(ask.spec, keyed, key, name, table)
        fresh = self.count(name)
        most = int(self._run.settings["ai_max_cross_calls"] or 0)
        if stage.pairs and fresh > most:
            raise NotSupportedError(too_many(f"{fresh:,} calls"))
        if fresh:
            self._windows(stage, ask, name, table, fresh)
        for made in (name, fresh_ones, distinct):
            self._drop("TABLE", made)

    def _count_rows(self, number: int, keyed: str, key: str, name: str, table: str) -> None:
        """Rows that bring no input, and rows whose input has its answer already."""
        rows, with_input = self.row(f"SELECT count(*), count({key}) FROM ({keyed}) AS r")
        self._add_rows(number, rows, rows - with_input)
        self._tried(partial(self._add_rows, number, -rows, with_input - rows))
        if self.count(f"{name}_all") == self.count(name):
            return
        again = self._con.sql(
            f'SELECT a.place, g.n, a.tier, a.e IS NOT NULL AS failed FROM "{name}_all" AS g '
            f'JOIN "{table}" AS a ON a.k = g.k'
        ).to_arrow_reader(WINDOW_ROWS)
        for batch in again:
            places, n_rows, tiers, failed = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
            self._run.again(number, places, n_rows, tiers, failed)
            self._tried(partial(self._run.again, number, places, -n_rows, tiers, failed))

    def _tried(self, undo: Callable[[], None]) -> None:
        if self._undo is not None:
            self._undo.append(undo)

    def _add_rows(self, number: int, rows: int, nulls: int) -> None:
        op = self._run.op(number)
        op.rows_in += rows
        op.rows_out += rows
        op.nulls += nulls

    def _windows(self, stage: Stage, ask: Ask, inputs: str, table: str, total: int) -> None:
        """Ask about numbered inputs, a bounded number of rows and bytes at a time."""
        number, arity = ask.spec, len(ask.args)
        asker = self._run.asker(number)
        asker.watch.total = asker.watch.done_rows + total
        cascade = None if number in self._run.both_ways else self._plan.cascades.get(number)
        size = " + ".join(f"strlen(a{at})" for at in range(arity)) or "0"
        done = 0
        while done < total:
            self._run.runner.stop()
            if cascade is not None and self._begins(number, cascade, asker, total - done):
                self._run.cascaded(number, cascade, self._cascading(ask, cascade, inputs, table, done))
                return
            most = WINDOW_ROWS if cascade is None or asker.calls >= FIRST_LOOK else FIRST_LOOK
            window = f"id > {done} AND id <= {done + most}"
            (end,) = self.row(
                f'SELECT max(id) FROM (SELECT id, sum({size}) OVER (ORDER BY id) AS bytes FROM "{inputs}" '
                f"WHERE {window}) AS w WHERE bytes <= {WINDOW_BYTES} OR id = {done + 1}"
            )
            columns = "".join(f", a{at}" for at in range(arity))
            rows = self._con.sql(
                f'SELECT id, n{columns} FROM "{inputs}" WHERE id > {done} AND id <= {end} ORDER BY id'
            ).to_arrow_table()
            texts = [rows.column(at + 2).to_pylist() for at in range(arity)]
            n_rows = rows.column(1).to_numpy() if ask.counts else np.zeros(len(rows), np.int64)
            beside = merging.beside(self, self._run, self._plan, stage, ask, inputs, rows.column(0), texts)
            given = self._run.answers(number, texts, n_rows)
            self.store(inputs, table, rows.column(0), given)
            for other in beside:
                told = self._run.answers(other, texts, np.zeros(len(rows), np.int64))
                self.store(inputs, self.answers(other), rows.column(0), told)
            if self._undo is not None:
                failed = marked(given.errors, len(n_rows))
                self._tried(partial(self._run.again, number, given.places, -n_rows, given.tiers, failed))
            done = int(end)
        if cascade is not None and total >= LEAST_INPUTS:
            self._run.cascaded(number, cascade, not_begun(cascade, total))

    def _begins(self, number: int, cascade: Cascade, asker: Asker, inputs: int) -> bool:
        if self._run.policy(number) is not None:
            return True
        return may_begin(cascade, asker, inputs, round(inputs * self._run.shared.scale))

    def _cascading(self, ask: Ask, cascade: Cascade, inputs: str, table: str, done: int) -> CascadeReport:
        """Decide the numbered inputs beyond the first `done` as a cascade."""
        seed = int(self._run.settings["ai_seed"] or 0)
        given = Inputs(self, ask, inputs, table, seed, done)
        policy = self._run.policy(ask.spec)
        if policy is not None:
            return Applying(self._run, ask.spec, cascade, given, policy).decide()
        operator = TopK if cascade.top else Cascading
        return operator(self._run, ask.spec, cascade, given).decide()

    def store(self, inputs: str, table: str, ids: pa.ChunkedArray | np.ndarray, given: Given) -> None:
        """Put the answers to numbered inputs into the table of a question's answers."""
        import pyarrow as pa

        with self.holding(pa.table({"id": ids, **_answered(given)})) as name:
            self._con.execute(
                f'INSERT INTO "{table}" SELECT i.k, w.v, w.e, w.tier, w.place FROM "{name}" AS w '
                f'JOIN "{inputs}" AS i ON i.id = w.id'
            )

    def typed(self, node: exp.Expr) -> exp.Expr:
        """`node` as DuckDB can run it now: stages by the names they left, AI expressions as functions."""
        return self._bindable(self._renamed(node))

    def _renamed(self, node: exp.Expr) -> exp.Expr:
        """A copy of `node` that reads the relations that stages have left."""
        names = {stage.name for stage in self._plan.stages}
        new = node.copy()
        for table in new.find_all(exp.Table):
            if table.name in names and not table.db:
                table.set("alias", exp.TableAlias(this=exp.to_identifier(table.alias or table.name, quoted=True)))
                table.set("this", exp.to_identifier(_out(table.name), quoted=True))
        return new

    def _create(self, kind: str, name: str, select: str) -> None:
        self._con.execute(f'CREATE TEMP {kind} "{name}" AS {select}')
        self._made.append((kind, name))

    def _drop(self, kind: str, name: str) -> None:
        self._con.execute(f'DROP {kind} "{name}"')
        self._made.remove((kind, name))

    def count(self, table: str) -> int:
        """Rows of a table."""
        return self.row(f'SELECT count(*) FROM "{table}"')[0]

    def row(self, text: str) -> tuple[int, ...]:
        """The only row of a query, of whole numbers; 0 for NULL."""
        (found,) = self._con.execute(text).fetchall()
        return tuple(int(value or 0) for value in found)


def _answered(given: Given) -> dict[str, Any]:
    """Columns of a table of answers."""
    import pyarrow as pa

    n = len(given.places)
    errors = pa.array([given.errors.get(at) for at in range(n)] if given.errors else pa.nulls(n), pa.string())
    return {"v": given.values, "e": errors, "tier": given.tiers, "place": given.places}


def _trees(stage: Stage) -> list[exp.Expr]:
    return [stage.source, *stage.filters, *stage.keeps]


def _asked_in_stages(plan: Plan) -> set[int]:
    asked = {ask.spec for stage in plan.stages for ask in stage.asks}
    filters = [node for stage in plan.stages for predicate in stage.filters for node in predicate.walk()]
    return asked | {spec_of(node) for node in filters if is_site(node)}


def _asked_by_rows(plan: Plan) -> set[int]:
    """Specs of the AI expressions that are left to DuckDB."""
    trees: list[exp.Expr] = [plan.statement]
    for stage in plan.stages:
        trees += _trees(stage)
        trees += [part for ask in stage.asks for part in (*ask.args, ask.guard) if part is not None]
    return {spec_of(node) for tree in trees for node in tree.walk() if is_pinned(node)}


def _out(stage: str) -> str:
    return f"{stage}_out"
