"""Runs of several processes that are killed at random moments go on, and end with the file of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from architectures import LLAMA, tokens
from forking import forked
from ropescope.base.errors import ResultError
from ropescope.measurement import measure as measurement
from ropescope.measurement.measure import measure
from ropescope.measurement.results import load, provenance
from ropescope.run.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = LLAMA.shared()
WINDOWS = tokens(5, 96)
OPTIONS: dict[str, Any] = {"frame_length": 32, "hop_length": 16, "norm_heads": [(0, 1), (2, 3)]}


def run(path: Path, **options: Any) -> xr.DataTree:
    return measure(MODEL, WINDOWS, path=path, **OPTIONS | options)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows of every forward pass."""
    seen: list[int] = []
    own = measurement._run

    def counting(model: Any, batch: Any, handler: Any) -> None:
        seen.append(len(batch))
        own(model, batch, handler)

    monkeypatch.setattr(measurement, "_run", counting)
    return seen


def break_off(path: Path, passes: int, **options: Any) -> None:
    """Measure until so many passes are finished, as an interrupted user does."""
    own, left = measurement._run, passes

    def interrupting(*args: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        own(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measurement, "_run", interrupting)
        run(path, **options)


@pytest.mark.slow
def test_a_file_holds_the_measurement(tmp_path: Path) -> None:
    result = run(tmp_path / "result.nc")
    expected = measure(MODEL, WINDOWS, **OPTIONS)
    for group in ("query", "key", "rotary"):
        xr.testing.assert_identical(load(tmp_path / "result.nc")[group].to_dataset(), expected[group].to_dataset())
        xr.testing.assert_identical(result[group].to_dataset(), expected[group].to_dataset())
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.nc"]


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "ahead"), [(1, [1, 1, 1]), (2, [1]), ("auto", [1, 1, 1])])
def test_goes_on_where_it_was(tmp_path: Path, passes: list[int], batch_size: Any, ahead: list[int]) -> None:
    break_off(tmp_path / "result.nc", 2, batch_size=batch_size)
    assert not (tmp_path / "result.nc").exists()
    passes.clear()
    result = run(tmp_path / "result.nc", batch_size=batch_size)
    assert passes == ahead
    expected = measure(MODEL, WINDOWS, batch_size=batch_size, **OPTIONS)
    for group in ("query", "key", "rotary"):
        xr.testing.assert_identical(result[group].to_dataset(), expected[group].to_dataset())


def test_an_interruption_before_the_first_window_leaves_nothing(tmp_path: Path) -> None:
    break_off(tmp_path / "result.nc", 0)
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_says_when_it_was_begun(tmp_path: Path) -> None:
    break_off(tmp_path / "result.nc", 2)
    record = tmp_path / "result.nc.partial" / "configuration.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "begun": "2001-01-01T00:00:00+00:00"}))
    assert provenance(run(tmp_path / "result.nc"))["created"] == "2001-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"batch_size": 2}, r"parameters\.batch_size 1 against 2"),
        ({"hop_length": 8}, r"parameters\.hop_length 16 against 8"),
        ({"norm_heads": ()}, r"norm_heads \[\[0, \[1\]\], \[2, \[3\]\]\] against \[\]"),
    ],
)
def test_a_journal_of_another_measurement_is_refused(tmp_path: Path, other: dict[str, Any], difference: str) -> None:
    break_off(tmp_path / "result.nc", 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResultError, match=rf"cells of another run \(other {difference}\); finish that one"):
        run(tmp_path / "result.nc", **other)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: content.replace(b"sha256", b"sha257"),
    ],
    ids=["truncated", "empty", "one bit", "no checksum"],
)
def test_a_damaged_window_is_measured_again(tmp_path: Path, passes: list[int], damage: Any) -> None:
    break_off(tmp_path / "result.nc", 3)
    cell = tmp_path / "result.nc.partial" / "windows-000001.safetensors"
    cell.write_bytes(damage(cell.read_bytes()))
    passes.clear()
    result = run(tmp_path / "result.nc")
    assert len(passes) == 5 - 2
    np.testing.assert_array_equal(result["key"].spectrum_fe, measure(MODEL, WINDOWS, **OPTIONS)["key"].spectrum_fe)


def test_two_runs_on_one_output_refuse_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, refused = measurement._run, []

    def starting_another(*args: Any) -> None:
        if not refused:
            refused.append(True)
            with pytest.raises(ResultError, match=r"another run \(host and process: .*\) is writing .*result\.nc"):
                run(tmp_path / "result.nc")
        own(*args)

    monkeypatch.setattr(measurement, "_run", starting_another)
    run(tmp_path / "result.nc")
    assert refused


