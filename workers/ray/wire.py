"""What travels between a query and its Ray workers: Arrow tables of rows one way, NumPy arrays and Arrow tables back.

A table holds the rows of one micro-batch and nothing else; a slice of a larger table would ship all of its buffers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.types import Completion, ModelInfo, Prompt
from sqluice.workers.failures import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from sqluice.workers.protocol import Batch


@dataclass(frozen=True, slots=True)
class Facts:
    """What the driver has to know of a model that workers have loaded. `offers` names its methods; `pid` and `host`
    are those of the worker that tells."""

    info: ModelInfo
    offers: tuple[str, ...]
    token_budget: int = 0
    slots: int = 0
    batch_rows: int = 0
    prefix_tokens: int = 0
    seconds_load: float = 0.0
    pid: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a worker could not do what it was asked; `model` where that is the model's own doing, so that no other worker
    could. Exceptions themselves do not travel: not all can be unpickled."""

    said: str
    model: bool = False


@dataclass(slots=True)
class Reply:
    """Answers to one micro-batch, by position in it. `given_up` says why the model was given up on its first rows,
    `ceiling` is the padded tokens above which it ran out of memory (0: it never did)."""

    values: Any
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    seconds: float = 0.0
    given_up: str = ""
    ceiling: int = 0


def why(error: BaseException) -> str:
    """One line about an exception of Ray's: its cause, where a method raised one, without Ray's long preamble."""
    return describe(getattr(error, "cause", None) or error)


def to_table(items: Sequence[Prompt] | Sequence[str]) -> pa.Table:
    """Prompts or texts as a table. Bytes, because a text may hold what UTF-8 does not."""
    import pyarrow as pa

    if not items or isinstance(items[0], str):
        texts: Any = items
        return pa.table({"text": pa.array([_bytes(text) for text in texts], pa.large_binary())})
    prompts: Any = items
    args = pa.array([[_bytes(arg) for arg in prompt.args] for prompt in prompts], pa.large_list(pa.large_binary()))
    columns: dict[str, Any] = {"args": args}
    for name in ("template", "prefix", "kind"):
        values = pa.array([_bytes(getattr(prompt, name)) for prompt in prompts], pa.large_binary())
        columns[name] = values.dictionary_encode()
    return pa.table(columns)


def from_table(table: pa.Table) -> list[Prompt] | list[str]:
    """What `to_table` was given."""
    if "text" in table.column_names:
        return [_text(value) for value in table["text"].to_pylist()]
    args = [tuple(map(_text, row)) for row in table["args"].to_pylist()]
    rest: Any = [map(_text, table[name].to_pylist()) for name in ("template", "prefix", "kind")]
    return [Prompt(template, row, prefix, kind) for row, template, prefix, kind in zip(args, *rest, strict=True)]


def pack_values(values: Any) -> Any:
    """Completions as a table; arrays as they are."""
    import pyarrow as pa

    if isinstance(values, np.ndarray):
        return values
    there = [one if one is not None else Completion("") for one in values]
    return pa.table(
        {
            "there": pa.array([one is not None for one in values], pa.bool_()),
            "text": pa.array([_bytes(one.text) for one in there], pa.large_binary()),
            "finish": pa.array([one.finish_reason for one in there], pa.string()),
            "tokens_in": pa.array([one.tokens_in for one in there], pa.int64()),
            "tokens_out": pa.array([one.tokens_out for one in there], pa.int64()),
        }
    )


def unpack_values(values: Any) -> Any:
    """What `pack_values` was given."""
    if isinstance(values, np.ndarray):
        return values
    columns = [values[name].to_pylist() for name in ("text", "finish", "tokens_in", "tokens_out")]
    made = [Completion(_text(text), *rest) for text, *rest in zip(*columns, strict=True)]
    return [one if there else None for one, there in zip(made, values["there"].to_pylist(), strict=True)]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")
