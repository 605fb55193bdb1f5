"""Random SQL expressions of a wanted type, with AI calls in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from property.data import BOOL, DOUBLE, INT, LABELS, NUMBERS, OUTCOME, RECORD, TEXT, VECTOR, WORDS, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from property.data import Column

QUESTIONS = ("ripe?", "red or {0}?", "short?")
LABEL_LISTS = ("['red', 'Pear']", "['plum', 'red', 'it''s']", "[{'label': 'red', 'description': 'a colour'}, 'plum']")


@dataclass(frozen=True, slots=True)
class Item:
    """A FROM item: its alias and the columns that its alias can qualify."""

    alias: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What an expression can name: the items of its own level, and those around it; or only `leaves`, expressions with
    their types. `merged` tells that USING joined two columns into one."""

    items: tuple[Item, ...]
    around: tuple[Item, ...] = ()
    merged: bool = False
    leaves: tuple[tuple[str, str], ...] = ()

    def plus_around(self) -> Sight:
        """Seen from a correlated query."""
        return Sight((), (*self.items, *self.around))


@dataclass(slots=True)
class Expressions:
    """Writes expressions. `query` writes a subquery of one column of a type, that sees `around`."""

    rng: Random
    subquery: Callable[[str, Sight, int], str] | None = None
    ai: int = 3
    """One in so many places holds an AI call."""
    made: int = field(default=0)

    def one(self, kind: str, sight: Sight, depth: int = 2) -> str:
        """An expression of type `kind`."""
        makers: dict[str, Callable[[Sight, int], str]] = {
            TEXT: self._text,
            INT: self._int,
            BOOL: self._bool,
            DOUBLE: self._double,
            LABELS: self._labels,
            OUTCOME: self._outcome,
            RECORD: self._record,
            VECTOR: self._vector,
        }
        return makers[kind](sight, depth)

    def flag(self, one_in: int) -> bool:
        """True one time in so many."""
        return self.rng.randint(1, one_in) == 1

    def column(self, kind: str, sight: Sight) -> str | None:
        """A column of a type, qualified or not where both mean the same."""
        if sight.leaves:
            texts = [text for text, known in sight.leaves if known == kind]
            return self.rng.choice(texts) if texts else None
        level = sight.items
        if sight.around and (not level or self.flag(3)):
            level = sight.around
        found = [(item, column) for item in level for column in item.columns if column.type == kind]
        if not found:
            return None
        item, column = self.rng.choice(found)
        name = quoted(column.name)
        every = [other.name.lower() for one in (*sight.items, *sight.around) for other in one.columns]
        aliases = {one.alias.lower() for one in (*sight.items, *sight.around)}
        if name[0] != '"' and self.flag(6):
            name = name.upper() if self.flag(2) else f'"{name}"'
        alone = every.count(column.name.lower()) == 1 and column.name.lower() not in aliases
        return name if alone and not self.flag(3) else f"{quoted(item.alias)}.{name}"

    def call(self, kind: str, sight: Sight, depth: int) -> str | None:
        """An AI call of a type. No two functions ask a model the same, so that it can count what is asked twice."""
        self.made += 1
        text = self._argument(sight, depth)
        two = f"PROMPT('{{0}} {{1}}', {text}, {self._argument(sight, depth)})"
        one = f"PROMPT('{self.rng.choice(QUESTIONS)} {{0}}', {text})"
        options: dict[str, tuple[str, ...]] = {
            BOOL: (
                f"AI_FILTER({text})",
                f"AI_FILTER('{self.rng.choice(QUESTIONS[::2])}', {text})",
                f"AI_FILTER({one})",
                f"AI_FILTER({two})",
                f"(AI_FILTER({one}, {{'errors': true}})).value",
            ),
            TEXT: (
                f"AI_CLASSIFY({text}, {self.rng.choice(LABEL_LISTS)})",
                f"AI_COMPLETE({one})",
                f"(AI_FILTER({one}, {{'errors': true}})).error",
            ),
            DOUBLE: (
                f"AI_SCORE(PROMPT('how {{0}}', {text}))",
                f"AI_SCORE(PROMPT('{{0}} / {{1}}', {text}, {self._argument(sight, depth)}))",
                f"AI_SCORE({one}, {{'scale': [1, 5]}})",
                f"AI_SIMILARITY(CAST({text} AS VARCHAR), {self.column(TEXT, sight) or self._word()})",
            ),
            LABELS: (f"AI_CLASSIFY({text}, ['red', 'it''s', 'Pear', 'plum'], {{'output_mode': 'multi'}})",),
            OUTCOME: (f"AI_FILTER({one}, {{'errors': true}})",),
            VECTOR: (f"AI_EMBED({text})",),
        }
        return self.rng.choice(options[kind]) if kind in options else None

    def _argument(self, sight: Sight, depth: int) -> str:
        if depth > 0 and self.flag(4):
            return self.one(self.rng.choice((TEXT, TEXT, INT)), sight, depth - 1)
        return self.column(TEXT, sight) or self._word()

    def _word(self) -> str:
        return literal(self.rng.choice(WORDS))

    def _pick(self, kind: str, sight: Sight, depth: int, simple: str, nested: tuple[Callable[[], str], ...]) -> str:
        """An AI call, a column or `simple`, or one of `nested`, which may be deeper."""
        if self.flag(self.ai):
            called = self.call(kind, sight, depth - 1)
            if called is not None:
                return called
        if depth <= 0 or self.flag(3):
            return self.column(kind, sight) or simple
        return self.rng.choice(nested)()

    def _choice(self, kind: str, sight: Sight, depth: int) -> tuple[Callable[[], str], ...]:
        """Forms that any type has."""

        def case() -> str:
            arms = "".join(
                f" WHEN {self.one(BOOL, sight, depth - 1)} THEN {self.one(kind, sight, depth - 1)}"
                for _ in range(self.rng.randint(1, 2))
            )
            other = f" ELSE {self.one(kind, sight, depth - 1)}" if self.flag(2) else ""
            return f"CASE{arms}{other} END"

        def subject() -> str:
            a, b = (self.one(INT, sight, 0) for _ in range(2))
            values = [self.one(kind, sight, depth - 1) for _ in range(2)]
            return f"CASE {a} WHEN {b} THEN {values[0]} ELSE {values[1]} END"

        def coalesce() -> str:
            return f"COALESCE({self.one(kind, sight, depth - 1)}, {self.one(kind, sight, depth - 1)})"

        def branch() -> str:
            values = f"{self.one(kind, sight, depth - 1)}, {self.one(kind, sight, depth - 1)}"
            return f"IF({self.one(BOOL, sight, depth - 1)}, {values})"

        def query() -> str:
            if self.subquery is None or not self.flag(2):
                return coalesce()
            return self.subquery(kind, sight.plus_around() if self.flag(2) else Sight(()), depth - 1)

        return case, subject, coalesce, branch, query

    def _text(self, sight: Sight, depth: int) -> str:
        def deeper(kind: str = TEXT) -> str:
            return self.one(kind, sight, depth - 1)

        nested = (
            lambda: f"lower({deeper()})",
            lambda: f"({deeper()} || {deeper()})",
            lambda: f"CAST({deeper(self.rng.choice((INT, BOOL)))} AS VARCHAR)",
            lambda: f"({deeper(RECORD)}).f",
            lambda: f"list_transform([{deeper()}], z -> z || {deeper()})[1]",
            *self._choice(TEXT, sight, depth),
        )
        return self._pick(TEXT, sight, depth, self._word(), nested)

    def _int(self, sight: Sight, depth: int) -> str:
        def deeper(kind: str = INT) -> str:
            return self.one(kind, sight, depth - 1)

        nested = (
            lambda: f"length({deeper(TEXT)})::INTEGER",
            lambda: f"({deeper()} + {deeper()})",
            lambda: f"len({deeper(LABELS)})::INTEGER",
            lambda: f"({deeper(RECORD)}).n",
            *self._choice(INT, sight, depth),
        )
        return self._pick(INT, sight, depth, str(self.rng.choice(NUMBERS)), nested)

    def _bool(self, sight: Sight, depth: int) -> str:
        def deeper(kind: str = BOOL) -> str:
            return self.one(kind, sight, depth - 1)

        def within() -> str:
            if self.subquery is None or not self.flag(2):
                return f"{deeper(INT)} IN (1, {deeper(INT)})"
            around = sight.plus_around() if self.flag(2) else Sight(())
            if self.flag(2):
                return f"{self.rng.choice(('', 'NOT '))}EXISTS {self.subquery(INT, around, depth - 1)}"
            return f"{deeper(INT)} {self.rng.choice(('', 'NOT '))}IN {self.subquery(INT, around, depth - 1)}"

        nested = (
            lambda: f"({deeper()} AND {deeper()})",
            lambda: f"({deeper()} OR {deeper()})",
            lambda: f"NOT {deeper()}",
            lambda: f"({deeper()} AND ({deeper()} OR {deeper()}))",
            lambda: f"{deeper(INT)} {self.rng.choice(('<', '=', '<>', '>='))} {deeper(INT)}",
            lambda: f"{deeper(TEXT)} {self.rng.choice(('LIKE', 'NOT LIKE'))} '%e%'",
            lambda: f"({deeper(self.rng.choice((BOOL, TEXT)))}) IS {self.rng.choice(('', 'NOT '))}NULL",
            lambda: f"{deeper(DOUBLE)} > 0.5",
            lambda: f"list_contains({deeper(LABELS)}, 'red')",
            lambda: f"{deeper()} IS DISTINCT FROM {deeper()}",
            lambda: f"{deeper(INT)} BETWEEN {deeper(INT)} AND 3",
            within,
            *self._choice(BOOL, sight, depth),
        )
        return self._pick(BOOL, sight, depth, self.rng.choice(("true", "false", "NULL::BOOLEAN")), nested)

    def _double(self, sight: Sight, depth: int) -> str:
        def deeper(kind: str = DOUBLE) -> str:
            return self.one(kind, sight, depth - 1)

        nested = (
            lambda: f"-{deeper()}",
            lambda: f"({deeper()} * 2)",
            lambda: f"({deeper(INT)} / 2)",
            *self._choice(DOUBLE, sight, depth),
        )
        return self._pick(DOUBLE, sight, depth, "1.5::DOUBLE", nested)

    def _labels(self, sight: Sight, depth: int) -> str:
        nested = (
            lambda: f"[{self.one(TEXT, sight, depth - 1)}]",
            lambda: f"list_filter([{self.one(TEXT, sight, depth - 1)}], z -> z <> {self.one(TEXT, sight, depth - 1)})",
            lambda: f"[z || 'x' FOR z IN {self.one(LABELS, sight, depth - 1)} IF z <> 'red']",
            lambda: f"list_transform([{self.one(TEXT, sight, 0)}], z -> AI_CLASSIFY(z, ['red', 'plum']))",
        )
        return self._pick(LABELS, sight, depth, "['red']", nested)

    def _outcome(self, sight: Sight, depth: int) -> str:
        if self.flag(2):
            return self.column(OUTCOME, sight) or str(self.call(OUTCOME, sight, depth - 1))
        return str(self.call(OUTCOME, sight, depth - 1))

    def _record(self, sight: Sight, depth: int) -> str:
        found = self.column(RECORD, sight)
        if found is not None and not self.flag(3):
            return found
        return f"{{'f': {self.one(TEXT, sight, depth - 1)}, 'n': {self.one(INT, sight, depth - 1)}}}"

    def _vector(self, sight: Sight, depth: int) -> str:
        return str(self.call(VECTOR, sight, depth - 1))
