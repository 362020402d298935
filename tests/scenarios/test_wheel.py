"""The wheel alone, beside the packages that measuring needs and no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import ropescope as rs
from checkout import ROOT
from synthetic import synthetic_result
from tiny import byte_level_tokenizer, tiny_llama

pytestmark = pytest.mark.slow
pytest.importorskip("hatchling", reason="hatchling builds the wheel")


def needed(name: str, found: dict[str, metadata.Distribution]) -> None:
    """A distribution and all that it needs without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    found[key] = metadata.distribution(name)
    for text in found[key].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it asks for without extras."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    found: dict[str, metadata.Distribution] = {}
    (ours,) = metadata.distributions(name="ropescope", path=[str(site)])
    for text in ours.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "env/bin/python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", "ropescope", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_it_inspects_and_measures(python: Path, tmp_path: Path) -> None:
    tiny_llama(torch.float32).save_pretrained(tmp_path / "tiny")
    byte_level_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("the model of the models " * 60)
    (package,) = python.parents[1].glob("lib/*/site-packages/ropescope")
    assert (package / "py.typed").is_file() and not package.is_symlink()
    inspected = run(python, "inspect", "tiny", cwd=tmp_path)
    # A slow machine is told, every half minute, that loading goes on.
    complaints = [line for line in inspected.stderr.splitlines() if not line.startswith("loading ")]
    assert (inspected.returncode, complaints) == (0, []) and "half-split" in inspected.stdout
    frames = ("--length", "96", "--count", "2", "--frame-length", "32", "--hop-length", "16")
    measured = run(python, "measure", "tiny", "--corpus", "text.txt", *frames, "--output", "m.nc", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert "bands" in measured.stdout and rs.load(tmp_path / "m.nc")["query"].sizes["sequence"] == 2


@pytest.mark.parametrize(("command", "extra"), [("figures", "figures"), ("compare", "figures"), ("report", "report")])
def test_what_needs_more_says_how_to_get_it(python: Path, tmp_path: Path, command: str, extra: str) -> None:
    rs.save(synthetic_result(), tmp_path / "m.nc")
    ran = run(python, command, "m.nc", cwd=tmp_path)
    assert ran.returncode == 2 and ran.stdout == ""
    told = rf"ropescope: .+ needs .+, not installed here: pip install 'ropescope\[({extra}|figures)\]'\n"
    assert re.fullmatch(told, ran.stderr)
