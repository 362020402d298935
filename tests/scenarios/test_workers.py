"""Several processes that share the windows give, bit for bit, what one gives; what ends one of them is said once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ropescope as rs
from architectures import LLAMA, tokens
from launching import TIMEOUT, environment, run, run_job, torchrun
from ropescope import cli
from ropescope.base.errors import InputError, ResultError
from ropescope.run.processes import local_device
from ropescope.run.workers import Lockstep, Workers, workers_of
from tiny import tiny_llama

FRAMES = ["--length", "128", "--frame-length", "64", "--hop-length", "32"]


class Numbered:
    """One of several processes that need not exist."""

    place: int
    count: int

    @property
    def rank(self) -> int:
        return self.place

    @property
    def size(self) -> int:
        return self.count


class Shared(Numbered, Workers):
    pass


class SharedInStep(Numbered, Lockstep):
    pass


def one_of(count: int, place: int, kind: type[Workers] = Shared) -> Workers:
    shared = kind(None)
    object.__setattr__(shared, "place", place)
    object.__setattr__(shared, "count", count)
    return shared


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_contiguous_even_and_complete(count: int, size: int) -> None:
    shares = [one_of(size, rank).share(count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert one_of(size, 0, SharedInStep).share(count) == range(count)


def test_what_is_finished_is_shared_out_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names, finished = [f"cell-{index}" for index in range(7)], ["cell-0", "cell-1", "cell-2"]
    monkeypatch.setattr(Workers, "agreed", lambda self, value: finished)
    parts = [one_of(2, rank).divided(names, finished.__contains__) for rank in range(2)]
    assert parts == [(names[:1], names[3:5]), (names[1:3], names[5:])]


def test_a_journal_that_another_process_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows, frames = LLAMA.shared(), tokens(2, 96), {"frame_length": 32, "hop_length": 16}
    mask = rs.select(rs.measure(model, windows, **frames), "pair < 2")
    monkeypatch.setattr(Workers, "divided", lambda self, names, finished: (list(names), []))
    told = "is not there for every process; write to a folder that all share"
    with pytest.raises(ResultError, match=told):
        rs.measure(model, windows, path=tmp_path / "measured.nc", **frames)
    with pytest.raises(ResultError, match=told):
        rs.sweep(model, windows, {"low": mask}, path=tmp_path / "swept.nc")


def test_a_process_alone_has_everything_itself() -> None:
    alone, rows = Workers(), np.arange(3)
    assert (alone.rank, alone.size, alone.leading, alone.keeping) == (0, 1, True, True)
    assert alone.agreed({"a": 1}) == {"a": 1} and alone.gathered("b") == ["b"]
    assert alone.joined(rows) is rows and alone.summed(rows) is rows
    assert workers_of(tiny_llama()) == alone and local_device(alone) == "auto"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    workers = one_of(3, 1)
    object.__setattr__(workers, "group", object())
    for local, device in (("0", "cuda:0"), ("1", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert local_device(workers) == device
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        InputError, match="process 2 of this machine has no GPU of its own: there are 2; start at most 2"
    ):
        local_device(workers)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_windows_equal_one(processes: int, tmp_path: Path) -> None:
    run_job(processes, "windows", tmp_path)


@pytest.mark.models
def test_processes_that_share_the_real_small_model_equal_one(builtin: Any, tmp_path: Path) -> None:
    for part in builtin:
        part.save_pretrained(tmp_path)
    run_job(3, "smollm2", tmp_path)


@pytest.fixture
def measuring(saved: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("the model of the models\n" * 4000)
    return ["measure", str(saved), "--corpus", str(tmp_path / "text.txt"), *FRAMES, "--norm-heads", "none"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tensor-parallel"], "tensor_parallel got one process alone: start several, as in torchrun"),
        (["--tensor-parallel", "--device", "cpu"], "tensor_parallel chooses the devices itself"),
        (["--device-map", "auto", "--device", "cpu"], "device 'cpu' and device_map 'auto' are both given"),
        (["--batch-size", "many"], "--batch-size"),
    ],
)
def test_bad_options_of_the_command(
    options: list[str], told: str, measuring: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*measuring, *options, "--output", str(tmp_path / "r.nc")])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}


def test_layers_are_not_spread_by_several_processes_at_once(
    measuring: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ropescope.run.processes.all_launched", lambda: one_of(2, 0))
    with pytest.raises(SystemExit):
        cli.main([*measuring, "--device-map", "auto", "--output", "r.nc"])
    assert "got --device-map auto in 2 processes, each of which would spread" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_takes_automatic_batches_and_placements(measuring: list[str], tmp_path: Path) -> None:
    plain, placed = tmp_path / "plain.nc", tmp_path / "placed.nc"
    cli.main([*measuring, "--count", "2", "--output", str(plain)])
    options = ["--batch-size", "auto", "--device-map", "cpu", "--dtype", "float32"]
    cli.main([*measuring, "--count", "2", *options, "--output", str(placed)])
    for group in ("query", "key", "rotary"):
        assert rs.load(plain)[group].to_dataset().identical(rs.load(placed)[group].to_dataset())


@pytest.mark.slow
def test_the_command_measures_and_sweeps_with_torchrun(saved: Path, measuring: list[str], tmp_path: Path) -> None:
    alone, together, judged = (tmp_path / name for name in ("alone.nc", "together.nc", "sweep.nc"))
    cli.main([*measuring, "--count", "5", "--output", str(alone)])
    ran = run(torchrun(2, "-m", "ropescope", *measuring, "--count", "5", "--output", str(together)))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("result: ") == 1 and "window" not in ran.stderr
    one, two = rs.load(alone), rs.load(together)
    for group in ("query", "key", "rotary"):
        assert one[group].to_dataset().identical(two[group].to_dataset())
    few = ["--corpus", str(tmp_path / "text.txt"), "--length", "64", "--count", "3", "--select", "pair < 2"]
    sweeping = ["sweep", str(saved), str(alone), *few, "--alphas", "0", "0.5", "--random-seeds", "7"]
    ran = run(torchrun(2, "-m", "ropescope", *sweeping, "--output", str(judged)))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("against random") == 1
    content = judged.read_bytes()
    judged.unlink()
    cli.main([*sweeping, "--output", str(judged)])
    assert judged.read_bytes() == content


@pytest.mark.slow
def test_bad_input_is_told_once(measuring: list[str], tmp_path: Path) -> None:
    ran = run(torchrun(2, "-m", "ropescope", *measuring, "--count", "99999", "--output", str(tmp_path / "r.nc")))
    told = [line for line in ran.stderr.splitlines() if line.startswith("ropescope: ")]
    assert len(told) == 1 and "99999 windows of 128 tokens asked for" in told[0]
    assert "exitcode  : 2" in ran.stderr
    assert not (tmp_path / "r.nc").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_and_loses_nothing(measuring: list[str], tmp_path: Path) -> None:
    output = tmp_path / "result.nc"
    command = ["-m", "ropescope", *measuring, "--count", "120", "--output", str(output)]
    process = subprocess.Popen(torchrun(2, *command), env=environment(), stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "result.nc.partial"
    deadline = time.monotonic() + TIMEOUT
    while len(list(journal.glob("windows-*"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    subprocess.run(["kill", f"-{int(signal.SIGKILL)}", workers[-1]], check=True)
    _, errors = process.communicate(timeout=TIMEOUT)
    # On a busy machine the processes also tell that they wait for each other.
    told = [line for line in errors.splitlines() if line.startswith("ropescope: ") and " waits for " not in line]
    assert process.returncode != 0
    assert len(told) == 1 and told[0].endswith("what is finished is kept: give the same command again to go on")
    kept = {entry.name: entry.stat().st_mtime_ns for entry in journal.glob("windows-*")}
    assert len(kept) >= 6 and not output.exists() and not (journal / "lock").exists()
    ran = run(torchrun(3, *command))
    assert ran.returncode == 0, ran.stderr
    assert not journal.exists()
    content = rs.load(output)
    output.unlink()
    cli.main(command[2:])
    for group in ("query", "key", "rotary"):
        assert content[group].to_dataset().identical(rs.load(output)[group].to_dataset())
