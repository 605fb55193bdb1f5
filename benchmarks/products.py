"""Products of one layer by the kernels that slices of an artifact use, against dense ones, and against the hardware.

Usage::

    python benchmarks/products.py [--shapes 576x576,1536x576,4096x1024] [--tokens 1,8,64,512] [--json]

Per shape (out x in) and number of tokens: microseconds of float32 and bfloat16 products, of torch's packed 4-bit
product and of `#quant=int8` as `workers/int8.py` has it; on CUDA also of the kernels on bit planes. Weights are cycled,
so that they come from memory as those of a model do. `bytes` are what a product must move (weights and coefficients,
inputs, outputs); `roofline` is the least time that this machine's memory and arithmetic allow for it over the time
taken: 1 is the best there can be. Both are measured in the same run (`machine`), arithmetic as the fastest large
product of floats, for int8 of integers. `speedup` is over the faster of the two dense products.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch

from sqluice.workers import int8
from sqluice.workers.quant import pack, products, slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GROUP = 64
CACHED = 64 << 20  # more bytes of weights than a cache holds
DENSE = ("float32", "bfloat16")


def seconds(call: Callable[[], Any], device: str) -> float:
    """Of one call: the least mean over runs of at least 30 ms."""
    call()
    count, best = 1, float("inf")
    for _ in range(5):
        while True:
            _wait(device)
            started = time.perf_counter()
            for _ in range(count):
                call()
            _wait(device)
            spent = time.perf_counter() - started
            if spent > 0.03:
                break
            count *= 2
        best = min(best, spent / count)
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, float]:
    """Bytes a second of reading memory, and operations a second of large products."""
    many = torch.randn(32 << 20, device=device)
    a = {dtype: torch.randn(1024, 1024, device=device).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    found = {"bytes_per_s": many.numel() * 4 / seconds(many.sum, device)}
    found["flop_per_s"] = max(2 * 1024**3 / seconds(lambda s=square: s @ s, device) for square in a.values())
    if device == "cpu":
        product = _int8(1024, 1024)
        found["integer_op_per_s"] = 2 * 1024**3 / seconds(lambda: product(a[torch.float32]), device)
    return found


def kinds(out: int, width: int, device: str) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """Name, bytes of the weights, and what makes one product (so that several can be cycled)."""
    for name in DENSE:
        dtype = getattr(torch, name)
        size = out * width * dtype.itemsize
        yield name, size, lambda dtype=dtype: _dense(torch.randn(out, width, device=device).to(dtype))
    for bits in (2, 3, 4) if device == "cuda" else ():
        size = out * width * (bits / 8 + 4 / GROUP)
        yield f"planes {bits}", size, lambda bits=bits: _planes(out, width, bits, device)
    if device == "cpu":
        yield "packed 4", out * width * (0.5 + 4 / GROUP), lambda: _packed(out, width)
        yield "int8", out * width + 4 * out, lambda: _int8(out, width)


def _dense(weight: Any) -> Callable[[Any], Any]:
    return lambda x: torch.nn.functional.linear(x.to(weight.dtype), weight)


def _affine(out: int, width: int, bits: int, device: str) -> tuple[list[Any], slices.Rule]:
    codes = torch.randint(0, 2**bits, (out, width), dtype=torch.uint8, device=device)
    grid = {name: torch.rand(width // GROUP, out, device=device).half() for name in ("scale", "offset")}
    return pack.pack(codes, bits), slices.Rule("affine", bits, grid)


def _packed(out: int, width: int) -> Callable[[Any], Any]:
    planes, rule = _affine(out, width, 4, "cpu")
    return products.packed(planes, rule, width, GROUP)


def _planes(out: int, width: int, bits: int, device: str) -> Callable[[Any], Any]:
    planes, rule = _affine(out, width, bits, device)
    found = products.from_planes(planes, {bits: rule}, bits, GROUP)
    assert found is not None
    return found


def _int8(out: int, width: int) -> Callable[[Any], Any]:
    holder = torch.nn.Sequential(torch.nn.Linear(width, out, bias=False).requires_grad_(False))
    int8.convert(holder)
    product: Callable[[Any], Any] = holder[0]
    return product


def measured(
    out: int, width: int, tokens: Sequence[int], device: str, can: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Rows of one shape."""
    dense: dict[int, float] = {}
    for name, size, make in kinds(out, width, device):
        computing = "integer_op_per_s" if name == "int8" else "flop_per_s"
        copies = [make() for _ in range(max(2, int(CACHED / size)))]
        for count in tokens:
            x = torch.randn(count, width, device=device)
            x = x.bfloat16() if name == "bfloat16" or device == "cuda" else x
            turn = iter(range(1 << 60))
            spent = seconds(lambda x=x, turn=turn, made=copies: made[next(turn) % len(made)](x), device)
            if name in DENSE:
                dense[count] = min(spent, dense.get(count, spent))
            moved = size + count * (out + width) * x.element_size()
            least = max(moved / can["bytes_per_s"], 2 * count * out * width / can[computing])
            yield {
                "shape": f"{out}x{width}",
                "tokens": count,
                "product": name,
                "us": round(spent * 1e6, 1),
                "bytes": int(moved),
                "roofline": round(least / spent, 3),
                **({} if name in DENSE else {"speedup": round(dense[count] / spent, 2)}),
            }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="576x576,1536x576,4096x1024", help="out x in")
    parser.add_argument("--tokens", default="1,8,64,512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    can = machine(device)
    rows = []
    for shape in args.shapes.split(","):
        out, width = map(int, shape.split("x"))
        for row in measured(out, width, [int(one) for one in args.tokens.split(",")], device, can):
            rows.append(row)
            if not args.json:
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    about = {"device": device, "threads": args.threads, "capability": torch.backends.cpu.get_cpu_capability()}
    if args.json:
        print(json.dumps({"machine": {**about, **can}, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
