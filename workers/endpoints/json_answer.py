"""Answers in JSON: whether a text fits a JSON schema, for servers that promise it and for those that cannot."""

from __future__ import annotations

import json
import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def instruction(schema: dict[str, object]) -> str:
    """What a model is told that cannot be held to a schema."""
    return f"Answer with one JSON value that fits this JSON schema, and nothing else: {json.dumps(schema)}"


def bare(text: str) -> str:
    """`text` without the fences that models like to put around JSON."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return fenced.group(1) if fenced else text.strip()


def misfit(text: str, schema: dict[str, object]) -> str:
    """Why `text` is not what `schema` asks for, without quoting it; empty when it is.

    Looks at type, enum, const, required, properties, additionalProperties: false and items, as far down as they go;
    other keywords are left to the server.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return "it is not JSON"
    return _misfit(value, schema, "the answer")


def _misfit(value: Any, schema: dict[str, Any], where: str) -> str:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{where} is no {' or '.join(kinds)}"
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        return f"{where} is none of the values allowed"
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return next(filter(None, (_misfit(one, schema["items"], f"an item of {where}") for one in value)), "")
    return _misfit_object(value, schema, where) if isinstance(value, dict) else ""


def _misfit_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> str:
    known = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            return f"{where} has no {name}"
    if schema.get("additionalProperties") is False and set(value) - set(known):
        return f"{where} has more than {', '.join(known) or 'nothing'}"
    return next(filter(None, (_misfit(value[name], known[name], name) for name in known if name in value)), "")


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, _TYPES.get(kind, (object,)))
