"""Quantized models against the model they come from, per method and width.

Usage::

    python benchmarks/quantization.py --quick [--json]
    python benchmarks/quantization.py [--models embedder,default] [--methods gptq,nested] [--bits 3]
        [--data FOLDER] [--out FOLDER] [--json]

`--quick` takes three layers of the embedder alone. `--data` is a Parquet file or a folder of them with columns `text`
and perhaps `label`; without it the texts are the project's own reviews and documentation. Texts that calibrate never
measure. Each row names its `task`:

- `neighbours`: share of each text's ten nearest texts that stay; `similarity`: correlation of all pairs' similarities;
- `perplexity` of held-out text; `labels`: accuracy of "Is this review positive?" on texts labelled so;
- `writing`: tokens written per second of CPU time, one text at a time.

`layer_error` is the relative error of layers' outputs on held-out activations, mean over layers. `bits_per_weight`
counts what a reader of the width reads for the quantized layers, coefficients included; `bytes` what it reads of the
whole file. `tokens_per_s` are tokens per second of CPU time on `--threads` threads, `_fp` those of the base model.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sqluice.types import Prompt
from sqluice.workers import package
from sqluice.workers.quant import methods, runner, serve
from sqluice.workers.quant.core import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[1]
NESTED = (2, 3, 4, 8)
RUNS = {
    "rtn": ((8,), (4,), (3,), (2,)),
    "gptq": ((8,), (4,), (3,), (2,)),
    "bpdq": ((4,), (3,), (2,)),
    "rabit": ((2,), (3,)),
    "matgptq": (NESTED,),
    "nested": (NESTED,),
}
QUICK_RUNS = {**RUNS, "gptq": RUNS["gptq"][1:], "bpdq": ((3,), (2,)), "rabit": ((2,),)}
QUICK_LAYERS = ("attention.self.query", "intermediate.dense", "output.dense")
WRITTEN = 48
POSITIVE = Prompt("Is this review positive? {0}", ("",), kind="filter")


def own_texts() -> list[tuple[str, str]]:
    """(text, label) of the project's reviews, and paragraphs of its documentation without a label."""
    with (ROOT / "engine" / "data" / "reviews.csv").open(encoding="utf-8") as file:
        found = [(row["text"], row["sentiment"]) for row in csv.DictReader(file)]
    for page in sorted((ROOT / "docs").glob("*.md")):
        parts = page.read_text(encoding="utf-8").split("\n\n")
        found += [(" ".join(part.split()), "") for part in parts if len(part) > 100 and part[0].isalpha()]
    return found


def texts_of(data: Path | None) -> list[tuple[str, str]]:
    """(text, label), as many of each file, in the order of their hashes."""
    if data is None:
        found = [own_texts()]
    else:
        import pyarrow.parquet as pq

        found = []
        for path in sorted(data.glob("*.parquet")) if data.is_dir() else [data]:
            table = pq.read_table(path)
            labels = table["label"].to_pylist() if "label" in table.column_names else [""] * len(table)
            found.append(list(zip(table["text"].to_pylist(), map(str, labels), strict=True)))
    found = [sorted(dict(part).items(), key=lambda row: hashlib.sha256(row[0].encode()).digest()) for part in found]
    least = max(400, min(map(len, found)))
    return [row for rank in range(least) for part in found if rank < len(part) for row in [part[rank]]]


