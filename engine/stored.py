"""Views and macros that hold AI calls, put in their place, so that they are planned with what uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from sqluice.engine import parsing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_DEPTH = 20


def expand(tree: exp.Expr, views: Mapping[str, str], macros: Mapping[str, tuple[list[str], str]]) -> None:
    """Change `tree` in place. Definitions may name others; what is too deep, or not understood, is left to DuckDB."""
    for _ in range(_MAX_DEPTH):
        tables = [table for table in tree.find_all(exp.Table) if _is_view(table, views)]
        calls = [node for node in tree.find_all(exp.Anonymous) if _is_macro(node, macros)]
        if not tables and not calls:
            return
        for table in tables:
            _put_view(table, views[table.name.lower()])
        for call in calls:
            _put_macro(call, *macros[str(call.this).lower()])


def _is_view(table: exp.Table, views: Mapping[str, str]) -> bool:
    if table.name.lower() not in views or isinstance(table.parent, exp.Create | exp.Drop | exp.Describe):
        return False
    ctes = [cte for node in _ancestors(table) if (w := node.args.get("with_")) is not None for cte in w.expressions]
    hiding = {cte.alias.lower() for cte in ctes}
    if not table.db and table.name.lower() in hiding:
        return False
    view = _parsed(views[table.name.lower()])
    # where a CTE hides a table that the view reads, the view cannot be put in its place
    return view is not None and not hiding & {read.name.lower() for read in view.expression.find_all(exp.Table)}


def _parsed(text: str) -> exp.Expr | None:
    try:
        return parsing.parse(text)
    except parsing.NotParsed:
        return None


def _put_view(table: exp.Table, text: str) -> None:
    view = parsing.parse(text)
    query = view.expression
    _forget_places(query)
    given = table.args.get("alias")
    schema = view.this
    own = [one.copy() for one in schema.expressions] if isinstance(schema, exp.Schema) else None
    columns = (given.args.get("columns") if given is not None else None) or own
    alias = exp.TableAlias(this=exp.to_identifier(table.alias or table.name, quoted=True), columns=columns)
    table.replace(exp.Subquery(this=query, alias=alias))


def _is_macro(node: exp.Anonymous, macros: Mapping[str, tuple[list[str], str]]) -> bool:
    found = macros.get(str(node.this).lower())
    if found is None or len(found[0]) != len(node.expressions) or isinstance(node.parent, exp.Table):
        return False
    return _parsed(_selected(found[1])) is not None


def _selected(text: str) -> str:
    return f"SELECT ({text})"


def _put_macro(call: exp.Anonymous, parameters: list[str], text: str) -> None:
    body = parsing.parse(_selected(text)).expressions[0]
    _forget_places(body)
    values = {name.lower(): value for name, value in zip(parameters, call.expressions, strict=True)}
    for column in list(body.find_all(exp.Column)):
        value = values.get(column.name.lower()) if len(column.parts) == 1 else None
        if value is not None:
            column.replace(exp.Paren(this=value.copy()))
    call.replace(body)


def _forget_places(node: exp.Expr) -> None:
    """Places in the definition's text mean nothing in the statement's."""
    for part in node.walk():
        part.meta.pop("start", None)


def _ancestors(node: exp.Expr) -> Iterator[exp.Expr]:
    current: exp.Expr | None = node.parent
    while current is not None:
        yield current
        current = current.parent
