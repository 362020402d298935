"""Periods that windows share, and what beats as against what drifts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from ropescope.base.entropy import sequence_fe, sequence_power
from ropescope.measurement.periods import DRIFT, RHYTHM, agreed_period, kinds

LENGTH = 4096


def periods(*windows: float) -> xr.DataArray:
    return xr.DataArray(np.array(windows)[:, None], dims=("sequence", "pair"))


def measured(*signals: np.ndarray) -> xr.DataArray:
    """The dominant period of each window as it is measured: of the strongest bin of its spectrum."""
    bins = [int(sequence_power(torch.from_numpy(signal)).argmax()) + 1 for signal in signals]
    return periods(*(LENGTH / bin_ for bin_ in bins))


@pytest.mark.parametrize(
    ("windows", "shared"),
    [
        ((64.0,), 64.0),
        ((64.0, 64.0), 64.0),
        ((4096.0, 1365.0), math.nan),
        ((64.0, 66.0, 500.0), 64.0),
        ((64.0, 200.0, 500.0), math.nan),
        ((64.0, 64.0, 200.0, 500.0), 64.0),
        ((64.0, 64.0, 200.0, 500.0, 900.0), math.nan),
        ((64.0, math.nan, math.nan), 64.0),
        ((64.0, math.nan, 200.0), math.nan),
        ((math.nan, math.nan), math.nan),
    ],
)
def test_the_period_is_one_that_half_of_the_windows_share(windows: tuple[float, ...], shared: float) -> None:
    np.testing.assert_array_equal(agreed_period(periods(*windows)), [shared])


def test_the_shared_period_is_always_one_that_a_window_has() -> None:
    windows = np.random.default_rng(0).choice(LENGTH / np.arange(1, 40), (5, 300))
    shared = agreed_period(xr.DataArray(windows, dims=("sequence", "pair"))).values
    known = np.isfinite(shared)
    assert known.any() and not known.all()
    assert (windows == shared).any(0)[known].all()


def test_sequences_may_stand_in_any_dimension() -> None:
    data = periods(64.0, 64.0, 200.0)
    np.testing.assert_array_equal(agreed_period(data.transpose("pair", "sequence")), [64.0])


def a_beat(period: float, phase: float = 0.0) -> np.ndarray:
    return 1 + 0.5 * np.cos(2 * math.pi * np.arange(LENGTH) / period + phase)


def red_noise(seed: int) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(size=LENGTH)
    signal = np.zeros(LENGTH)
    for place in range(1, LENGTH):
        signal[place] = 0.99 * signal[place - 1] + steps[place]
    return 20 + signal


def test_a_beat_at_one_period_in_all_windows_is_a_rhythm() -> None:
    period = measured(*(a_beat(64, phase) for phase in (0.0, 1.0, 2.0)))
    assert kinds(period, LENGTH).values.tolist() == [RHYTHM]


@pytest.mark.parametrize(
    ("signal", "entropy"),
    [(np.linspace(1, 2, LENGTH), 0.215), (np.where(np.arange(LENGTH) < LENGTH // 2, 1.0, 2.0), 0.116)],
    ids=["ramp", "step"],
)
def test_what_drifts_is_under_the_threshold_of_periodic_pairs_all_the_same(signal: np.ndarray, entropy: float) -> None:
    assert float(sequence_fe(torch.from_numpy(signal))) == pytest.approx(entropy, abs=5e-4)


@pytest.mark.parametrize(
    "signal",
    [np.linspace(1, 2, LENGTH), np.where(np.arange(LENGTH) < 2000, 1.0, 2.0), red_noise(0), red_noise(1)],
    ids=["ramp", "step", "red noise", "other red noise"],
)
def test_a_ramp_a_step_and_red_noise_drift(signal: np.ndarray) -> None:
    period = measured(signal, signal[::-1].copy())
    assert kinds(period, LENGTH).values.tolist() == [DRIFT]


def test_beats_at_another_period_in_each_window_are_neither() -> None:
    period = measured(a_beat(64), a_beat(32), a_beat(16))
    assert kinds(period, LENGTH).values.tolist() == [""]


def test_a_rhythm_has_at_least_eight_cycles() -> None:
    assert kinds(periods(LENGTH / 8), LENGTH).values.tolist() == [RHYTHM]
    assert kinds(periods(LENGTH / 7), LENGTH).values.tolist() == [DRIFT]


def test_a_pair_without_a_period_is_neither() -> None:
    assert kinds(periods(math.nan), LENGTH).values.tolist() == [""]


def test_windows_of_unknown_length_tell_neither() -> None:
    assert kinds(periods(64.0, 64.0), None).values.tolist() == [""]


def test_what_drifts_in_half_of_the_windows_drifts_and_in_fewer_does_not() -> None:
    """Periods that are all over the limit and all unlike, beside short ones that are unlike, too."""
    half = periods(LENGTH, LENGTH / 3, 64.0, 16.0)
    assert kinds(half, LENGTH).values.tolist() == [DRIFT]
    assert kinds(periods(LENGTH, LENGTH / 3, 64.0, 16.0, 128.0), LENGTH).values.tolist() == [""]
