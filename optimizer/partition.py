"""Splits a query over one large table into what each partition of the table can answer alone, and what puts the
partitions together.

    SELECT kind, count(*) FROM input WHERE AI_FILTER(text) GROUP BY kind ORDER BY 2 DESC LIMIT 3

    part:   SELECT kind AS c0 FROM input WHERE AI_FILTER(text)
    final:  SELECT c0 AS kind, count(*) AS "count_star()" FROM parts GROUP BY c0 ORDER BY 2 DESC LIMIT 3

A partition's rows meet FROM, joins and WHERE alone; from the first clause on that looks at several rows together, all
is left to `final`, which reads what the partitions wrote. So every aggregate and window is exact. A pure function of
trees: it sees no table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from sqluice.optimizer.ast import named, own, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = "__parts"
"""The table that `final` reads."""

_FOLDS = frozenset({"AI_AGG", "AI_SUMMARIZE_AGG"})
_TOGETHER = ("group", "having", "qualify", "windows")
_AFTER = ("distinct", "order", "limit", "offset")
_FROM_ARGS = ("this", "from_", "from", "joins")


class CannotSplit(Exception):  # noqa: N818 - a finding, not a failure: the query still runs as one partition
    """Why a query cannot be answered partition by partition."""


@dataclass(frozen=True, slots=True)
class Split:
    """`part` runs on each partition. `final` reads their rows from `PARTS`, None where they are the result. `enough`
    rows of the first partitions satisfy a LIMIT. `same_rows`: each row of a part is one of the result, and no other."""

    part: exp.Expr
    final: exp.Expr | None = None
    enough: int | None = None
    same_rows: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """What splitting has to know of a database: `columns(query)` names the columns of a query, `aggregates` are the
    names of aggregate functions in lower case, `is_call` tells AI calls."""

    columns: Callable[[exp.Expr], list[str]]
    aggregates: frozenset[str]
    is_call: Callable[[exp.Expr], bool]


def split(tree: exp.Expr, driving: str, schema: Schema, names: list[str] | None = None) -> Split:
    """How to answer `tree` by partitions of the table `driving`. `names` are those of its columns, where they are known
    better than from its tree. `CannotSplit` says why it cannot be."""
    if not isinstance(tree, exp.Query):
        raise CannotSplit("it is not a SELECT")
    tree = tree.copy()
    scan: exp.Expr = _scan(tree, driving)
    while True:
        block = scan.find_ancestor(exp.Select)
        if block is None or not _in_from(scan, block):
            raise CannotSplit(f"{driving} does not stand in a FROM clause")
        _check_joins(block, scan, driving)
        if _looks_at_several(block, schema):
            return _cut(tree, block, schema, names if block is tree else None)
        if block is tree:
            return Split(tree, same_rows=True)
        above = _use(tree, block)
        if above is None:
            return _whole(tree, block)
        scan = above


def _scan(tree: exp.Expr, driving: str) -> exp.Table:
    """The place where the driving table is read."""
    named = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    if driving.lower() in named:
        raise CannotSplit(f"{driving} is also the name of a WITH query")
    found = [table for table in tree.find_all(exp.Table) if table.name.lower() == driving.lower() and not table.db]
    if not found:
        raise CannotSplit(f"it does not read {driving}")
    if len(found) > 1:
        raise CannotSplit(f"it reads {driving} {len(found)} times; give all but one of them an input of its own")
    return found[0]


def _in_from(scan: exp.Expr, block: exp.Expr) -> bool:
    """Whether the path from a block down to the scan goes through its FROM or a join's table."""
    node = scan
    while node.parent is not None and node.parent is not block:
        if node.parent is not None and node.arg_key not in _FROM_ARGS:
            return False
        node = node.parent
    return node.arg_key in _FROM_ARGS


def _joins_of(block: exp.Expr) -> list[exp.Join]:
    return [join for join in own(block) if isinstance(join, exp.Join)]


