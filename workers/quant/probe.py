"""A spot check that travels with an artifact: the base model's states on a few texts of ours.

The texts are those of `workers/calibration`, so no row of anybody's table is in the file. The manifest has, for each
width, the cosine of its states to the base model's; `serve.verify` measures it again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqluice.workers.calibration import COMPLAINTS, PLAIN, PRAISE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqluice.workers.quant.calibrate import Batch
    from sqluice.workers.quant.checkpoint import Skeleton

TEXTS = (*PRAISE, *COMPLAINTS, *PLAIN)


def longest(folder: Path, config: Any, most: int) -> int:
    """Tokens at which texts are cut: the embedder's own limit, the context, or `most`."""
    limits = [most, int(getattr(config.get_text_config(), "max_position_embeddings", 0) or most) - 2]
    try:
        limits.append(int(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]))
    except (OSError, ValueError, KeyError, TypeError):
        return min(limits)
    return min(limits)


def tokens(tokenizer: Any) -> tuple[Any, Any]:
    """Ids and mask [n, t] of the probe's texts."""
    import torch

    rows = [list(tokenizer(text)["input_ids"])[:64] for text in TEXTS]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return ids, mask


def pooled(states: Any, mask: Any) -> Any:
    """Float32 [n, d]: mean over the tokens of each text."""
    weights = mask[..., None].float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def cosine(found: Any, base: Any) -> float:
    """Mean over texts."""
    import torch

    return float(torch.nn.functional.cosine_similarity(found.float(), base.float(), dim=-1).mean())


def compared(shape: Skeleton, held: Sequence[Batch]) -> tuple[dict[str, dict[str, float]], Any]:
    """For each width `{"cosine": ..}`, and the base model's pooled states float32 [n, d]."""
    import torch

    norm = getattr(shape.base, "norm", None)
    with torch.inference_mode():
        states = {
            one.width: pooled(norm(one.hidden) if norm is not None else one.hidden, one.mask).cpu() for one in held
        }
    base = states.pop(0)
    return {str(width): {"cosine": cosine(found, base)} for width, found in states.items()}, base
