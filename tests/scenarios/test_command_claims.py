"""The command claims, as it is met: files in, verdicts out, in three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ropescope as rs
from planted import RUN, measurement, sweep
from ropescope.cli import main
from ropescope.evaluation.claims.table import CLAIMS
from ropescope.evaluation.sweep.dataset import SWEEP


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rs.save(measurement(RUN), tmp_path / "one.nc")
    SWEEP.save(sweep("bands", 0.5, 0.1), tmp_path / "one-sweep.nc")
    return [str(tmp_path / name) for name in ("one.nc", "one-sweep.nc")]


def test_verdicts_are_printed_and_written(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["claims", *files, "--only", "bands-are-essential", "bands-are-contiguous"])
    printed = capsys.readouterr().out
    assert "HOLDS           bands-are-essential" in printed and "HOLDS           bands-are-contiguous" in printed
    target = tmp_path / "claims.json"
    main(["claims", *files, "--format", "json", "--output", str(target)])
    assert capsys.readouterr().out.startswith(f"Of {len(CLAIMS)} claims on synthetic/tiny-irope, ")
    assert len(json.loads(target.read_text(encoding="utf-8"))["claims"]) == len(CLAIMS)
    with pytest.raises(SystemExit):
        main(["claims", *files, "--output", str(target)])
    assert "exists" in capsys.readouterr().err


def test_the_claims_are_listed_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["claims", "--list"])
    printed = capsys.readouterr().out
    assert all(f"{claim.key}: {claim.statement}" in printed and claim.source.url in printed for claim in CLAIMS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [([], "claims got no file"), (["none.nc"], "does not exist"), (["--only", "bands"], "did you mean")],
)
def test_bad_input_is_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["claims", *arguments])
    assert left.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_looked_at_and_the_look_serves_again(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the model of the models\n" * 400)
    frames = ["--length", "128", "--frame-length", "64", "--hop-length", "32", "--count", "2", "--output", "one.nc"]
    main(["measure", str(saved), "--corpus", str(text), *frames])
    asked = ["--model", str(saved), "--corpus", str(text), "--length", "64", "--count", "5"]
    main(["claims", "one.nc", *asked, "--format", "json", "--output", "first.json"])
    assert (tmp_path / "tiny-text-64-look.nc").is_file()
    main(["claims", "one.nc", "tiny-text-64-look.nc", "--format", "json", "--output", "second.json"])
    first, second = (
        json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("first.json", "second.json")
    )
    assert first == second
    assert next(each for each in first["claims"] if each["key"] == "few-pairs-choose-tokens")["tests"]
    capsys.readouterr()
    main(["claims", "one.nc", *asked])
    assert "tiny-text-64-look.nc is already there and holds this very run" in capsys.readouterr().out


def test_a_model_is_not_loaded_for_what_cannot_be_judged(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["claims", files[1], "--model", "none/such"])
    assert "got --model without a measurement of it" in capsys.readouterr().err