def _check_joins(block: exp.Expr, scan: exp.Expr, driving: str) -> None:
    """An outer join that may make a row without one of the driving table cannot be split."""
    if block.args.get("sample") or any(isinstance(node, exp.TableSample | exp.Pivot) for node in own(block)):
        raise CannotSplit("a sample or a PIVOT looks at all rows")
    joined = scan.find_ancestor(exp.Join)
    inner = joined is not None and joined.find_ancestor(exp.Select) is block
    before = True
    for join in _joins_of(block):
        if inner and join is joined:
            before = False
            if join.side in ("LEFT", "FULL") or join.kind in ("SEMI", "ANTI"):
                raise CannotSplit(f"{driving} is on the wrong side of a {join.side or join.kind} JOIN")
        elif join.side == "FULL" or (join.side == "RIGHT" and not (inner and before)):
            raise CannotSplit(f"{driving} is on the wrong side of a {join.side} JOIN")
        if str(join.args.get("method") or "").upper() == "POSITIONAL":
            raise CannotSplit("a POSITIONAL JOIN counts rows")


def _is_fold(node: exp.Expr, schema: Schema) -> bool:
    """Whether a node looks at several rows: an aggregate or a window."""
    if isinstance(node, exp.AggFunc | exp.Window | exp.WithinGroup):
        return True
    name = node.name if isinstance(node, exp.Anonymous) else ""
    return bool(name) and (name.upper() in _FOLDS or name.lower() in schema.aggregates)


def _folds(node: exp.Expr, schema: Schema) -> bool:
    return any(_is_fold(found, schema) for found in own(node))


def _looks_at_several(block: exp.Expr, schema: Schema) -> bool:
    if any(block.args.get(name) for name in (*_TOGETHER, *_AFTER)):
        return True
    return any(_folds(one, schema) for one in block.expressions)


def _use(tree: exp.Expr, block: exp.Expr) -> exp.Expr | None:
    """Where the rows of a block are read: a subquery in a FROM, or the one use of a WITH query. None elsewhere."""
    parent = block.parent
    if isinstance(parent, exp.Subquery):
        outer = parent.find_ancestor(exp.Select)
        return parent if outer is not None and _in_from(parent, outer) else None
    if isinstance(parent, exp.CTE):
        if isinstance(parent.parent, exp.With) and parent.parent.recursive:
            return None
        uses = [one for one in tree.find_all(exp.Table) if one.name.lower() == parent.alias.lower() and not one.db]
        return uses[0] if len(uses) == 1 else None
    return None


def _ancestors(node: exp.Expr) -> Iterator[exp.Expr]:
    while node.parent is not None:
        node = node.parent
        yield node


def _with(query: exp.Expr) -> exp.With | None:
    return query.args.get("with_") or query.args.get("with")


def _standing_alone(tree: exp.Expr, block: exp.Expr, body: exp.Expr) -> exp.Expr:
    """`body`, made of `block`, with the WITH queries that it may read."""
    ctes: list[exp.Expr] = []
    above = list(_ancestors(block))
    for one in tree.find_all(exp.With):
        if not any(one.parent is node for node in above):
            continue
        for cte in one.expressions:
            if any(cte is node for node in above):
                break
            ctes.append(cte.copy())
    if not ctes:
        return body
    mine = _with(body)
    if mine is not None:
        mine.set("expressions", [*ctes, *mine.expressions])
        return body
    key = "with_" if "with_" in exp.Select.arg_types else "with"
    body.set(key, exp.With(expressions=ctes))
    return body


def _without_path(final: exp.Expr, name: str) -> exp.Expr:
    """`final` without WITH queries that nothing reads any more: those on the way to the driving table."""
    while True:
        found = _with(final)
        if found is None:
            return final
        read = {table.name.lower() for table in final.find_all(exp.Table)}
        kept = [cte for cte in found.expressions if cte.alias.lower() in read or cte.alias == name]
        if len(kept) == len(found.expressions):
            return final
        found.set("expressions", kept)
        if not kept:
            found.pop()


