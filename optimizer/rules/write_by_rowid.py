"""Turn the questions of UPDATE and DELETE into those of a query that names the rows.

    DELETE FROM t WHERE __ai(1, s)
    ->  DELETE FROM t WHERE rowid IN (SELECT rowid FROM t WHERE __ai(1, s))

    UPDATE t SET c = __ai(1, s), d = 2 WHERE k > 1
    ->  UPDATE t SET c = __w.v0, d = 2 FROM (SELECT rowid AS r, __ai(1, s) AS v0 FROM t WHERE k > 1) AS __w
        WHERE rowid = __w.r

    DELETE FROM t USING r WHERE r.k = t.k AND __ai(1, s)
    ->  DELETE FROM t WHERE rowid IN (SELECT t.rowid FROM t, r WHERE r.k = t.k AND __ai(1, s))

The same goes for UPDATE with FROM, where what is set looks at columns of `t` alone: of several rows that meet one of
`t` any may be taken, and all give the same.

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
    """Rewrite an UPDATE or DELETE in place; whether it was. `outputs` are the columns of a query, None
    where DuckDB cannot run it: not every table numbers its rows."""
    if not isinstance(statement, exp.Update | exp.Delete) or not isinstance(statement.this, exp.Table):
        return False
    others = ("with_", "order", "limit", "tables", "cluster")
    returning = statement.args.get("returning")
    if any(statement.args.get(name) for name in others) or (returning is not None and has_site(returning)):
        return False
    if returning is not None and _beside(statement):
        return False
    columns = outputs(exp.Select(expressions=[exp.Star()]).from_(statement.this.copy()))
    if columns is None or "rowid" in map(str.lower, columns):
        return False
    if _beside(statement):
        every = outputs(_rows(statement, [exp.Star()]))
        if every is None or statement.this.alias_or_name.lower() in map(str.lower, every):
            return False  # t.rowid would be a field of a column t
    if isinstance(statement, exp.Delete):
        return _delete(statement, outputs)
    names = {name.lower() for name in columns}
    if _beside(statement) and not all(_is_of(statement.this, names, one) for one in statement.expressions):
        return False
    return returning is None and _update(statement, outputs)


def _beside(statement: exp.Update | exp.Delete) -> list[exp.Expr]:
    """The other FROM items of an UPDATE, or those of USING."""
    start = statement.args.get("from_")
    return [start.this] if start is not None else list(statement.args.get("using") or ())


def _is_of(table: exp.Table, names: set[str], setting: exp.Expr) -> bool:
    """Whether what is set looks at columns of `table` alone, which are called `names`."""
    if not isinstance(setting, exp.EQ) or setting.expression.find(exp.Query):
        return False
    alias = table.alias_or_name.lower()
    return all(
        (len(one.parts) == 1 and one.name.lower() in names) or (len(one.parts) == 2 and one.table.lower() == alias)
        for one in setting.expression.find_all(exp.Column)
    )


def _rows(statement: exp.Update | exp.Delete, columns: list[exp.Expr]) -> exp.Select:
    rows = exp.Select(expressions=columns).from_(statement.this.copy())
    joins: list[exp.Expr] = []
    for item in _beside(statement):
        first = item.copy()
        more = first.args.get("joins") or []
        first.set("joins", None)
        joins += [exp.Join(this=first), *more]
    if joins:
        rows.set("joins", joins)
    if statement.args.get("where") is not None:
        rows.set("where", statement.args["where"].copy())
    return rows


def _rowid(statement: exp.Update | exp.Delete | None = None) -> exp.Column:
    """The number of a row; with its table's name where it stands beside others."""
    beside = statement is not None and _beside(statement)
    return exp.column("rowid", table=statement.this.alias_or_name if statement is not None and beside else None)


def _delete(statement: exp.Delete, outputs: Callable[[exp.Select], list[str] | None]) -> bool:
    where = statement.args.get("where")
    rows = _rows(statement, [_rowid(statement)])
    if where is None or not has_site(where) or outputs(rows) is None:
        return False
    wanted = exp.In(this=_rowid(), query=exp.Subquery(this=rows))
    statement.set("using", None)
    statement.set("where", exp.Where(this=wanted))
    return True


def _update(statement: exp.Update, outputs: Callable[[exp.Select], list[str] | None]) -> bool:
    settings = statement.expressions
    asking = [one for one in settings if isinstance(one, exp.EQ) and has_site(one.expression)]
    where = statement.args.get("where")
    if not asking and not (where is not None and has_site(where)):
        return False
    values = [named(one.expression.copy(), f"v{at}") for at, one in enumerate(asking)]
    rows = _rows(statement, [exp.alias_(_rowid(statement), "r", quoted=True), *values])
    if outputs(rows) is None:
        return False
    for at, one in enumerate(asking):
        one.set("expression", column(f"v{at}", _ROWS))
    source = exp.Subquery(this=rows, alias=exp.TableAlias(this=exp.to_identifier(_ROWS, quoted=True)))
    statement.set("from_", exp.From(this=source))
    statement.set("where", exp.Where(this=exp.EQ(this=_rowid(), expression=column("r", _ROWS))))
    return True
