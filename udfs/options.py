"""The struct of options that ends a call, and checks of single arguments. Every error names cause and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqluice.config import budget
from sqluice.errors import NotSupportedError
from sqluice.types import split_template
from sqluice.udfs.names import near
from sqluice.udfs.spec import BindError, Const

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqluice.udfs.spec import Arg, OptionValue

MAX_TOKENS = 256
MAX_GRADES = 11
MOST_BITS = 8

TARGETS = ("recall", "precision", "accuracy", "delta")
CONTRACT = (*TARGETS, "budget")


class NotConstantError(BindError):
    """An argument that must be the same on every row comes from the rows."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one call, checked. `contract` is sorted by name, so that equal contracts are equal."""

    model: str | None = None
    errors: bool = False
    scale: tuple[int, int] | None = None
    max_tokens: int = MAX_TOKENS
    multi: bool = False
    task: str | None = None
    equivalence: bool = False
    merge: bool = False
    bits: float | None = None
    contract: tuple[tuple[str, OptionValue], ...] = ()

    def named(self) -> tuple[tuple[str, OptionValue], ...]:
        """What a `Spec` keeps of them: contract, precision, and flags that tell the planner something."""
        flags = [(name, True) for name in ("equivalence", "merge") if getattr(self, name)]
        bits = () if self.bits is None else (("bits", self.bits),)
        return (*self.contract, *bits, *flags)


class _WrongError(ValueError):
    """What an option's value must be; the caller adds which option, and the value."""


def parse(function: str, allowed: tuple[str, ...], arg: Arg, at: int) -> Options:
    """The options in `arg`, argument number `at` of a call of `function`, which takes those named in `allowed`.

    `BindError` when they are not a constant struct, hold an unknown name or a bad value, or contradict.
    """
    given = _struct(function, arg, at)
    fields: dict[str, Any] = {}
    contract: dict[str, OptionValue] = {}
    for key, value in given.items():
        name = str(key).lower()
        if name not in allowed:
            raise BindError(_unknown(function, name, allowed), at)
        try:
            parsed = _CHECKS[name](value)
        except _WrongError as wrong:
            raise BindError(f"option {name} of {function} {wrong}; not {shown(value)}", at) from None
        if name in CONTRACT:
            contract[name] = parsed
        elif name in _FIELDS:
            fields[_FIELDS[name]] = parsed
    if "accuracy" in contract and ("recall" in contract or "precision" in contract):
        raise BindError(
            f"the options of {function} contradict: accuracy is one contract, recall with precision another; keep one",
            at,
        )
    return Options(**fields, contract=tuple(sorted(contract.items())))


def _struct(function: str, arg: Arg, at: int) -> dict[Any, Any]:
    if not isinstance(arg, Const):
        raise NotConstantError(
            f"options must be constant: those of {function} are a struct such as {{'model': '...'}}", at
        )
    if not isinstance(arg.value, dict):
        raise BindError(
            f"the options of {function} are a struct such as {{'model': '...'}}; not {shown(arg.value)}", at
        )
    return arg.value


def _unknown(function: str, name: str, allowed: tuple[str, ...]) -> str:
    if name in CONTRACT:
        why = "is for yes/no answers" if name in ("recall", "precision") else "is no contract of it"
        return f"{function} has no option {name}, which {why}; it takes {', '.join(allowed)}"
    hint = near(name, allowed)
    known = "" if hint.startswith("there are") else f" It takes {', '.join(allowed)}"
    return f"{function} has no option {name}: {hint}{known}"


def is_struct(arg: Arg) -> bool:
    """Whether `arg` is a constant struct, as options are."""
    return isinstance(arg, Const) and isinstance(arg.value, dict)


def constant_text(what: str, arg: Arg, at: int) -> str:
    """The constant string in `arg`; `BindError` when it is none, or blank. `what` names it in the message."""
    if not isinstance(arg, Const):
        raise NotConstantError(f"{what} must be a constant string", at)
    if not isinstance(arg.value, str) or not arg.value.strip():
        raise BindError(f"{what} must be a constant string; not {shown(arg.value)}", at)
    return arg.value


