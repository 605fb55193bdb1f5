"""What a question may get wrong when cheaper tiers help to answer it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.types import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqluice.config import Value
    from sqluice.udfs.spec import Spec


def contract_of(spec: Spec, settings: Mapping[str, Value]) -> Contract | None:
    """The contract of a question, from its options and else from the session's settings; None where only the oracle
    can answer it: texts, embeddings and lists of labels. That of a score is about the best ones: recall alone."""
    if spec.operation != "score" or spec.multi:
        return None
    given = dict(spec.options)

    def value(name: str) -> float:
        return float(given.get(name, settings[f"ai_{name}"]) or 0)

    if spec.returns == "BOOLEAN" and "accuracy" not in given:
        return Contract(recall=value("recall"), precision=value("precision"), delta=value("delta"))
    if spec.returns == "DOUBLE":
        return Contract(recall=value("recall"), delta=value("delta"))
    if spec.returns in ("BOOLEAN", "VARCHAR"):
        return Contract(accuracy=value("accuracy"), delta=value("delta"))
    return None
