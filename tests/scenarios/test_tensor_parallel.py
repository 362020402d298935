"""A model whose heads are spread over two processes gives what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from launching import run, run_job, torchrun
from ropescope.base.errors import ModelError
from ropescope.model.loading import load_model
from worker_jobs import save_models


@pytest.mark.slow
def test_two_processes_with_half_the_heads_each_equal_one(tmp_path: Path) -> None:
    save_models(tmp_path)
    run_job(2, "heads", tmp_path)


@pytest.mark.slow
def test_the_command_spreads_the_heads(saved: Path, tmp_path: Path) -> None:
    import xarray as xr

    import ropescope as rs

    (tmp_path / "text.txt").write_text("the model of the models\n" * 200)
    frames = ["--length", "128", "--frame-length", "64", "--hop-length", "32", "--count", "3", "--dtype", "float32"]
    measuring = ["-m", "ropescope", "measure", str(saved), "--corpus", str(tmp_path / "text.txt"), *frames]
    spread = run(torchrun(2, *measuring, "--tensor-parallel", "--output", str(tmp_path / "spread.nc")))
    assert spread.returncode == 0, spread.stderr
    assert spread.stdout.count("strongest bands") == 2 and spread.stdout.count("result: ") == 1
    windows = rs.token_windows(load_model(saved)[1], str(tmp_path / "text.txt"), length=128, count=3)
    alone = rs.measure(load_model(saved, device="cpu")[0], windows, frame_length=64, hop_length=32)
    found = rs.load(tmp_path / "spread.nc")
    for group in ("query", "key"):
        values = found[group].to_dataset()[list(alone[group].data_vars)]
        xr.testing.assert_allclose(values, alone[group].to_dataset(), rtol=1e-4)


def test_one_process_alone_cannot_spread_a_model(saved: Path) -> None:
    with pytest.raises(ModelError, match="tensor_parallel got one process alone: start several, as in torchrun"):
        load_model(saved, tensor_parallel=True)
