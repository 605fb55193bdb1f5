"""AI calls as written -> AI expressions: constants checked and taken out, arguments left as SQL.

Afterwards the tree holds `__ai(n, arg, ..)`, where n is the place of a `Spec` in `Bound.specs`. Errors name the place
in the SQL. AI_SIMILARITY becomes two embeddings and DuckDB's cosine, so that equal texts are embedded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
from sqlglot import exp

from sqluice.engine import parameters, parsing
from sqluice.errors import Error, ProgrammingError, at, programming_error, underline
from sqluice.optimizer.ast import ERROR, call, is_comma, is_site, own, sql
from sqluice.udfs import signatures
from sqluice.udfs.ai_embed import similarity_model
from sqluice.udfs.prompts import prompt_value
from sqluice.udfs.spec import Arg, BindError, Const, PromptValue, Row, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqluice.engine.catalog import DuckCatalog

_MISSING = object()


@dataclass(slots=True)
class Bound:
    """A bound statement: its tree, and the specs its AI expressions name."""

    tree: exp.Expr
    specs: list[Spec] = field(default_factory=list)

    def number(self, spec: Spec) -> int:
        """The place of `spec`, added when it is new."""
        if spec not in self.specs:
            self.specs.append(spec)
        return self.specs.index(spec)


@dataclass(slots=True)
class Binder:
    """Binds one statement. `known` tells whether DuckDB has a function (a macro) of that name; `catalog` may be asked
    for types once `bound.specs` holds what it needs."""

    source: str
    bound: Bound
    evaluate: Callable[[str], Any]
    known: Callable[[str], bool]
    sql_type: Callable[[int], str]
    catalog: DuckCatalog

    def bind(self) -> Bound:
        """Every AI call of the tree, bound. `ProgrammingError` for a wrong one."""
        tree = self.bound.tree
        _flatten_joins(tree)
        _name_items(tree)
        _name_columns(tree)
        for node in parsing.ai_calls(tree):
            if node.this == "PROMPT":
                continue
            new = self._call(node)
            if new is None:
                node.meta.pop("ai")
            elif node is tree:
                self.bound.tree = tree = new
            else:
                node.replace(new)
        for node in parsing.ai_calls(tree):
            raise self._error(node, BindError(_lone_prompt()))
        return self.bound

    def _call(self, node: exp.Expr) -> exp.Expr | None:
        name = str(node.this)
        if name not in signatures.FUNCTIONS and name not in signatures.PLANNED and self.known(name):
            return None
        try:
            if name == "AI_SIMILARITY":
                return self._similarity(node)
            args = [self._argument(name, number, one) for number, one in enumerate(node.expressions)]
            bound = signatures.bind(name, args)
        except BindError as error:
            raise self._error(node, error) from None
        except Error as error:
            raise self._placed(node, error) from None
        exprs = [_expression(arg) for arg in bound.args]
        number = self.bound.number(replace(bound.spec, errors=False))
        answer = call(number, exprs)
        return _with_error(answer, number, exprs) if bound.spec.errors else answer

    def _argument(self, function: str, number: int, node: exp.Expr) -> Arg:
        inner = node.unnest()
        if parsing.is_call(inner) and inner.this == "PROMPT":
            return self._prompt(inner)
        value = _constant(inner)
        if value is _MISSING and _wants_constant(function, number, inner) and _is_constant(inner):
            try:
                value = self.evaluate(sql(_queried(inner)))
            except duckdb.Error as error:
                raise BindError(f"{function}: {str(error).splitlines()[0]}", number) from None
        return Row(node) if value is _MISSING else Const(value)

    def _prompt(self, node: exp.Expr) -> PromptValue:
        args: list[Const | Row] = []
        for number, one in enumerate(node.expressions):
            value = _constant(one.unnest())
            if value is _MISSING and number == 0 and _is_constant(one):
                value = self.evaluate(sql(_queried(one)))
            args.append(Row(one) if value is _MISSING else Const(value))
        try:
            return prompt_value(args)
        except BindError as error:
            raise self._error(node, error) from None

    def _similarity(self, node: exp.Expr) -> exp.Expr:
        args: list[Arg] = [self._argument("AI_SIMILARITY", n, one) for n, one in enumerate(node.expressions)]
        model = similarity_model(args)
        spec = signatures.bind("AI_EMBED", [*([Const(model)] if model else []), Row(node)]).spec
        sides = [self._vector(node, n, spec) for n in (0, 1)]
        kind = self.sql_type(self.bound.number(spec))
        vectors = [exp.cast(side, kind, dialect="duckdb") for side in sides]
        cosine = exp.Anonymous(this="array_cosine_similarity", expressions=vectors)
        return exp.Cast(this=cosine, to=exp.DataType.build("double"))

    def _vector(self, node: exp.Expr, number: int, spec: Spec) -> exp.Expr:
        """One side of AI_SIMILARITY as an embedding: a text is embedded first."""
        side = node.expressions[number]
        kind = self._type(node, side)
        if kind.endswith("]"):
            vector: exp.Expr = side.copy()
            return vector
        if kind not in ("VARCHAR", '"NULL"', "NULL"):
            message = f"AI_SIMILARITY compares texts or embeddings; argument {number + 1} is {kind}: cast it to VARCHAR"
            raise BindError(message, number)
        answer = call(self.bound.number(spec), [side.copy()])
        other = node.expressions[1 - number]
        if isinstance(other, exp.Literal):
            return answer
        missing = exp.Is(this=exp.Paren(this=other.copy()), expression=exp.null())
        return exp.Case(ifs=[exp.If(this=exp.Not(this=missing), true=answer)])

    def _type(self, node: exp.Expr, side: exp.Expr) -> str:
        """SQL type of an expression where it stands; VARCHAR when DuckDB cannot tell."""
        if isinstance(side, exp.Literal):
            return "VARCHAR" if side.is_string else "INTEGER"
        if is_site(side):
            return "FLOAT[]" if self.bound.specs[int(side.expressions[0].this)].operation == "embed" else "VARCHAR"
        select = node.find_ancestor(exp.Select)
        probe = exp.Select(expressions=[side.copy()])
        for name in ("from_", "joins", "laterals"):
            value = select.args.get(name) if select is not None else None
            if value:
                probe.set(name, [one.copy() for one in value] if isinstance(value, list) else value.copy())
        for inner in list(probe.walk()):
            if parsing.is_call(inner):
                return "VARCHAR"
        try:
            return self.catalog.describe(probe, visible_ctes(node))[0][1]
        except duckdb.Error:
            return "VARCHAR"

    def _error(self, node: exp.Expr, error: BindError) -> ProgrammingError:
        place = parsing.position(node)
        if error.argument is not None and error.argument < len(node.expressions):
            place = parsing.position(node.expressions[error.argument]) or place
        return ProgrammingError(str(error)) if place is None else programming_error(self.source, place, str(error))

    def _placed(self, node: exp.Expr, error: Error) -> Error:
        place = parsing.position(node)
        if place is None or error.line is not None:
            return error
        line, column = at(self.source, place)
        return type(error)(underline(self.source, place, str(error)), line=line, column=column)


def visible_ctes(node: exp.Expr) -> list[exp.CTE]:
    """The CTEs that a node can name, outer ones first."""
    found: list[exp.CTE] = []
    inside: set[int] = set()
    current: exp.Expr | None = node
    while current is not None:
        clause = current.args.get("with_")
        if clause is not None:
            before = []
            for cte in clause.expressions:
                if id(cte) in inside:
                    break
                before.append(cte)
            found = [*(cte.copy() for cte in before), *found]
        inside.add(id(current))
        current = current.parent
    return found


def _lone_prompt() -> str:
    return "PROMPT(..) stands only as an argument of an AI function, such as AI_FILTER(PROMPT('..{0}..', a))"


def _expression(arg: Const | Row) -> exp.Expr:
    if isinstance(arg, Const):
        return parameters.literal(arg.value)
    assert isinstance(arg.expr, exp.Expr)
    return arg.expr.copy()


def _with_error(answer: exp.Expr, number: int, args: list[exp.Expr]) -> exp.Expr:
    """STRUCT(value, error), NULL where an argument is NULL."""
    fields = [
        exp.PropertyEQ(this=exp.to_identifier("value"), expression=answer),
        exp.PropertyEQ(this=exp.to_identifier("error"), expression=call(number, [a.copy() for a in args], ERROR)),
    ]
    struct = exp.Struct(expressions=fields)
    nulls: exp.Expr | None = None
    for arg in args:
        test = exp.Is(this=exp.Paren(this=arg.copy()), expression=exp.null())
        nulls = test if nulls is None else exp.Or(this=nulls, expression=test)
    return struct if nulls is None else exp.Case(ifs=[exp.If(this=exp.Not(this=exp.Paren(this=nulls)), true=struct)])


def _constant(node: exp.Expr) -> Any:
    """The value of a literal, a list or a struct of literals; `_MISSING` for anything else."""
    if isinstance(node, exp.Literal):
        if node.is_string:
            return str(node.this)
        return int(node.this) if node.is_int else float(node.this)
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Null):
        return None
    if isinstance(node, exp.Neg):
        value = _constant(node.this)
        return -value if isinstance(value, int | float) else _MISSING
    if isinstance(node, exp.Array):
        items = [_constant(one.unnest()) for one in node.expressions]
        return _MISSING if any(item is _MISSING for item in items) else items
    if isinstance(node, exp.Struct):
        pairs = [
            (one.this.name, _constant(one.expression.unnest()))
            for one in node.expressions
            if isinstance(one, exp.PropertyEQ)
        ]
        whole = len(pairs) == len(node.expressions) and not any(value is _MISSING for _, value in pairs)
        return dict(pairs) if whole else _MISSING
    return _MISSING


def _wants_constant(function: str, number: int, node: exp.Expr) -> bool:
    """Whether an argument that is no literal should be evaluated now: labels and options."""
    return isinstance(node, exp.Struct) or (function == "AI_CLASSIFY" and number >= 1)


def _is_constant(node: exp.Expr) -> bool:
    """Whether nothing in `node` depends on a row of this level."""
    return isinstance(node, exp.Query) or not any(
        isinstance(part, exp.Column | exp.Star) or is_site(part) or parsing.is_call(part) for part in own(node)
    )


def _queried(node: exp.Expr) -> exp.Expr:
    value = exp.Subquery(this=node.copy()) if isinstance(node, exp.Select | exp.SetOperation) else node.copy()
    return exp.Select(expressions=[value])


def _name_items(tree: exp.Expr) -> None:
    """FROM items without an alias get the name that DuckDB knows them by, or one of ours."""
    count = 0
    for node in tree.find_all(exp.From, exp.Join):
        item = node.this
        if item.alias or isinstance(item, exp.Lateral):
            continue
        name = _known_as(item)
        if name is None and isinstance(item, exp.Subquery | exp.Values) and not _is_join(item):
            count += 1
            name = f"__q{count}"
        if name is not None and isinstance(item, exp.Query | exp.Table):
            given = item.args.get("alias")
            columns = given.args.get("columns") if given is not None else None
            item.set("alias", exp.TableAlias(this=exp.to_identifier(name, quoted=True), columns=columns))


def _is_join(item: exp.Expr) -> bool:
    """Whether a FROM item is a join in parentheses, rather than a query: names inside it are seen outside."""
    if not isinstance(item, exp.Subquery) or item.alias:
        return False
    return isinstance(item.this, exp.Table) or bool(item.this.args.get("joins")) or _is_join(item.this)


def _flatten_joins(tree: exp.Expr) -> None:
    """Joins in parentheses at the beginning of a FROM, and those of a FROM that stands first, become the SELECT's joins
    like any other."""
    for select in tree.find_all(exp.Select):
        start = select.args.get("from_")
        if start is None:
            continue
        first, joins = _unwrapped(start.this)
        start.set("this", first)
        for join in select.args.get("joins") or ():
            joins.append(join)
            if is_comma(join):
                first, inner = _unwrapped(join.this)
                join.set("this", first)
                joins += inner
        select.set("joins", joins or None)


def _unwrapped(item: exp.Expr) -> tuple[exp.Expr, list[exp.Expr]]:
    """The first item of a join in parentheses, and the joins that follow it."""
    is_join, joins = _is_join(item), list(item.args.get("joins") or ())
    item.set("joins", None)
    if is_join:
        first, inner = _unwrapped(item.this)
        return first, [*inner, *joins]
    return item, joins


def _known_as(item: exp.Expr) -> str | None:
    """What DuckDB calls a table function or a file without an alias."""
    if not isinstance(item, exp.Table):
        return None
    if isinstance(item.this, exp.Identifier):
        name = item.this.name
        if item.this.quoted and any(mark in name for mark in "./*") and not item.db:
            stem = name.replace("\\", "/").rsplit("/", 1)[-1].split(".")[0]
            return stem or None
        return None
    if isinstance(item.this, exp.Anonymous):
        return str(item.this.this).lower()
    return item.this.sql_name().lower() if isinstance(item.this, exp.Func) else None


def _name_columns(tree: exp.Expr) -> None:
    """Output columns without a name keep the one DuckDB would give them."""
    for select in tree.find_all(exp.Select):
        named = []
        for one in select.expressions:
            plain = isinstance(one, exp.Alias | exp.Column | exp.Star | exp.Columns | exp.Aliases)
            name = exp.to_identifier(_text(one), quoted=True)
            named.append(one if plain else exp.Alias(this=one.copy(), alias=name))
        if any(new is not old for new, old in zip(named, select.expressions, strict=True)):
            select.set("expressions", named)


def _text(node: exp.Expr) -> str:
    return node.sql(dialect="duckdb", normalize_functions="lower")
