"""The shortcut for a question that is an equivalence ("are the same thing"): who is equal to the same is equal, and
who is different from one of equals is different from all. Only where the query asks for it: no test can prove it.

Union-find with sets of what is known to differ (Wang et al., "Leveraging transitive relations for crowdsourced joins",
2013, section 3).
"""

from __future__ import annotations

import numpy as np

ASSUMING = "equivalence"

AUDITED = 60
"""Pairs whose answers follow from others that are asked about in the end all the same, as many equal ones as not."""


class Equivalence:
    """What follows from the answers so far about `n` inputs."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)
        self._differ: dict[int, set[int]] = {}

    def learn(self, a: int, b: int, *, equal: bool) -> bool:
        """An answer; whether it contradicts those before it. Of two that do the one that says equal holds."""
        a, b = self._root(a), self._root(b)
        if a == b:
            return not equal
        if not equal:
            self._differ.setdefault(a, set()).add(b)
            self._differ.setdefault(b, set()).add(a)
            return False
        contradicts = b in self._differ.get(a, ())
        for root, other in ((a, b), (b, a)):
            self._differ.get(root, set()).discard(other)
        self._parent[b] = a
        for other in self._differ.pop(b, set()):
            self._differ[other].discard(b)
            self._differ[other].add(a)
            self._differ.setdefault(a, set()).add(other)
        return contradicts

    def follows(self, a: int, b: int) -> bool | None:
        """Whether two inputs are equal, None where nothing tells."""
        a, b = self._root(a), self._root(b)
        if a == b:
            return True
        return False if b in self._differ.get(a, ()) else None

    def _root(self, a: int) -> int:
        root = a
        while self._parent[root] != root:
            root = int(self._parent[root])
        while self._parent[a] != root:
            self._parent[a], a = root, int(self._parent[a])
        return root
