"""Recorded scores and answers instead of a model: `replay:<file>.parquet`.

The file has one row a prompt. It is found by `prompt_hash` or `input_hash` (hexadecimal text or binary, as
`ai.decisions` writes it), or by `text` (the rendered prompt, or the one argument of a prompt that has one).
`score` is the probability of yes, or of `answer` where the choices are not yes and no; `answer` is the text
or label.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError
from sqluice.types import Completion, ModelInfo
from sqluice.workers.protocol import Asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqluice.types import Prompt
    from sqluice.workers.protocol import Control

DIGEST_BYTES = 16
SURE = 1e-6
"""The probability given to what a recorded answer without a score is not."""

_KEYS = ("prompt_hash", "input_hash", "text")


def template_state(template: str, prefix: str = "") -> hashlib.blake2b:
    """A hash that has read the template; `prompt_digest` copies it for each row."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _feed(state, (prefix + template).encode("utf-8", "surrogatepass"))
    return state


def prompt_digest(state: hashlib.blake2b, args: Iterable[str]) -> bytes:
    """The 16-byte digest of a template (by its `template_state`) with these arguments.

    Each part is fed with its length in front, so ('ab', 'c') and ('a', 'bc') differ.
    """
    row = state.copy()
    for arg in args:
        _feed(row, arg.encode("utf-8", "surrogatepass"))
    return row.digest()


def prompt_hash(prompt: Prompt) -> str:
    """The digest of `prompt` in hexadecimal: blake2b-128 over template and arguments."""
    return prompt_digest(template_state(prompt.template, prompt.prefix), prompt.args).hex()


def _feed(state: hashlib.blake2b, data: bytes) -> None:
    state.update(b"%d:" % len(data) + data)


class Replay:
    """A model that gives the recorded answers of one Parquet file. Rows that are not there are errors."""

    batch_rows = 4096

    def __init__(self, path: Path) -> None:
        table = _read(path)
        self._key = next((name for name in _KEYS if name in table), "")
        if not self._key or not ({"score", "answer"} & set(table)):
            raise ModelError(
                f"{path} is no recording: it needs a column {', '.join(_KEYS[:-1])} or {_KEYS[-1]},"
                f" and score or answer; it has {', '.join(table) or 'none of these'}"
            )
        self._rows = {_as_key(key): at for at, key in enumerate(table[self._key]) if key is not None}
        nothing = [None] * len(table[self._key])
        self._scores: list[Any] = table.get("score", nothing)
        self._answers: list[Any] = table.get("answer", nothing)
        self.info = ModelInfo(name=f"replay:{path.name}", revision=_digest(path), device="none")

    def ask(
        self,
        operation: str,
        items: Sequence[Prompt] | Sequence[str],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,  # noqa: ARG002 - a recorded answer is as long as it is
        schema: dict[str, object] | None = None,  # noqa: ARG002
        control: Control | None = None,  # noqa: ARG002 - a lookup does not wait
    ) -> Asked:
        """Answers with `errors` for the rows that are not recorded; see `protocol.Asking`."""
        if operation == "embed":
            raise ModelError(f"{self.info.name} records no embeddings")
        n = len(items)
        zeros = np.zeros(n, dtype=np.int32)
        errors: dict[int, str] = {}
        scores = np.full((n, len(choices)), np.nan, dtype=np.float32)
        texts: list[Completion | None] = [None] * n
        for at, prompt in enumerate(items):
            row = self._find(prompt)  # type: ignore[arg-type]
            try:
                if operation == "score":
                    scores[at] = self._scored(row, choices)
                else:
                    texts[at] = Completion(self._said(row))
            except LookupError as error:
                errors[at] = f"{self.info.name}: {error.args[0]}"
        values: Any = scores if operation == "score" else texts
        return Asked(values, values, zeros, zeros, errors)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k] log-probabilities; NaN where a prompt is not recorded."""
        values: Any = self.ask("score", prompts, choices=choices).values
        return np.asarray(values)

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """The recorded answers; `ModelError` when one is missing."""
        asked = self.ask("generate", prompts, max_tokens=max_tokens, schema=schema)
        if asked.errors:
            raise ModelError(next(iter(asked.errors.values())))
        return list(asked.values)

    def _find(self, prompt: Prompt) -> int | None:
        if self._key != "text":
            return self._rows.get(prompt_hash(prompt))
        row = self._rows.get(prompt.text)
        return self._rows.get(prompt.args[0]) if row is None and len(prompt.args) == 1 else row

    def _scored(self, row: int | None, choices: Sequence[str]) -> np.ndarray:
        """Log-probabilities of one recorded row; `LookupError` says what is missing."""
        if row is None:
            raise LookupError("this prompt is not in the recording")
        score, answer = self._scores[row], self._answers[row]
        if list(choices) == ["yes", "no"]:
            if score is None:
                score = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}.get(str(answer).lower())
            if score is None:
                raise LookupError("the recording has neither a score nor yes or no for this prompt")
            return _log(np.array([score, 1 - float(score)]))
        chosen = [str(answer) == choice for choice in choices]
        if not any(chosen):
            raise LookupError("the recorded answer is none of the choices")
        sure = 1 - SURE if score is None else float(score)
        return _log(np.where(chosen, sure, (1 - sure) / max(1, len(choices) - 1)))

    def _said(self, row: int | None) -> str:
        if row is None or self._answers[row] is None:
            raise LookupError("this prompt has no answer in the recording")
        return str(self._answers[row])


def load(path: Path) -> Replay:
    """The recording at `path`; `ModelError` when it is not Parquet or lacks the columns."""
    return Replay(Path(path))


def _log(probabilities: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.clip(probabilities, SURE, 1)).astype(np.float32)
    return logs


def _as_key(key: object) -> str:
    return key.hex() if isinstance(key, bytes) else str(key)


def _read(path: Path) -> dict[str, list[Any]]:
    """The columns of `path` that a recording may have."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in (*_KEYS, "score", "answer") if name in file.schema_arrow.names]
            columns: dict[str, list[Any]] = file.read(columns=names).to_pydict()
    except (OSError, ArrowException) as error:
        raise ModelError(f"{path} cannot be read as Parquet: {type(error).__name__}") from None
    return columns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
