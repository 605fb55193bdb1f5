"""Put the expressions of output aliases in the place of their names.

    SELECT __ai(1, s) AS f FROM t WHERE f   ->   SELECT __ai(1, s) AS f FROM t WHERE __ai(1, s)

DuckDB lets WHERE, HAVING, QUALIFY and later output columns name an alias; a column of FROM with that name goes first.
"""

from __future__ import annotations

from sqlglot import exp

from sqluice.optimizer.ast import replaced
from sqluice.optimizer.scope import Scope

_CLAUSES = ("where", "having", "qualify")


def apply(select: exp.Select, scope: Scope) -> None:
    """Change `select` in place."""
    aliases: dict[str, exp.Expr] = {}

    def value(node: exp.Expr) -> exp.Expr | None:
        if not isinstance(node, exp.Column) or len(node.parts) != 1 or scope.has(node.name) or scope.alias(node.name):
            return None
        found = aliases.get(node.name.lower())
        return None if found is None else exp.Paren(this=found.copy())

    for one in list(select.expressions):
        new = replaced(one, value)
        if isinstance(one, exp.Alias):
            aliases[one.alias.lower()] = new.this
        one.replace(new)
    for name in _CLAUSES:
        clause = select.args.get(name)
        if clause is not None:
            clause.replace(replaced(clause, value))
