"""Put the expressions of output aliases in the place of their names.

    SELECT __ai(1, s) AS f FROM t WHERE f   ->   SELECT __ai(1, s) AS f FROM t WHERE __ai(1, s)

DuckDB lets WHERE, HAVING, QUALIFY and later output columns name an alias; a column of FROM with that name goes first
(`qualify` has run: what is bare in a HAVING is not a grouping column).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.optimizer.ast import bare, replaced

if TYPE_CHECKING:
    from sqluice.optimizer.scope import Scope

_CLAUSES = ("where", "qualify")


def apply(select: exp.Select, scope: Scope) -> None:
    """Change `select` in place."""
    aliases: dict[str, exp.Expr] = {}

    def named(node: exp.Expr) -> exp.Expr | None:
        found = aliases.get(node.name.lower()) if isinstance(node, exp.Column) and len(node.parts) == 1 else None
        return None if found is None else exp.Paren(this=found.copy())

    def value(node: exp.Expr) -> exp.Expr | None:
        return None if scope.has(node.name) or scope.alias(node.name) else named(node)

    for one in list(select.expressions):
        new = replaced(one, value)
        if isinstance(one, exp.Alias):
            aliases[one.alias.lower()] = new.this
        one.replace(new)
    for name in _CLAUSES:
        clause = select.args.get(name)
        if clause is not None:
            clause.replace(replaced(clause, value))
    group = select.args.get("group")
    if group is not None:
        named_keys = [value(key) if isinstance(key, exp.Column) else None for key in group.expressions]
        for key, new_key in zip(list(group.expressions), named_keys, strict=True):
            if new_key is not None and not isinstance(new_key.unnest(), exp.Literal):  # a number is a position
                key.replace(bare(new_key))
    having = select.args.get("having")
    if having is not None:
        having.replace(replaced(having, value if scope.merged else named))
