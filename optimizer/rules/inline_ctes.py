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
    clause = query.args.get("with_")
    if clause is None or clause.args.get("recursive"):
        return False
    names = Counter(cte.alias.lower() for cte in query.find_all(exp.CTE))
    changed = False
    for cte in reversed(list(clause.expressions)):
        name = cte.alias.lower()
        uses = [
            table
            for table in query.find_all(exp.Table)
            if table.name.lower() == name and not table.db and isinstance(table.this, exp.Identifier)
        ]
        if names[name] > 1 or not has_site(cte, deep=True):
            continue
        if not uses and isinstance(cte.this, exp.Query):
            cte.pop()
            changed = True
        elif (
            len(uses) == 1
            and not cte.args.get("materialized")
            and isinstance(cte.this, exp.Select)
            and _simple(uses[0])
        ):
            _inline(cte, uses[0])
            changed = True
    if not clause.expressions:
        query.set("with_", None)
    return changed


def _simple(table: exp.Table) -> bool:
    return not any(table.args.get(name) for name in ("pivots", "sample", "joins", "laterals", "ordinality"))


def _inline(cte: exp.CTE, table: exp.Table) -> None:
    given = table.args.get("alias")
    columns = (given.args.get("columns") if given else None) or cte.args["alias"].args.get("columns")
    alias = exp.TableAlias(this=exp.to_identifier(table.alias or table.name, quoted=True), columns=columns)
    table.replace(exp.Subquery(this=cte.this.copy(), alias=alias))
    cte.pop()
