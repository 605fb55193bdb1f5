"""What a quantized layer is: integer codes, and for each width the coefficients that turn leading bits into weights.

Of a code with K bits, bit i (0 is the most significant) of every weight is one bit plane. A width that reads p planes
sees the p leading bits. How they become a weight is the `Rule` of its coefficients; g is the group of a column:

| rule | weight of row r, column j | tensors |
| --- | --- | --- |
| `affine` | `offset[g, r] + scale[g, r] * code`, code the first b bits | `scale`, `offset` fp16 [groups, out] |
| `rounded` | the same on `clamp((q >> K-b) + (q >> K-b-1 & 1), 0, 2^b - 1) << K-b`: reads b + 1 planes | those of K |
| `planes` | `c[0, g, r] + sum_i c[i, g, r] bit_i` | `c` fp16 [b + 1, groups, out] |
| `tail` | the weight at width `base`, plus `offset + scale * (the next b - base bits)` | `scale`, `offset` |
| `paths` | `sum_i g[i, r] (2 bit_i - 1) h[i, j]`, no groups | `g` fp16 [b, out], `h` fp16 [b, in] |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqluice.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

RuleName: TypeAlias = Literal["affine", "rounded", "planes", "tail", "paths"]
RULES: tuple[RuleName, ...] = ("affine", "rounded", "planes", "tail", "paths")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a width of `bits` bits becomes weights. `base` is the width that a `tail` or `rounded` stands on."""

    name: RuleName
    bits: int
    tensors: dict[str, Any]
    base: int = 0


@dataclass(frozen=True, slots=True)
class Quantized:
    """A layer: `codes` uint8 [out, in] of `planes` bits each, and the rule of each width."""

    codes: Any
    planes: int
    group: int
    rules: dict[int, Rule] = field(default_factory=dict)

    def weight(self, bits: int) -> Any:
        """Float32 [out, in] at a width."""
        read = planes_read(self.rules, bits, self.planes)
        return weight(self.codes >> (self.planes - read), read, self.rules, bits, self.group)

    def bits_per_weight(self, bits: int) -> float:
        """What a reader at this width reads, coefficients included, over the number of weights."""
        return bits_per_weight(self.rules, bits, self.planes, tuple(self.codes.shape))


def rule_of(rules: dict[int, Rule], bits: int) -> Rule:
    """The rule of a width; `DataError` lists the widths there are."""
    if bits not in rules:
        raise DataError(f"{bits} bits are not in it; it holds {', '.join(map(str, sorted(rules)))}")
    return rules[bits]


def planes_read(rules: dict[int, Rule], bits: int, planes: int) -> int:
    """How many planes a width reads."""
    rule = rule_of(rules, bits)
    return min(planes, bits + 1) if rule.name == "rounded" else bits


def read_with(rules: dict[int, Rule], bits: int) -> list[Rule]:
    """The rules whose tensors a width needs: its own, and what a tail stands on."""
    rule = rule_of(rules, bits)
    return [rule, *read_with(rules, rule.base)] if rule.base else [rule]


def bits_per_weight(rules: dict[int, Rule], bits: int, planes: int, shape: tuple[int, int]) -> float:
    """Bits that a reader at this width reads for each weight of a layer [out, in]."""
    held: int = sum(t.numel() * t.element_size() for rule in read_with(rules, bits) for t in rule.tensors.values())
    return planes_read(rules, bits, planes) + 8.0 * held / (shape[0] * shape[1])


def weight(codes: Any, read: int, rules: dict[int, Rule], bits: int, group: int, dtype: Any = None) -> Any:
    """[out, in] in `dtype` (float32) from `codes` [out, in], which hold the first `read` bits."""
    import torch

    rule = rule_of(rules, bits)
    kind = dtype or torch.float32
    if rule.name == "paths":
        return _paths(codes, rule, kind)
    if rule.name == "planes":
        return _planes(codes, rule, group, kind)
    if rule.name == "tail":
        extra = bits - rule.base
        low = weight(codes >> extra, read - extra, rules, rule.base, group, kind)
        return low + _affine(codes & (2**extra - 1), rule, group, kind)
    if rule.name == "rounded":
        return _affine(rounded(codes, read, bits) << (rule.base - bits), rules[rule.base], group, kind)
    return _affine(codes, rule, group, kind)


