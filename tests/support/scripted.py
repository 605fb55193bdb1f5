"""Models that answer by rule. They count what they are asked and fail where they are told to.

A rule maps a text (a row's arguments, joined by a blank) to the probability of yes. The same rule serves
AI_FILTER and AI_SCORE; other choices are scored by whether they stand in the text.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sqluice.types import Completion, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt

Rule = Callable[[str], float]

EMBEDDING_WIDTH = 8
IN_TEXT, NOT_IN_TEXT = 0.95, 0.05


class ScriptedError(RuntimeError):
    """What a scripted model raises on the rows it is told to fail on."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Rows that go wrong: those whose text holds the given word. An empty word means none."""

    nan: str = ""
    raises: str = ""
    shape: str = ""
    cut: str = ""
    seconds_per_batch: float = 0.0


@dataclass(slots=True)
class Counts:
    """What a model was asked since the last `reset`. `distinct` holds one hash a question."""

    prompts: int = 0
    batches: int = 0
    sizes: list[int] = field(default_factory=list)
    distinct: set[int] = field(default_factory=set)

    def add(self, questions: Sequence[object]) -> None:
        """Count one call of the model."""
        self.prompts += len(questions)
        self.batches += 1
        self.sizes.append(len(questions))
        self.distinct.update(map(hash, questions))

    def reset(self) -> None:
        """Forget everything."""
        self.prompts = self.batches = 0
        self.sizes.clear()
        self.distinct.clear()


class ScriptedModel:
    """A model that scores, generates and embeds by rule, at no cost.

    Embeddings depend on the text's words, so that texts that share words are similar.
    """

    def __init__(self, rule: Rule, *, name: str = "oracle", revision: str = "1", faults: Faults = Faults()) -> None:
        self.info = ModelInfo(name=name, revision=revision, context_tokens=0)
        self.rule = rule
        self.faults = faults or Faults()
        self.counts = Counts()

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities, float32 [n, k]."""
        texts = [text_of(prompt) for prompt in prompts]
        self._called([("score", p.template, p.args, tuple(choices)) for p in prompts], texts)
        scores = np.array([self._scores(text, choices) for text in texts], np.float32).reshape(len(texts), -1)
        scores[[bool(self.faults.nan) and self.faults.nan in text for text in texts]] = np.nan
        return scores[:, :-1] if self._any(self.faults.shape, texts) else scores

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """The text in upper case; cut after `max_tokens` words."""
        texts = [text_of(prompt) for prompt in prompts]
        self._called([("generate", p.template, p.args, max_tokens) for p in prompts], texts)
        answers = [_completion(text, max_tokens, cut=self._any(self.faults.cut, [text])) for text in texts]
        return answers[:-1] if self._any(self.faults.shape, texts) else answers

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, EMBEDDING_WIDTH], unit norm."""
        self._called([("embed", text) for text in texts], texts)
        vectors = np.array([embedding(text) for text in texts], np.float32).reshape(len(texts), -1)
        vectors[[bool(self.faults.nan) and self.faults.nan in text for text in texts]] = np.nan
        return vectors[:, :-1] if self._any(self.faults.shape, texts) else vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """One token a word."""
        return [len(text.split()) for text in texts]

    def _called(self, questions: Sequence[object], texts: Sequence[str]) -> None:
        self.counts.add(questions)
        if self.faults.seconds_per_batch:
            time.sleep(self.faults.seconds_per_batch)
        if self._any(self.faults.raises, texts):
            raise ScriptedError(f"cannot answer about {self.faults.raises}")

    def _any(self, word: str, texts: Sequence[str]) -> bool:
        return bool(word) and any(word in text for text in texts)

    def _scores(self, text: str, choices: Sequence[str]) -> list[float]:
        if tuple(choices) == ("yes", "no"):
            p = self.rule(text)
            return [float(np.log(p)), float(np.log1p(-p))]
        found = [choice.casefold() in text.casefold() for choice in choices]
        return [-0.1 - 0.01 * i if there else -6.0 - 0.01 * i for i, there in enumerate(found)]


def text_of(prompt: Prompt) -> str:
    """The row's part of a prompt; the whole prompt where it has no arguments."""
    return " ".join(prompt.args) if prompt.args else prompt.text


def unit(text: str) -> float:
    """A number in (0, 1) that depends on `text` alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return (int.from_bytes(digest) + 0.5) / 2**48


def embedding(text: str) -> list[float]:
    """Unit vector: the sum of one pseudo-random direction a word."""
    total = np.zeros(EMBEDDING_WIDTH)
    for word in text.casefold().split() or [""]:
        total += [unit(f"{word}/{axis}") - 0.5 for axis in range(EMBEDDING_WIDTH)]
    return list((total / np.linalg.norm(total)).astype(float))


def constant(answer: str) -> Rule:
    """`yes` or `no` to everything."""
    p = IN_TEXT if answer == "yes" else NOT_IN_TEXT
    return lambda _text: p


def keyword(word: str) -> Rule:
    """Yes where `word` stands in the text."""
    return lambda text: IN_TEXT if word in text else NOT_IN_TEXT


def percent(share: str) -> Rule:
    """Yes on about `share` percent of the distinct texts, chosen by hash; no two texts score alike."""
    s = min(max(float(share) / 100, 1e-6), 1 - 1e-6)

    def rule(text: str) -> float:
        u = unit(text)
        return min(1 - 1e-6, 1 - 0.499 * u / s) if u < s else max(1e-6, 0.499 * (1 - u) / (1 - s))

    return rule


def number(_: str = "") -> Rule:
    """The first number in the text is the probability in percent; none is 50."""

    def rule(text: str) -> float:
        match = re.search(r"\d+", text)
        return min(max(int(match.group()) / 100, 0.001), 0.999) if match else 0.5

    return rule


def repeats(_: str = "") -> Rule:
    """Yes where a word stands twice: two arguments that share a word."""

    def rule(text: str) -> float:
        words = text.split()
        return IN_TEXT if len(set(words)) < len(words) else NOT_IN_TEXT

    return rule


RULES: dict[str, Callable[[str], Rule]] = {
    "constant": constant,
    "keyword": keyword,
    "percent": percent,
    "number": number,
    "repeats": repeats,
}


def scripted(name: str, behaviour: str) -> ScriptedModel:
    """A model from one line: `keyword good`, `percent 50`, `constant yes nan=odd raises=ugly`."""
    kind, *rest = behaviour.split()
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    argument = " ".join(word for word in rest if "=" not in word)
    seconds = float(options.pop("seconds", 0))
    faults = Faults(**options, seconds_per_batch=seconds)
    return ScriptedModel(RULES[kind](argument), name=name, revision=behaviour, faults=faults)


def _completion(text: str, max_tokens: int, *, cut: bool) -> Completion:
    words = text.upper().split()
    whole = not cut and (not max_tokens or len(words) <= max_tokens)
    said = " ".join(words) if whole else " ".join(words[: max(1, max_tokens)])
    return Completion(said, "stop" if whole else "length", len(text.split()), len(said.split()))
