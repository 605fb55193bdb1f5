"""Bits in words: a plane of a layer [out, in] is int32 [out, ceil(in / 32)], column 32 w + i in bit i of word w.

Columns past the last are zero bits. Words are little-endian in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = 32


def words(width: int) -> int:
    """Words of one row of `width` columns."""
    return -(-width // WORD)


def pack(codes: Any, planes: int) -> list[Any]:
    """The planes, most significant first, of codes uint8 [out, in] of `planes` bits."""
    import torch

    out, width = codes.shape
    padded = torch.zeros(out, words(width) * WORD, dtype=torch.uint8, device=codes.device)
    padded[:, :width] = codes
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=codes.device)
    found = []
    for at in range(planes):
        bits = ((padded >> (planes - 1 - at)) & 1).reshape(out, -1, 8)
        found.append((bits * places).sum(2, dtype=torch.uint8).view(torch.int32).contiguous())
    return found


def unpack(planes: Sequence[Any], width: int) -> Any:
    """Codes uint8 [out, width] of the planes given, most significant first."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=planes[0].device)
    codes: Any = None
    for plane in planes:
        bits = (plane.view(torch.uint8)[..., None] >> places).bitwise_and_(1)
        codes = bits if codes is None else codes.mul_(2).bitwise_or_(bits)
    return codes.reshape(len(codes), -1)[:, :width]
