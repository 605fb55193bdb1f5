"""What a model is, and what running one reports.

`Model` is the whole interface a user's own object needs (any one of its three methods will do). The methods
of `LocalModel` are optional refinements that our own backends offer; callers look for them with `getattr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from sqluice.types import Completion, ModelInfo, Prompt


Operation: TypeAlias = Literal["score", "generate", "embed"]


@runtime_checkable
class Model(Protocol):
    """A model. Implement `score`, `generate` or `embed`, or several."""

    info: ModelInfo

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k]: log-probability of each of the k choices as the answer to each of the n prompts."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt, at temperature 0, of at most `max_tokens` tokens."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d], rows of unit norm."""
        ...


class LocalModel(Protocol):
    """What a backend of ours offers beyond `Model`."""

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt past the shared instruction prefix. Tokenises once: `score` on the same
        prompts afterwards finds the tokens here."""
        ...

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
        """Float32 [k]: what to subtract from `score` for this template and these choices (log units).
        Does not depend on the prompt's arguments nor on any other row."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        ...

    def generate_in_slots(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> Iterator[Wave]:
        """As `generate` for as many prompts as there are, answers as they come. A row that fails costs itself only."""
        ...

    slots: int
    """How many rows `generate_in_slots` writes at once."""

    token_budget: int
    """Padded tokens of one micro-batch that suit this model on its device (aims at 0.2-0.5 s on a CPU)."""

    def close(self) -> None:
        """Free memory, threads and connections."""
        ...


WASTED = "wasted"
"""The outcome of an attempt whose answers nobody got: its worker died, or another was first. It counts nowhere else."""


RETRY = "retry"
"""The outcome of attempts that an endpoint did not answer and that are made again; what they cost is not known."""


@dataclass(slots=True)
class Wave:
    """What a step of a generation brought: completions and errors by row, often none. `lost` rows had their work undone
    by `error` and are asked again. `pad_tokens` and `max_tokens` are those of prompts read since the last wave."""

    completions: dict[int, Completion] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    lost: int = 0
    error: Exception | None = None
    pad_tokens: int = 0
    max_tokens: int = 0


@dataclass(slots=True)
class Batch:
    """One attempt at one micro-batch; of a generation in slots, the rows that were done within a slice of time. Times
    are seconds since the epoch; `tokens` excludes padding; `tokens_cached` are those of `tokens_in` that the model had
    in a cache. `outcome` is `ok`, `error`, `wasted` or `retry`."""

    rows: int
    started: float
    ended: float
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_usd: float = 0.0
    pad_tokens: int = 0
    max_tokens: int = 0
    attempt: int = 1
    outcome: str = "ok"
    worker: str = "local"
    error: str = ""
    joules: float | None = None
    joules_source: str = ""
    """Who counted or modelled the joules."""


@dataclass(slots=True)
class Asked:
    """Answers to a list of prompts, in their order. Rows in `errors` have no answer.

    `values` is float32 [n, k] for score, float32 [n, d] for embed, a list of `Completion | None` for generate.
    `raw` are scores before calibration (the same array where there is none). `tokens_in` and `tokens_out` are
    int32 [n], zero where the model cannot tell.
    """

    values: Any
    raw: Any
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)


class Control(Protocol):
    """How the caller watches and stops a pool."""

    def check(self) -> None:
        """Raises `InterruptedQueryError` when the query is to stop. Called before every micro-batch."""
        ...

    def done(self, batch: Batch) -> None:
        """Called after every attempt at a micro-batch. A control that also has `answered(rows, values, raw)` is told
        the answers of each micro-batch at once."""
        ...


class Asking(Protocol):
    """A model that handles the failures of single rows itself: remote endpoints, recorded answers."""

    batch_rows: int

    def ask(
        self,
        operation: Operation,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Asked:
        """Answers in order, with `errors` for the rows that have none; checks `control` while it waits."""
        ...


class Streaming(Protocol):
    """A model that is asked about many rows at once: remote endpoints."""

    def stream(
        self,
        operation: Operation,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Iterator[tuple[np.ndarray, Asked]]:
        """Int64 [m] rows and their answers, as they come; every row once, and `Asked.batches` as the model counts them.
        Checks `control` while it waits; on the way out by an exception it first yields what has come."""
        ...