def wrong_count(function: str, signatures: Sequence[str], given: int) -> BindError:
    """The error for a call with a number of arguments that no signature has."""
    arguments = f"{given} argument{'' if given == 1 else 's'}" if given else "arguments"
    verb = "does not take" if given else "needs"
    return BindError(f"{function} {verb} {arguments}; write {' or '.join(signatures)}")


def shown(value: object) -> str:
    """A constant as SQL writes it, cut to 60 characters."""
    if value is None:
        return "NULL"
    text = str(value) if isinstance(value, Decimal) else repr(value)
    if isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= 60 else f"{text[:57]}..."


def has_placeholder(text: str) -> bool:
    """Whether `text`, used as a template, would ask for an argument."""
    return any(isinstance(piece, int) for piece in split_template(text))


def _budget(value: object) -> str:
    try:
        return budget(value)
    except ValueError as error:
        raise _WrongError(str(error)) from None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None


def _share(value: object) -> float:
    number = _number(value)
    if number is None or not 0 < number < 1:
        raise _WrongError("lies strictly between 0 and 1, such as 0.95")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongError("must be a string that is not empty")
    return value


def _task(value: object) -> str:
    text = _text(value)
    if has_placeholder(text):
        raise _WrongError("is plain text without placeholders: those belong in PROMPT")
    return text.strip()


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("must be true or false")
    return value


def _scale(value: object) -> tuple[int, int]:
    ends = tuple(value) if isinstance(value, list | tuple) else ()
    if len(ends) != 2 or any(type(end) is not int for end in ends) or ends[0] >= ends[1]:
        raise _WrongError("must be two whole numbers, the lower first, such as [1, 5]")
    if ends[1] - ends[0] >= MAX_GRADES:
        raise _WrongError(f"has at most {MAX_GRADES} grades, such as [0, {MAX_GRADES - 1}]")
    return ends[0], ends[1]


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise _WrongError("must be a whole number, 1 or more")
    return value


def _bits(value: object) -> float:
    number = _number(value)
    if number is None or not 1 <= number <= MOST_BITS:
        raise _WrongError(f"lies between 1 and {MOST_BITS}, such as 4")
    return number


def _temperature(value: object) -> None:
    if _number(value) != 0:
        raise _WrongError("must be 0: an AI expression means the answer at temperature 0")


def _output_mode(value: object) -> bool:
    if not isinstance(value, str) or value.lower() not in ("single", "multi"):
        raise _WrongError("must be 'single' or 'multi'")
    return value.lower() == "multi"


def _response_format(value: object) -> None:
    import json

    schema = value
    if isinstance(value, str):
        try:
            schema = json.loads(value)
        except ValueError as error:
            raise _WrongError(f"is no valid JSON ({error})") from None
    if isinstance(schema, dict) and schema.get("type") == "json":
        schema = schema.get("schema")
    if not isinstance(schema, dict) or schema.get("type") != "object" or not _is_dict(schema.get("properties", {})):
        raise _WrongError("must be a JSON schema such as {'type': 'object', 'properties': {...}}")
    raise NotSupportedError("response_format is not in this version; leave it out and parse the text")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


_FIELDS = {
    "model": "model",
    "errors": "errors",
    "equivalence": "equivalence",
    "merge": "merge",
    "scale": "scale",
    "max_tokens": "max_tokens",
    "bits": "bits",
    "output_mode": "multi",
    "task_description": "task",
}

_CHECKS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(TARGETS, _share),
    "budget": _budget,
    "model": _text,
    "errors": _flag,
    "equivalence": _flag,
    "merge": _flag,
    "scale": _scale,
    "max_tokens": _count,
    "bits": _bits,
    "temperature": _temperature,
    "output_mode": _output_mode,
    "task_description": _task,
    "response_format": _response_format,
}
