"""AI_CLASSIFY: the label, or with `{'output_mode': 'multi'}` the labels, that fit a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqluice.udfs.function import Function
from sqluice.udfs.options import NotConstantError, Options, has_placeholder, parse, shown, wrong_count
from sqluice.udfs.prompts import as_prompt
from sqluice.udfs.spec import BindError, Bound, Const, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

NAME = "AI_CLASSIFY"
SIGNATURES = (
    "AI_CLASSIFY(text, ['a', 'b'] [, options])",
    "AI_CLASSIFY(PROMPT('..{0}..', a), ['a', 'b'] [, options])",
)
OPTIONS = ("model", "output_mode", "task_description", "accuracy", "delta", "budget", "merge", "errors", "bits")
MAX_LABELS = 500

Label = tuple[str, str]


def bind(args: Sequence[Arg]) -> Bound:
    """The call as a score of its labels. `returns` is VARCHAR[] for several labels."""
    if not 2 <= len(args) <= 3:
        raise wrong_count(NAME, SIGNATURES, len(args))
    prompt = as_prompt(NAME, args[0], 0)
    found = labels(args[1])
    options = parse(NAME, OPTIONS, args[2], 2) if len(args) == 3 else Options()
    spec = Spec(
        NAME,
        "score",
        "VARCHAR[]" if options.multi else "VARCHAR",
        kind="classify",
        template=instruction(found, options) + prompt.template,
        choices=tuple(label for label, _ in found),
        model=options.model,
        multi=options.multi,
        errors=options.errors,
        options=options.named(),
    )
    return Bound(spec, prompt.args)


def instruction(found: Sequence[Label], options: Options) -> str:
    """The lines in front of the text: the task, the question, then `label: description` where there is one."""
    lines = [] if options.task is None else [options.task]
    lines.append("Which labels fit the text?" if options.multi else "Which label fits the text?")
    lines += [f"{label}: {description}" for label, description in found if description]
    return "".join(f"{line}\n" for line in lines)


def labels(arg: Arg) -> list[Label]:
    """Labels with their descriptions ('' for none); `BindError` unless two or more that differ."""
    if not isinstance(arg, Const):
        raise NotConstantError("labels must be constant: write AI_CLASSIFY(text, ['a', 'b'])", 1)
    if not isinstance(arg.value, list | tuple):
        raise BindError(f"the labels of {NAME} are a list such as ['a', 'b']; not {shown(arg.value)}", 1)
    found = [_label(value) for value in arg.value]
    if len(found) < 2:
        raise BindError(f"{NAME} needs two labels or more; not {len(found)}", 1)
    if len(found) > MAX_LABELS:
        raise BindError(f"{NAME} takes at most {MAX_LABELS} labels; not {len(found)}: classify in two steps", 1)
    seen: dict[str, str] = {}
    for label, _ in found:
        key = label.strip().casefold()
        if key in seen:
            raise BindError(f"labels {seen[key]!r} and {label!r} of {NAME} are the same: keep one", 1)
        seen[key] = label
    return found


def _label(value: object) -> Label:
    if isinstance(value, dict):
        return _described({str(key).lower(): part for key, part in value.items()})
    if not isinstance(value, str) or not value.strip():
        raise BindError(f"a label of {NAME} is a string that is not empty; not {shown(value)}", 1)
    return value, ""


def _described(parts: dict[str, object]) -> Label:
    unknown = sorted(set(parts) - {"label", "description"})
    if unknown or "label" not in parts:
        wrong = f"not {unknown[0]!r}" if unknown else "label is missing"
        raise BindError(f"a label of {NAME} is a struct {{'label': .., 'description': ..}}; {wrong}", 1)
    label, _ = _label(parts["label"] if not isinstance(parts["label"], dict) else None)
    description = parts.get("description")
    if description is None:
        return label, ""
    if not isinstance(description, str):
        raise BindError(f"the description of label {label!r} is a string; not {shown(description)}", 1)
    if has_placeholder(label + description):
        raise BindError(f"label {label!r} is described in plain text: placeholders belong in PROMPT", 1)
    return label, " ".join(description.split())


FUNCTION = Function(NAME, SIGNATURES, "VARCHAR", OPTIONS, "the label that fits the text, of those in the list", bind)