def _whole(tree: exp.Expr, block: exp.Expr) -> Split:
    """The block alone is answered by partitions; the rest of the query reads its rows."""
    part = _standing_alone(tree, block, block.copy())
    block.replace(exp.select("*").from_(exp.to_table(PARTS)))
    return Split(part, _without_path(tree, ""))


def _cut(tree: exp.Expr, block: exp.Expr, schema: Schema, names: list[str] | None) -> Split:
    """Split inside a block: FROM and WHERE below, the rest of it above."""
    together = any(block.args.get(name) for name in _TOGETHER) or any(_folds(one, schema) for one in block.expressions)
    alone = _standing_alone(tree, block, block.copy())
    names = names or schema.columns(alone)
    part, final, enough = _aggregated(alone, schema, names) if together else _ordered(alone, names)
    if block is tree:
        sorts = not together and not any(block.args.get(name) for name in ("distinct", "limit", "offset"))
        return Split(part, final, enough, sorts)
    block.replace(final)
    return Split(part, _without_path(tree, ""))


def _named(names: list[str], made: list[str]) -> list[exp.Expr]:
    return [exp.alias_(exp.column(column), name, quoted=True) for name, column in zip(names, made, strict=True)]


def _ordered(block: exp.Expr, names: list[str]) -> tuple[exp.Expr, exp.Expr, int | None]:
    """A block with DISTINCT, ORDER BY and LIMIT, but nothing else that looks at several rows."""
    after: dict[str, Any] = {name: block.args.get(name) for name in _AFTER}
    for name in _AFTER:
        block.set(name, None)
    columns = [f"c{at}" for at in range(len(names))]
    hidden: list[exp.Expr] = []
    distinct, order, limit, offset = (None if after[name] is None else after[name].copy() for name in _AFTER)
    for held in (distinct, order):
        for expression in _keys(held):
            _point(expression, names, hidden)
    made = [*columns, *(f"h{at}" for at in range(len(hidden)))]
    for at, one in enumerate(hidden):
        block.append("expressions", exp.alias_(one, f"__h{at}"))
    final = exp.select(*_named(names, columns)).from_(exp.to_table(PARTS))
    for name, value in zip(_AFTER, (distinct, order, limit, offset), strict=True):
        final.set(name, value)
    rows = _rows(limit, offset)
    wrapped = exp.Subquery(
        this=block, alias=exp.TableAlias(this=exp.to_identifier("p"), columns=[exp.to_identifier(c) for c in made])
    )
    part = exp.select("*").from_(wrapped)
    if distinct is None and rows is not None:
        part.set("order", order and order.copy())
        part = part.limit(rows)
    elif distinct is not None and not distinct.args.get("on"):
        part = part.distinct()
    return part, final, rows if distinct is None and order is None else None


def _keys(clause: exp.Expr | None) -> list[exp.Expr]:
    """The expressions of an ORDER BY or a DISTINCT ON."""
    if isinstance(clause, exp.Order):
        return [one.this if isinstance(one, exp.Ordered) else one for one in clause.expressions]
    on = None if clause is None else clause.args.get("on")
    return [] if on is None else list(on.expressions)


def _point(expression: exp.Expr, names: list[str], hidden: list[exp.Expr]) -> None:
    """Let a key read what the partitions wrote: a column of the result, or one made for it."""
    if isinstance(expression, exp.Literal) or expression.name.upper() == "ALL":
        return
    low = [name.lower() for name in names]
    if isinstance(expression, exp.Column) and not expression.table and expression.name.lower() in low:
        expression.replace(exp.column(f"c{low.index(expression.name.lower())}"))
        return
    hidden.append(expression.copy())
    expression.replace(exp.column(f"h{len(hidden) - 1}"))


