"""Put a CTE that is used once in its place, and drop those that are never used.

    WITH g AS (SELECT .. FROM t) SELECT .. FROM g   ->   SELECT .. FROM (SELECT .. FROM t) AS g

What is inlined can be merged with the query around it; a CTE that is used twice is evaluated once.
"""

from __future__ import annotations

from collections import Counter

from sqlglot import exp

from sqluice.optimizer.ast import has_site


def apply(query: exp.Expr) -> bool:
    """Change the WITH of `query` in place; whether anything changed."""
    changed = False
    while _once(query):  # a CTE into which another was put now holds its questions
        changed = True
    return changed


def _once(query: exp.Expr) -> bool:
    clause = query.args.get("with_")
    if clause is None or clause.args.get("recursive"):
        return False
    names = Counter(cte.alias.lower() for cte in query.find_all(exp.CTE))
    changed = False
    for at, cte in reversed(list(enumerate(clause.expressions))):
        name = cte.alias.lower()
        if names[name] > 1 or not has_site(cte, deep=True):
            continue
        before = {id(table) for one in clause.expressions[: at + 1] for table in _tables(one)}
        uses = [table for table in _tables(query) if table.name.lower() == name and id(table) not in before]
        if not uses and isinstance(cte.this, exp.Query):
            cte.pop()
            changed = True
        elif len(uses) == 1 and _is_simple(cte, uses[0], query) and not _is_captured(cte, clause, names):
            _inline(cte, uses[0])
            changed = True
    if not clause.expressions:
        query.set("with_", None)
    return changed


def _tables(node: exp.Expr) -> list[exp.Table]:
    """Tables that may be CTEs."""
    return [table for table in node.find_all(exp.Table) if not table.db and isinstance(table.this, exp.Identifier)]


def _is_simple(cte: exp.CTE, table: exp.Table, query: exp.Expr) -> bool:
    """Whether a use is nothing but a FROM item, of `query` or of what it reads, so that rows are looked at once."""
    if cte.args.get("materialized") or not isinstance(cte.this, exp.Select):
        return False
    if any(table.args.get(name) for name in ("pivots", "sample", "joins", "laterals", "ordinality")):
        return False
    node: exp.Expr | None = table
    while node is not None and node is not query:
        node = node.parent
        if not isinstance(node, exp.From | exp.Join | exp.Query | exp.CTE | exp.With):
            return False
    return True


def _is_captured(cte: exp.CTE, clause: exp.With, names: Counter[str]) -> bool:
    """Whether a table that the CTE reads may be hidden by another CTE where the CTE is used."""
    earlier = {one.alias.lower() for one in clause.expressions[: clause.expressions.index(cte)]}
    known = earlier | {one.alias.lower() for one in cte.this.find_all(exp.CTE)}
    reads = {table.name.lower() for table in _tables(cte)}
    return any(names[name] > (1 if name in known else 0) for name in reads)


def _inline(cte: exp.CTE, table: exp.Table) -> None:
    given = table.args.get("alias")
    columns = (given.args.get("columns") if given else None) or cte.args["alias"].args.get("columns")
    alias = exp.TableAlias(this=exp.to_identifier(table.alias or table.name, quoted=True), columns=columns)
    table.replace(exp.Subquery(this=cte.this.copy(), alias=alias))
    cte.pop()
