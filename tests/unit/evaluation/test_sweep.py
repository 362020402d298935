"""A sweep computes each cell once, survives being killed, and its intervals cover planted truths."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save
from scipy import stats

from architectures import LLAMA, QWEN3, state_of, tokens
from forking import forked
from ropescope.base.errors import InputError, ResultError
from ropescope.evaluation.perplexity import perplexity
from ropescope.evaluation.sweep import sweeping as sweep_module
from ropescope.evaluation.sweep.arms import NO_CONTROLS, Controls
from ropescope.evaluation.sweep.changes import change, sweep_table
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, SELECTION, STREAM, SWEEP, WINDOW, labelled
from ropescope.evaluation.sweep.sweeping import sweep
from ropescope.interventions.controls import lowest_norm, matched_random
from ropescope.interventions.derotation import derotated, rotation_kept
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.measure import measure
from ropescope.run import journal as journal_module

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = tokens(3, 24)
MODEL = LLAMA.shared()
ALPHAS = (0, 0.5)


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return measure(MODEL, tokens(2, 32, seed=1), frame_length=16, hop_length=8)


@pytest.fixture(scope="module")
def masks(result: xr.DataTree) -> dict[str, Any]:
    return {"high": select(result, "pair >= 5"), "low": select(result, "pair < 2"), "none": select(result, "layer < 0")}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every perplexity that a sweep computes."""
    counted: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(1)
        return perplexity(*args, **kwargs)

    monkeypatch.setattr(sweep_module, "perplexity", counting)
    return counted


def run(masks: dict[str, Any], path: Path | None = None, **options: Any) -> xr.Dataset:
    return sweep(MODEL, WINDOWS, masks, **{"alphas": ALPHAS, "controls": Controls(seeds=(0,)), "path": path, **options})


def break_off(monkeypatch: pytest.MonkeyPatch, masks: dict[str, Any], path: Path, cells: int = 2) -> None:
    """Run until so many cells are finished, as an interrupted user does."""

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        nonlocal cells
        cells -= 1
        if cells < 0:
            raise KeyboardInterrupt
        return perplexity(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep_module, "perplexity", interrupting)
        run(masks, path)


def test_every_cell_is_the_perplexity_of_its_arm(masks: dict[str, Any], result: xr.DataTree) -> None:
    before = state_of(MODEL)
    data = run(masks, controls=Controls(seeds=(0, 7), result=result))
    assert state_of(MODEL) == before
    assert data["nats"].dims == (SELECTION, ARM, ALPHA, WINDOW)
    assert data[ARM].values.tolist() == ["selection", "random-0", "random-7", "lowest-norm"]
    assert data[ALPHA].values.tolist() == [0, 0.5, 1]
    mask = masks["high"]
    arms = {"selection": mask, "random-7": matched_random(mask, 7), "lowest-norm": lowest_norm(mask, result)}
    for arm, pairs in arms.items():
        with weighted_rope(MODEL, pairs, 0.5):
            expected = perplexity(MODEL, WINDOWS)
        cell = {"selection": "high", "arm": arm, "alpha": 0.5}
        np.testing.assert_array_equal(data["nats"].sel(cell), expected.window_nats)
        assert float(data["perplexity"].sel(cell)) == pytest.approx(expected.value, rel=1e-12)
    assert data["tokens"].values.tolist() == [23, 23, 23]
    assert data["selected_pairs"].sel({SELECTION: "high"}).values.tolist() == [4 * 4 * 3, 4 * 2 * 3]


def test_cells_that_must_be_equal_are_computed_once(masks: dict[str, Any], calls: list[int]) -> None:
    data = run({**masks, "high again": masks["high"]})
    assert len(calls) == 1 + 2 * 2 * 2
    baseline = perplexity(MODEL, WINDOWS).window_nats
    np.testing.assert_array_equal(data["nats"].sel({ALPHA: 1}), np.broadcast_to(baseline, (4, 2, 3)))
    np.testing.assert_array_equal(data["nats"].sel({SELECTION: "none"}), np.broadcast_to(baseline, (2, 3, 3)))
    assert float(abs(data["nats"].sel({SELECTION: "high", ALPHA: 0}) - baseline).min()) > 1e-3


