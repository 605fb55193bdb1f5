"""Reading and changing sqlglot trees that hold AI expressions.

After binding, an AI expression is the call `__ai(spec, arg, ..)`: a number that stands for its constant part, then
what each row brings. `__ai_error` with the same arguments is the text of its error. Two calls are one question
exactly when their SQL is equal. A nested query is a level of its own: `own` stops at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ANSWER = "__ai"
ERROR = "__ai_error"

_VOLATILE = {"NEXTVAL", "RANDOM", "RAND", "UUID", "GEN_RANDOM_UUID", "UUIDV4", "UUIDV7", "SETSEED", "CURRVAL"}
_VOLATILE_NODES = (exp.Rand, exp.Uuid, exp.NextValueFor)


def sql(node: exp.Expr) -> str:
    """The node as DuckDB's SQL."""
    return node.sql(dialect="duckdb")


def call(spec: int, args: Iterable[exp.Expr], name: str = ANSWER) -> exp.Anonymous:
    """The tree of an AI expression."""
    return exp.Anonymous(this=name, expressions=[exp.Literal.number(spec), *args])


def is_site(node: object) -> bool:
    """Whether `node` is an AI expression (or the error of one)."""
    return isinstance(node, exp.Anonymous) and node.this in (ANSWER, ERROR)


def spec_of(site: exp.Expr) -> int:
    """The number of the constant part of an AI expression."""
    return int(site.expressions[0].this)


def args_of(site: exp.Expr) -> list[exp.Expr]:
    """What each row brings to an AI expression."""
    return list(site.expressions[1:])


def own(node: exp.Expr) -> Iterator[exp.Expr]:
    """`node` and what is below it, without the insides of nested queries (the query nodes themselves come)."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if current is not node and isinstance(current, exp.Query):
            continue
        stack.extend(reversed(list(current.iter_expressions())))


def own_sites(node: exp.Expr) -> list[exp.Expr]:
    """The AI expressions of this level, outer ones before those in their arguments."""
    return [found for found in own(node) if is_site(found)]


def has_site(node: exp.Expr, *, deep: bool = False) -> bool:
    """Whether an AI expression stands in `node`; `deep` looks into nested queries too."""
    return any(map(is_site, node.walk() if deep else own(node)))


def named(node: exp.Expr, name: str) -> exp.Alias:
    """`node` AS "name". A subquery's own alias would not do: it goes where the subquery is replaced."""
    return exp.Alias(this=node, alias=exp.to_identifier(name, quoted=True))


def star_of(output: exp.Expr) -> exp.Expr:
    """The star in an output column `*` or `t.*`; others as they are."""
    return output.this if isinstance(output, exp.Column) and isinstance(output.this, exp.Star) else output


def pivots_answers(node: exp.Expr) -> bool:
    """Whether the columns of a PIVOT depend on an AI expression: DuckDB runs it to know them."""
    open_ones = [
        one
        for one in node.find_all(exp.Pivot)
        if not one.args.get("unpivot") and not all(isinstance(part, exp.In) for part in one.expressions)
    ]
    return any(is_site(found) or is_pinned(found) for one in open_ones for found in one.walk())


def nested_queries(node: exp.Expr) -> list[exp.Expr]:
    """The queries one level below `node`."""
    return [found for found in own(node) if isinstance(found, exp.Query) and found is not node]


def replaced(node: exp.Expr, change: Callable[[exp.Expr], exp.Expr | None]) -> exp.Expr:
    """A copy of `node` in which `change` has replaced what it returned a tree for; nested queries are not entered
    unless `change` takes them, and what it returns is not entered either."""
    root = node.copy()
    new = change(root)
    if new is not None:
        return new
    _replace_below(root, change, top=True)
    return root


def _replace_below(node: exp.Expr, change: Callable[[exp.Expr], exp.Expr | None], *, top: bool) -> None:
    if isinstance(node, exp.Query) and not top:
        return
    for child in list(node.iter_expressions()):
        new = change(child)
        if new is None:
            _replace_below(child, change, top=False)
        elif new is not child:
            child.replace(new)


def conjuncts(node: exp.Expr | None) -> list[exp.Expr]:
    """The arms of a tree of ANDs, in order."""
    if node is None:
        return []
    if isinstance(node, exp.Paren):
        inner = conjuncts(node.this)
        return inner if len(inner) > 1 else [node]
    if isinstance(node, exp.And):
        return [*conjuncts(node.left), *conjuncts(node.right)]
    return [node]


def bare(node: exp.Expr) -> exp.Expr:
    """`node` without the parentheses around it; those of a subquery are part of it (`unnest` takes them away)."""
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def conditions(select: exp.Expr) -> list[exp.Expr]:
    """The conjuncts of a WHERE; none without one."""
    where = select.args.get("where")
    return conjuncts(where.this if where is not None else None)


def conjunction(parts: Iterable[exp.Expr]) -> exp.Expr | None:
    """The AND of `parts`; None for no parts."""
    found: exp.Expr | None = None
    for part in parts:
        safe = exp.Paren(this=part) if isinstance(part, exp.Or | exp.Binary) and not isinstance(part, exp.And) else part
        found = safe if found is None else exp.And(this=found, expression=safe)
    return found


