"""Sentence embedders on torch: an encoder, pooled over its tokens, to unit length."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.errors import ModelError
from sqluice.types import ModelInfo
from sqluice.workers import torch_load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.types import Prompt
    from sqluice.workers.protocol import Model
    from sqluice.workers.torch_load import Source

VERSION = "1"
LONGEST = 256
TOKEN_BUDGET = 4096


class Embedder:
    """An encoder as SQLuice's `Model` (embed). Texts are cut at `longest` tokens, as its card says."""

    token_budget = TOKEN_BUDGET

    def __init__(self, model: Any, tokenizer: Any, info: ModelInfo, longest: int, pooling: str) -> None:
        self.info = info
        self._model = model
        self._tokenizer = tokenizer
        self._longest = longest
        self._pooling = pooling

    def __repr__(self) -> str:
        return f"<{self.info.name} on {self.info.device}>"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d], rows of unit norm."""
        import torch

        if self._model is None:
            raise ModelError(f"{self.info.name} was closed")
        if not texts:
            return np.zeros((0, int(self._model.config.hidden_size)), dtype=np.float32)
        rows = self._ids(texts)
        longest = max(map(len, rows))
        tokens = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        device = self._model.device
        tokens, mask = tokens.to(device), mask.to(device)
        with torch.inference_mode():
            states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
            pooled = self._pooled(states.float(), mask)
            unit = torch.nn.functional.normalize(pooled, dim=-1)
        return np.asarray(unit.cpu().numpy(), dtype=np.float32)

    def lengths(self, prompts: Sequence[Prompt | str]) -> list[int]:
        """Tokens that each text costs after truncation, special tokens included."""
        texts = [one if isinstance(one, str) else one.text for one in prompts]
        return [len(row) for row in self._ids(texts)] if texts else []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that are read, without special tokens."""
        return [max(0, length - 2) for length in self.lengths(list(texts))]

    def close(self) -> None:
        """Free the weights."""
        self._model = None

    def _pooled(self, states: Any, mask: Any) -> Any:
        if self._pooling == "cls":
            return states[:, 0]
        weights = mask[..., None].float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        cut = self._longest * 32  # a token of ordinary text is far shorter; megabytes need not be read
        found = self._tokenizer.encode_batch_fast([text[:cut] for text in texts])
        return [one.ids for one in found]


def load(source: Source, dtype: str, device: str) -> Model:
    """The encoder at `source`; `WeightsError` when it cannot be loaded."""
    from transformers import AutoModel

    packed = torch_load.dequantizing(source)
    kind = torch_load.dtype_of("float32" if dtype == "auto" and device == "cpu" else dtype, device)
    try:
        with torch_load.quiet():
            model = AutoModel.from_pretrained(**source.where, **packed, dtype=kind, use_safetensors=True)
    except Exception as error:
        raise torch_load.unreadable(source, error) from error
    return embedder(source.name, source, model, device, (torch_load.digest(source),))


def embedder(name: str, source: Source, model: Any, device: str, details: tuple[str, ...]) -> Model:
    """A loaded encoder as SQLuice's, with the tokenizer and settings at `source`; its revision is a digest of
    `details` and of how it is asked."""
    from tokenizers import Tokenizer

    longest = int(_settings(source, "sentence_bert_config.json").get("max_seq_length") or LONGEST)
    pooling = "cls" if _settings(source, "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"
    try:
        tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    except Exception as error:
        raise torch_load.unreadable(source, error) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    kind = str(model.dtype).removeprefix("torch.")
    info = ModelInfo(
        name=name,
        revision=torch_load.combined(*details, kind, VERSION, str(longest), pooling),
        device=device,
        extra={"dtype": kind, "backend": "torch", "truncates_at": str(longest)},
    )
    ready = model.to(device).eval().requires_grad_(False)
    return Embedder(ready, tokenizer, info, longest, pooling)  # type: ignore[return-value]


def _settings(source: Source, name: str) -> dict[str, Any]:
    try:
        found = json.loads((source.folder / name).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
