"""Random statements: SELECT in all its clauses, CTEs, set operations, views and writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from property.data import BOOL, DOUBLE, INT, LABELS, OUTCOME, RECORD, TEXT, Column, Table, quoted
from property.expressions import Expressions, Item, Sight
from property.froms import Froms

if TYPE_CHECKING:
    from random import Random

SIMPLE = (TEXT, INT, BOOL, DOUBLE)
EVERY = (*SIMPLE, *SIMPLE, LABELS, OUTCOME, RECORD)
_BARE = re.compile(r'(?:(?:\w+|"[^"]+")\.)*([A-Za-z_]\w*|"[^"]+")')
LIMITS = (" LIMIT 2", " LIMIT 3 OFFSET 1", " LIMIT 1 + 1", " LIMIT 50 %", " OFFSET 1", " LIMIT 0")
NAMES = ("f", "s", "id", "k", "score", "Label", "c")


@dataclass(frozen=True, slots=True)
class Block:
    """A SELECT: its text and columns (None in place of columns that have no name to rely on). `width` is the number
    of columns, None after a star."""

    text: str
    columns: tuple[Column, ...]
    width: int | None
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement to compare. `ordered`: rows come in one order. `whole`: the query without its LIMIT, where LIMIT may
    pick any rows. `reads`: what to look at after a write."""

    text: str
    ordered: bool = False
    whole: str | None = None
    reads: str | None = None


