"""What a command has worked out survives: a reader that stops, a full disk, settings of Matplotlib, files in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import ropescope as rs
from refusals import refusal
from reported import small_sweep
from ropescope import cli
from ropescope.base.errors import InputError, ResultError, UnreadableError
from ropescope.cli.drawing import drawing, report_sweep
from ropescope.cli.printing import say
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.run.journal import journal_folder, journal_of
from synthetic import synthetic_result

SOURCES = str(Path(rs.__file__).parents[1])


def piped(code: str, folder: Path, output: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code whose standard output nobody reads, or goes to `output`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": SOURCES, **environment},
            stdout=writer if output is None else output,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)


def command(*arguments: str) -> str:
    return f"from ropescope.cli import main; main({list(arguments)!r})"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rs.save(synthetic_result(), tmp_path / "one.nc")
    rs.save(synthetic_result(seed=1), tmp_path / "two.nc")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["compare", "one.nc", "two.nc", "--stream", "key"], {"one-compare.md", "one-compare-key-heads.png"}),
        (["figures", "one.nc", "--stream", "key"], {"one-key-panel.png", "one-key-overview.png"}),
        (["select", "one.nc", "bands", "--output", "bands.safetensors"], {"bands.safetensors"}),
        (["--help"], set()),
    ],
)
def test_a_reader_that_stops_costs_no_file(arguments, written, results):
    ran = piped(command(*arguments), results)
    assert (ran.returncode, ran.stderr) in ([(0, "")] if written else [(0, ""), (1, "")])
    assert written <= {path.name for path in results.iterdir()}


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_one_line_and_costs_no_file(results):
    with Path("/dev/full").open("w") as full:
        ran = piped(command("select", "one.nc", "bands", "--output", "bands.safetensors"), results, full.fileno())
    assert ran.returncode == 2
    assert (
        ran.stderr == "ropescope: cannot print: [Errno 28] No space left on device; what was finished is in its files\n"
    )
    assert (results / "bands.safetensors").is_file()


def test_what_is_said_after_a_reader_stopped_is_dropped(tmp_path):
    code = "from ropescope.cli.printing import say; import pathlib\nfor n in range(9): say('x' * 10**5)\n"
    ran = piped(f"{code}pathlib.Path('end').touch()", tmp_path)
    assert (ran.returncode, ran.stderr, (tmp_path / "end").exists()) == (0, "", True)


def test_what_is_said_is_printed_as_print_does(capsys):
    say("one", "two", end="!")
    assert capsys.readouterr().out == "one two!"


@pytest.mark.slow
def test_a_backend_that_does_not_exist_here_changes_nothing(results):
    ran = piped(command("figures", "one.nc", "--stream", "key"), results, subprocess.DEVNULL, MPLBACKEND="nope")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (results / "one-key-panel.png").stat().st_size > 10_000


SWEPT = """
import sys
from pathlib import Path
from ropescope.cli.drawing import report_sweep
from ropescope.base.errors import ResultError
from ropescope.evaluation.sweep.dataset import SWEEP
path = Path("sweep.nc").resolve()
try: report_sweep(SWEEP.load(path), path, "tiny")
except ResultError as error: print(error, file=sys.stderr); sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["backend", "settings that are no text", "TeX that is not there"])
def test_a_sweep_keeps_its_tables_whatever_keeps_matplotlib_from_drawing(fault, tmp_path):
    SWEEP.save(small_sweep(), tmp_path / "sweep.nc")
    settings = tmp_path / "matplotlibrc"
    settings.write_bytes(b"\xff\xfe" if fault == "settings that are no text" else b"text.usetex: True")
    environment = {"MPLBACKEND": "nope"} if fault == "backend" else {"MATPLOTLIBRC": str(settings), "PATH": ""}
    ran = piped(SWEPT, tmp_path, subprocess.DEVNULL, **environment)
    assert ran.returncode == 2, ran.stderr
    line = ran.stderr.strip().splitlines()[-1]
    assert line.startswith("cannot draw: ") and f"the sweep is in {tmp_path}/sweep.nc: mend Matplotlib's" in line
    assert "bands" in (tmp_path / "sweep.md").read_text() and "bands" in (tmp_path / "sweep.csv").read_text()


