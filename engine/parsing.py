"""SQL text to a tree in which AI calls can be told from everything else.

DuckDB's grammar does not know `AI_JOIN`, and sqlglot has nodes of its own for some AI functions; so tokens are changed
before they are parsed, each keeping its place in the text. In the tree an AI call is `exp.Anonymous` with the name in
upper case and `meta["ai"]`; parameters are replaced by their values.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING

from sqlglot import ErrorLevel, Token, TokenType, exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError

from sqluice.engine import parameters
from sqluice.errors import programming_error
from sqluice.optimizer.ast import conjuncts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_CALL = "__fn_"
_NAMES = re.compile(r"(ai_\w+|prompt)\Z", re.IGNORECASE)
_MAYBE = re.compile(r"\bai_\w+|\bprompt\s*\(", re.IGNORECASE)
_SIDES = (
    TokenType.LEFT,
    TokenType.RIGHT,
    TokenType.FULL,
    TokenType.INNER,
    TokenType.SEMI,
    TokenType.ANTI,
    TokenType.OUTER,
)
_ITEM_ENDS = (TokenType.VAR, TokenType.IDENTIFIER, TokenType.STRING, TokenType.R_PAREN)
_ITEM_STARTS = (
    TokenType.VAR,
    TokenType.IDENTIFIER,
    TokenType.STRING,
    TokenType.L_PAREN,
    TokenType.LATERAL,
    TokenType.UNNEST,
)
_NOT_CALLS = frozenset({"ai_settings", "ai_join"})


class NotParsed(Exception):  # noqa: N818 - not an error: DuckDB gets the text as it is
    """sqlglot does not read this statement."""


def mentions_ai(sql: str) -> bool:
    """Whether a statement may hold an AI call; cheap, and true too often."""
    return _MAYBE.search(sql) is not None


def parse(sql: str, params: Sequence[object] | Mapping[str, object] | None = None) -> exp.Expr:
    """The tree of one statement. `NotParsed` when sqlglot cannot read it; `ProgrammingError` for an AI_JOIN without
    its prompt and for parameters that do not fit."""
    dialect = Dialect.get_or_raise("duckdb")
    try:
        tokens = list(dialect.tokenize(sql))
        changed, joins, values = _changed(sql, tokens, params)
        with _quiet():
            trees = dialect.parser(error_level=ErrorLevel.RAISE).parse(changed, sql)
    except (ParseError, TokenError, RecursionError) as error:
        raise NotParsed(str(error)) from error
    if len(trees) != 1 or trees[0] is None or isinstance(trees[0], exp.Command):
        raise NotParsed("not a statement of its own")
    tree = parameters.substituted(trees[0], values) if values else trees[0]
    for node in tree.find_all(exp.Anonymous):
        if isinstance(node.this, str) and node.this.startswith(_CALL):
            node.set("this", node.this.removeprefix(_CALL).upper())
            node.meta["ai"] = True
    _wrap_ai_joins(sql, tree, joins, changed)
    return tree


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """sqlglot logs statements that it does not read, with their text."""
    logger = logging.getLogger("sqlglot")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def is_call(node: object) -> bool:
    """Whether a node is an AI call as written."""
    return isinstance(node, exp.Anonymous) and bool(node.meta.get("ai"))


def ai_calls(tree: exp.Expr) -> list[exp.Expr]:
    """The AI calls of a tree, those in arguments of others first. PROMPT alone counts as one."""
    return [node for node in reversed(list(tree.walk(bfs=True))) if is_call(node)]


def position(node: exp.Expr) -> int | None:
    """Where a node begins in the text it was parsed from."""
    for found in node.walk(bfs=True):
        start = found.meta.get("start")
        if isinstance(start, int):
            return start
    return None


def _changed(
    sql: str, tokens: list[Token], params: Sequence[object] | Mapping[str, object] | None
) -> tuple[list[Token], list[int], dict[str, object]]:
    """Tokens as sqlglot can read them, the places of AI_JOINs, and parameter values by their stand-in's name."""
    found: list[Token] = []
    joins: list[int] = []
    given = parameters.Given(sql, params)
    skip = False
    for at, token in enumerate(tokens):
        if skip:
            skip = False
            continue
        new = token
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        opens = following is not None and following.token_type == TokenType.L_PAREN
        if token.token_type == TokenType.PLACEHOLDER and token.text == "?":
            new = _renamed(token, TokenType.VAR, given.next(token.start))
        elif token.token_type == TokenType.PARAMETER and following is not None and following.start == token.end + 1:
            new = _renamed(token, TokenType.VAR, given.named(following.text, token.start))
            skip = True
        elif opens and _NAMES.match(token.text) and token.text.lower() not in _NOT_CALLS:
            new = _renamed(token, TokenType.VAR, _CALL + token.text.upper())
        elif token.text.upper() == "AI_JOIN" and token.token_type == TokenType.VAR and _joins(tokens, at):
            joins.append(token.start)
            new = _renamed(token, TokenType.JOIN, "JOIN")
        found.append(new)
    given.check_all_used()
    return found, joins, given.values


def _renamed(token: Token, kind: TokenType, text: str) -> Token:
    return Token(kind, text, token.line, token.col, token.start, token.end, list(token.comments))


def _joins(tokens: list[Token], at: int) -> bool:
    """Whether the word AI_JOIN at `at` joins two FROM items rather than naming something."""
    if at == 0 or at + 1 >= len(tokens):
        return False
    before, after = tokens[at - 1].token_type, tokens[at + 1].token_type
    seen_from = any(token.token_type == TokenType.FROM for token in tokens[:at])
    return seen_from and (before in _SIDES or before in _ITEM_ENDS) and after in _ITEM_STARTS


def _wrap_ai_joins(sql: str, tree: exp.Expr, joins: list[int], tokens: list[Token]) -> None:
    """The bare PROMPT of an AI_JOIN's ON becomes AI_FILTER(PROMPT(..))."""
    starts = [token.start for token in tokens if token.token_type == TokenType.JOIN]
    wrapped: set[int] = set()
    for join in list(tree.find_all(exp.Join)) if joins else ():
        on = join.args.get("on")
        for part in conjuncts(on):
            inner = part.unnest()
            if not is_call(inner) or inner.this not in ("PROMPT", "AI_FILTER"):
                continue
            place = position(inner) or 0
            nearest = max((start for start in starts if start < place), default=-1)
            if nearest in joins:
                wrapped.add(nearest)
                if inner.this == "PROMPT":
                    call = exp.Anonymous(this="AI_FILTER", expressions=[inner.copy()])
                    call.meta.update(inner.meta)
                    inner.replace(call)
    for place in joins:
        if place not in wrapped:
            raise programming_error(
                sql, place, "AI_JOIN needs its question: a AI_JOIN b ON PROMPT('..{0}..{1}..', a.x, b.y)"
            )