def disjunction(parts: Iterable[exp.Expr]) -> exp.Expr | None:
    """The OR of `parts`; None for no parts."""
    found: exp.Expr | None = None
    for part in parts:
        found = exp.Paren(this=part) if found is None else exp.Or(this=found, expression=exp.Paren(this=part))
    return found


def is_volatile(node: exp.Expr) -> bool:
    """Whether evaluating `node` twice may give two values."""
    return any(
        isinstance(found, _VOLATILE_NODES)
        or (isinstance(found, exp.Anonymous) and str(found.this).upper() in _VOLATILE)
        for found in node.walk()
    )


def is_cheap(node: exp.Expr) -> bool:
    """Whether DuckDB alone decides `node`, the same each time and wherever it stands."""
    return not any(is_site(part) or is_pinned(part) or isinstance(part, exp.Query) for part in node.walk()) and (
        not is_volatile(node)
    )


def is_aggregate(node: exp.Expr, names: frozenset[str]) -> bool:
    """Whether `node` is a call of an aggregate function (`names` are DuckDB's, lower case)."""
    if isinstance(node, exp.AggFunc):
        return True
    if isinstance(node, exp.Anonymous):
        return str(node.this).lower() in names
    return isinstance(node, exp.Func) and not isinstance(node, exp.Anonymous) and node.sql_name().lower() in names


def aggregate_calls(node: exp.Expr, names: frozenset[str]) -> list[exp.Expr]:
    """The outermost aggregates of this level, with their FILTER and WITHIN GROUP; those of windows are not counted."""
    found: list[exp.Expr] = []

    def look(current: exp.Expr, *, top: bool) -> None:
        if isinstance(current, exp.Query) and not top:
            return
        if isinstance(current, exp.Window):
            for child in current.iter_expressions():
                is_own = child is current.this and is_aggregate(child, names)
                parts: list[exp.Expr] = list(child.iter_expressions()) if is_own else [child]
                for part in parts:
                    look(part, top=False)
            return
        inner = current
        while isinstance(inner, exp.Filter | exp.WithinGroup | exp.IgnoreNulls | exp.RespectNulls):
            inner = inner.this
        if is_aggregate(inner, names):
            found.append(current)
            return
        for below in current.iter_expressions():
            look(below, top=False)

    look(node, top=True)
    return found


def windows(node: exp.Expr) -> list[exp.Expr]:
    """The outermost window functions of this level."""
    found: list[exp.Expr] = []

    def look(current: exp.Expr, *, top: bool) -> None:
        if isinstance(current, exp.Query) and not top:
            return
        if isinstance(current, exp.Window):
            found.append(current)
            return
        for child in current.iter_expressions():
            look(child, top=False)

    look(node, top=True)
    return found


def with_clause(ctes: Iterable[exp.CTE]) -> exp.With:
    """A WITH of copies of `ctes`, recursive where one of them names itself."""
    copies = [cte.copy() for cte in ctes]
    recursive = any(table.name.lower() == cte.alias.lower() for cte in copies for table in cte.this.find_all(exp.Table))
    return exp.With(expressions=copies, recursive=recursive)


def column(name: str, table: str | None = None) -> exp.Column:
    """A quoted column."""
    return exp.column(name, table=table, quoted=True)


def source_alias(source: exp.Expr) -> str:
    """The name by which a FROM item is referred to; empty when it has none."""
    return str(source.alias_or_name)


def sources(select: exp.Select) -> list[exp.Expr]:
    """The FROM items of a select whose columns can be referred to, in order."""
    start = select.args.get("from_")
    found = [start.this] if start is not None else []
    return [*found, *(join.this for join in select.args.get("joins") or () if not is_filtering(join))]


def with_from(target: exp.Select, select: exp.Select) -> exp.Select:
    """`target` with a copy of the FROM of `select`."""
    for name in ("from_", "joins", "laterals"):
        value = select.args.get(name)
        if value:
            target.set(name, [one.copy() for one in value] if isinstance(value, list) else value.copy())
    return target


def is_filtering(join: exp.Join) -> bool:
    """Whether a join only decides which rows of its left side stay: SEMI and ANTI."""
    return str(join.args.get("kind") or "").upper() in ("SEMI", "ANTI")


def is_comma(join: exp.Join) -> bool:
    """Whether a join is written as a comma, which binds less tightly than JOIN."""
    return not any(join.args.get(part) for part in ("kind", "side", "method", "on", "using"))


PINNED = {ANSWER: "__ai_row", ERROR: "__ai_row_error"}
"""Names of AI expressions that stay where they are and are evaluated row by row."""


def is_pinned(node: object) -> bool:
    """Whether `node` is an AI expression that stays row-wise."""
    return isinstance(node, exp.Anonymous) and node.this in PINNED.values()


def pin(site: exp.Expr) -> None:
    """Leave an AI expression where it is, for row-wise evaluation."""
    site.set("this", PINNED[site.this])
