"""Causal language models on torch: log-probabilities of endings after a shared beginning, greedy text.

What a batch shares (its prefix) is computed once and its keys and values are kept. Rows are padded on the
right for scores, so that the causal mask alone keeps padding out. All endings of a row stand in one forward
pass behind the row: the mask lets each see the row and itself, never another ending.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sqluice.workers import torch_load

if TYPE_CHECKING:
    from collections.abc import Sequence

Ids: TypeAlias = "Sequence[int]"

KEPT_PREFIXES = 16
_HEAD_CELLS = 1 << 24  # logits held at once: 64 MB of float32


@dataclass(slots=True)
class Tails:
    """Endings in one strip: all tokens but the last of each ending, laid one after another.

    `targets` lists every scored token as (ending, column of the state that predicts it, token); column -1 is
    the last token of the row itself.
    """

    strip: list[int]
    offsets: list[int]
    owner: list[int]
    targets: list[tuple[int, int, int]]
    count: int


def lay_out(tails: Sequence[Ids]) -> Tails:
    """The strip of `tails` (each at least one token)."""
    strip: list[int] = []
    offsets: list[int] = []
    owner: list[int] = []
    targets: list[tuple[int, int, int]] = []
    for at, tail in enumerate(tails):
        before = -1
        for offset, token in enumerate(tail):
            targets.append((at, before, int(token)))
            if offset + 1 < len(tail):
                before = len(strip)
                strip.append(int(token))
                offsets.append(offset)
                owner.append(at)
    return Tails(strip, offsets, owner, targets, len(tails))


class CausalLM:
    """A transformers causal model, ready for `endings` and `write`. `device` and `dtype` are the model's."""

    def __init__(self, model: Any, pad: int, stops: Sequence[int]) -> None:
        self.model = model
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        # Renamed in transformers 5.24; the old name goes in 5.40.
        self.kept = "cache" if "cache" in inspect.signature(self.body.forward).parameters else "past_key_values"
        self.pad = pad
        self.stops = list(stops)
        self.windowed = _windowed(model.config)
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._prefixes: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._cell_bytes = 0

    def endings(self, prefix: Ids, rows: Sequence[Ids], tails: Sequence[Ids]) -> np.ndarray:
        """Float32 [n, t]: summed log-probability of each tail after prefix + row.

        A row holds at least one token. Prefix and rows together fit the model's context (the caller checks).
        """
        import torch

        with torch.inference_mode():
            if self.windowed and any(len(tail) > 1 for tail in tails):
                return self._endings_apart(prefix, rows, tails)
            return self._endings(prefix, rows, lay_out(tails))

    def likelihood(self, texts: Sequence[Ids]) -> np.ndarray:
        """Float32 [n]: summed log-probability of each text's tokens after its first."""
        return np.array([self.endings((), [text[:1]], [text[1:]])[0, 0] for text in texts], dtype=np.float32)

    def _endings(self, prefix: Ids, rows: Sequence[Ids], tails: Tails) -> np.ndarray:
        import torch

        n, longest, width = len(rows), max(map(len, rows)), len(tails.strip)
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((n, longest + width), self.pad, dtype=torch.long)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        extra: dict[str, Any] = {}
        if width:
            tokens[:, longest:] = torch.tensor(tails.strip)
            extra = self._strip_inputs(len(prefix), lengths, longest, tails)
        states = self._states(prefix, tokens, extra)
        columns = sorted({column for _, column, _ in tails.targets})
        where = torch.tensor([[at - 1 if c < 0 else longest + c for c in columns] for at in lengths.tolist()])
        picked = states[torch.arange(n, device=states.device)[:, None], self._moved(where)]
        return self._gathered(picked, columns, tails)

    def _strip_inputs(self, prefix: int, lengths: Any, longest: int, tails: Tails) -> dict[str, Any]:
        """Positions and the mask of rows followed by the strip of endings."""
        import torch

        n, width = len(lengths), len(tails.strip)
        offsets, owner = torch.tensor(tails.offsets), torch.tensor(tails.owner)
        of_rows = torch.arange(longest).expand(n, longest)
        positions = prefix + torch.cat([of_rows, lengths[:, None] + offsets], dim=1)
        size = longest + width
        sees = torch.zeros(n, size, size, dtype=torch.bool)
        sees[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
        sees[:, longest:, :longest] = (torch.arange(longest) < lengths[:, None])[:, None, :]
        sees[:, longest:, longest:] = (owner[:, None] == owner) & (offsets[:, None] >= offsets)
        mask = torch.zeros(n, 1, size, prefix + size, dtype=self.dtype)
        mask[..., prefix:].masked_fill_(~sees[:, None], torch.finfo(self.dtype).min)
        return {"attention_mask": self._moved(mask), "position_ids": self._moved(positions)}

    def _states(self, prefix: Ids, tokens: Any, extra: dict[str, Any]) -> Any:
        """Last hidden states [n, length, d] of `tokens` after `prefix`."""
        inputs: dict[str, Any] = {"input_ids": self._moved(tokens), "use_cache": False, **extra}
        if len(prefix):
            inputs |= {self.kept: self._past(prefix, len(tokens)), "use_cache": True}
        return self.body(**inputs).last_hidden_state

    def _past(self, prefix: Ids, n: int) -> Any:
        """Keys and values of `prefix` for n rows; computed once, copied by the model when it adds its own."""
        import torch
        from transformers import DynamicCache

        key = tuple(prefix)
        kept = self._prefixes.get(key)
        if kept is None:
            tokens = torch.tensor([key], device=self.device)
            cache = self.body(input_ids=tokens, use_cache=True)
            cache = getattr(cache, self.kept, None) or cache.past_key_values
            kept = self._prefixes[key] = [(layer.keys, layer.values) for layer in cache.layers]
            while len(self._prefixes) > KEPT_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return DynamicCache([(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in kept])

    def _gathered(self, picked: Any, columns: list[int], tails: Tails) -> np.ndarray:
        """Sums of log-probabilities of the targets from the states [n, columns, d] that predict them.

        The targets' own logits are taken in float32: rounded to bfloat16 they would sit on a coarse grid. The
        normaliser is common to all choices of a column, so its rounding hardly matters.
        """
        import torch

        n = len(picked)
        index = {column: at for at, column in enumerate(columns)}
        at = torch.tensor([index[column] for _, column, _ in tails.targets], device=self.device)
        tokens = torch.tensor([token for _, _, token in tails.targets], device=self.device)
        weights = self.head.weight[tokens].float()
        own = torch.einsum("ntd,td->nt", picked[:, at].float(), weights)
        if getattr(self.head, "bias", None) is not None:
            own = own + self.head.bias[tokens].float()
        logs = self._capped(own) - self._normalisers(picked)[:, at]
        sums = torch.zeros(n, tails.count, device=self.device)
        owner = torch.tensor([tail for tail, _, _ in tails.targets], device=self.device)
        sums.index_add_(1, owner, logs)
        return np.asarray(sums.cpu().numpy(), dtype=np.float32)

    def _normalisers(self, picked: Any) -> Any:
        """Log of the summed exponentials of all logits, float32 [n, columns]."""
        import torch

        flat = picked.reshape(-1, picked.shape[-1])
        step = max(1, _HEAD_CELLS // self.head.weight.shape[0])
        pieces = [
            torch.logsumexp(self._capped(self.head(flat[at : at + step]).float()), dim=-1)
            for at in range(0, len(flat), step)
        ]
        return torch.cat(pieces).reshape(picked.shape[:2])

    def _capped(self, logits: Any) -> Any:
        """Logits after the soft cap of the models that have one (Gemma 2)."""
        return logits if not self.softcap else self.softcap * (logits / self.softcap).tanh()

    def _endings_apart(self, prefix: Ids, rows: Sequence[Ids], tails: Sequence[Ids]) -> np.ndarray:
        """As `_endings` for models whose attention windows forbid a mask of ours: one pass a tail."""
        import torch

        found = np.zeros((len(rows), len(tails)), dtype=np.float32)
        for which, tail in enumerate(tails):
            whole = [[*row, *tail[:-1]] for row in rows]
            states = self._states(prefix, self._padded(whole), {})
            where = torch.tensor([[len(row) - 1 + at for at in range(len(tail))] for row in rows])
            picked = states[torch.arange(len(rows), device=self.device)[:, None], self._moved(where)]
            columns = list(range(len(tail)))
            targets = [(0, at, int(token)) for at, token in enumerate(tail)]
            found[:, which] = self._gathered(picked, columns, Tails([], [], [], targets, 1))[:, 0]
        return found

    def read(self, prefix: Ids, rows: Sequence[Ids]) -> tuple[list[tuple[Any, Any]], list[int]]:
        """Keys and values [n, heads, prefix + longest, d] of each layer after prefix + row, and the likeliest next
        token of each row. What stands behind a row shorter than the longest means nothing."""
        import torch
        from transformers import DynamicCache

        tokens = self._padded(rows)
        cache = self._past(prefix, len(rows)) if len(prefix) else DynamicCache()
        states = self.body(input_ids=tokens, **{self.kept: cache}, use_cache=True).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows])
        last = states[torch.arange(len(rows), device=states.device), self._moved(ends)]
        return [(layer.keys, layer.values) for layer in cache.layers], self._likeliest(last)

    def next_tokens(self, last: Sequence[int], filled: Sequence[int], layers: Sequence[Sequence[Any]]) -> list[int]:
        """The likeliest token after `last`, one a row. Its keys and values go to column `filled[i]` of row i of
        `layers` (keys and values of each, [slots, heads, columns, d]); the row's earlier ones fill those before."""
        import torch

        ends = self._moved(torch.tensor(filled))
        width = max(filled) + 1
        mask = torch.zeros(len(last), 1, 1, width, dtype=self.dtype, device=self.device)
        columns = torch.arange(width, device=self.device)
        mask.masked_fill_((columns > ends[:, None])[:, None, None], torch.finfo(self.dtype).min)
        states = self.body(
            input_ids=self._moved(torch.tensor(last))[:, None],
            attention_mask=mask,
            position_ids=ends[:, None],
            **{self.kept: _slot_cache(layers, ends, width)},
            use_cache=True,
        ).last_hidden_state
        return self._likeliest(states[:, -1])

    def cell_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        import torch

        if not self._cell_bytes:
            with torch.inference_mode():
                past, _ = self.read((), [[self.pad]])
            self._cell_bytes = sum(part.element_size() * part[0, :, 0].numel() for layer in past for part in layer)
        return self._cell_bytes

    def write(self, rows: Sequence[Ids], max_tokens: int) -> list[list[int]]:
        """Greedy continuations of whole prompts in one static batch, the stop token included where one was written."""
        import torch

        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self.pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for at, row in enumerate(rows):
            tokens[at, longest - len(row) :] = torch.as_tensor(row, dtype=torch.long)
            mask[at, longest - len(row) :] = 1
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=self._moved(tokens),
                attention_mask=self._moved(mask),
                generation_config=self._greedy(max_tokens),
            )
        return [self._until_stop(row) for row in written[:, longest:].tolist()]

    def _padded(self, rows: Sequence[Ids]) -> Any:
        """Int64 [n, longest] on the device, padded on the right."""
        import torch

        tokens = torch.full((len(rows), max(map(len, rows))), self.pad, dtype=torch.long)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        return self._moved(tokens)

    def _moved(self, tensor: Any) -> Any:
        return torch_load.moved(tensor, self.device)

    def _likeliest(self, states: Any) -> list[int]:
        tokens: list[int] = self.head(states).float().argmax(-1).tolist()
        return tokens

    def _greedy(self, max_tokens: int) -> Any:
        import transformers

        config: Any = transformers.GenerationConfig
        return config(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=self.stops or None,
            pad_token_id=self.pad,
            use_cache=True,
        )

    def _until_stop(self, tokens: list[int]) -> list[int]:
        for at, token in enumerate(tokens):
            if token in self.stops:
                return tokens[: at + 1]
        return tokens


