"""Calls of AI functions: what they become, and what is said about wrong ones."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from sqluice.errors import NotSupportedError
from sqluice.types import Prompt, render
from sqluice.udfs.ai_embed import similarity_model
from sqluice.udfs.prompts import prompt_value
from sqluice.udfs.signatures import FUNCTIONS, PLANNED, bind
from sqluice.udfs.spec import BindError, Bound, Const, PromptValue, Row, Spec
from sqluice.workers import chat, forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.udfs.spec import Arg

A, B = Row("a"), Row("b")
LABELS = Const(["sport", "food"])
ASK = PromptValue("Is {0} about {1}?", (A, B))


def options(**values: object) -> Const:
    return Const(values)


def wrong(function: str, *args: Arg) -> BindError:
    with pytest.raises(BindError) as caught:
        bind(function, args)
    return caught.value


def test_the_table() -> None:
    assert list(FUNCTIONS) == [function.name for function in FUNCTIONS.values()]
    assert {"AI_FILTER", "AI_CLASSIFY", "PROMPT"} < set(FUNCTIONS)
    assert not PLANNED & set(FUNCTIONS)
    for function in FUNCTIONS.values():
        assert function.help
        assert all(signature.startswith(function.name + "(") for signature in function.signatures)


def test_names() -> None:
    assert str(wrong("ai_fliter", A)) == "no AI function ai_fliter; did you mean AI_FILTER?"
    assert "AI_COUNT_TOKENS" in str(wrong("ai_zzz", A))
    assert "argument of an AI function" in str(wrong("PROMPT", Const("{0}"), A))
    for name in PLANNED:
        with pytest.raises(NotSupportedError, match=f"{name} is not in this version"):
            bind(name.lower(), [A])


def test_filter_forms() -> None:
    assert bind("ai_filter", [A]) == Bound(Spec("AI_FILTER", "score", "BOOLEAN", choices=("yes", "no")), (A,))
    assert bind("AI_FILTER", [Const("Is it good?"), A]).spec.template == "Is it good? {0}"
    assert bind("AI_FILTER", [Const("Is it good?"), Const("yes")]).args == (Const("yes"),)
    bound = bind("AI_FILTER", [ASK])
    assert (bound.spec.template, bound.args) == (ASK.template, (A, B))
    assert bind("AI_FILTER", [Const(None)]).args == (Const(None),)


@pytest.mark.parametrize("head", [[A], [Const("Is it?"), A], [ASK]])
def test_filter_options_come_last(head: Sequence[Arg]) -> None:
    given = options(model="m", Recall=Decimal(".9"), budget=500, errors=True)
    spec = bind("AI_FILTER", [*head, given]).spec
    assert (spec.model, spec.errors) == ("m", True)
    assert spec.options == (("budget", "500 calls"), ("recall", 0.9))


def test_equal_options_make_equal_specs() -> None:
    one = bind("AI_FILTER", [A, options(recall=0.9, delta=0.1)])
    assert one == bind("AI_FILTER", [A, options(delta=Decimal("0.1"), recall=0.90)])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "needs arguments.*AI_FILTER\\(text"),
        ([A, B, A, B], "4 arguments.*AI_FILTER\\(PROMPT"),
        ([Const("Is {0} good?"), A], "use PROMPT"),
        ([A, B], "instruction.*constant.*PROMPT"),
        ([A, Const("Is it good?")], "instruction comes first: AI_FILTER\\('Is it good\\?', column\\)"),
        ([Const(None), A], "instruction.*not NULL"),
        ([Const("  "), A], "instruction.*constant"),
        ([Const("Is it?"), ASK], "not both"),
        ([Const([1]), B], "instruction.*not \\[1\\]"),
        ([Const([1])], "a text or PROMPT.*not \\[1\\]"),
        ([ASK, A], "options must be constant"),
        ([Const("Is it?"), A, B], "options must be constant"),
        ([ASK, Const(7)], "the options of AI_FILTER are a struct such as {'model': '...'}; not 7"),
        ([A, Const(7)], "are a struct such as {'model': '...'}; not 7"),
        ([ASK, Const(None)], "not NULL"),
        ([A, options(modell="m")], "no option modell: did you mean model\\? It takes model, recall"),
        ([A, options(colour="m")], "no option colour: there are model, recall"),
        ([A, options(model="")], "option model.*not ''"),
        ([A, options(recall=1)], "recall.*strictly between 0 and 1.*not 1"),
        ([A, options(recall=True)], "strictly between 0 and 1.*not true"),
        ([A, options(delta="x")], "delta.*strictly between"),
        ([A, options(delta=Decimal("1.5"))], "not 1.5"),
        ([A, options(recall=0.9, accuracy=0.9)], "contradict"),
        ([A, options(precision=0.9, accuracy=0.9)], "contradict"),
        ([A, options(errors="yes")], "true or false"),
        ([A, options(budget=0)], "more than 0"),
        ([A, options(budget="0.0 usd")], "more than 0"),
        ([A, options(budget="500")], "its unit.*500 calls"),
        ([A, options(budget="5 apples")], "its unit"),
        ([A, options(budget=2.5)], "its unit"),
        ([A, options(budget=True)], "its unit"),
        ([A, options(budget="2.5 calls")], "whole number"),
    ],
)
def test_wrong_filters(args: Sequence[Arg], says: str) -> None:
    with pytest.raises(BindError, match=says):
        bind("AI_FILTER", args)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("500 call", "500 calls"),
        (" 2.50USD ", "2.50 usd"),
        ("200 kj", "200 kJ"),
        ("10 minutes", "10 min"),
        (3, "3 calls"),
    ],
)
def test_budgets(given: object, kept: str) -> None:
    assert bind("AI_FILTER", [A, options(budget=given)]).spec.options == (("budget", kept),)


def test_the_argument_at_fault() -> None:
    assert wrong("AI_FILTER", ASK, Const(7)).argument == 1
    assert wrong("AI_CLASSIFY", A, B).argument == 1
    assert wrong("AI_CLASSIFY", A, LABELS, A).argument == 2
    assert wrong("AI_FILTER").argument is None


def test_prompt_value() -> None:
    assert prompt_value([Const("{1} and {1} or {0}"), A, B]) == PromptValue("{1} and {1} or {0}", (A, B))
    assert prompt_value([Const("only {1}"), A, B]) == PromptValue("only {0}", (B,))
    assert prompt_value([Const("{2}{0}"), A, B, Const("c")]) == PromptValue("{1}{0}", (A, Const("c")))
    assert prompt_value([Const("Is the sky {blue}?"), A]) == PromptValue("Is the sky {blue}?", ())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "PROMPT needs a template"),
        ([A, B], "the template of PROMPT must be a constant string"),
        ([Const(None), B], "must be a constant string; not NULL"),
        ([Const(3)], "must be a constant string; not 3"),
        ([Const("{1}"), A], r"PROMPT has no argument for placeholder \{1\}: it has 1 argument$"),
        ([Const("{0}")], r"PROMPT has no argument for placeholder \{0\}: it has 0 arguments$"),
    ],
)
def test_wrong_prompts(args: Sequence[Const | Row], says: str) -> None:
    with pytest.raises(BindError, match=says) as caught:
        prompt_value(args)
    assert caught.value.argument == 0


def test_classify() -> None:
    bound = bind("AI_CLASSIFY", [A, LABELS])
    assert (bound.spec.kind, bound.spec.returns, bound.spec.choices) == ("classify", "VARCHAR", ("sport", "food"))
    assert bound.spec.template.endswith("\n{0}")
    assert bound.args == (A,)
    many = bind("AI_CLASSIFY", [ASK, LABELS, options(output_mode="MULTI", accuracy=0.9, delta=0.1, budget=5)]).spec
    assert (many.returns, many.multi) == ("VARCHAR[]", True)
    assert many.template.endswith(ASK.template)
    assert [name for name, _ in many.options] == ["accuracy", "budget", "delta"]


def test_label_descriptions_reach_the_backends() -> None:
    labels = Const([{"label": "sport", "description": "games,\n and players"}, {"label": "food", "description": None}])
    spec = bind("AI_CLASSIFY", [A, labels, options(task_description="Sort the news.")]).spec
    assert spec.choices == ("sport", "food")
    assert spec.template.startswith("Sort the news.\n")
    assert forms.descriptions(spec.template, spec.choices) == {"sport": "games, and players"}
    system, user = chat.messages(Prompt(spec.template, ("A match.",), kind=spec.kind), spec.choices)
    assert user["content"] == "A match."
    assert "sport: games, and players" in system["content"]
    assert "{0}" not in system["content"]
    assert render(spec.template, ("{1}",)).endswith("\n{1}")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (Row("l"), "labels must be constant"),
        (Const(None), "not NULL"),
        (Const("a"), "a list such as"),
        (Const([]), "two"),
        (Const(["a"]), "two.*not 1"),
        (Const(["a", "a"]), "'a'"),
        (Const(["a", " A"]), "'a' and ' A'"),
        (Const(["a", None]), "not NULL"),
        (Const(["a", " "]), "not ' '"),
        (Const(["a", 3]), "not 3"),
        (Const([str(number) for number in range(501)]), "at most 500 labels; not 501"),
        (Const([{"label": "a", "colour": "x"}, "b"]), "label.*'colour'"),
        (Const([{"description": "x"}, "b"]), "label is missing"),
        (Const([{"label": {}}, "b"]), "label"),
        (Const([{"label": "a", "description": 3}, "b"]), "description of label 'a'.*not 3"),
        (Const([{"label": "a", "description": "see {0}"}, "b"]), "plain text"),
    ],
)
def test_wrong_labels(labels: Arg, says: str) -> None:
    with pytest.raises(BindError, match=says):
        bind("AI_CLASSIFY", [A, labels])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"recall": 0.9}, "no option recall, which is for yes/no answers; it takes model"),
        ({"output_mode": "both"}, "'single' or 'multi'"),
        ({"task_description": "Read {0}"}, "without placeholders"),
        ({"scale": [1, 5]}, "no option scale"),
    ],
)
def test_wrong_classify_options(given: dict[str, object], says: str) -> None:
    assert says in str(wrong("AI_CLASSIFY", A, LABELS, Const(given)))


def test_score() -> None:
    plain = bind("AI_SCORE", [Const("Is it good?"), A]).spec
    assert (plain.kind, plain.returns, plain.choices, plain.grades) == ("score", "DOUBLE", ("yes", "no"), None)
    graded = bind("AI_SCORE", [ASK, options(scale=[-1, 2])]).spec
    assert (graded.choices, graded.grades) == (("-1", "0", "1", "2"), (-1, 2))


@pytest.mark.parametrize("scale", [[1], [1, 2, 3], [5, 1], [1, 1], [1.0, 5], ["1", "5"], 5, None, [0, 11], [False, 3]])
def test_wrong_scales(scale: object) -> None:
    assert "scale" in str(wrong("AI_SCORE", A, options(scale=scale)))


def test_a_scale_of_eleven_grades() -> None:
    assert len(bind("AI_SCORE", [A, options(scale=[0, 10])]).spec.choices) == 11


def test_complete() -> None:
    spec = bind("AI_COMPLETE", [A]).spec
    assert (spec.operation, spec.kind, spec.returns, spec.max_tokens) == ("generate", "complete", "VARCHAR", 256)
    assert bind("AI_COMPLETE", [Const("m"), A]).spec.model == "m"
    assert bind("AI_COMPLETE", [Const("m"), ASK]).args == (A, B)
    both = bind("AI_COMPLETE", [Const("m"), ASK, options(max_tokens=9, temperature=Decimal(0))]).spec
    assert (both.model, both.max_tokens) == ("m", 9)
    assert bind("AI_COMPLETE", [A, options(model="o")]).spec.model == "o"
    assert bind("AI_COMPLETE", [ASK, options(max_tokens=1)]).spec.max_tokens == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([A, B], "the model of AI_COMPLETE must be a constant string"),
        ([Const("m"), A, options(model="o")], "twice"),
        ([ASK, A], "options must be constant"),
        ([A, options(max_tokens=0)], "1 or more; not 0"),
        ([A, options(max_tokens=2.5)], "whole number"),
        ([A, options(temperature=0.5)], "must be 0"),
        ([A, options(response_format="{")], "response_format.*JSON"),
        ([A, options(response_format={"type": "string"})], "response_format.*JSON schema"),
        ([A, options(response_format="[1]")], "response_format.*JSON schema"),
        ([A, options(response_format={"type": "object", "properties": 3})], "response_format.*JSON schema"),
        ([], "needs arguments.*AI_COMPLETE\\("),
    ],
)
def test_wrong_completions(args: Sequence[Arg], says: str) -> None:
    with pytest.raises(BindError, match=says):
        bind("AI_COMPLETE", args)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}},
        '{"type": "object", "properties": {}}',
        {"type": "json", "schema": {"type": "object"}},
    ],
)
def test_response_format_is_not_there_yet(schema: object) -> None:
    with pytest.raises(NotSupportedError, match="response_format is not in this version"):
        bind("AI_COMPLETE", [A, options(response_format=schema)])


def test_embed_and_similarity() -> None:
    assert bind("AI_EMBED", [A]) == Bound(Spec("AI_EMBED", "embed", "FLOAT[]"), (A,))
    assert bind("AI_EMBED", [Const("m"), A]).spec.model == "m"
    assert bind("AI_EMBED", [A, options(model="m")]).spec.model == "m"
    pair = bind("AI_SIMILARITY", [A, Const("x"), options(model="m")])
    assert (pair.spec.operation, pair.spec.returns, pair.args) == ("embed", "DOUBLE", (A, Const("x")))
    assert similarity_model([A, B]) is None
    assert similarity_model([A, B, options(model="m")]) == "m"
    for args in ([A], [A, B, Row("o")], [A, B, options(delta=0.1)], [A, B, A, B], [A, ASK], [Const([1]), B]):
        assert wrong("AI_SIMILARITY", *args)


def test_count_tokens() -> None:
    bound = bind("AI_COUNT_TOKENS", [Const("ai_complete"), A])
    assert (bound.spec.operation, bound.spec.returns, bound.args) == ("count_tokens", "INTEGER", (A,))
    assert bound.spec.options == (("function", "AI_COMPLETE"),)
    assert bind("AI_COUNT_TOKENS", [Const("AI_Embed"), Const("m"), A]).spec.model == "m"
    assert "did you mean AI_FILTER" in str(wrong("AI_COUNT_TOKENS", Const("ai_filtr"), A))
    assert "constant" in str(wrong("AI_COUNT_TOKENS", A, B))
    assert "AI_COUNT_TOKENS('ai_complete'" in str(wrong("AI_COUNT_TOKENS", A))
