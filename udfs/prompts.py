"""Prompts from the arguments of a call: PROMPT(..), an instruction with its column, a bare text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqluice.types import split_template
from sqluice.udfs.options import (
    Options,
    constant_text,
    has_placeholder,
    is_struct,
    parse,
    shown,
    wrong_count,
)
from sqluice.udfs.spec import BindError, Const, PromptValue, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg


def prompt_value(args: Sequence[Const | Row]) -> PromptValue:
    """`PROMPT(template, a, ..)` checked: unused arguments are dropped and the placeholders numbered anew.

    `BindError` for no template, one that is not a constant string, or a placeholder without an argument.
    """
    if not args:
        raise BindError("PROMPT needs a template: PROMPT('..{0}..', a)", 0)
    template = constant_text("the template of PROMPT", args[0], 0)
    pieces = split_template(template)
    used = sorted({piece for piece in pieces if isinstance(piece, int)})
    given = len(args) - 1
    for number in used:
        if number >= given:
            has = f"{given} argument{'' if given == 1 else 's'}"
            raise BindError(f"PROMPT has no argument for placeholder {{{number}}}: it has {has}", 0)
    anew = {number: at for at, number in enumerate(used)}
    text = "".join(piece if isinstance(piece, str) else f"{{{anew[piece]}}}" for piece in pieces)
    return PromptValue(text, tuple(args[number + 1] for number in used))


def as_prompt(function: str, arg: Arg, at: int) -> PromptValue:
    """`arg` as a prompt: itself, or a text alone. `BindError` for a constant struct or list."""
    if isinstance(arg, PromptValue):
        return arg
    if isinstance(arg, Const) and isinstance(arg.value, dict | list | tuple):
        raise BindError(f"{function} takes a text or PROMPT(..) here; not {shown(arg.value)}", at)
    return PromptValue("{0}", (arg,))


def with_instruction(function: str, instruction: Arg, text: Arg) -> PromptValue:
    """A constant instruction, then the text."""
    if isinstance(text, PromptValue) or isinstance(instruction, PromptValue):
        raise BindError(f"{function} takes an instruction with a column, or PROMPT(..) alone: not both", 0)
    if isinstance(instruction, Row) and isinstance(text, Const):
        raise _swapped(function, text)
    if isinstance(instruction, Row):
        raise BindError(
            f"the instruction of {function} must be a constant string; to ask about two columns write "
            f"{function}(PROMPT('..{{0}}..{{1}}', a, b)). Options must be constant too",
            0,
        )
    words = constant_text(f"the instruction of {function}", instruction, 0)
    if has_placeholder(words):
        raise BindError(
            f"an instruction of {function} has no placeholders: use PROMPT, {function}(PROMPT({shown(words)}, ..))", 0
        )
    prompt = as_prompt(function, text, 1)
    return replace(prompt, template=f"{words.rstrip()} {{0}}")


def _swapped(function: str, text: Const) -> BindError:
    if isinstance(text.value, str):
        return BindError(f"the instruction comes first: {function}({shown(text.value)}, column)", 0)
    return BindError(f"the options of {function} are a struct such as {{'model': '...'}}; not {shown(text.value)}", 1)


def question(
    function: str, signatures: tuple[str, ...], allowed: tuple[str, ...], args: Sequence[Arg]
) -> tuple[PromptValue, Options]:
    """`(text)`, `(instruction, column)` or `(PROMPT)`, with options behind; `BindError` for anything else."""
    if not 1 <= len(args) <= 3:
        raise wrong_count(function, signatures, len(args))
    head, options = _without_options(function, allowed, args)
    prompt = as_prompt(function, head[0], 0) if len(head) == 1 else with_instruction(function, head[0], head[1])
    return prompt, options


def modelled(
    function: str, signatures: tuple[str, ...], allowed: tuple[str, ...], args: Sequence[Arg]
) -> tuple[PromptValue, Options]:
    """`(text)` or `(PROMPT)`, a model in front or not, with options behind; `BindError` for anything else."""
    if not 1 <= len(args) <= 3:
        raise wrong_count(function, signatures, len(args))
    head, options = _without_options(function, allowed, args)
    if len(head) == 2:
        model = constant_text(f"the model of {function}", head[0], 0)
        if options.model is not None:
            raise BindError(f"{function} has its model twice, in front and in the options: keep one", 0)
        options = replace(options, model=model)
    return as_prompt(function, head[-1], len(head) - 1), options


def _without_options(function: str, allowed: tuple[str, ...], args: Sequence[Arg]) -> tuple[tuple[Arg, ...], Options]:
    """The arguments in front of the options, and the options: a third argument, or what follows a prompt."""
    last = len(args) - 1
    if last == 2 or (last == 1 and (is_struct(args[1]) or _prompt_then_other(args))):
        return tuple(args[:-1]), parse(function, allowed, args[-1], last)
    return tuple(args), Options()


def _prompt_then_other(args: Sequence[Arg]) -> bool:
    return isinstance(args[0], PromptValue) and not isinstance(args[1], PromptValue)