def _rows(limit: exp.Expr | None, offset: exp.Expr | None) -> int | None:
    """LIMIT and OFFSET together, where both are plain numbers."""
    total = 0
    for clause in (limit, offset):
        if clause is None:
            continue
        value = clause.expression
        if not isinstance(value, exp.Literal) or value.is_string or not value.this.isdigit():
            return None
        total += int(value.this)
    return None if limit is None else total


@dataclass(slots=True)
class _Lifted:
    """Columns that a part gives, by their SQL."""

    schema: Schema
    sources: set[str]
    aliases: set[str]
    columns: dict[str, str] = field(default_factory=dict)
    given: list[exp.Expr] = field(default_factory=list)

    def column(self, node: exp.Expr) -> exp.Expr:
        """The column of a part that holds `node`."""
        text = node.sql(dialect="duckdb")
        if text not in self.columns:
            self.columns[text] = f"c{len(self.columns)}"
            self.given.append(exp.alias_(node.copy(), self.columns[text]))
        return exp.column(self.columns[text])

    def change(self, node: exp.Expr) -> exp.Expr | None:
        """What stands for `node` above the parts; None to look into it."""
        if isinstance(node, exp.Query):
            raise CannotSplit("a subquery stands beside its aggregates")
        if isinstance(node, exp.Star):
            return node
        if _folds(node, self.schema):
            return None
        if isinstance(node, exp.Column):
            left = not node.table and node.name.lower() in self.aliases and node.name.lower() not in self.sources
            return node if left else self.column(node)
        whole = any(self.schema.is_call(found) or isinstance(found, exp.Lambda) for found in own(node))
        return self.column(node) if whole and isinstance(node, exp.Condition) and not isinstance(node, exp.If) else None


def _aggregated(block: exp.Expr, schema: Schema, names: list[str]) -> tuple[exp.Expr, exp.Expr, None]:
    """A block with aggregates or windows."""
    below = block.copy()
    for name in (*_TOGETHER, *_AFTER):
        below.set(name, None)
    below.set("expressions", [exp.Star()])
    sources = schema.columns(below)
    outputs = _expanded(block.expressions, sources)
    if len(outputs) != len(names):
        raise CannotSplit("name its columns instead of a * beside aggregates or windows")
    lifted = _Lifted(schema, {name.lower() for name in sources}, {one.alias.lower() for one in outputs if one.alias})
    final: exp.Expr = exp.select().from_(exp.to_table(PARTS))
    made = [replaced(one.unalias(), lifted.change) for one in outputs]
    final.set("expressions", [named(one, name) for one, name in zip(made, names, strict=True)])
    for name in (*_TOGETHER, *_AFTER):
        clause: Any = block.args.get(name)
        if clause is None:
            continue
        many = isinstance(clause, list)
        new = [_kept(one, lifted) for one in (clause if many else [clause])]
        final.set(name, new if many else new[0])
    if not lifted.given:
        lifted.given.append(exp.alias_(exp.Literal.number(1), "c0"))
    below.set("expressions", lifted.given)
    return below, final, None


def _kept(clause: exp.Expr, lifted: _Lifted) -> exp.Expr:
    """A clause above the parts. ORDER BY looks for the names of outputs first."""
    if not isinstance(clause, exp.Order):
        return replaced(clause, lifted.change)
    new = clause.copy()
    for one in _keys(new):
        if not (isinstance(one, exp.Column) and not one.table and one.name.lower() in lifted.aliases):
            one.replace(replaced(one, lifted.change))
    return new


def _expanded(outputs: list[exp.Expr], sources: list[str]) -> list[exp.Expr]:
    """The outputs with a plain * spelled out."""
    found: list[exp.Expr] = []
    for one in outputs:
        if isinstance(one, exp.Star) and not any(one.args.values()):
            if len({name.lower() for name in sources}) < len(sources):
                raise CannotSplit("a * has two columns of the same name")
            found += [exp.column(name, quoted=True) for name in sources]
        else:
            found.append(one)
    return found
