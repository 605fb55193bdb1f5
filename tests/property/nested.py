"""Random statements whose subqueries hold questions, below conditions and joins that DuckDB decides alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from property.data import BOOL, DOUBLE, INT, NUMBERS, TEXT, WORDS, Column, Table, literal, quoted
from property.expressions import Expressions, Item, Sight
from property.predicates import Predicates
from property.queries import LIMITS, Statement

if TYPE_CHECKING:
    from random import Random

FORMS = ("distinct", "distinct", "on", "grouped", "grouped", "sets", "union", "union", "window", "window")
SET_WORDS = ("UNION", "UNION", "UNION ALL", "INTERSECT", "EXCEPT", "UNION BY NAME", "INTERSECT ALL", "EXCEPT ALL")
JOINS = ("JOIN", "JOIN", "JOIN", "JOIN", "JOIN", ",", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
AGGREGATES = ("count(*)", "max(id)", "min(k)", "count(DISTINCT s)", "max(length(s))")
DIGITS = "digits"
"""A text that is a number or NULL: no cast of it fails."""
SHARED = (Column("id", INT), Column("k", INT), Column("s", TEXT))
CONSTANTS = ("7", "'x'")
CALLS = ("rank()", "count(*)", "sum(id)", "row_number()", "max(k)", "lag(id)")


@dataclass(frozen=True, slots=True)
class Query:
    """A query and its columns, in their order."""

    text: str
    columns: tuple[Column, ...]


class Nested:
    """Writes statements over some tables, which have the columns id, s and k."""

    def __init__(self, rng: Random, tables: list[Table]) -> None:
        self.rng = rng
        self.tables = [table for table in tables if not table.is_view]
        self.write = Expressions(rng, ai=2)
        self.predicates = Predicates(rng, self.write)
        self.ctes: list[str] = []
        self.known: list[tuple[str, Query]] = []

    def one(self) -> Statement:
        """A statement with at least one AI call."""
        while True:
            self.ctes, self.known = [], []
            found = self._filtered() if self.write.flag(3) else self._pushed()
            if "AI_" in found.text:
                return found

    def _pushed(self) -> Statement:
        """Conditions around subqueries with questions."""
        source, items, sides = self._sources()
        conditions = [self._condition(items) for _ in range(self.rng.choice((1, 1, 2)))]
        if self.write.flag(8):
            conditions.insert(0, self.predicates.one(Sight(tuple(items)), 1))
        self.rng.shuffle(conditions)
        where = f" WHERE {' AND '.join(conditions)}"
        columns = [f"{item.alias}.{quoted(column.name)}" for item in items for column in item.columns]
        listed = ", ".join(f"{name} AS o{at}" for at, name in enumerate(columns))
        word = "DISTINCT " if self.write.flag(6) else ""
        if self.write.flag(6):
            listed, columns = f"count(*) AS n, count({self.rng.choice(columns)}) AS c", ["n", "c"]
        elif sides and self.write.flag(4):
            listed = "*"
        prefix = f"WITH {', '.join(self.ctes)} " if self.ctes else ""
        return self._ending(f"{prefix}SELECT {word}{listed} FROM {source}{where}")

    def _filtered(self) -> Statement:
        """WHERE of some questions that hang together by AND, OR and NOT."""
        table = self.rng.choice(self.tables)
        items = [Item("a", table.columns)]
        source = f"{quoted(table.name)} AS a"
        if self.write.flag(3):
            other = self.rng.choice(self.tables)
            items.append(Item("b", other.columns))
            kind = self.rng.choice(("JOIN", "JOIN", "LEFT JOIN"))
            source += f" {kind} {quoted(other.name)} AS b ON {self.rng.choice(('a.id = b.id', 'a.k = b.id'))}"
        sight = Sight(tuple(items))
        where = " AND ".join(self.predicates.one(sight, 2) for _ in range(self.rng.randint(1, 4)))
        kind = self.rng.randint(0, 3)
        if kind == 0:
            return Statement(f"SELECT count(*), min(a.id) FROM {source} WHERE {where}")
        if kind == 1:
            return self._ending(f"SELECT a.k, count(*) AS n FROM {source} WHERE {where} GROUP BY a.k")
        more = f", {self.predicates.leaf(sight)} AS f" if self.write.flag(3) else ""
        return self._ending(f"SELECT a.id, a.s{more} FROM {source} WHERE {where}")

    def _ending(self, text: str) -> Statement:
        form = self.rng.randint(0, 3)
        if form == 0:
            return Statement(text + self.rng.choice(LIMITS), whole=text)
        if form == 1:
            limit = self.rng.choice(LIMITS) if self.write.flag(2) else ""
            return Statement(f"{text} ORDER BY ALL{limit}", ordered=True)
        return Statement(text)

    def _sources(self) -> tuple[str, list[Item], bool]:
        """FROM: one or two subqueries with questions, and other items, in any order; whether a star may stand for
        all of its columns."""
        kinds = ["asking", *self.rng.choice(((), ("table",), ("table",), ("cheap",), ("cheap",), ("table", "asking")))]
        self.rng.shuffle(kinds)
        text, items = "", list[Item]()
        for at, kind in enumerate(kinds):
            item_text, item = self._item(kind, f"w{at}")
            if at and self.write.flag(12):
                column = self._of(INT, items[-1])
                text += f", (SELECT {column} AS c) AS w{at}"
                items.append(Item(f"w{at}", (Column("c", INT),)))
                continue
            if not at:
                text, items = item_text, [item]
                continue
            join = self.rng.choice(JOINS)
            items.append(item)
            on = "" if join == "," else f" ON {self._on(items, item)}"
            text += f", {item_text}" if join == "," else f" {join} {item_text}{on}"
        return text, items, len(items) == 1

    def _item(self, kind: str, alias: str) -> tuple[str, Item]:
        if kind == "table":
            table = self.rng.choice(self.tables)
            return f"{quoted(table.name)} AS {alias}", Item(alias, table.columns)
        if kind == "cheap":
            table = self.rng.choice(self.tables)
            sight = Item("c", table.columns)
            where = f" WHERE {self._condition([sight])}" if self.write.flag(2) else ""
            word = self.rng.choice(("", "DISTINCT "))
            more = ", CAST(k AS VARCHAR) AS digits, id / 2 AS half"
            text = f"SELECT {word}id, k, s{more} FROM {quoted(table.name)} AS c{where}"
            columns = (*SHARED, Column("digits", DIGITS), Column("half", DOUBLE))
            return f"({text}) AS {alias}", Item(alias, columns)
        if self.known and self.write.flag(2):
            name, query = self.rng.choice(self.known)
            return f"{name} AS {alias}", Item(alias, query.columns)
        query = self._query(2)
        if self.write.flag(3):
            name = f"g{len(self.known)}"
            word = self.rng.choice(("", "", "MATERIALIZED ", "NOT MATERIALIZED "))
            self.known.append((name, query))
            self.ctes.append(f"{name} AS {word}({query.text})")
            return f"{name} AS {alias}", Item(alias, query.columns)
        return f"({self._hidden()}{query.text}) AS {alias}", Item(alias, query.columns)

    def _hidden(self) -> str:
        """Now and then a WITH of which the subquery makes nothing, or a table that it hides from itself."""
        if not self.write.flag(8):
            return ""
        table = self.rng.choice(self.tables)
        where = self.rng.choice(("", " WHERE k > 0", " LIMIT 0"))
        if self.write.flag(2):
            return f"WITH h AS (SELECT * FROM {quoted(table.name)}{where}) "
        return f"WITH {quoted(table.name)} AS (SELECT * FROM {quoted(table.name)}{where}) "

    def _on(self, items: list[Item], last: Item) -> str:
        """An equality with an item before, and conditions on one item."""
        parts = []
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            kinds = [
                *self.rng.choice(
                    ((INT, INT), (INT, INT), (INT, INT), (TEXT, TEXT), (INT, DOUBLE), (INT, DIGITS), (INT, DIGITS))
                )
            ]
            self.rng.shuffle(kinds)
            mine = self._of(kinds[0], last)
            theirs = self._of(kinds[1], self.rng.choice(items[:-1]))
            parts.append(f"{mine} = {theirs}" if self.write.flag(2) else f"{theirs} = {mine}")
        if self.write.flag(2):
            parts.append(self._condition(items))
        return " AND ".join(parts)

    def _of(self, kind: str, item: Item) -> str:
        found = [column.name for column in item.columns if column.type == kind]
        default = literal(self.rng.choice(WORDS)) if kind == TEXT else str(self.rng.choice(NUMBERS))
        return f"{item.alias}.{quoted(self.rng.choice(found))}" if found else default

    def _condition(self, items: list[Item]) -> str:
        """A cheap condition, mostly on one item."""
        item = self.rng.choice(items)
        column = self.rng.choice([one for one in item.columns if one.type in (INT, TEXT, BOOL, DOUBLE)] or item.columns)
        if self.write.flag(2) and item.columns[0].type != DIGITS:
            column = item.columns[0]  # a key, mostly
        name = f"{item.alias}.{quoted(column.name)}"
        number, form = self.rng.choice(NUMBERS), self.rng.randint(0, 9)
        if form == 0:
            return f"{name} IS {self.rng.choice(('', 'NOT '))}NULL"
        if form < 3:
            return f"({self._condition(items)} OR {self._condition(items)})"
        if form == 3:
            return f"NOT {self._condition([item])}"
        if form == 4 and len(items) > 1:
            other = self.rng.choice(items)
            return f"{self._of(INT, item)} {self.rng.choice(('=', '=', '<', '<>'))} {self._of(INT, other)}"
        if column.type == INT:
            return self.rng.choice(
                (
                    *(f"{name} > {number}", f"{name} = {number}", f"{name} <> {number}", f"{number} >= {name}"),
                    *(
                        f"{name} IN (1, 2, {number})",
                        f"typeof({name} + 1::TINYINT) = 'INTEGER'",
                        f"coalesce({name}, 1) = 1",
                        f"{name} % 2 = 1",
                    ),
                    *(f"{name} IS DISTINCT FROM {number}", f"CASE WHEN {name} > 1 THEN true ELSE {name} = 0 END"),
                )
            )
        if column.type == TEXT:
            word = literal(self.rng.choice(WORDS))
            return self.rng.choice(
                (f"{name} >= ''", f"{name} > {word}", f"{name} LIKE '%e%'", f"length({name}) > 1", f"{name} <> '2'")
            )
        return self.rng.choice((name, f"{name} IS NULL")) if column.type == BOOL else f"{name} > 1"

    def _query(self, depth: int) -> Query:
        """A query with a question, mostly."""
        form = self.rng.choice(FORMS)
        if form == "union":
            query = self._sides(depth)
        elif depth and self.write.flag(6):
            inner = self._query(0)
            condition = self._condition([Item("z", inner.columns)])
            word = self.rng.choice(("", "DISTINCT "))
            query = Query(f"SELECT {word}z.* FROM ({inner.text}) AS z WHERE {condition}", inner.columns)
        else:
            query = self._select(form)
        if self.write.flag(10):
            limit = self.rng.choice((" LIMIT 3", " LIMIT 5 OFFSET 1", ""))
            query = Query(f"{query.text} ORDER BY ALL{limit}", query.columns)
        return query

    def _select(self, form: str) -> Query:
        table = self.rng.choice(self.tables)
        item = Item("t", table.columns)
        sight = Sight((item,))
        source = f"{quoted(table.name)} AS t"
        parts = [self.predicates.one(sight, 1)] if not self.write.flag(5) else []
        if self.write.flag(4):
            parts.append(self._condition([item]))
        where = f" WHERE {' AND '.join(parts)}" if parts else ""
        values = self._values(sight, form)
        listed = ", ".join(f"{text} AS {column.name}" for text, column in values)
        columns = tuple(column for _, column in values)
        word = ""
        if form == "distinct":
            word = "DISTINCT "
        elif form == "on":
            values = [(text, column) for text, column in values if text not in CONSTANTS] or [("t.k", Column("k", INT))]
            listed = ", ".join(f"{text} AS {column.name}" for text, column in values)
            columns = tuple(column for _, column in values)
            order = ", ".join(text for text, _ in values)
            text = f"SELECT DISTINCT ON ({values[0][0]}) {listed} FROM {source}{where} ORDER BY {order}"
            return Query(f"SELECT * FROM ({text}) AS q", columns)
        elif form in ("grouped", "sets"):
            return self._grouped(f"FROM {source}{where}", sight, values, form)
        elif form == "window":
            over, more = self._window(sight, values)
            listed, columns = f"{listed}, {over}", (*columns, *more)
            if self.write.flag(5):
                where += f" QUALIFY {self._call(sight, values)} > 1"
        return Query(f"SELECT {word}{listed} FROM {source}{where}", columns)

    def _values(self, sight: Sight, form: str) -> list[tuple[str, Column]]:
        """Columns and what stands behind them: two that are cheap, often one that is not."""
        plain = [("t.k", INT), ("t.s", TEXT), ("t.id", INT), ("t.id % 3", INT), ("lower(t.s)", TEXT), ("t.k > 1", BOOL)]
        plain += [("coalesce(t.k, 0)", INT), ("'x'", TEXT), ("7", INT)]
        found = self.rng.sample(plain, self.rng.randint(1, 3))
        if self.write.flag(3):
            found.append(self.rng.choice(((self.predicates.leaf(sight), BOOL), (self.predicates.label(sight), TEXT))))
        if form == "grouped" and found[0][0] == "7":
            found.reverse()
        names = self.rng.sample(("k", "s", "c0", "c1", "id"), len(found))
        return [(text, Column(name, kind)) for (text, kind), name in zip(found, names, strict=True)]

    def _grouped(self, source: str, sight: Sight, values: list[tuple[str, Column]], form: str) -> Query:
        keys = [text if text not in CONSTANTS else str(at + 1) for at, (text, _) in enumerate(values)]
        number = self.rng.choice((*AGGREGATES, f"count(*) FILTER (WHERE {self.predicates.leaf(sight)})"))
        listed = ", ".join(f"{text} AS {column.name}" for text, column in values)
        columns = (*(column for _, column in values), Column("n", INT))
        group = ", ".join(keys)
        if form == "sets":
            keys = [text for text, _ in values if text not in CONSTANTS and "AI_" not in text] or ["t.k"]
            others = [text for text, _ in values if "AI_" in text]
            rest = "".join(f", {text}" for text in others)
            first, tail = keys[0], "".join(f", {key}" for key in keys[1:])
            group = self.rng.choice(
                (
                    *(f"ROLLUP ({', '.join(keys)}){rest}", f"CUBE ({', '.join(keys)}){rest}"),
                    f"GROUPING SETS (({', '.join([*keys, *others])}), ({first}), ())",
                    f"ROLLUP ({first}){tail}{rest}",
                )
            )
        elif self.write.flag(4):
            group = "ALL"
        about_group = "AI_FILTER(PROMPT('ripe? {0}', max(t.s)))"
        conditions = ("count(*) > 1", "min(t.id) < 5", "max(t.s) IS NOT NULL", about_group)
        having = f" HAVING {self.rng.choice(conditions)}" if self.write.flag(4) else ""
        listed = f"{listed}, {number}::INTEGER AS n"
        if group != "ALL" and self.write.flag(4):
            listed, columns = f"{listed}, {about_group} AS f", (*columns, Column("f", BOOL))
        return Query(f"SELECT {listed} {source} GROUP BY {group}{having}", columns)

    def _window(self, sight: Sight, values: list[tuple[str, Column]]) -> tuple[str, tuple[Column, ...]]:
        calls = [f"{self._call(sight, values)}::INTEGER AS v{at}" for at in range(self.rng.choice((1, 1, 2)))]
        return ", ".join(calls), tuple(Column(f"v{at}", INT) for at in range(len(calls)))

    def _call(self, sight: Sight, values: list[tuple[str, Column]]) -> str:
        keys = [text for text, _ in values]
        parts = self.rng.sample(keys, self.rng.randint(1, len(keys)))
        if keys[0] not in parts and not self.write.flag(3):
            parts.append(keys[0])
        if self.write.flag(6):
            parts.append(self.predicates.leaf(sight))
        by = f"PARTITION BY {', '.join(parts)} " if not self.write.flag(6) else ""
        return f"{self.rng.choice(CALLS)} OVER ({by}ORDER BY t.id)"

    def _sides(self, depth: int) -> Query:
        """A set operation; now and then its branches disagree about a type."""
        kinds = [self.rng.choice((INT, TEXT, DOUBLE)) for _ in range(self.rng.randint(1, 3))]
        other = list(kinds)
        if self.write.flag(3):
            at = self.rng.randrange(len(kinds))
            other[at] = self.rng.choice((INT, TEXT, DOUBLE, "BIGINT"))
        word = self.rng.choice(SET_WORDS)
        names = [f"c{at}" for at in range(len(kinds))]
        theirs = names if "NAME" in word or self.write.flag(2) else [f"d{at}" for at in range(len(kinds))]
        left, right = self._side(kinds, names), self._side(other, theirs)
        if depth and self.write.flag(4):
            right = f"({self._side(other, theirs)} {self.rng.choice(SET_WORDS[:5])} {right})"
        text = f"{left} {word} {right}"
        types = [_common(one, two) for one, two in zip(kinds, other, strict=True)]
        return Query(text, tuple(Column(name, kind) for name, kind in zip(names, types, strict=True)))

    def _side(self, kinds: list[str], names: list[str]) -> str:
        table = self.rng.choice(self.tables)
        sight = Sight((Item("t", table.columns),))
        forms = {
            INT: ("t.k", "t.id", "t.id % 3", "2"),
            TEXT: ("t.s", "lower(t.s)", "'red'", "t.s", self.predicates.label(sight)),
            DOUBLE: ("t.k::DOUBLE", "t.id / 2", "1.5::DOUBLE"),
            "BIGINT": ("t.k::BIGINT", "t.id::BIGINT"),
        }
        values = ", ".join(f"{self.rng.choice(forms[kind])} AS {name}" for kind, name in zip(kinds, names, strict=True))
        where = f" WHERE {self.predicates.one(sight, 1)}" if not self.write.flag(4) else ""
        form = self.rng.randint(0, 7)
        text = f"SELECT {'DISTINCT ' if form == 1 else ''}{values} FROM {quoted(table.name)} AS t{where}"
        return f"({text} ORDER BY ALL LIMIT 3)" if form == 0 else text


def _common(one: str, two: str) -> str:
    """The type of a set operation's column; BIGINT counts as INTEGER here."""
    if TEXT in (one, two):
        return TEXT
    return DOUBLE if DOUBLE in (one, two) else INT
