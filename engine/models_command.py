"""`sqluice models`: weights of packages, and artifacts of quantized models."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqluice.errors import DataError, ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqluice.engine import tuning
    from sqluice.engine.dbapi import Connection
    from sqluice.engine.report import Report
    from sqluice.types import Progress

    Opens = Callable[[argparse.Namespace, Callable[[Progress], None] | None], Connection]

WIDTHS = "2,3,4,8"
GROUP = 128


def add_parser(commands: Any, add_connection_options: Callable[[Any], None]) -> None:
    """The options of `sqluice models ..`."""
    models = commands.add_parser("models", help="list, fetch, check and quantize models")
    actions = models.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    listing = actions.add_parser("list", help="models that can be named, and whether they are on this machine")
    fetch = actions.add_parser("fetch", help="download an embedded model's weights and check their hash")
    fetch.add_argument("name", metavar="NAME", help="'default', 'embedder', ..: see models list")
    verify = actions.add_parser("verify", help="check the hashes of weights that are on this machine")
    verify.add_argument("name", metavar="NAME", help="an embedded model, or an artifact: then its quality too")
    inspect = actions.add_parser("inspect", help="print what an artifact says of itself")
    inspect.add_argument("name", metavar="FILE", help="an artifact")
    inspect.add_argument("--json", action="store_true", help="the whole manifest as JSON")
    for action in (listing, fetch, verify, inspect):
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    _add_quantize(actions, add_connection_options)
    tune = actions.add_parser("tune", help="find the best proxy among an artifact's slices, on a query")
    tune.add_argument("name", metavar="FILE", help="an artifact; its widest slice is the oracle")
    tune.add_argument("--query", metavar="SQL", required=True, help="a query with AI_FILTER or AI_CLASSIFY on a sample")
    add_connection_options(tune)


def _add_quantize(actions: Any, add_connection_options: Callable[[Any], None]) -> None:
    quantize = actions.add_parser("quantize", help="store a model in fewer bits, calibrated on texts from SQL")
    quantize.add_argument("source", metavar="SRC", help="package:NAME, hf:ORG/NAME, a folder, or a .gguf file")
    quantize.add_argument("--out", metavar="FILE", required=True, help="the artifact; a run that was cut goes on")
    quantize.add_argument("--calibration", metavar="SQL", required=True, help="a query whose first column is texts")
    quantize.add_argument("--method", default="nested", help="rtn, gptq, matgptq, nested, bpdq or rabit (nested)")
    quantize.add_argument("--bits", type=_widths, default=WIDTHS, help=f"widths, separated by commas ({WIDTHS})")
    quantize.add_argument("--group", metavar="N", type=int, default=GROUP, help=f"columns a scale is for ({GROUP})")
    quantize.add_argument("--tokens", metavar="N", type=_count, help="how much of the texts is used (32768)")
    quantize.add_argument("--average-bits", metavar="B", type=_bits, help="also a mix of widths that averages to B")
    quantize.add_argument("--device", default="auto", help="cpu, cuda or auto")
    add_connection_options(quantize)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"widths are whole numbers such as {WIDTHS}, not {text!r}") from None


def _bits(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number such as 3.5 is needed, not {text!r}") from None


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 is needed, not {text!r}")
    return int(text)


def command(args: argparse.Namespace, open_connection: Opens) -> int:
    """`sqluice models ..`; the exit code."""
    if args.action == "list":
        _list()
    elif args.action == "fetch":
        _fetch(args.name)
    elif args.action == "verify":
        _verify(args.name)
    elif args.action == "tune":
        _tune(args, open_connection)
    elif args.action == "inspect":
        _inspect(args.name, as_json=args.json)
    else:
        _quantize(args, open_connection)
    return 0


def _list() -> None:
    import pyarrow as pa

    from sqluice.engine.running import out_console
    from sqluice.engine.table import draw
    from sqluice.workers.registry import Registry

    rows = [dict(row) for row in Registry().list()]
    for row in rows:
        size = row.get("size")
        row["size"] = f"{size / 1e6:,.0f} MB" if isinstance(size, int) else None
    draw(pa.Table.from_pylist(rows).to_reader(), out_console(), max_rows=None)


def _fetch(name: str) -> None:
    from sqluice.engine.progress import FetchBar
    from sqluice.engine.running import err_console, say
    from sqluice.workers import fetch

    with FetchBar(err_console()) as bar:
        place = fetch.fetch(name, progress=bar)
    say(f"{name}: {place}" if place is not None else f"{name}: fetched")


def artifact_of(name: str) -> Path | None:
    """The artifact that `name` means; None where it is the name of an embedded model.

    `artifact:FILE`, the name of a file that is there, and what looks like a path mean an artifact.
    """
    from sqluice.workers import fetch

    if name.startswith("artifact:"):
        return Path(name.removeprefix("artifact:").partition("#")[0]).expanduser()
    path = Path(name).expanduser()
    if name in fetch.names():
        return None
    return path if path.is_file() or path.suffix == ".sq" or len(path.parts) > 1 else None


def _verify(name: str) -> None:
    from sqluice.engine.running import say
    from sqluice.workers import fetch

    path = artifact_of(name)
    if path is None:
        fetch.verify(name)
        say(f"{name}: the weights match their hash")
        return
    from sqluice.workers.quant import serve

    found = serve.verify(path)
    say(f"{path}: {found['tensors']:,} tensors match their hashes; cosine to the base model on the probe:")
    for bits, cosine in found["widths"].items():
        say(f"  {bits:g} bits  {cosine:.4f}")


def _inspect(name: str, *, as_json: bool) -> None:
    from sqluice.workers.quant import artifact

    told = artifact.inspect(artifact_of(name) or Path(name))
    print(json.dumps(told, sort_keys=True) if as_json else summary(name, told))  # noqa: T201 - the command's output


def summary(name: str, told: dict[str, Any]) -> str:
    """What `artifact.inspect` found, in a few lines."""
    from sqluice.engine.running import printable

    base, calibration = told["base"], told["calibration"]
    weights = sum(one["shape"][0] * one["shape"][1] for one in told["layers"].values())
    licence = f", licence {base['licence']}" if base["licence"] else ""
    lines = [
        f"{name}: {told['method']}, groups of {told['group']}, {told['bytes'] / 1e6:,.1f} MB",
        f"  base         {base['name']} ({base['model_type']}, revision {base['revision'][:12]}{licence})",
        f"  quantized    {len(told['layers'])} layers, {weights:,} weights",
        f"  calibration  {calibration['texts']:,} texts, {calibration['tokens']:,} tokens, "
        f"{calibration['held_out_texts']:,} texts held out ({calibration['fingerprint'][:12]})",
        f"  fingerprint  {told['fingerprint']}",
        f"  policy       {json.dumps(told['policy'], sort_keys=True) if told['policy'] else 'none'}",
        "  bits  bits a weight  MB read  layer error  cosine",
    ]
    for bits, width in told["widths"].items():
        quality = told["quality"][bits]
        lines.append(
            f"  {bits:<4}  {width['bits_per_weight']:>13.3f}  {width['bytes'] / 1e6:>7.1f}"
            f"  {quality['layer_error']:>11.4f}  {quality['cosine']:.4f}"
        )
    return printable(["\n".join(lines)])


def _quantize(args: argparse.Namespace, open_connection: Opens) -> None:
    from sqluice.engine.progress import StepBar
    from sqluice.engine.running import err_console, say
    from sqluice.workers.quant import methods, mix, runner

    out = Path(args.out)
    widths = methods.check(args.method, args.bits, args.group)
    if args.average_bits is not None:
        mix.check(widths, args.average_bits)
    tokens = args.tokens or runner.TOKENS
    texts = calibration_texts(args, open_connection, tokens)
    try:
        with StepBar(err_console(), f"{args.method}: the first block") as bar:
            told = runner.quantize(
                args.source, args.method, args.bits, args.group, texts, out, bar, device=args.device, tokens=tokens
            )
    except KeyboardInterrupt:
        if runner.partial(out).exists():
            say(f"finished blocks are kept in {runner.partial(out)}; the same command goes on with them")
        raise
    if args.average_bits is not None:
        told = mix.add(out, args.average_bits)
    say(summary(str(out), told))


def calibration_texts(args: argparse.Namespace, open_connection: Opens, most: int) -> list[str]:
    """The first `most` distinct texts of the first column of `--calibration`, in its order; a text has at least one
    token, so no more are needed. `DataError` when the column holds no texts."""
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console, execute, running

    bar = ProgressBar(err_console())
    con = open_connection(args, bar)
    try:
        with running(con, bar):
            cursor = execute(con, args.calibration)
            if cursor.description is None:
                raise ProgrammingError("--calibration takes a query that gives texts, and this statement gives no rows")
            return list(islice(_distinct(cursor.fetch_record_batch(8192)), most))
    finally:
        con.close()


def _distinct(reader: Any) -> Iterator[str]:
    import pyarrow as pa

    field = reader.schema.field(0)
    if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or field.type == pa.string_view()):
        raise DataError(f"--calibration: column {field.name} is of type {field.type}; the first column has to be texts")
    seen: set[str] = set()
    for batch in reader:
        for text in batch.column(0).to_pylist():
            if text is not None and text.strip() and text not in seen:
                seen.add(text)
                yield text


def _tune(args: argparse.Namespace, open_connection: Opens) -> None:
    from sqluice.engine import tuning
    from sqluice.engine.progress import ProgressBar
    from sqluice.engine.running import err_console, execute, running, say

    if hasattr(args, "oracle"):
        raise ProgrammingError("models tune takes no --oracle: the widest slice of the artifact is the oracle")
    path = (artifact_of(args.name) or Path(args.name)).resolve()
    bar = ProgressBar(err_console())

    def opened(settings: dict[str, Any]) -> Connection:
        given = [*getattr(args, "set", []), *(f"{name}={value}" for name, value in settings.items())]
        allowed = [*getattr(args, "allow_model", []), str(path.parent)]
        return open_connection(argparse.Namespace(**{**vars(args), "set": given, "allow_model": allowed}), bar)

    def run(con: Connection, sql: str) -> Report | None:
        with running(con, bar):
            cursor = execute(con, sql)
            cursor.fetchall()
        return cursor.report

    def told(one: tuning.Measured) -> None:
        name = "no proxy" if one.proxy is None else f"proxy {one.proxy:g} bits"
        say(
            f"{name}: {one.cost:.0%} of the oracle on every row, delegation {one.delegation:.3f}, "
            f"by {', '.join(one.scorers)}; {one.label}"
        )

    found = tuning.tune(path, args.query, opened, run, told)
    slice_ = f"{found.proxy:g} bits are the proxy" if found.uses_proxy else "no proxy pays"
    say(f"{path.name}: {slice_}; stored as its policy")
