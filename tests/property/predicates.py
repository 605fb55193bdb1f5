"""Random predicates with questions, for WHERE clauses of which every part may cost something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from property.data import BOOL, DOUBLE, INT, TEXT
from property.expressions import QUESTIONS, Expressions, Sight

if TYPE_CHECKING:
    from random import Random


class Predicates:
    """Writes predicates; `write` knows the columns."""

    def __init__(self, rng: Random, write: Expressions) -> None:
        self.rng = rng
        self.write = write

    def one(self, sight: Sight, depth: int) -> str:
        """A predicate with up to `depth` levels of AND, OR, NOT and CASE."""
        form = self.rng.randint(0, 7)
        if depth <= 0 or form < 3:
            return self.cheap(sight) if self.write.flag(6) else self.leaf(sight)
        parts = [self.one(sight, depth - 1) for _ in range(self.rng.choice((2, 2, 3)))]
        if form == 3:
            return f"NOT ({parts[0]})"
        if form == 4:
            other = f" ELSE {parts[-1]}" if self.write.flag(2) else ""
            return f"CASE WHEN {parts[0]} THEN {parts[1]}{other} END"
        return f"({(' OR ' if form > 5 else ' AND ').join(parts)})"

    def leaf(self, sight: Sight) -> str:
        """One question, or a comparison of what it gives."""
        call = self._asked(sight)
        return self.rng.choice(
            (
                *(call, call, call, call, f"{call} IS {self.rng.choice(('', 'NOT '))}NULL"),
                f"{self._score(sight)} {self.rng.choice(('>', '>', '<='))} .5",
                f"{self.label(sight)} {self.rng.choice(('=', '<>', 'IN'))} ('red')",
                f"coalesce({call}, {self.rng.choice(('true', 'false'))})",
            )
        )

    def label(self, sight: Sight) -> str:
        """A question that gives a text."""
        return self.write.call(TEXT, sight, 0) or "'red'"

    def cheap(self, sight: Sight) -> str:
        """A predicate that DuckDB decides."""
        number = self.write.column(INT, sight) or "1"
        text = self.write.column(TEXT, sight) or "'e'"
        return self.rng.choice((f"{number} > 1", f"{number} IS NULL", f"{text} LIKE '%e%'", f"{number} % 3 <> 1"))

    def _score(self, sight: Sight) -> str:
        return self.write.call(DOUBLE, sight, 0) or "0.7"

    def _asked(self, sight: Sight) -> str:
        if self.write.flag(3):
            return self.write.call(BOOL, sight, 0) or "true"
        text = self.write.column(TEXT, sight) or "'red'"
        return f"AI_FILTER(PROMPT('{self.rng.choice(QUESTIONS)} {{0}}', {text}))"