def test_controls_at_some_alphas_only(masks: dict[str, Any], calls: list[int]) -> None:
    data = run(masks, controls=Controls(seeds=(0,), alphas=(0.5,)))
    assert len(calls) == 1 + 2 * 2 + 2
    missing = data["nats"].isnull().all(WINDOW).sel({SELECTION: "high"})
    assert missing.values.tolist() == [[False, False, False], [True, False, False]]
    assert run(masks, controls=NO_CONTROLS)[ARM].values.tolist() == ["selection"]


def test_another_intervention(masks: dict[str, Any]) -> None:
    data = run(masks, controls=NO_CONTROLS, intervention=rotation_kept)
    with derotated(MODEL, masks["high"]):
        expected = perplexity(MODEL, WINDOWS).window_nats
    np.testing.assert_array_equal(data["nats"].sel({SELECTION: "high", ARM: "selection", ALPHA: 0}), expected)
    assert "rotation_kept" in data.attrs["provenance"]


def test_stride_and_batches_reach_the_perplexity(masks: dict[str, Any]) -> None:
    data = run(masks, stride=5, batch_size=2, controls=NO_CONTROLS)
    assert data["tokens"].values.tolist() == [5, 5, 5]
    expected = perplexity(MODEL, WINDOWS, stride=5, batch_size=2).window_nats
    np.testing.assert_array_equal(data["nats"].sel({SELECTION: "low", ARM: "selection", ALPHA: 1}), expected)