def split(rows: Sequence[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts to calibrate on (every second), and rows to measure on."""
    return [text for text, _ in rows[::2]], list(rows[1::2])


class Clock:
    """Tokens per second of CPU time."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def timed(self, tokens: int, call: Callable[[], Any]) -> Any:
        """The result of `call`, which handles `tokens` tokens."""
        started = time.process_time()
        found = call()
        self.seconds += time.process_time() - started
        self.tokens += tokens
        return found

    @property
    def rate(self) -> float:
        """Tokens a second so far."""
        return round(self.tokens / max(self.seconds, 1e-9), 1)


def embedded(model: Any, texts: Sequence[str]) -> tuple[np.ndarray, float]:
    """Vectors, and tokens a second; the first batch is not timed."""
    model.embed(texts[:8])
    lengths, clock = model.lengths(texts), Clock()
    order = np.argsort(lengths)
    found = np.zeros((len(texts), 0), np.float32)
    for at in range(0, len(order), 16):
        part = order[at : at + 16]
        rows = [texts[row] for row in part]
        vectors = clock.timed(sum(lengths[row] for row in part), lambda rows=rows: model.embed(rows))
        found = found if found.shape[1] else np.zeros((len(texts), vectors.shape[1]), np.float32)
        found[part] = vectors
    return found, clock.rate


def neighbours(vectors: np.ndarray, k: int = 10) -> list[set[int]]:
    """The k nearest others of each row."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    return [set(row.tolist()) for row in np.argsort(-near, axis=1, kind="stable")[:, :k]]


def kept(found: np.ndarray, base: np.ndarray) -> float:
    """Share of nearest neighbours that stay."""
    pairs = zip(neighbours(found), neighbours(base), strict=True)
    return float(np.mean([len(a & b) / len(b) for a, b in pairs]))


def correlation(found: np.ndarray, base: np.ndarray) -> float:
    """Of the similarities of all pairs."""
    upper = np.triu_indices(len(base), 1)
    return float(np.corrcoef((found @ found.T)[upper], (base @ base.T)[upper])[0, 1])


def perplexity(model: Any, texts: Sequence[str], clock: Clock) -> float:
    """Over all tokens but each text's first."""
    lm, tokens = model._lm, model._tokens  # noqa: SLF001 - likelihood of text is no question that SQL asks
    rows = [row for text in texts if len(row := tokens.plain(text)[:256]) > 8]
    total = sum(float(clock.timed(len(row), lambda row=row: lm.likelihood([row]))[0]) for row in rows)
    return math.exp(-total / sum(len(row) - 1 for row in rows))


def label_accuracy(model: Any, rows: Sequence[tuple[str, str]]) -> float:
    """Share of rows labelled positive or negative that are answered so."""
    prompts = [Prompt(POSITIVE.template, (text,), kind="filter") for text, _ in rows]
    bias = model.calibration(prompts[0], ("yes", "no"))
    right = 0
    for at in range(0, len(prompts), 8):
        scores = model.score(prompts[at : at + 8], ("yes", "no")) - bias
        said = ["positive" if yes > no else "negative" for yes, no in scores]
        right += sum(a == b for a, (_, b) in zip(said, rows[at : at + 8], strict=True))
    return right / len(rows)


def writing(model: Any, texts: Sequence[str]) -> float:
    """Tokens a second, one text at a time; the first is not timed."""
    clock = Clock()
    for at, text in enumerate(texts):
        prompt = Prompt("Go on with this text: {0}", (text[:100],))
        started = time.process_time()
        (found,) = model.generate([prompt], max_tokens=WRITTEN)
        if at:
            clock.seconds += time.process_time() - started
            clock.tokens += found.tokens_out
    return clock.rate


class Task:
    """What a model is measured on, and what the base model reached."""

    def __init__(self, name: str, rows: Sequence[tuple[str, str]], args: argparse.Namespace) -> None:
        self.name = name
        self.texts = [text for text, _ in rows[: args.texts]]
        labelled = [row for row in rows if row[1] in ("positive", "negative")]
        self.labelled = labelled[: args.texts]
        self.base: dict[str, float] = {}
        self.vectors: Any = None
        self.rate = 0.0

    def measure(self, model: Any) -> tuple[dict[str, float], float]:
        """Quality by task, and tokens a second. The first model measured is the base."""
        if hasattr(model, "embed"):
            vectors, rate = embedded(model, self.texts)
            if self.vectors is None:
                self.vectors = vectors
            found = {"neighbours": kept(vectors, self.vectors), "similarity": correlation(vectors, self.vectors)}
        else:
            clock = Clock()
            found = {"perplexity": perplexity(model, self.texts, clock)}
            if self.labelled:
                found["labels"] = label_accuracy(model, self.labelled)
            found["writing"] = writing(model, self.texts[:5])
            rate = clock.rate
        if not self.base:
            self.base, self.rate = found, rate
        return found, rate

    def rows(self, facts: dict[str, Any], model: Any) -> Iterator[dict[str, Any]]:
        """One row a task."""
        found, rate = self.measure(model)
        for task, quality in found.items():
            scores = {"task": task, "quality": round(quality, 4), "quality_fp": round(self.base[task], 4)}
            yield {**facts, **scores, "tokens_per_s": rate, "tokens_per_s_fp": self.rate}


def whole(name: str, texts: list[str], rows: Sequence[tuple[str, str]], args: argparse.Namespace) -> Iterator[Any]:
    """Rows of every method on one model."""
    task = Task(name, rows, args)
    base: Any = package.load(name, threads=args.threads)
    task.measure(base)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.out or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for method, widths in runs(args):
            path = folder / f"{name}-{method}-{'-'.join(map(str, widths))}-g{args.group}.sq"
            spent = time.process_time()
            facts = _made(path, name, method, widths, texts, args)
            spent = time.process_time() - spent
            for bits in widths:
                about = {
                    "model": name,
                    "group": args.group,
                    "method": method,
                    "bits": bits,
                    "bits_per_weight": round(facts["widths"][str(bits)]["bits_per_weight"], 3),
                    "layer_error": round(facts["quality"][str(bits)]["layer_error"], 5),
                    "bytes": facts["widths"][str(bits)]["bytes"],
                    "cpu_s": round(spent, 1),
                }
                yield from task.rows(about, serve.load_slice(path, bits, threads=args.threads))


def _made(path: Path, name: str, method: str, widths: Sequence[int], texts: list[str], args: Any) -> dict[str, Any]:
    from sqluice.workers.quant import artifact

    if path.exists():
        return artifact.inspect(path)
    return runner.quantize(f"package:{name}", method, widths, args.group, texts, path, device="cpu", tokens=args.tokens)


def runs(args: argparse.Namespace) -> list[tuple[str, tuple[int, ...]]]:
    """Methods and the widths of one artifact each."""
    wanted = set(map(int, args.bits.split(","))) if args.bits else set(range(1, 9))
    made = QUICK_RUNS if args.quick else RUNS
    return [(method, widths) for method in args.methods.split(",") for widths in made[method] if wanted & set(widths)]


def quick(texts: list[str], rows: Sequence[tuple[str, str]], args: argparse.Namespace) -> Iterator[Any]:
    """Rows of every method on three layers of the embedder, the others as they are."""
    import torch

    task = Task("embedder", rows, args)
    model: Any = package.load("embedder", threads=args.threads)
    task.measure(model)
    block = model._model.encoder.layer[2]  # noqa: SLF001 - one layer at a time, without a file
    layers = {name: block.get_submodule(name) for name in QUICK_LAYERS}
    inputs = [statistics(model, layers, part) for part in (texts[:96], task.texts)]
    weights = {name: layer.weight.data for name, layer in layers.items()}
    for method, widths in runs(args):
        made = {name: methods.quantize(method, weights[name], inputs[0][name], widths, args.group) for name in layers}
        for bits in widths:
            errors, read = [], 0.0
            for name, layer in layers.items():
                layer.weight.data = made[name].weight(bits)
                errors.append(runner.relative_error(weights[name], layer.weight.data, inputs[1][name]))
                read += made[name].bits_per_weight(bits) * weights[name].numel()
            about = {
                "model": "embedder, 3 layers",
                "group": args.group,
                "method": method,
                "bits": bits,
                "bits_per_weight": round(read / sum(weight.numel() for weight in weights.values()), 3),
                "layer_error": round(float(np.mean(errors)), 5),
                "bytes": int(read / 8),
            }
            yield from task.rows(about, model)
            for name, layer in layers.items():
                layer.weight.data = weights[name]
    assert all(torch.equal(layer.weight.data, weights[name]) for name, layer in layers.items())


def statistics(model: Any, layers: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Of each layer's inputs on texts, one at a time."""
    found = {name: Statistics(layer.in_features) for name, layer in layers.items()}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: found[name].add(given[0].flatten(0, -2)))
        for name, layer in layers.items()
    ]
    for text in texts:
        model.embed([text])
    for handle in handles:
        handle.remove()
    return {name: one.value for name, one in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three layers of the embedder, under a minute")
    parser.add_argument("--models", default="embedder,default", help="embedded models")
    parser.add_argument("--methods", default=",".join(RUNS))
    parser.add_argument("--bits", default="", help="only artifacts with one of these widths")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16_384, help="calibration tokens")
    parser.add_argument("--texts", type=int, default=200, help="texts to measure on")
    parser.add_argument("--data", type=Path, help="Parquet file or folder with columns text and label")
    parser.add_argument("--out", help="keep artifacts in this folder, and use those that are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    texts, rows = split(texts_of(args.data))
    if args.quick:
        args.texts = min(args.texts, 32)
        sources = [quick(texts, rows, args)]
    else:
        sources = [whole(name, texts, rows, args) for name in args.models.split(",")]
    found = []
    for source in sources:
        for row in source:
            found.append(row)
            print(" ".join(f"{name}={value}" for name, value in row.items()), file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"rows": found}))
        return 0
    print(f"{'model':20} {'method':8} bits  bits/w  layer error  {'task':11} quality      fp  tokens/s  bytes")
    for row in found:
        print(
            f"{row['model']:20} {row['method']:8} {row['bits']:4}  {row['bits_per_weight']:6.3f}"
            f"  {row['layer_error']:11.4f}  {row['task']:11} {row['quality']:7.4f} {row['quality_fp']:7.4f}"
            f"  {row['tokens_per_s']:8.0f}  {row['bytes']:,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
