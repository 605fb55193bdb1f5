"""GGUF files in this process: llama.cpp through xllamacpp, on CPU.

A row's text is tokenised apart from the chat template and never as special tokens, so that no text can end
its own turn of the chat. The instruction stands before it, in the system's role, so that the one slot keeps
its keys and values from row to row; rows are asked one by one, which on a CPU is as fast as together.

llama.cpp's server also listens on a loopback port; a key that only this object knows locks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError, WeightsError
from sqluice.types import Completion, ModelInfo, Prompt
from sqluice.workers import thinking
from sqluice.workers.chat import all_or_error, messages, positions
from sqluice.workers.choices import certain, named, scores, tokens_needed
from sqluice.workers.failures import describe, overflow
from sqluice.workers.protocol import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqluice.workers.protocol import Control

FORM = "gguf-1"
"""Version of how prompts are put to the model and calibrated; part of the revision."""

CONTEXT = 8192
TOP = 400
WORDS_TOKENS = 24
NEUTRAL = ("N/A", "[MASK]", "")
"""Content-free texts whose mean score is subtracted (contextual calibration, Zhao et al. 2021)."""


class Gguf:
    """One GGUF file, loaded. `close` frees it."""

    batch_rows = 16

    def __init__(self, path: Path, threads: int = 0, thinking_tokens: int = thinking.BUDGET) -> None:
        self._key = secrets.token_hex(16)
        self._server = _serve(path, threads or _cores(), self._key)
        self._fixed: dict[tuple[str, ...], list[list[int]]] = {}
        facts = self._get("/props")
        context = int(facts["default_generation_settings"]["n_ctx"])
        thinks = thinking.OPEN in str(facts.get("chat_template", ""))
        self._thinking = thinking_tokens if thinks else 0
        self._begins = False
        revision = _revision(path, f"thinking {thinking_tokens}" if thinks else "")
        self.info = ModelInfo(f"gguf:{path.name}", revision, context_tokens=context, reasoning=thinks)

    def __repr__(self) -> str:
        return f"<{self.info.name}>"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        return [len(self._tokenised(text, special=False)) for text in texts]

    def calibration(self, prompt: Prompt, choices: Sequence[str]) -> np.ndarray:
        """Float32 [k]: mean scores of content-free texts under this template."""
        neutral = [Prompt(prompt.template, (text,) * len(prompt.args), prompt.prefix, prompt.kind) for text in NEUTRAL]
        mean: np.ndarray = self.score(neutral, choices).mean(axis=0)
        return mean.astype(np.float32)

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """Float32 [n, k] log-probabilities before calibration; `ModelError` for the first row that failed."""
        return np.asarray(all_or_error(self.ask("score", prompts, choices=choices)))

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, schema: dict[str, object] | None = None
    ) -> list[Completion]:
        """One completion a prompt at temperature 0; `ModelError` for the first row that failed."""
        return list(all_or_error(self.ask("generate", prompts, max_tokens=max_tokens, schema=schema)))

    def ask(
        self,
        operation: str,
        items: Sequence[Any],
        *,
        choices: Sequence[str] = (),
        max_tokens: int = 0,
        schema: dict[str, object] | None = None,
        control: Control | None = None,
    ) -> Asked:
        """Answers with `errors` for the rows that have none; `control` is checked before each row."""
        if operation == "embed":
            raise ModelError(f"{self.info.name} gives no embeddings; name package:embedder")
        scored = operation == "score"
        n = len(items)
        values: Any = np.full((n, len(choices)), np.nan, dtype=np.float32) if scored else [None] * n
        asked = Asked(values, values, np.zeros(n, np.int32), np.zeros(n, np.int32))
        for at, prompt in enumerate(items):
            try:
                if control is not None:
                    control.check()
                told = self._told(prompt, choices, tokens_needed(choices) if scored else max_tokens, schema)
                values[at] = self._scored(prompt, choices, told) if scored else self._completion(told)
                asked.tokens_in[at] = told["usage"]["prompt_tokens"]
                asked.tokens_out[at] = told["usage"]["completion_tokens"]
            except _RowError as error:
                asked.errors[at] = str(error)
            except BaseException as error:
                asked.errors |= dict.fromkeys(range(at, n), "not asked")
                vars(error)["part"] = asked
                raise
        return asked

    def close(self) -> None:
        """Free the model."""
        self._server = None

    def _scored(self, prompt: Prompt, choices: Sequence[str], told: dict[str, Any]) -> np.ndarray:
        """Scores from the written tokens; by the words of a longer answer when these begin no choice."""
        found = scores(positions(told["choices"][0]), choices)
        if found is not None:
            return found
        words = self._told(prompt, choices, WORDS_TOKENS, None)
        which = named(words["choices"][0]["text"], choices)
        if which is None:
            raise _RowError("the model's answer names none of the choices")
        return certain(which, len(choices))

    def _completion(self, told: dict[str, Any]) -> Completion:
        """What was written, without the thoughts of a model that thinks."""
        choice, usage = told["choices"][0], told["usage"]
        cut = choice.get("finish_reason") == "length"
        text = thinking.answer(choice["text"], opened=self._begins) if self.info.reasoning else choice["text"].strip()
        if text is None and not cut:
            raise _RowError(thinking.NO_ANSWER)
        finish: Any = "length" if cut else "stop"
        return Completion(text or "", finish, usage["prompt_tokens"], usage["completion_tokens"])

    def _told(
        self, prompt: Prompt, choices: Sequence[str], max_tokens: int, schema: dict[str, object] | None
    ) -> dict[str, Any]:
        """One completion as llama.cpp tells it."""
        tokens = self._tokens(prompt, choices)
        room = self.info.context_tokens
        if len(tokens) + max_tokens > room:
            size = sum(map(len, prompt.args))
            raise _RowError(overflow("", len(tokens) + max_tokens, room, self.info.name, size, max_tokens))
        more = 0 if choices else min(self._thinking, room - len(tokens) - max_tokens)
        request: dict[str, Any] = {
            "prompt": tokens,
            "n_predict": max_tokens + more,
            "temperature": 0,
            "cache_prompt": True,
        }
        if choices:
            request["n_probs"] = TOP
        if schema is not None:
            request["json_schema"] = schema
        if self._server is None:
            raise ModelError(f"{self.info.name} was closed")
        try:
            told = self._server.handle_completions(request)
        except Exception as error:  # noqa: BLE001 - the binding raises what C++ threw
            raise _RowError(describe(error, prompt.args)) from None
        if "error" in told:
            raise _RowError(str(told["error"].get("message", "unknown error")))
        return dict(told)

    def _tokens(self, prompt: Prompt, choices: Sequence[str]) -> list[int]:
        """The whole chat in tokens: fixed pieces, and the arguments between them."""
        key = (prompt.prefix, prompt.template, str(len(prompt.args)), *choices)
        pieces = self._fixed.get(key)
        if pieces is None:
            pieces = self._fixed[key] = self._template(prompt, choices)
        tokens = list(pieces[0])
        for arg, piece in zip(prompt.args, pieces[1:], strict=True):
            tokens += self._tokenised(arg, special=False) + piece
        return tokens

    def _template(self, prompt: Prompt, choices: Sequence[str]) -> list[list[int]]:
        """Tokens before, between and after the arguments."""
        marks = tuple(f"<<{secrets.token_hex(8)}>>" for _ in prompt.args)
        chat = {"messages": messages(Prompt(prompt.template, marks, prompt.prefix, prompt.kind), choices, warn=False)}
        rest = self._get("/apply-template", chat)["prompt"]
        pieces: list[list[int]] = []
        for mark in marks:
            head, _, rest = rest.partition(mark)
            pieces.append(self._tokenised(head, special=True, first=not pieces))
        self._begins = rest.rstrip().endswith(thinking.OPEN)  # some chat formats begin the thoughts themselves
        return [*pieces, self._tokenised(rest, special=True, first=not pieces)]

    def _tokenised(self, text: str, *, special: bool, first: bool = False) -> list[int]:
        asked = {"content": text, "add_special": first, "parse_special": special}
        tokens: list[int] = self._get("/tokenize", asked)["tokens"] if text or first else []
        return tokens[1:] if first and len(tokens) > 1 and tokens[0] == tokens[1] else tokens

    def _get(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server's own loopback port answers."""
        if self._server is None:
            raise ModelError(f"{self.info.name} was closed")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._server.listening_address + path, data, headers)  # noqa: S310
        try:
            with _DIRECT.open(request, timeout=60) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ValueError) as error:
            raise _RowError(f"the text cannot be tokenised: {type(error).__name__}") from None


class _RowError(ModelError):
    """One row cannot be answered."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def load(path: Path, *, threads: int = 0, thinking_tokens: int = thinking.BUDGET) -> Gguf:
    """The GGUF file at `path`; `WeightsError` when it cannot be read."""
    return Gguf(path, threads, thinking_tokens)


def _serve(path: Path, threads: int, key: str) -> Any:
    """llama.cpp's server object on `path`: one slot, no slot listing, no web page, locked by `key`."""
    import xllamacpp as native

    llama: Any = native

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is not a GGUF file")
    params = llama.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.verbosity = -1
    params.warmup = False
    params.endpoint_slots = params.ui = False
    params.cache_ram_mib = 0
    params.api_keys = [key]
    try:
        return llama.Server(params)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be loaded: it is damaged, cut short, or of a kind this llama.cpp does not know"
        ) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _revision(path: Path, more: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(f"|{FORM}|{TOP}|{NEUTRAL}{more}".encode())
    return digest.hexdigest()[:32]
