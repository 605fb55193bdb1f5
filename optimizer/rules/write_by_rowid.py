"""Turn the questions of UPDATE and DELETE into those of a query that names the rows.

    DELETE FROM t WHERE __ai(1, s)
    ->  DELETE FROM t WHERE rowid IN (SELECT rowid FROM t WHERE __ai(1, s))

    UPDATE t SET c = __ai(1, s), d = 2 WHERE k > 1
    ->  UPDATE t SET c = __w.v0, d = 2 FROM (SELECT rowid AS r, __ai(1, s) AS v0 FROM t WHERE k > 1) AS __w
        WHERE rowid = __w.r

The query is then planned as any other. Both read the same snapshot, in which row numbers stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import column, has_site, named

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS = "__w"


def apply(statement: exp.Expr, outputs: Callable[[exp.Select], list[str] | None]) -> bool:
    """Rewrite an UPDATE or DELETE of one table in place; whether it was. `outputs` are the columns of a query, None
    where DuckDB cannot run it: not every table numbers its rows."""
    if not isinstance(statement, exp.Update | exp.Delete) or not isinstance(statement.this, exp.Table):
        return False
    others = ("from_", "using", "with_", "order", "limit", "tables", "cluster")
    returning = statement.args.get("returning")
    if any(statement.args.get(name) for name in others) or (returning is not None and has_site(returning)):
        return False
    columns = outputs(exp.Select(expressions=[exp.Star()]).from_(statement.this.copy()))
    if columns is None or "rowid" in map(str.lower, columns):
        return False
    if isinstance(statement, exp.Delete):
        return _delete(statement, outputs)
    return returning is None and _update(statement, outputs)


def _rows(statement: exp.Update | exp.Delete, columns: list[exp.Expr]) -> exp.Select:
    rows = exp.Select(expressions=columns).from_(statement.this.copy())
    if statement.args.get("where") is not None:
        rows.set("where", statement.args["where"].copy())
    return rows


def _rowid() -> exp.Column:
    return exp.column("rowid")


def _delete(statement: exp.Delete, outputs: Callable[[exp.Select], list[str] | None]) -> bool:
    where = statement.args.get("where")
    rows = _rows(statement, [_rowid()])
    if where is None or not has_site(where) or outputs(rows) is None:
        return False
    wanted = exp.In(this=_rowid(), query=exp.Subquery(this=rows))
    statement.set("where", exp.Where(this=wanted))
    return True


def _update(statement: exp.Update, outputs: Callable[[exp.Select], list[str] | None]) -> bool:
    settings = statement.expressions
    asking = [one for one in settings if isinstance(one, exp.EQ) and has_site(one.expression)]
    where = statement.args.get("where")
    if not asking and not (where is not None and has_site(where)):
        return False
    values = [named(one.expression.copy(), f"v{at}") for at, one in enumerate(asking)]
    rows = _rows(statement, [exp.alias_(_rowid(), "r", quoted=True), *values])
    if outputs(rows) is None:
        return False
    for at, one in enumerate(asking):
        one.set("expression", column(f"v{at}", _ROWS))
    source = exp.Subquery(this=rows, alias=exp.TableAlias(this=exp.to_identifier(_ROWS, quoted=True)))
    statement.set("from_", exp.From(this=source))
    statement.set("where", exp.Where(this=exp.EQ(this=_rowid(), expression=column("r", _ROWS))))
    return True
