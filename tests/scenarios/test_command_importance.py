"""The command importance, and what other commands make of its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

import ropescope as rs
from refusals import refusal
from ropescope import cli
from ropescope.evaluation.set_prediction import sets_in_words, sets_table
from ropescope.measurement.worth_in_words import cumulative_share, importance_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the model of the models\n" * 200)
    return path


@pytest.fixture
def weighing(saved: Path, text: Path, tmp_path: Path) -> list[str]:
    short = ["--length", "64", "--count", "2", "--output", str(tmp_path / "worth.nc")]
    return ["importance", str(saved), "--corpus", str(text), *short]


@pytest.fixture
def result(saved: Path, text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "result.nc"
    frames = ["--length", "128", "--frame-length", "64", "--hop-length", "32", "--count", "1"]
    cli.main(["measure", str(saved), "--corpus", str(text), *frames, "--output", str(path)])
    return path


@pytest.mark.slow
def test_importance_is_written_and_told_and_validated(weighing, tmp_path, capsys):
    cli.main([*weighing, "--validate", "8"])
    output = capsys.readouterr().out
    worth = rs.load(tmp_path / "worth.nc")
    assert importance_text(worth) in output
    assert "8 single key pairs taken away: rank correlation" in output
    assert "8 single query pairs without their rotation" in output
    made = {path.name for path in tmp_path.iterdir() if path.name.startswith("worth")}
    assert made == {"worth.nc", "worth-key-validated.nc", "worth-query-validated.nc"}
    assert rs.load(tmp_path / "worth-key-validated.nc").sizes["sample"] == 8
    cli.main(["show", str(tmp_path / "worth.nc")])
    cli.main(["show", str(tmp_path / "worth-key-validated.nc")])
    shown = capsys.readouterr().out
    assert shown.startswith(importance_text(worth)) and "8 single key pairs without their rotation" in shown
    content = (tmp_path / "worth.nc").read_bytes()
    cli.main(weighing)
    assert "already there and holds this very run" in capsys.readouterr().out
    assert (tmp_path / "worth.nc").read_bytes() == content


@pytest.mark.slow
def test_selections_and_sweeps_take_its_file(weighing, result, saved, text, tmp_path, capsys):
    cli.main(weighing)
    path = str(tmp_path / "worth.nc")
    capsys.readouterr()
    cli.main(["select", str(result), "fisher >= 0", "--importance", path])
    assert "fisher >= 0: 32 of 32 query pairs, 16 of 16 key pairs" in capsys.readouterr().out
    judged = ["--corpus", str(text), "--length", "64", "--count", "3", "--alphas", "0", "--random-seeds", "7"]
    order = [
        "--select",
        "fisher < 1e-3",
        "--importance",
        path,
        "--keep-best",
        "0.5",
        "--output",
        str(tmp_path / "s.nc"),
    ]
    cli.main(["sweep", str(saved), str(result), *judged, *order])
    assert "the same number of pairs of lowest importance" in capsys.readouterr().out
    swept = xr.load_dataset(tmp_path / "s.nc", engine="h5netcdf")
    assert swept["arm"].values.tolist() == ["selection", "random-7", "lowest-norm", "lowest-importance"]
    assert swept["selected_pairs"].sel(selection="best 0.5 kept").values.tolist() == [16, 8]


@pytest.mark.slow
def test_its_file_is_held_against_entropies_in_words_and_in_figures(weighing, result, tmp_path, capsys):
    cli.main(weighing)
    path = str(tmp_path / "worth.nc")
    assert f"ropescope show RESULT --importance {path}" in capsys.readouterr().out
    cli.main(["show", str(result), "--importance", path])
    shown = capsys.readouterr().out
    assert "importance: median" in shown and "There are no intervals: the importance is of 2 windows" in shown
    assert shown.rstrip().endswith(rs.importance_foretold(rs.load(result), rs.load(path)).text())
    cli.main(["figures", str(result), "--importance", path, "--stream", "key", "--output-dir", str(tmp_path / "f")])
    worth = ("fisher", "gradient", "rotation_fisher", "rotation_gradient")
    names = {f"result-key-{name}.png" for name in ("panel", "overview", *worth)}
    assert {file.name for file in (tmp_path / "f").iterdir()} == names | {"result-importance.png"}


@pytest.mark.slow
def test_sets_are_turned_down_and_what_was_foretold_is_told_and_drawn(weighing, result, tmp_path, capsys):
    sets = ["pair < 2", "spectrum_fe > 0.1"]
    cli.main([*weighing, "--result", str(result), "--validate-sets", *sets])
    output, path = capsys.readouterr().out, tmp_path / "worth-sets-validated.nc"
    check = rs.load(path)
    assert check.selection.values.tolist() == sets and check.sizes["alpha"] == 5
    assert sets_table(check).text() in output and sets_in_words(check)[0] in output
    cli.main(["show", str(path)])
    assert capsys.readouterr().out.rstrip().endswith(sets_in_words(check)[0])
    cli.main(["figures", str(path), "--output-dir", str(tmp_path / "f")])
    assert [file.name for file in (tmp_path / "f").iterdir()] == ["worth-sets-validated.png"]
    worth = ["--importance", str(tmp_path / "worth.nc")]
    assert "got --importance without a measurement" in refusal(capsys, "figures", str(path), *worth)


@pytest.mark.slow
def test_bad_options_of_importance(weighing, result, saved, text, tmp_path, capsys):
    worth = str(tmp_path / "worth.nc")
    cli.main(weighing)
    assert "draws got 0; it is at least 1" in refusal(capsys, *weighing, "--draws", "0")
    assert "validate got 2; it is at least 3" in refusal(capsys, *weighing, "--validate", "2")
    assert "got --validate-sets without --result" in refusal(capsys, *weighing, "--validate-sets", "bands")
    assert "batch_size got 0" in refusal(capsys, *weighing, "--batch-size", "0")
    assert "is not a file of importance" in refusal(
        capsys, "select", str(result), "fisher < 1", "--importance", str(result)
    )
    assert "the result holds no fisher" in refusal(capsys, "select", str(result), "fisher < 1")
    assert "which is no file of 'ropescope measure'" in refusal(capsys, "show", worth, "--importance", worth)
    keeping = ["sweep", str(saved), str(result), "--corpus", str(text), "--keep-best", "0.5"]
    assert "got --keep-best without --importance" in refusal(capsys, *keeping)


def test_the_words_say_what_the_best_pairs_hold():
    shares = cumulative_share(xr.DataArray([4.0, 1.0, 3.0, 2.0]).values)
    assert shares.tolist() == [0.4, 0.7, 0.9, 1.0]
