"""Move AI predicates from the ON of inner joins to the WHERE.

    a JOIN b ON a.k = b.k AND __ai(1, a.x, b.y)   ->   a JOIN b ON a.k = b.k WHERE __ai(1, a.x, b.y)

For inner and cross joins both mean the same; in the WHERE the predicate is asked after everything cheap.
"""

from __future__ import annotations

from sqlglot import exp

from sqluice.optimizer.ast import conjunction, conjuncts, has_site


def apply(select: exp.Select) -> bool:
    """Change `select` in place; whether anything changed."""
    moved: list[exp.Expr] = []
    joins = select.args.get("joins") or []
    last = max((at for at, join in enumerate(joins) if (join.side or "").upper() in ("RIGHT", "FULL")), default=-1)
    for join in joins[last + 1 :]:  # RIGHT and FULL add rows that a WHERE would drop again
        on = join.args.get("on")
        if on is None or not is_inner(join) or not has_site(on):
            continue
        parts = conjuncts(on)
        moved += [part for part in parts if has_site(part)]
        join.set("on", conjunction([part for part in parts if not has_site(part)]))
        if join.args.get("on") is None:
            join.set("kind", "CROSS")
    if not moved:
        return False
    where = select.args.get("where")
    every = [*conjuncts(where.this if where is not None else None), *moved]
    select.set("where", exp.Where(this=conjunction([part.copy() for part in every])))
    return True


def is_inner(join: exp.Join) -> bool:
    """Whether a join keeps exactly the pairs that match."""
    return not join.side and (join.kind or "").upper() in ("", "INNER", "CROSS") and not join.method
