"""Write named windows out where they are used, when one of them holds a question.

SELECT sum(k) OVER w FROM t WINDOW w AS (PARTITION BY __ai(1, s))
->  SELECT sum(k) OVER (PARTITION BY __ai(1, s)) FROM t
"""

from __future__ import annotations

from sqlglot import exp

from sqluice.optimizer.ast import has_site, own

_PARTS = ("partition_by", "order", "spec")


def apply(select: exp.Select) -> bool:
    """Inline the named windows of `select` in place; whether there was anything to do."""
    named = {window.name.lower(): window for window in select.args.get("windows") or ()}
    if not any(map(has_site, named.values())):
        return False
    for window in [node for node in own(select) if isinstance(node, exp.Window)]:
        if window.name.lower() in named and window.args.get("over") is None:
            continue
        _fill(window, named)
    select.set("windows", None)
    return True


def _fill(window: exp.Window, named: dict[str, exp.Expr]) -> None:
    """Give a window the parts of the one that it names."""
    while (alias := window.args.get("alias")) is not None:
        base = named[alias.name.lower()]
        window.set("alias", base.args["alias"].copy() if base.args.get("alias") else None)
        for part in _PARTS:
            value = base.args.get(part)
            if value and not window.args.get(part):
                window.set(part, [one.copy() for one in value] if isinstance(value, list) else value.copy())
