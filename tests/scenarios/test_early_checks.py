"""What can be known at once is said in one line before a model, or torch, is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import ropescope as rs
from launching import environment
from ropescope import cli
from synthetic import synthetic_result

MEASURE = ["measure", "MODEL", "--corpus", "text.txt", "--output", "out.nc"]
SWEEP = ["sweep", "MODEL", "measured.nc", "--corpus", "text.txt", "--output", "out.nc"]
BAKE = ["bake", "MODEL", "measured.nc", "--alpha", "0.1", "--output", "baked"]
COMPRESS = ["compress", "MODEL", "--corpus", "text.txt", "--calibration-corpus", "builtin", "--output", "out.nc"]
TASKS = ["tasks", "MODEL", "measured.nc", "--tasks", "hellaswag", "--output", "out.nc"]
FIGURES = ["figures", "measured.nc"]
COMPARE = ["compare", "measured.nc", "other.nc"]

# Arguments, what is got, what is allowed.
TEXTS = [
    (["--corpus", "missing.txt"], "'missing.txt'", "no such file or folder"),
    (["--corpus", "two words"], "'two words'", "wikitext, c4, builtin, a data set of the hub (owner/name), or a file"),
    (["--corpus", ""], "''", "a data set of the hub (owner/name), or a file"),
    (["--split", "train"], "'train'", "has no splits"),
    (["--corpus", "builtin", "--split", "tset"], "'tset'", "did you mean 'test'"),
    (["--corpus", "builtin", "--config", "en"], "'en'", "applies to data sets only"),
    (["--length", "1"], "length=1", "at least 2 tokens"),
    (["--count", "0"], "count=0", "at least 1 window"),
    (["--seed", "-1"], "seed=-1", "from 0"),
    (["--batch-size", "0"], "got 0", "at least 1, or 'auto'"),
]
MODELS = [
    (["--dtype", "float12"], "'float12'", "float32, bfloat16, float16, float64"),
    (["--device", "CUDA"], "'CUDA'", "use auto, cpu, cuda, cuda:N or mps"),
    (["--device", "meta"], "'meta'", "use auto, cpu, cuda, cuda:N or mps"),
    (["--device", "cpu", "--device-map", "auto"], "'cpu' and device_map 'auto'", "give one of them"),
]
OUTPUT = [
    (["--output", "nowhere/out.nc"], "nowhere", "make it first"),
    (["--output", "."], "is a folder", "a file name"),
]
SELECTIONS = [
    (["--select", "spectrum_fe <"], "'spectrum_fe <'", "a selection reads like"),
    (["--select", "bandz"], "'bandz'", "did you mean 'bands'"),
    (["--select", "spectrum_fee < 1"], "'spectrum_fee'", "did you mean 'spectrum_fe'"),
]
TABLE = [
    *((MEASURE, *row) for row in (*TEXTS, *MODELS, *OUTPUT)),
    *((command, ["--output", "full"], "it is a folder", "a file name") for command in (SWEEP, COMPRESS, TASKS)),
    (MEASURE, ["--norm-heads", "first"], "'first'", "LAYER:HEAD"),
    (MEASURE, ["--frame-length", "3"], "got 3", "at least 4"),
    (MEASURE, ["--frame-length", "9999"], "4096 positions", "at least 9999 tokens or a shorter frame_length"),
    (MEASURE, ["--hop-length", "0"], "got 0", "at least 1"),
    (MEASURE, ["--window", "han"], "'han'", "did you mean 'hann'"),
    (MEASURE, ["--output", "measured.nc"], "measured.nc: it exists", "choose another name"),
    (MEASURE, ["--tensor-parallel"], "one process alone", "torchrun"),
    *((SWEEP, *row) for row in (*TEXTS, *MODELS, *OUTPUT, *SELECTIONS)),
    (SWEEP, ["--alphas", "0", "2"], "got 2", "0 to 1"),
    (SWEEP, ["--alphas", "nan"], "got nan", "0 to 1"),
    (SWEEP, ["--control-alphas", "-1"], "got -1", "0 to 1"),
    (SWEEP, ["--control-alphas", "0.25"], "0.25", "give them among"),
    (SWEEP, ["--random-seeds", "-3"], "-3", "integers from 0"),
    *((BAKE, *row) for row in (*MODELS, *SELECTIONS)),
    (BAKE, ["--alpha", "1.5"], "got 1.5", "0 to 1"),
    (BAKE, ["--output", "full"], "full", "not an empty folder"),
    (BAKE, ["--output", "text.txt/baked"], "text.txt is a file", "another folder"),
    (BAKE, ["--tensor-parallel"], "--tensor-parallel", "leave it out"),
    (COMPRESS, ["--keep", "0"], "keep got 0.0", "above 0, to 1"),
    (COMPRESS, ["--keep", "1.5"], "keep got 1.5", "above 0, to 1"),
    (COMPRESS, ["--baselines", "nrom"], "'nrom'", "did you mean 'norm'"),
    (COMPRESS, ["--sinks", "-1"], "sinks got -1", "at least 0"),
    (COMPRESS, ["--multiple", "0"], "multiple got 0", "at least 1"),
    (COMPRESS, ["--time-at", "1"], "time_at got 1", "at least 2"),
    (COMPRESS, ["--calibration-corpus", "text.txt"], "'text.txt' to calibrate and to judge on", "another text"),
    (COMPRESS, ["--calibration-corpus", "missing.txt"], "'missing.txt'", "no such file or folder"),
    (COMPRESS, ["--batch-size", "0"], "got 0", "at least 1, or 'auto'"),
    (COMPRESS, ["--output", "nowhere/out.nc"], "nowhere", "make it first"),
    *((TASKS, *row) for row in (*MODELS, *OUTPUT, *SELECTIONS)),
    (TASKS, ["--alpha", "1.5"], "got 1.5", "0 to 1"),
    (TASKS, ["--tasks", ","], "no tasks", "at least one name"),
    (TASKS, ["--num-fewshot", "-1"], "got -1", "at least 0"),
    (TASKS, ["--limit", "0"], "got 0", "a share between 0 and 1"),
    (TASKS, ["--limit", "1.5"], "got 1.5", "a number of documents"),
    (TASKS, ["--batch-size", "0"], "got 0", "at least 1, or 'auto'"),
    (TASKS, ["--seed", "-1"], "got -1", "at least 0"),
    (TASKS, ["--include-path", "text.txt"], "text.txt", "give one with task files"),
    (TASKS, ["--samples", "text.txt"], "text.txt", "another folder"),
    *((["inspect", "MODEL"], *row) for row in MODELS),
    (FIGURES, ["measured.nc"], "twice", "each file once"),
    (FIGURES, ["missing.nc"], "missing.nc", "give a result file"),
    (FIGURES, ["--heads", "6"], "'6'", "LAYER:HEAD"),
    (FIGURES, ["--output-dir", "text.txt"], "text.txt is a file", "another folder"),
    (["select", "measured.nc"], ["bandz"], "'bandz'", "did you mean 'bands'"),
    (["select", "measured.nc", "bands"], ["--output", "nowhere/mask"], "nowhere", "make it first"),
    (COMPARE, ["--top", "-1"], "got -1", "at least 0"),
    (COMPARE, ["--heads", "*:0"], "'*'", "LAYER:HEAD"),
    (COMPARE, ["--output-dir", "text.txt/figures"], "text.txt is a file", "another folder"),
    (COMPARE, ["measured.nc"], "twice", "each file once"),
    (["report", "measured.nc"], ["--output", "nowhere/report.html"], "nowhere", "make it first"),
    (["demo"], ["--output-dir", "text.txt"], "text.txt", "another --output-dir"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rs.save(synthetic_result(), tmp_path_factory.mktemp("results") / "measured.nc")


@pytest.fixture
def folder(tmp_path: Path, saved: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, results and a full folder, in which the commands run."""
    (tmp_path / "text.txt").write_text("the model of the models\n" * 400)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    for name in ("measured.nc", "other.nc"):
        shutil.copy(measured, tmp_path / name)
    (tmp_path / "MODEL").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(command: list[str], arguments: list[str]) -> list[str]:
    """A command with options given other values, or arguments added."""
    kept = list(command)
    for option in [each for each in arguments if each.startswith("--") and each in kept]:
        place = kept.index(option)
        del kept[place : place + 2]
    return [*kept, *arguments]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "got", "allowed"),
    TABLE,
    ids=[f"{row[0][0]} {' '.join(row[1])}" for row in TABLE],
)
def test_what_is_wrong_with_arguments_is_said_before_a_model_is_loaded(
    command: list[str],
    arguments: list[str],
    got: str,
    allowed: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ropescope.model.loading._loaded", loaded)
    there = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(changed(command, arguments))
    output = capsys.readouterr()
    assert stopped.value.code == 2 and output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("ropescope: ") and got in line and allowed in line
    assert sorted(folder.rglob("*")) == there


ALONE = """
    import sys
    from ropescope.cli import main
    for arguments in {commands!r}:
        try:
            main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 2, arguments
        else:
            raise AssertionError(arguments)
        loaded = sorted({{"torch", "transformers", "lm_eval"}} & set(sys.modules))
        assert not loaded, (arguments, loaded)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_what_is_wrong_with_arguments_is_said_before_torch_is_loaded() -> None:
    """Loading it takes longer than anyone wants to wait for one line."""
    rows = [row for row in TABLE if row[1] != ["--output", "measured.nc"]]
    commands = [changed(command, arguments) for command, arguments, _, _ in rows]
    script = textwrap.dedent(ALONE.format(commands=commands))
    ran = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stderr.count("\n") == len(commands)