class Statements:
    """Writes statements over some tables. `size` tells how deep FROM is nested."""

    def __init__(self, rng: Random, tables: list[Table], size: int = 2) -> None:
        self.rng = rng
        self.size = size
        self.write = Expressions(rng, self._subquery)
        self.froms = Froms(rng, self.write, self._derived)
        self.tables = tables
        self.froms.tables = list(tables)
        self.views = 0

    def one(self) -> Statement:
        """A statement with at least one AI call."""
        while True:
            self.write.made = 0
            self.write.ai = self.rng.choice((2, 3, 4))
            self.froms.tables = list(self.tables)
            found = self._write() if self.write.flag(8) else self._query()
            if self.write.made and "AI_" in found.text:
                return found

    def view(self) -> tuple[str, Table] | None:
        """A view, and the table it looks like; None when what was drawn has no columns of a simple type."""
        self.write.ai = 3
        block = self._block(1, Sight(()))
        if not block.columns:
            return None
        self.views += 1
        name = f"v{self.views}"
        return f"CREATE OR REPLACE VIEW {name} AS {block.text}", Table(name, block.columns, is_view=True)

    def _query(self) -> Statement:
        prefix = self._with() if self.size and self.write.flag(4) else ""
        if self.write.flag(6):
            return self._set_operation(prefix)
        block = self._block(self.size, Sight(()))
        return self._ending(prefix + block.text, block)

    def _with(self) -> str:
        """A WITH whose CTEs may hide tables; the query may use them any number of times."""
        parts = []
        for at in range(self.rng.randint(1, 2)):
            name = self.rng.choice(("t", f"g{at}", f"g{at}"))
            block = self._block(1, Sight(()))
            kind = self.rng.choice(("", "", "MATERIALIZED ", "NOT MATERIALIZED "))
            parts.append(f"{quoted(name)} AS {kind}({block.text})")
            self.froms.tables = [one for one in self.froms.tables if one.name != name]
            if block.columns:
                self.froms.tables += [Table(name, block.columns)] * 3
        return f"WITH {', '.join(parts)} "

    def _set_operation(self, prefix: str) -> Statement:
        types = tuple(self.rng.choice(SIMPLE) for _ in range(self.rng.randint(1, 2)))
        word = self.rng.choice(("UNION", "UNION ALL", "INTERSECT", "EXCEPT", "UNION ALL BY NAME", "EXCEPT ALL"))
        left, right = (self._block(1, Sight(()), types=types) for _ in range(2))
        text = f"{prefix}{left.text} {word} {right.text}"
        if self.write.flag(2):
            limit = " LIMIT 3" if self.write.flag(2) else ""
            return Statement(f"{text} ORDER BY ALL{limit}", ordered=True)
        return Statement(text)

    def _ending(self, text: str, block: Block) -> Statement:
        """ORDER BY and LIMIT."""
        if self.write.flag(3):
            return Statement(text)
        limit = self.rng.choice(LIMITS)
        if self.write.flag(3):
            return Statement(f"{text}{limit}", whole=text)
        keys = "ALL"
        if block.width is not None:
            keys = ", ".join(f"{at}{self._direction()}" for at in self._shuffled(block.width))
        text = f"{text} ORDER BY {keys}"
        return Statement(text + (limit if self.write.flag(2) else ""), ordered=True)

    def _shuffled(self, width: int) -> list[int]:
        places = list(range(1, width + 1))
        self.rng.shuffle(places)
        return places

    def _direction(self) -> str:
        return self.rng.choice(("", " DESC", " NULLS FIRST", " DESC NULLS LAST"))

    def _write(self) -> Statement:
        table = self.rng.choice([table for table in self.tables if not table.is_view])
        name, sight = quoted(table.name), self._sight_of(table)
        kind = self.rng.randint(0, 4)
        if kind == 0:
            return Statement(f"CREATE TABLE made AS {self._block(self.size, Sight(())).text}", reads="made")
        if kind == 1:
            block = self._block(self.size, Sight(()), types=(INT, TEXT))
            return Statement(f"INSERT INTO {name} (id, s) {block.text}", reads=name)
        where = f" WHERE {self.write.one(BOOL, sight, 2)}"
        if kind == 2:
            return Statement(f"DELETE FROM {name}{where}", reads=name)
        text = f"UPDATE {name} SET s = {self.write.one(TEXT, sight, 2)}{where if self.write.flag(2) else ''}"
        return Statement(text, reads=name)

    def write_beside(self) -> Statement:
        """A DELETE with USING, or an UPDATE with FROM whose settings look at the table's own columns."""
        table, other = self.rng.sample([table for table in self.tables if not table.is_view], 2)
        both = Sight(tuple(Item(one.name, one.columns) for one in (table, other)))
        parts = [self.write.one(BOOL, both, 2) for _ in range(self.rng.randint(1, 3))]
        where = " WHERE " + " AND ".join(f"({part})" for part in parts)
        name, beside = quoted(table.name), quoted(other.name)
        if self.write.flag(2):
            return Statement(f"DELETE FROM {name} USING {beside}{where}", reads=name)
        own = Expressions(self.rng, ai=self.write.ai)
        text = own.one(TEXT, self._sight_of(table), 1)
        return Statement(f"UPDATE {name} SET s = {text} FROM {beside}{where}", reads=name)

    def _sight_of(self, table: Table) -> Sight:
        return Sight((Item(table.name, table.columns),))

    def _derived(self, depth: int, around: Sight) -> tuple[str, list[Column], int | None]:
        block = self._block(depth, around)
        text = block.text
        if self.write.flag(6):
            text += f" ORDER BY ALL LIMIT {self.rng.randint(1, 4)}"
        return text, list(block.columns), block.width

    def _subquery(self, kind: str, around: Sight, depth: int) -> str:
        """A subquery of one column, of one row where that matters."""
        block = self._block(min(depth, 1), around, types=(kind,), plain=True)
        return f"({block.text} ORDER BY ALL LIMIT 1)"

    def _block(self, depth: int, around: Sight, types: tuple[str, ...] | None = None, *, plain: bool = False) -> Block:
        """A SELECT. `types` asks for exactly these columns."""
        source, sight = self.froms.clause(depth, around)
        where = f" WHERE {self._condition(sight, depth)}" if self.write.flag(2) else ""
        form = self.rng.choice(("plain", "plain", "plain", "grouped", "windows", "distinct", "on", "whole"))
        if plain:
            form = self.rng.choice(("plain", "plain", "whole"))
        if form == "grouped":
            return self._grouped(source, where, sight, types)
        if form == "whole":
            return self._grouped(source, where, sight, types, whole=True)
        if types is None and form == "plain" and self.write.flag(4):
            return self._starred(source, where, sight)
        return self._plain(source, where, sight, types, form)

    def _condition(self, sight: Sight, depth: int) -> str:
        parts = [self.write.one(BOOL, sight, max(depth, 1)) for _ in range(self.rng.randint(1, 3))]
        return " AND ".join(f"({part})" if " OR " in part or "CASE" in part else part for part in parts)

    def _named(self, values: list[tuple[str, str]]) -> tuple[str, list[Column]]:
        """Output columns with and without aliases, and those with a name of their own."""
        found: list[str] = []
        columns: list[Column] = []
        for at, (text, kind) in enumerate(values):
            bare = _BARE.fullmatch(text)
            if self.write.flag(5):
                found.append(text)
                if bare and text not in ("true", "false"):
                    columns.append(Column(bare.group(1).strip('"'), kind))
                continue
            name = self.rng.choice(NAMES) if self.write.flag(3) else f"c{at}"
            columns.append(Column(name, kind))
            found.append(f"{text} AS {quoted(name)}")
        names = [column.name.lower() for column in columns]
        return ", ".join(found), [one for one in columns if names.count(one.name.lower()) == 1]

    def _plain(self, source: str, where: str, sight: Sight, types: tuple[str, ...] | None, form: str) -> Block:
        kinds = types or tuple(self.rng.choice(EVERY) for _ in range(self.rng.randint(1, 3)))
        values = [(self.write.one(kind, sight, 2), kind) for kind in kinds]
        extra = ""
        if form == "windows":
            window = self._window(sight)
            if self.write.flag(3):
                window = f"CASE WHEN {self.write.one(BOOL, sight, 1)} THEN {window} END"
            elif self.write.flag(4):
                window = f"CASE WHEN {window} > 1 THEN {self.write.one(INT, sight, 2)} END"
            if types is None:
                values.append((window, INT))
            if self.write.flag(2):
                extra = f" QUALIFY {self._window(sight)} {self.rng.choice(('= 1', '> 1'))}"
                if self.write.flag(2):
                    extra += f" AND {self.write.one(BOOL, sight, 1)}"
        listed, columns = self._named(values)
        word = {"distinct": "DISTINCT "}.get(form, "")
        if form == "on":
            keys = ", ".join(text for text, _ in values[:1])
            order = ", ".join(text for text, _ in values[1:])
            text = f"SELECT DISTINCT ON ({keys}) {listed} FROM {source}{where} ORDER BY {keys}"
            text = f"SELECT * FROM ({text}{', ' + order if order else ''}) AS q"
        else:
            text = f"SELECT {word}{listed} FROM {source}{where}{extra}"
        return Block(text, tuple(columns), len(values), kinds)

    def _starred(self, source: str, where: str, sight: Sight) -> Block:
        item = self.rng.choice(sight.items)
        every = [column for one in sight.items for column in one.columns]
        names = [column.name.lower() for column in every]
        star = self.rng.choice(("*", f"{quoted(item.alias)}.*", "*"))
        texts = [c.name for c in every if c.type == TEXT and names.count(c.name.lower()) == 1]
        if star == "*" and texts and not sight.merged and self.write.flag(3):
            name = self.rng.choice(texts)
            form = self.rng.choice(("EXCLUDE", "REPLACE"))
            inside = quoted(name) if form == "EXCLUDE" else f"{self.write.one(TEXT, sight, 1)} AS {quoted(name)}"
            star = f"* {form} ({inside})"
            every = [column for column in every if form == "REPLACE" or column.name != name]
        columns = list(item.columns) if star.endswith(".*") else every
        alone = [c for c in columns if names.count(c.name.lower()) == 1 and c.type in EVERY]
        more = f", {self.write.one(BOOL, sight, 2)} AS extra" if self.write.flag(2) else ""
        found = [*alone, Column("extra", BOOL)] if more else alone
        return Block(f"SELECT {star}{more} FROM {source}{where}", tuple(found), None)

    def _window(self, sight: Sight) -> str:
        write = Expressions(self.rng, ai=self.write.ai)  # DuckDB refuses some subqueries in windows
        over = []
        if write.flag(2):
            over.append(f"PARTITION BY {write.one(self.rng.choice(SIMPLE), sight, 1)}")
        order = f"ORDER BY {write.one(self.rng.choice(SIMPLE), sight, 1)}{self._direction()}"
        call = self.rng.choice(("rank()", "dense_rank()", "count(*)", f"sum({write.one(INT, sight, 1)})"))
        if call.endswith("rank()") or write.flag(2):
            over.append(order)
        return f"{call} OVER ({' '.join(over)})::INTEGER"

    def _aggregate(self, sight: Sight) -> tuple[str, str]:
        write = self.write
        number, text, flag = (write.one(kind, sight, 1) for kind in (INT, TEXT, BOOL))
        found = self.rng.choice(
            (
                ("count(*)", INT),
                (f"count({flag})", INT),
                (f"count(DISTINCT {text})", INT),
                (f"sum({number})", INT),
                (f"max({text})", TEXT),
                (f"min({number})", INT),
                (f"bool_or({flag})", BOOL),
                (f"bool_and({flag})", BOOL),
                (f"max({write.one(DOUBLE, sight, 1)})", DOUBLE),
                (f"string_agg({text}, ',' ORDER BY {text})", TEXT),
            )
        )
        if write.flag(4):
            return f"{found[0]} FILTER (WHERE {write.one(BOOL, sight, 1)})", found[1]
        return found

    def _grouped(
        self, source: str, where: str, sight: Sight, types: tuple[str, ...] | None, *, whole: bool = False
    ) -> Block:
        keys: list[tuple[str, str]] = []
        if not whole:
            for _ in range(self.rng.randint(1, 2)):
                kind = self.rng.choice(SIMPLE)
                column = self.write.column(kind, sight) if self.write.flag(2) else None
                keys.append((column or self.write.one(kind, sight, 1), kind))
        aggregates = [self._aggregate(sight) for _ in range(self.rng.randint(1, 2))]
        above = Sight((), (), leaves=(*keys, *aggregates))
        if types is None:
            values = [*keys, *aggregates]
            if self.write.flag(2):
                kind = self.rng.choice(SIMPLE)
                values.append((self.write.one(kind, above, 1), kind))
        else:
            values = [(self.write.one(kind, above, 1), kind) for kind in types]
        listed, columns = self._named(values)
        group = self._group_by(keys, listed, values, types)
        having = f" HAVING {self.write.one(BOOL, above, 2)}" if self.write.flag(3) else ""
        text = f"SELECT {listed} FROM {source}{where}{group}{having}"
        return Block(text, tuple(columns), len(values), tuple(k for _, k in values))

    def _group_by(
        self, keys: list[tuple[str, str]], listed: str, values: list[tuple[str, str]], types: tuple[str, ...] | None
    ) -> str:
        if not keys:
            return ""
        if types is None:
            form = self.rng.choice(("text", "text", "place", "all"))
            if form == "place":
                return f" GROUP BY {', '.join(str(at + 1) for at in range(len(keys)))}"
            if form == "all" and len(values) == len(keys):
                return " GROUP BY ALL"
        return f" GROUP BY {', '.join(text for text, _ in keys)}"