def _slot_cache(layers: Sequence[Sequence[Any]], ends: Any, width: int) -> Any:
    """Transformers' cache over slots: row i's new token goes to column `ends[i]`; `width` columns are looked at."""
    from transformers.cache_utils import Cache

    return Cache(layers=[_slot_layer()(keys, values, ends, width) for keys, values in layers])


@cache
def _slot_layer() -> Any:
    """The class of one such layer; made late, as its base is transformers'."""
    import torch
    from transformers.cache_utils import CacheLayerMixin

    class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
        is_sliding = False

        def __init__(self, keys: Any, values: Any, ends: Any, width: int) -> None:
            super().__init__()
            self.keys, self.values = keys, values
            self.is_initialized = True
            self._ends, self._width = ends, width
            self._rows = torch.arange(len(ends), device=ends.device)

        def lazy_initialization(self, *_: Any) -> None:
            """Nothing: the memory is there."""

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            n = len(self._rows)
            for kept, new in ((self.keys, key_states), (self.values, value_states)):
                kept[self._rows, :, self._ends] = new[:, :, 0]
            return self.keys[:n, :, : self._width], self.values[:n, :, : self._width]

        def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
            return self._width, 0

        def get_seq_length(self) -> int:
            return self._width - 1

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length

    return SlotLayer


def _windowed(config: Any) -> bool:
    """Whether some layers see only a window: a mask of ours would widen it."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    return any(kind != "full_attention" for kind in kinds)
