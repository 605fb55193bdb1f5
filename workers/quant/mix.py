"""Slices whose layers have different widths: the best mix under a budget of bits, stored in the artifact's manifest.

A layer's part in the error is the square of its relative output error at a width, which the manifest has: the share of
its output's energy that is noise. Errors of layers are taken to add up. From the widest uniform width that fits, the
step that saves most error a bit is taken until none fits any more (marginal analysis of a separable allocation: Fox
1966, *Discrete optimization via marginal analysis*). No layer is narrower than there, so the sum is never larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError
from sqluice.workers.quant import artifact, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Errors = Mapping[str, Mapping[int, float]]


def check(widths: Sequence[int], average: float) -> None:
    """`DataError` when no mix of the sorted `widths` has `average` bits, or a width of its own has."""
    if not widths[0] < average < widths[-1]:
        raise DataError(f"average bits lie between {widths[0]} and {widths[-1]}, exclusive, not {average:g}")
    if average in widths:
        raise DataError(f"{average:g} bits are a width of its own; a mix lies between two")


def search(errors: Errors, sizes: Mapping[str, int], average: float) -> dict[str, int]:
    """A width for each layer, at most `average` bits a weight in the mean. `errors` are relative errors by layer and
    width, `sizes` numbers of weights. Raises what `check` raises."""
    widths = sorted(next(iter(errors.values())))
    check(widths, average)
    mix = dict.fromkeys(errors, max(width for width in widths if width <= average))
    left = average * sum(sizes.values()) - sum(sizes[layer] * width for layer, width in mix.items())
    while steps := list(_steps(mix, errors, sizes, left)):
        _, bits, layer, wider = max(steps)
        mix[layer] = wider
        left -= bits
    return mix


def _steps(
    mix: Mapping[str, int], errors: Errors, sizes: Mapping[str, int], left: float
) -> Iterator[tuple[float, int, str, int]]:
    """What may be widened for `left` bits: error saved a bit, bits, layer, its new width."""
    for layer, width in mix.items():
        for wider, error in errors[layer].items():
            bits = sizes[layer] * (wider - width)
            gain = errors[layer][width] ** 2 - error**2
            if 0 < bits <= left and gain > 0:
                yield gain / bits, bits, layer, wider


def total(mix: Mapping[str, int], errors: Errors) -> float:
    """Sum over layers of the squared relative error at their widths."""
    return sum(errors[layer][width] ** 2 for layer, width in mix.items())


def mean_bits(mix: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Bits of a code a weight, without coefficients."""
    return sum(sizes[layer] * width for layer, width in mix.items()) / sum(sizes.values())


def add(path: Path, average: float) -> dict[str, Any]:
    """Search a mix of at most `average` bits, measure it on the probe and store it in the artifact at `path`, which is
    written anew; its name is `f"{average:g}"`. Returns what `artifact.inspect` says."""
    held = artifact.read(path)
    layers = held.manifest["layers"]
    errors = {name: {int(bits): error for bits, error in one["error"].items()} for name, one in layers.items()}
    sizes = {name: one["shape"][0] * one["shape"][1] for name, one in layers.items()}
    name = f"{average:g}"
    mix = search(errors, sizes, average)
    mean = sum(errors[layer][width] for layer, width in mix.items()) / len(mix)
    mixes = {**held.manifest.get("mixes", {}), name: mix}
    cosine = serve.probed(held, mix)
    quality = {**held.manifest["quality"], name: {"cosine": cosine, "layer_error": mean}}
    artifact.rewrite(path, {"mixes": mixes, "quality": quality})
    return artifact.inspect(path)