@pytest.mark.slow
def test_an_existing_file(tmp_path: Path, passes: list[int]) -> None:
    path = tmp_path / "result.nc"
    first = run(path)
    content = path.read_bytes()
    passes.clear()
    xr.testing.assert_identical(run(path)["query"].to_dataset(), first["query"].to_dataset())
    assert not passes and path.read_bytes() == content
    for other, name in (({"hop_length": 8}, r"parameters\.hop_length"), ({"norm_heads": ()}, "norm_heads")):
        text = rf"it exists and holds another run \(other {name} .*\); allow overwriting or choose another name"
        with pytest.raises(ResultError, match=text):
            run(path, **other)
    run(path, hop_length=8, overwrite=True)
    assert path.read_bytes() != content
    path.write_text("something else")
    with pytest.raises(ResultError, match="it exists"):
        run(path)


def test_a_journal_left_beside_its_finished_file_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda journal: None)
        run(tmp_path / "result.nc")
    assert (tmp_path / "result.nc.partial").exists()
    run(tmp_path / "result.nc")
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.nc"]


KILLED = """
    import json, os, random, shutil, signal, sys, time
    from contextlib import suppress
    from datetime import timedelta
    from pathlib import Path
    import torch
    import torch.distributed as distributed
    import ropescope as rs
    from architectures import LLAMA, tokens
    from ropescope.evaluation.sweep.arms import Controls
    from ropescope.run.collectives import WorkerError

    torch.set_num_threads(1)
    model, windows = LLAMA.shared(), tokens(12, 96)
    result = rs.measure(model, windows, frame_length=32, hop_length=16)
    masks = {"high": rs.select(result, "pair >= 5"), "low": rs.select(result, "pair < 2")}
    folder, random = Path(sys.argv[1]), random.Random(0)

    def measured(path, group):
        rs.measure(model, windows, frame_length=32, hop_length=16, path=path, group=group)

    def swept(path, group):
        both = {"path": path, "group": group}
        rs.sweep(model, windows[:3], masks, alphas=(0, 0.3, 0.6), controls=Controls(seeds=(0,)), **both)

    def weighed(path, group):
        rs.importance(model, windows[:, :24], path=path, group=group)

    def validated(path, group):
        worth = rs.load(folder / "weighed-whole.nc")
        rs.validate_importance(model, windows[:3, :24], worth, 12, path=path, group=group)

    def start(run, path, processes):
        meeting = folder / f"meeting-{time.monotonic_ns()}"
        children = []
        for rank in range(processes):
            if (child := os.fork()) == 0:
                # one that is killed before they meet leaves the other waiting, which is no WorkerError
                with suppress(WorkerError, RuntimeError):
                    distributed.init_process_group(
                        "gloo",
                        init_method=f"file://{meeting}",
                        rank=rank,
                        world_size=processes,
                        timeout=timedelta(seconds=15),
                    )
                    run(path, distributed.group.WORLD)
                    os._exit(0)
                os._exit(2)
            children.append(child)
        return children

    def ended(children):
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    def content(path):
        # measured and weighed files say when they were begun
        data = path.read_bytes()
        begun = json.loads(rs.load(path).attrs["provenance"])["created"] if path.name[0] in "mw" else ""
        return data.replace(begun.encode(), b"")

    for run, trials in ((measured, 5), (swept, 5), (weighed, 2), (validated, 2)):
        whole, path = folder / f"{run.__name__}-whole.nc", folder / f"{run.__name__}.nc"
        began = time.monotonic()
        assert ended(start(run, whole, 2)) == [0, 0]
        took = time.monotonic() - began
        struck = 0
        for trial in range(trials):
            children = start(run, path, 2)
            time.sleep(random.uniform(0.05, 0.6) * took)
            for child in [children[:1], children[1:], children][trial % 3]:
                os.kill(child, signal.SIGKILL)
            codes = ended(children)
            struck += -signal.SIGKILL in codes and not path.exists()
            assert codes in ([-9, 2], [2, -9], [-9, -9]) or path.exists(), codes
            assert ended(start(run, path, (1, 3)[trial % 2])) == [0] * (1, 3)[trial % 2]
            assert content(path) == content(whole), (run.__name__, trial)
            assert not path.with_name(f"{path.name}.partial").exists()
            path.unlink()
        assert struck >= (trials + 1) // 2, struck
    print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_killed_processes_end_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL strikes one of two processes, the other, or both, at fourteen random moments; one or three go on."""
    (ran,) = forked(textwrap.dedent(KILLED), tmp_path)
    assert ran.stdout == "same\n", ran.stderr
    assert ran.returncode != -signal.SIGKILL