def test_a_sweep_prints_its_table_where_it_cannot_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ResultError, match="cannot draw: division by zero; the sweep is in"):
        report_sweep(small_sweep(), tmp_path / "sweep.nc", "tiny")
    assert "bands" in capsys.readouterr().out


def test_an_error_of_our_own_while_drawing_stays_as_it_is():
    with pytest.raises(InputError, match="no head"), drawing("all is kept"):
        raise InputError("no head")


@pytest.mark.parametrize("command", ["sweep", "tasks"])
def test_tables_may_not_be_written_over_the_scores(command, tmp_path, capsys):
    rs.save(synthetic_result(), tmp_path / "r.nc")
    output = tmp_path / "scores.CSV"
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "nowhere", str(tmp_path / "r.nc"), "--output", str(output)])
    assert stopped.value.code == 2
    assert f"got --output {output}, but .csv is for the table beside it: end it with .nc" in capsys.readouterr().err


@pytest.mark.slow
def test_a_result_in_use_is_not_replaced_even_where_that_is_allowed(saved, tmp_path, capsys):
    """It may be this very measurement: nobody can tell while another process holds it."""
    text, target = tmp_path / "text.txt", tmp_path / "result.nc"
    text.write_text("the model of the models\n" * 200)
    sizes = ["--length", "64", "--frame-length", "32", "--hop-length", "16", "--count", "1", "--norm-heads", "none"]
    arguments = ["measure", str(saved), "--corpus", str(text), *sizes, "--output", str(target), "--overwrite"]
    cli.main(arguments)
    before = rs.load(target)
    hold = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('on', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    with pytest.raises(SystemExit) as stopped:
        cli.main([argument if argument != "16" else "8" for argument in arguments])
    process.communicate()
    assert stopped.value.code == 2
    assert "another process holds it open for writing" in capsys.readouterr().err
    assert rs.load(target).identical(before)


def test_a_sweep_that_cannot_be_read_now_is_not_replaced(tmp_path, monkeypatch):
    from ropescope.base.facts import finished

    data = small_sweep()
    SWEEP.save(data, tmp_path / "sweep.nc")
    monkeypatch.setattr(xr, "open_dataset", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(UnreadableError, match="Input/output error; see to that first; it is left as it is"):
        finished(tmp_path / "sweep.nc", {}, lambda path: SWEEP.provenance(SWEEP.load(path)), overwrite=True)


def test_a_journal_that_cannot_be_read_now_is_not_called_another_runs(tmp_path, monkeypatch):
    output, facts = tmp_path / "result.nc", {"a": 1}
    with pytest.raises(ZeroDivisionError), journal_of(output, facts) as journal:
        journal.write("cell", {"values": np.zeros(3)})
        raise ZeroDivisionError
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "configuration.json":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    expected = r"cannot read .*configuration\.json now.*the cells beside it are kept"
    with pytest.raises(ResultError, match=expected), journal_of(output, facts):
        pass
    monkeypatch.undo()
    assert (journal_folder(output) / "cell.safetensors").is_file()


def test_hdf5_itself_tells_a_lock_from_damage(tmp_path):
    """What the sentence about other processes rests on."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w"):
        held = piped(f"import h5py; h5py.File({str(path)!r}, 'r')", tmp_path, subprocess.DEVNULL)
    assert "BlockingIOError: [Errno 11]" in held.stderr


@pytest.mark.slow
def test_a_figure_has_the_width_and_the_font_asked_for(results, tmp_path, capsys):
    import matplotlib.image

    file, folder = str(results / "one.nc"), str(tmp_path)
    cli.main(["figures", file, "--stream", "key", "--width", "7", "--font", "DejaVu Serif", "--output-dir", folder])
    assert matplotlib.image.imread(tmp_path / "one-key-overview.png").shape[1] == 1400
    cli.main(["figures", file, "--stream", "key", "--format", "svg", "--font", "DejaVu Serif", "--output-dir", folder])
    capsys.readouterr()
    for wrong, words in ((["--width", "1"], "2 to 40 inches"), (["--font", "No Such"], "does not find")):
        assert words in refusal(capsys, "figures", file, *wrong, "--output-dir", folder)