def coefficients(rules: dict[int, Rule], bits: int) -> Any:
    """Float32 [bits + 1, groups, out] with `weight = c_0 + sum_i c_i bit_i`, for every rule that is linear in the bits
    of a weight; None for `rounded` and `paths`."""
    import torch

    rule = rule_of(rules, bits)
    if rule.name == "planes":
        return rule.tensors["c"].float()
    if rule.name not in ("affine", "tail"):
        return None
    scale, offset = rule.tensors["scale"].float(), rule.tensors["offset"].float()
    steps = torch.stack([scale * 2**at for at in reversed(range(bits - rule.base))])
    if not rule.base:
        return torch.cat([offset[None], steps])
    low = coefficients(rules, rule.base)
    return None if low is None else torch.cat([(low[0] + offset)[None], low[1:], steps])


def rounded(codes: Any, planes: int, bits: int) -> Any:
    """MatQuant's slice: the first `bits` bits of a code of `planes`, rounded by the next one, clamped."""
    if bits == planes:
        return codes
    kept = (codes >> (planes - bits)) + ((codes >> (planes - bits - 1)) & 1)
    return kept.clamp(max=2**bits - 1)


def _grouped(codes: Any, group: int, fill: Callable[[Any, slice, Any], None], kind: Any) -> Any:
    """[out, in]: `fill(found, groups, codes)` sets [out, groups, columns] for the whole groups, then for a short
    last one."""
    import torch

    out, width = codes.shape
    found = torch.empty(out, width, dtype=kind, device=codes.device)
    whole = width // group
    edge = whole * group
    for cut, inside in ((slice(0, whole), slice(0, edge)), (slice(whole, whole + 1), slice(edge, width))):
        columns = (inside.stop - inside.start) // max(cut.stop - cut.start, 1)
        if columns:
            shape = (out, -1, columns)
            piece = torch.empty(out, cut.stop - cut.start, columns, dtype=kind, device=codes.device)
            fill(piece, cut, codes[:, inside].reshape(shape))
            found[:, inside] = piece.reshape(out, -1)
    return found


def _affine(codes: Any, rule: Rule, group: int, kind: Any) -> Any:
    import torch

    scale, offset = (rule.tensors[name].to(kind).T[..., None] for name in ("scale", "offset"))

    def fill(found: Any, cut: slice, inside: Any) -> None:
        torch.addcmul(offset[:, cut], scale[:, cut], inside.to(kind), out=found)

    return _grouped(codes, group, fill, kind)


def _planes(codes: Any, rule: Rule, group: int, kind: Any) -> Any:
    c = rule.tensors["c"].to(kind).permute(0, 2, 1)[..., None]

    def fill(found: Any, cut: slice, inside: Any) -> None:
        found.copy_(c[0][:, cut].expand_as(found))
        for at in range(rule.bits):
            bit = ((inside >> (rule.bits - 1 - at)) & 1).to(kind)
            found.addcmul_(c[at + 1][:, cut], bit)

    return _grouped(codes, group, fill, kind)


def _paths(codes: Any, rule: Rule, kind: Any) -> Any:
    import torch

    g, h = rule.tensors["g"].to(kind), rule.tensors["h"].to(kind)
    found = torch.zeros(codes.shape, dtype=kind, device=codes.device)
    for at in range(rule.bits):
        sign = ((codes >> (rule.bits - 1 - at)) & 1).to(kind).mul_(2.0).sub_(1.0)
        found += sign.mul_(g[at][:, None]).mul_(h[at][None, :])
    return found


def half(tensor: Any, what: str) -> Any:
    """`tensor` as float16; `DataError` where it would overflow."""
    import torch

    found = tensor.to(torch.float16)
    if not bool(found.isfinite().all()):
        raise DataError(f"its {what} are too large for float16 (up to {float(tensor.abs().max()):.3g})")
    return found
