"""Which rows cannot be in a join, by the conditions between its groups of tables: they go before any question is asked.

A semi-join takes from a group the rows that meet a condition with no row of another group. From the leaves of a tree of
conditions to its root and back, semi-joins leave exactly the rows of the whole join (Bernstein and Chiu, "Using
semi-joins to solve relational queries", 1981). Where conditions form a ring, or look at three groups at once, the
others of a group have to be joined first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def semi_joins(links: Sequence[frozenset[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """What to take rows from, and by which groups together, in this order. Each of `links` holds the numbers of the
    groups that a condition looks at."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for component in _components(links):
        if len(component) < 2:
            continue
        here = {link for link in links if link <= component}
        down = _outwards(here, min(component))
        found += [(inner, (outer,)) for inner, outer in reversed(down)]
        found += [(outer, (inner,)) for inner, outer in down]
        if len(here) > len(down) or any(len(link) > 2 for link in here):
            found += [(one, tuple(sorted(component - {one}))) for one in sorted(component)]
    return found


def between(links: Iterable[frozenset[int]], a: int, b: int) -> list[tuple[int, ...]]:
    """The other groups, as far as a chain of conditions leads from group `a` over them to group `b`: a pair of rows
    has to meet the conditions of each chain with the same rows there."""
    links = list(links)
    inner = [link - {a, b} for link in links if link - {a, b}]
    found = []
    for component in _components(inner):
        touched = frozenset[int]().union(*(link for link in links if link & component))
        if {a, b} <= touched:
            found.append(tuple(sorted(component)))
    return found


def _components(links: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    """Groups that conditions connect, in the order of their first ones."""
    found: list[frozenset[int]] = []
    for link in links:
        apart = [one for one in found if not one & link]
        found = [*apart, link.union(*(one for one in found if one & link))]
    return sorted(found, key=min)


def _outwards(links: Iterable[frozenset[int]], root: int) -> list[tuple[int, int]]:
    """The conditions between two groups that make a tree, each with the group nearer to the root first."""
    pairs = sorted(tuple(sorted(link)) for link in links if len(link) == 2)
    found: list[tuple[int, int]] = []
    reached, todo = {root}, [root]
    while todo:
        inner = todo.pop(0)
        for a, b in pairs:
            outer = b if a == inner else a
            if inner in (a, b) and outer not in reached:
                found.append((inner, outer))
                reached.add(outer)
                todo.append(outer)
    return found