def test_a_file_holds_the_sweep(masks: dict[str, Any], tmp_path: Path) -> None:
    data = run(masks, tmp_path / "sweep.nc")
    xr.testing.assert_identical(SWEEP.load(tmp_path / "sweep.nc"), data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.nc"]
    provenance = json.loads(data.attrs["provenance"])
    assert provenance["selections"]["low"]["selection"] == "pair < 2"
    assert provenance["windows"]["sha256"] == hashlib.sha256(WINDOWS.numpy().astype("<i8").tobytes()).hexdigest()
    assert provenance["controls"] == {"seeds": [0], "alphas": [0, 0.5], "norms_measured": None}
    assert "created" not in provenance


WEIGHTED, KEPT = '"ropescope.weighted_rope"', '"ropescope.rotation_kept"'
KILLED = """
    import os, random, signal, sys
    from pathlib import Path
    import torch
    from architectures import LLAMA, tokens
    from ropescope.evaluation.sweep import sweeping
    from ropescope.evaluation.sweep.arms import Controls
    from ropescope.measurement.measure import measure
    from ropescope.interventions.selection import select

    torch.set_num_threads(1)
    model, windows = LLAMA.shared(), tokens(3, 24)
    result = measure(model, windows, frame_length=16, hop_length=8)
    masks = {"high": select(result, "pair >= 5"), "low": select(result, "pair < 2")}

    def run(path):
        sweeping.sweep(model, windows, masks, alphas=(0, 0.5), controls=Controls(seeds=(0,)), path=path)
        return path.read_bytes()

    def killed(path, cells, when):
        replace = Path.replace

        def dying(partial, target):
            nonlocal cells
            cells -= 1
            if cells == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(partial, target)
            if cells == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return target

        if (child := os.fork()) == 0:
            Path.replace = dying
            run(path)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    folder = Path(sys.argv[1])
    expected = run(folder / "whole.nc")
    for when in ("before", "after"):
        for cells in {1, 2, 11, *random.sample(range(3, 11), 2)}:
            path = folder / "killed.nc"
            assert killed(path, cells, when) == -signal.SIGKILL, cells
            killed(path, 2, when)
            assert run(path) == expected, (cells, when)
            assert not path.with_name("killed.nc.partial").exists()
            path.unlink()
    print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    """11 files are put in place: the configuration, 9 cells, the dataset; SIGKILL strikes just before or after one."""
    (ran,) = forked(textwrap.dedent(KILLED), tmp_path)
    assert ran.stdout == "same\n", ran.stderr


def test_goes_on_where_it_was(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    path = tmp_path / "sweep.nc"
    break_off(monkeypatch, masks, path, cells=4)
    assert not path.exists()
    data = run(masks, path)
    assert len(calls) == 9 - 4
    xr.testing.assert_identical(data, run(masks))


def test_more_alphas_keep_what_is_finished(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    break_off(monkeypatch, masks, tmp_path / "sweep.nc", cells=4)
    run({"high": masks["high"]}, tmp_path / "sweep.nc", alphas=(0, 0.5, 0.2), controls=NO_CONTROLS)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        lambda content: save({"nats": np.zeros(0)}, {"sha256": hashlib.sha256(b"").hexdigest()}),
        lambda content: b"[1, 2]",
    ],
    ids=["truncated", "empty", "changed", "other size", "other format"],
)
def test_a_damaged_cell_is_computed_again(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int], damage: Any
) -> None:
    break_off(monkeypatch, masks, tmp_path / "sweep.nc")
    cell = tmp_path / "sweep.nc.partial" / "baseline.safetensors"
    cell.write_bytes(damage(cell.read_bytes()))
    data = run(masks, tmp_path / "sweep.nc")
    assert len(calls) == 9 - 1
    xr.testing.assert_identical(data, run(masks))


def test_an_interruption_before_the_first_cell_leaves_nothing(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, masks, tmp_path / "sweep.nc", cells=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"batch_size": 2}, "other batch_size 1 against 2"),
        ({"stride": 3}, "other stride null against 3"),
        (
            {"intervention": rotation_kept},
            'other intervention "ropescope.weighted_rope" against "ropescope.rotation_kept"',
        ),
        ({"windows": tokens(3, 24, seed=5)}, "other windows.sha256"),
    ],
)
def test_a_journal_of_another_run_is_refused(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], difference: str
) -> None:
    break_off(monkeypatch, masks, tmp_path / "sweep.nc")
    windows = other.pop("windows", WINDOWS)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResultError, match=rf"cells of another run \({difference}\); finish that one .* delete the"):
        sweep(MODEL, windows, masks, alphas=ALPHAS, path=tmp_path / "sweep.nc", **other)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_journal_is_left_alone(masks: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sweep.nc.partial").mkdir()
    (tmp_path / "sweep.nc.partial" / "thesis.tex").write_text("dear")
    with pytest.raises(ResultError, match=r"another run \(unreadable\)"):
        run(masks, tmp_path / "sweep.nc")
    assert (tmp_path / "sweep.nc.partial" / "thesis.tex").exists()


def test_a_full_disk_loses_nothing(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    put, room = Path.replace, 4

    def filling(partial: Path, target: Path) -> Path:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(partial, target)

    with monkeypatch.context() as patch, pytest.raises(ResultError, match="No space left on device; choose a folder"):
        patch.setattr(Path, "replace", filling)
        run(masks, tmp_path / "sweep.nc")
    assert len(calls) == 4
    run(masks, tmp_path / "sweep.nc")
    assert len(calls) == 4 + 9 - 3


def test_an_output_that_is_locked_at_the_end_loses_nothing(
    masks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    put = Path.replace

    def locked(partial: Path, target: Path) -> Path:
        if target.suffix == ".nc":
            raise PermissionError(errno.EACCES, "file is open elsewhere")
        return put(partial, target)

    with monkeypatch.context() as patch, pytest.raises(ResultError, match="file is open elsewhere"):
        patch.setattr(Path, "replace", locked)
        run(masks, tmp_path / "sweep.nc")
    run(masks, tmp_path / "sweep.nc")
    assert len(calls) == 9


def test_an_existing_file(masks: dict[str, Any], tmp_path: Path, calls: list[int]) -> None:
    path = tmp_path / "sweep.nc"
    first = run(masks, path)
    content = path.read_bytes()
    xr.testing.assert_identical(run(masks, path), first)
    assert len(calls) == 9
    renamed = {**masks, "low": replace(masks["high"], provenance=masks["low"].provenance)}
    with pytest.raises(ResultError, match="it exists"):
        run(renamed, path)
    with pytest.raises(ResultError, match=r"it exists and holds another run \(other alphas .* allow overwriting"):
        run(masks, path, alphas=(0.1,))
    assert len(calls) == 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.nc"]
    run(masks, path, alphas=(0.1,), overwrite=True)
    assert path.read_bytes() != content
    path.write_text("something else")
    with pytest.raises(ResultError, match="it exists"):
        run(masks, path)


class TestLock:
    """One run at a time writes an output; a lock that a dead process left does not stop the next one."""

    @pytest.fixture
    def lock(self, tmp_path: Path) -> Path:
        (tmp_path / "sweep.nc.partial").mkdir()
        return tmp_path / "sweep.nc.partial" / "lock"

    def test_held_by_a_living_process(self, masks: dict[str, Any], lock: Path) -> None:
        holder = journal_module._identity(os.getppid())
        lock.write_text(holder)
        message = (
            rf"another run \(host and process: {socket.gethostname()} {os.getppid()}\) is writing .*sweep.nc; wait"
        )
        with pytest.raises(ResultError, match=message):
            run(masks, lock.parent.with_name("sweep.nc"))
        assert lock.read_text() == holder

    def test_a_second_run_of_this_process(self, masks: dict[str, Any], tmp_path: Path) -> None:
        with journal_module.journal_of(tmp_path / "sweep.nc", {}), pytest.raises(ResultError, match="another run"):
            run(masks, tmp_path / "sweep.nc")

    def test_left_by_a_dead_process(self, masks: dict[str, Any], lock: Path) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        lock.write_text(journal_module._identity(child.pid))
        with pytest.raises(ResultError, match="another run"):
            run(masks, lock.parent.with_name("sweep.nc"))
        child.communicate(b"\n")
        run(masks, lock.parent.with_name("sweep.nc"))

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells when a process started")
    def test_left_by_a_process_whose_id_is_used_again(self, masks: dict[str, Any], lock: Path) -> None:
        lock.write_text(f"{socket.gethostname()} {os.getppid()} 1")
        run(masks, lock.parent.with_name("sweep.nc"))

    @pytest.mark.parametrize("content", ["elsewhere 1 1", ""])
    def test_another_host_cannot_be_asked(self, masks: dict[str, Any], lock: Path, content: str) -> None:
        lock.write_text(content)
        with pytest.raises(ResultError, match=r"or delete .*lock if that process is gone"):
            run(masks, lock.parent.with_name("sweep.nc"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": ()}, "alphas got none; give at least one, each a number from 0 to 1"),
        ({"alphas": (0.5, float("nan"))}, "alphas got nan"),
        ({"alphas": (1.5,)}, "alphas got 1.5"),
        ({"alphas": (-0.1, 0.2)}, "alphas got -0.1"),
        ({"alphas": "ab"}, "alphas got 'ab'; give numbers from 0 to 1"),
        ({"alphas": 0.5}, "alphas got 0.5; give numbers"),
        ({"controls": Controls(alphas=(0.3,))}, r"controls have alphas \[0.3\] that the selections lack"),
        ({"controls": Controls(alphas=())}, "alphas of the controls got none"),
        ({"controls": Controls(seeds=(-1,))}, "controls got seed -1; seeds are integers from 0"),
        ({"masks": {}}, "got no selections"),
        ({"masks": {"bands": "spectrum_fe < 0.2"}}, "selection 'bands' is a str; give PairMasks by name"),
        ({"intervention": lambda model, mask, alpha: None}, "give a function with a name"),
        ({"batch_size": 0}, "batch_size got 0"),
        ({"stride": 24}, "stride got 24"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    masks: dict[str, Any], tmp_path: Path, calls: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(options.pop("masks", masks), tmp_path / "sweep.nc", **options)
    assert not calls
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_model_is_refused_before_anything_runs(masks: dict[str, Any], calls: list[int]) -> None:
    with pytest.raises(InputError, match="the mask was selected on other weights"):
        sweep(QWEN3.shared(), WINDOWS, masks)
    assert not calls


def test_paths_are_checked_before_anything_runs(masks: dict[str, Any], tmp_path: Path, calls: list[int]) -> None:
    with pytest.raises(ResultError, match="is not a folder; make it first"):
        run(masks, tmp_path / "missing" / "sweep.nc")
    assert not calls


def test_nothing_is_printed_in_a_pipe(masks: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    run(masks, progress=True)
    assert capfd.readouterr() == ("", "")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="it does not exist; give a file written by 'ropescope sweep'"):
        SWEEP.load(tmp_path / "no.nc")
    with pytest.raises(ResultError, match="it is a folder"):
        SWEEP.load(tmp_path)
    (tmp_path / "text.nc").write_text("text")
    with pytest.raises(ResultError, match="is damaged or cut short"):
        SWEEP.load(tmp_path / "text.nc")
    planted(np.ones((1, 1, 1, 2))).assign_attrs(schema="other").to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ResultError, match="is not a sweep: its schema is 'other', not 'ropescope-sweep'"):
        SWEEP.load(tmp_path / "other.nc")
    planted(np.ones((1, 1, 1, 2))).assign_attrs(schema_version=9).to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(ResultError, match="has schema version 9; this ropescope reads 1"):
        SWEEP.load(tmp_path / "new.nc")
    planted(np.ones((1, 1, 1, 2))).drop_vars("nats").to_netcdf(tmp_path / "less.nc", engine="h5netcdf")
    with pytest.raises(ResultError, match="nats must have dims"):
        SWEEP.load(tmp_path / "less.nc")


def planted(nats: np.ndarray, tokens: Any = 10, arms: tuple[str, ...] = ("selection", "random-0", "random-1")) -> Any:
    """A sweep with given nats (selection, arm, alpha, window), its last alpha 1."""
    selections, _, alphas, windows = nats.shape
    counts = np.broadcast_to(tokens, windows)
    coordinates = {
        SELECTION: [f"s{number}" for number in range(selections)],
        ARM: list(arms[: nats.shape[1]]),
        ALPHA: np.linspace(0, 1, alphas) if alphas > 1 else [1.0],
        STREAM: ["query", "key"],
        WINDOW: range(windows),
    }
    pairs = np.full((selections, 2), 4)
    values = np.exp(nats.sum(-1) / counts.sum())
    return labelled({"nats": nats, "perplexity": values, "tokens": counts, "selected_pairs": pairs}, coordinates, {})


def drawn(seed: int, windows: int, shift: float, spread: float = 0.1) -> np.ndarray:
    """Baseline and one weighted cell: windows differ a lot, the change of nats per token a little."""
    random = np.random.default_rng(seed)
    baseline = 10 * random.normal(3, 1, windows)
    weighted = baseline + 10 * random.normal(shift, spread, windows)
    return np.stack((weighted, baseline))[None, None]


def test_a_constant_shift_has_no_width() -> None:
    baseline = np.random.default_rng(0).normal(30, 5, 12)
    nats = np.stack((baseline + 10 * 0.2, baseline))[None, None]
    found = change(planted(nats))["nats_change"].sel({SELECTION: "s0", ARM: "selection"})
    np.testing.assert_allclose(found.sel({ALPHA: 0}), 0.2, rtol=1e-9)
    np.testing.assert_allclose(found.sel({ALPHA: 1}), 0, atol=1e-12)


def test_an_interval_is_students_of_the_paired_difference() -> None:
    """Whatever the windows themselves do."""
    nats = drawn(0, 7, 0.1)
    difference = (nats[0, 0, 0] - nats[0, 0, 1]) / 10
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    found = change(planted(nats))["nats_change"].sel({ALPHA: 0}).values.ravel()
    np.testing.assert_allclose(found, [difference.mean(), expected.low, expected.high], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [5, 40])
def test_intervals_cover_a_planted_truth_with_few_windows_too(windows: int) -> None:
    covered = []
    for seed in range(300):
        _, low, high = change(planted(drawn(seed, windows, 0.1)))["nats_change"].sel({ALPHA: 0}).values.ravel()
        covered.append(low <= 0.1 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_perplexities_follow_the_log_ratio() -> None:
    """Windows of unequal length, against leaving out one window at a time."""
    random = np.random.default_rng(1)
    nats, tokens = random.normal(30, 3, (1, 3, 2, 6)), np.array([9, 10, 11, 12, 13, 14])
    own, others, baseline = nats[0, 0, 0], nats[0, 1:, 0].mean(0), nats[0, 0, 1]
    found = change(planted(nats, tokens))
    for name, place, other in [
        ("perplexity_change", {ARM: "selection"}, baseline),
        ("perplexity_against", {"control": "random"}, others),
    ]:
        whole = (own - other).sum() / tokens.sum()
        left = [np.delete(own - other, n).sum() / np.delete(tokens, n).sum() for n in range(6)]
        margin = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((left - np.mean(left)) ** 2).sum())
        perplexity = np.exp(other.sum() / tokens.sum())
        expected = [perplexity * np.expm1(whole + side * margin) for side in (0, -1, 1)]
        np.testing.assert_allclose(found[name].sel({ALPHA: 0, SELECTION: "s0", **place}), expected, rtol=1e-9)
        assert expected[0] == pytest.approx(np.exp(own.sum() / tokens.sum()) - perplexity)


@pytest.mark.parametrize("windows", [1, 4])
def test_fewer_than_five_windows_have_no_interval(windows: int) -> None:
    found = change(planted(drawn(0, windows, 0.1)))["nats_change"].sel({ALPHA: 0}).values.ravel()
    assert np.isfinite(found).tolist() == [True, False, False]
    assert "[" not in sweep_table(planted(drawn(0, windows, 0.1)))
    assert "[" in sweep_table(planted(drawn(0, 5, 0.1)))


def test_controls_that_were_not_asked_for_stay_undefined() -> None:
    nats = np.random.default_rng(0).normal(30, 3, (1, 3, 3, 6))
    nats[:, 1:, 0] = np.nan
    found = change(planted(nats))
    assert np.isnan(found["perplexity_against"].sel({ALPHA: 0})).all()
    assert np.isfinite(found["perplexity_against"].sel({ALPHA: 0.5})).all()
    assert np.isfinite(found["perplexity_change"].sel({ALPHA: 0, ARM: "selection"})).all()


def test_only_a_sweep_has_changes() -> None:
    with pytest.raises(ResultError, match="the dataset is not a sweep"):
        change(xr.Dataset())


def test_tables_agree(masks: dict[str, Any], result: xr.DataTree) -> None:
    controls = Controls(seeds=(0, 1), result=result, alphas=(0,))
    data = sweep(MODEL, tokens(5, 24), masks, alphas=ALPHAS, controls=controls)
    rows = list(csv.DictReader(io.StringIO(sweep_table(data, format="csv"))))
    assert [(row["selection"], row["alpha"]) for row in rows[:4]] == [
        *(("high", alpha) for alpha in ("1.0", "0.5", "0.0")),
        ("low", "1.0"),
    ]
    changes = change(data)
    cell = changes["perplexity_against"].sel({SELECTION: "high", ALPHA: 0, "control": "lowest-norm"})
    assert [float(rows[2][f"against_lowest_norm{end}"]) for end in ("", "_low", "_high")] == cell.values.tolist()
    assert rows[1]["against_random"] == ""
    assert (rows[0]["query_pairs"], rows[0]["key_pairs"]) == ("48", "24")
    text, markdown = sweep_table(data).splitlines(), sweep_table(data, format="markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown]
    assert cells[0] == ["selection", "pairs", "alpha", "perplexity", "change", "against random", "against lowest-norm"]
    assert len(text) == len(markdown) - 1 == 10
    for line, row in zip(text[1:], cells[2:], strict=True):
        assert line.split() == " ".join(row).split()
    assert cells[4][4].startswith(f"{float(rows[2]['change']):+.3f}"[:5])
    assert cells[-1] == ["none", "none", "0", f"{float(rows[-1]['perplexity']):.2f}", "-", "-", "-"]


def test_an_unknown_format_lists_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'markdown'"):
        sweep_table(planted(drawn(0, 4, 0.1)), format="markdwn")  # type: ignore[arg-type]
