"""The command compress, and what other commands make of its file and its plans."""

from __future__ import annotations

from pathlib import Path

import pytest

import ropescope as rs
from refusals import refusal
from ropescope import cli
from ropescope.evaluation.frontier.in_words import findings

_WAYS = ("latent", "drop", "norm-product", "norm", "spectrum-fe", "random")


@pytest.fixture
def compressing(saved: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "judged.txt").write_text("the models of the model\n" * 200)
    (tmp_path / "calibrated.txt").write_text("the model of the models\n" * 200)
    texts = ["--corpus", str(tmp_path / "judged.txt"), "--calibration-corpus", str(tmp_path / "calibrated.txt")]
    short = ["--length", "64", "--count", "5", "--calibration-count", "4", "--sinks", "2", "--dtype", "float32"]
    return ["compress", str(saved), *texts, *short, "--keep", "0.6", "--output", str(tmp_path / "thin.nc")]


@pytest.mark.slow
def test_plans_are_judged_told_and_kept_and_other_commands_take_them(compressing, saved, tmp_path, capsys):
    cli.main([*compressing, "--time-at", "40"])
    output = capsys.readouterr().out
    data = rs.load(tmp_path / "thin.nc")
    assert data["plan"].values.tolist() == ["stock", *(f"{way} 0.6" for way in _WAYS)]
    assert rs.frontier_table(data) in output and findings(data)[0] in output and "decode time" in output
    assert {path.suffix for path in tmp_path.glob("thin.*")} == {".nc", ".png", ".md", ".csv"}
    assert f"plans: {tmp_path / 'thin-plans'}" in output
    plan = rs.KeyPlan.load(tmp_path / "thin-plans" / "latent-0.6.safetensors")
    model, tokenizer = rs.load_model(saved, dtype="float32")
    windows = rs.token_windows(tokenizer, tmp_path / "judged.txt", length=64, count=5)
    with rs.thin_keys(model, plan):
        assert rs.perplexity(model, windows).value == pytest.approx(float(data["perplexity"][1]), rel=1e-6)
    content = (tmp_path / "thin.nc").read_bytes()
    cli.main([*compressing, "--time-at", "40"])
    assert "already there and holds this very run" in capsys.readouterr().out
    assert (tmp_path / "thin.nc").read_bytes() == content
    cli.main(["show", str(tmp_path / "thin.nc")])
    assert capsys.readouterr().out.startswith(rs.frontier_table(data))
    cli.main(["figures", str(tmp_path / "thin.nc"), "--output-dir", str(tmp_path / "figures")])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["thin-curves.png"]
    frames = ["--length", "128", "--frame-length", "64", "--hop-length", "32", "--count", "1"]
    measured = str(tmp_path / "result.nc")
    cli.main(["measure", str(saved), "--corpus", str(tmp_path / "judged.txt"), *frames, "--output", measured])
    cli.main(["report", measured, str(tmp_path / "thin.nc"), "--output", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert f"{saved.name}, judged.txt: thin keys" in page and "latents of keys before rotation" in page


def test_what_cannot_be_kept_is_said_in_one_line_and_what_was_planned_stays(compressing, tmp_path, capsys):
    line = refusal(capsys, *compressing, "--keep", "0.6", "0.08", "--method", "latent", "--baselines", "none")
    assert "keep=0.08 is too little to keep 2 sinks whole" in line
    assert [path.name for path in (tmp_path / "thin-plans").iterdir()] == ["latent-0.6.safetensors"]
    assert not (tmp_path / "thin.nc").exists()
