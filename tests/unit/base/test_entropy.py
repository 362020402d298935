"""The entropies against closed forms, against NumPy and SciPy in float64, and against their own symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ropescope.base.arguments import MAIN_LOBE
from ropescope.base.entropy import (
    analysis_window,
    frame_power,
    sequence_fe,
    sequence_power,
    spectral_entropy,
    spectrum_fe,
    white_noise_entropy,
)
from ropescope.base.errors import InputError

LENGTH = 4096
TOLERANCE = 1e-5
SCIPY_NAME = {"hann": "hann", "hamming": "hamming", "blackman": "blackman", "rectangular": "boxcar"}
BOTH = pytest.mark.parametrize("entropy", [spectrum_fe, sequence_fe])
SEVERAL_EXAMPLES = settings(max_examples=40, deadline=None)
# Multiples of 1/8: a signal either varies far above float32 rounding or not at all.
LEVELS = st.integers(0, 800).map(lambda eighths: eighths / 8)
NORMS = st.integers(6, 40).flatmap(lambda size: arrays(np.float32, size, elements=LEVELS))
# An odd length has no Nyquist, so that no such signal sits in the bins left out alone.
ODD_NORMS = st.integers(3, 20).flatmap(lambda half: arrays(np.float32, 2 * half + 1, elements=LEVELS))


def tone(bin_: float, length: int = LENGTH, amplitude: float = 0.5, offset: float = 1.0) -> torch.Tensor:
    n = torch.arange(length, dtype=torch.float64)
    return (offset + amplitude * torch.cos(2 * torch.pi * bin_ * n / length + 0.3)).float()


def noisy_norms(seed: int = 0, *shape: int) -> torch.Tensor:
    return 0.5 + torch.rand(shape or (LENGTH,), generator=torch.Generator().manual_seed(seed))


def bits(*powers: float) -> float:
    return float(scipy.stats.entropy(powers, base=2))


def close(got: torch.Tensor, wanted: np.ndarray | float, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=0, atol=tolerance)


def numpy_frame_power(
    signal: np.ndarray, frame_length: int = 1024, hop_length: int = 512, window: str = "hann", periodic: bool = True
) -> np.ndarray:
    weights = scipy.signal.get_window(SCIPY_NAME[window], frame_length, fftbins=periodic)
    starts = range(0, len(signal) - frame_length + 1, hop_length)
    frames = [signal[start : start + frame_length].astype(np.float64) * weights for start in starts]
    return np.mean([np.abs(scipy.fft.rfft(frame)) ** 2 for frame in frames], axis=0)


def numpy_sequence_power(signal: np.ndarray) -> np.ndarray:
    return np.abs(scipy.fft.rfft(signal.astype(np.float64))[1 : len(signal) // 2]) ** 2


def numpy_entropy(power: np.ndarray) -> float:
    return float(scipy.stats.entropy(power, base=len(power)))


def steady_with_large_offset() -> np.ndarray:
    return (1000 + np.random.default_rng(1).standard_normal(LENGTH)).astype(np.float32)


def chi(scale: float) -> np.ndarray:
    return (scale * np.hypot(*np.random.default_rng(2).standard_normal((2, LENGTH)))).astype(np.float32)


SIGNALS = {
    "offset 1000, fluctuation 1": steady_with_large_offset(),
    "chi": chi(1.0),
    "tiny": chi(1e-8),
    "large": chi(1e8),
    "tone in noise": (tone(64) + 0.01 * noisy_norms()).numpy(),
}
ALL_SIGNALS = pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS.keys())


# Closed forms


@pytest.mark.parametrize("bin_", [1, 2, 64, 1000, 2046, 2047])
@pytest.mark.parametrize("offset", [0.5, 1.0, 100.0])
def test_sequence_fe_of_a_pure_tone_is_zero(bin_, offset):
    close(sequence_fe(tone(bin_, offset=offset)), 0.0)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_sequence_fe_of_equal_tones_counts_them(count):
    signal = sum(tone(100 * (i + 1)) for i in range(count))
    close(sequence_fe(signal), math.log(count) / math.log(2047))


def test_spectrum_fe_of_a_constant_is_the_floor_of_the_hann_window():
    assert bits(4, 1) == pytest.approx(0.7219, abs=5e-5)
    assert bits(4, 1) / math.log2(513) == pytest.approx(0.0802, abs=5e-5)
    close(spectrum_fe(torch.full((LENGTH,), 3.7)), bits(4, 1) / math.log2(513), 1e-6)


@pytest.mark.parametrize(
    ("window", "amplitudes"),
    [("hann", (0.5, 0.25)), ("hamming", (0.54, 0.23)), ("blackman", (0.42, 0.25, 0.04)), ("rectangular", (1.0,))],
)
def test_spectrum_fe_of_a_constant_follows_from_the_cosine_terms_of_the_window(window, amplitudes):
    floor = bits(*(a * a for a in amplitudes)) / math.log2(513)
    close(spectrum_fe(torch.ones(LENGTH), window=window), floor, 1e-6)


def test_spectrum_fe_of_a_tone_without_offset_spreads_over_three_bins():
    close(spectrum_fe(tone(4 * 100, offset=0.0)), bits(1, 4, 1) / math.log2(513))


@pytest.mark.parametrize("window", MAIN_LOBE)
def test_a_constant_stays_inside_the_main_lobe_and_fills_it(window):
    power = frame_power(torch.ones(LENGTH), window=window)
    lobe = MAIN_LOBE[window] + 1
    assert power[lobe:].sum() < 1e-9 * power.sum()
    assert power[:lobe].min() > 1e-3 * power.sum()


def test_sequence_fe_of_an_impulse_is_one():
    impulse = torch.zeros(LENGTH)
    impulse[7] = 1
    close(sequence_fe(impulse), 1.0, 1e-6)
    close(spectrum_fe(impulse), 1.0, 1e-6)


def test_sequence_fe_of_white_noise_meets_the_closed_form_within_its_standard_error():
    noise = torch.randn(512, LENGTH, generator=torch.Generator().manual_seed(0))
    values = sequence_fe(noise).double()
    standard_error = values.std().item() / math.sqrt(len(values))
    assert standard_error < 5e-4
    assert values.mean().item() == pytest.approx(white_noise_entropy(2047), abs=4 * standard_error)


def test_white_noise_entropy_of_a_sequence_of_4096_is_0_9446():
    assert white_noise_entropy(2047) == pytest.approx(0.9446, abs=5e-5)


@pytest.mark.parametrize("bins", [2, 3, 10, 513, 2047, 4095])
def test_white_noise_entropy_is_a_difference_of_digammas(bins):
    wanted = (scipy.special.psi(bins + 1) - scipy.special.psi(2)) / math.log(bins)
    assert white_noise_entropy(bins) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("bins", [2, 17, 513])
def test_white_noise_entropy_is_the_mean_over_the_uniform_simplex(bins):
    sample = np.random.default_rng(3).dirichlet(np.ones(bins), size=2000)
    values = scipy.stats.entropy(sample, base=bins, axis=1)
    standard_error = values.std(ddof=1) / math.sqrt(len(values))
    assert white_noise_entropy(bins) == pytest.approx(values.mean(), abs=4 * standard_error)


# Undefined cases


@BOTH
def test_a_silent_signal_is_nan(entropy):
    assert entropy(torch.zeros(LENGTH)).isnan()


@pytest.mark.parametrize("length", [6, 7, 1000, 1023, LENGTH])
@pytest.mark.parametrize("level", [1.0, 0.1, 1 / 3, 1e-8, 1e8])
def test_sequence_fe_of_a_constant_is_nan(length, level):
    assert sequence_fe(torch.full((length,), level)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_constant_with_rounding_is_flat_and_a_small_tone_is_not(dtype):
    eps = torch.finfo(dtype).eps
    last_digit = (noisy_norms() > 1).double()
    assert sequence_fe((1 + eps * last_digit).to(dtype)).isnan()
    assert sequence_fe((1 + 20 * eps * torch.cos(2 * torch.pi * torch.arange(LENGTH).double() / 64)).to(dtype)) < 0.3


def test_flatness_is_judged_by_the_dtype_the_signal_comes_in():
    signal = (1 + torch.finfo(torch.bfloat16).eps * (noisy_norms() > 1)).bfloat16()
    assert sequence_fe(signal).isnan()
    assert sequence_fe(signal.float()) > 0.9


def test_rounding_is_compared_with_the_standard_deviation_over_the_root_mean_square():
    signal = tone(64, amplitude=0.02)
    ratio = (signal.std(correction=0) / signal.square().mean().sqrt()).item()
    assert sequence_power(signal, rounding=1.001 * ratio).count_nonzero() == 0
    assert sequence_power(signal, rounding=0.999 * ratio).count_nonzero() > 0


def test_rounding_below_that_of_float32_counts_as_float32():
    signal = 1 + torch.finfo(torch.float32).eps * (noisy_norms() > 1)
    assert sequence_power(signal, rounding=0.0).count_nonzero() == 0
    assert sequence_power(signal.double()).count_nonzero() == 0


def test_an_undefined_signal_leaves_its_neighbours_alone():
    batch = torch.stack([noisy_norms(0), torch.zeros(LENGTH), noisy_norms(1)])
    for entropy in (spectrum_fe, sequence_fe):
        values = entropy(batch)
        assert values.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(values[::2], entropy(batch[::2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [10, 14, 20, 58])
def test_sequence_fe_of_a_signal_at_nyquist_alone_is_nan(length):
    alternating = 0.1 * (-1.0) ** torch.arange(length)
    assert sequence_fe(alternating).isnan()


# Frames and bins


def test_defaults_give_seven_frames_of_513_bins():
    signal = noisy_norms()
    frames = [frame_power(signal[512 * t : 512 * t + 1024]) for t in range(7)]
    power = frame_power(signal)
    assert power.shape == (513,)
    torch.testing.assert_close(power, torch.stack(frames).mean(0))


@pytest.mark.parametrize(
    ("length", "frame_length", "hop_length"), [(4096 + 511, 1024, 512), (1030, 1000, 31), (70, 9, 7)]
)
def test_a_last_partial_frame_is_ignored(length, frame_length, hop_length):
    signal = noisy_norms(0, length)
    used = (length - frame_length) // hop_length * hop_length + frame_length
    assert used < length
    spoiled = signal.clone()
    spoiled[used:] = 1e6
    for entropy in (frame_power, spectrum_fe):
        assert torch.equal(entropy(spoiled, frame_length, hop_length), entropy(signal, frame_length, hop_length))
    spoiled[used - 1] = 1e6
    assert not torch.equal(
        frame_power(spoiled, frame_length, hop_length), frame_power(signal, frame_length, hop_length)
    )


@pytest.mark.parametrize(("length", "bins"), [(6, 2), (7, 2), (8, 3), (4095, 2046), (4096, 2047), (8192, 4095)])
def test_sequence_power_leaves_out_dc_and_nyquist(length, bins):
    assert sequence_power(noisy_norms(0, length)).shape == (bins,)


@pytest.mark.parametrize("bin_", [1, 5, 2046])
def test_sequence_power_begins_at_bin_one(bin_):
    assert sequence_power(tone(bin_, 4095)).argmax() == bin_ - 1


# Parity with NumPy and SciPy in float64


@pytest.mark.slow
@ALL_SIGNALS
@pytest.mark.parametrize("window", SCIPY_NAME)
@pytest.mark.parametrize(
    ("frame_length", "hop_length"), [(1024, 512), (1024, 100), (333, 111), (64, 64), (5, 3), (4, 1)]
)
def test_spectrum_fe_agrees_with_scipy(signal, window, frame_length, hop_length):
    got = spectrum_fe(torch.from_numpy(signal), frame_length, hop_length, window)
    close(got, numpy_entropy(numpy_frame_power(signal, frame_length, hop_length, window)))


@ALL_SIGNALS
@pytest.mark.parametrize("length", [6, 7, 64, 333, 1000, 4095, 4096])
def test_sequence_fe_agrees_with_scipy(signal, length):
    got = sequence_fe(torch.from_numpy(signal[:length]))
    close(got, numpy_entropy(numpy_sequence_power(signal[:length])))


def test_powers_agree_with_scipy_in_absolute_terms():
    signal = noisy_norms()
    for got, wanted in (
        (frame_power(signal), numpy_frame_power(signal.numpy())),
        (sequence_power(signal), numpy_sequence_power(signal.numpy())),
    ):
        torch.testing.assert_close(got.double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6 * wanted.max())


def test_frame_power_agrees_with_the_unpadded_frames_of_short_time_fft():
    signal = noisy_norms()
    transform = scipy.signal.ShortTimeFFT(scipy.signal.get_window("hann", 1024), hop=512, fs=1.0, phase_shift=None)
    inner = range(transform.lower_border_end[1], transform.upper_border_begin(LENGTH)[1])
    frames = transform.spectrogram(signal.double().numpy(), p0=inner.start, p1=inner.stop)
    assert frames.shape == (513, 7)
    torch.testing.assert_close(frame_power(signal).double(), torch.from_numpy(frames.mean(1)), rtol=1e-4, atol=1e-2)


WRONG_SPECTRUM_FE = {
    "symmetric window": lambda s: numpy_entropy(numpy_frame_power(s, periodic=False)),
    "512 bins": lambda s: numpy_entropy(numpy_frame_power(s)[:-1]),
    "no DC": lambda s: numpy_entropy(numpy_frame_power(s)[1:]),
    "detrended": lambda s: numpy_entropy(numpy_frame_power(s - s.mean())),
    "padded": lambda s: numpy_entropy(numpy_frame_power(np.pad(s, 512, mode="reflect"))),
    "first frame only": lambda s: numpy_entropy(numpy_frame_power(s[:1024])),
    "amplitude": lambda s: numpy_entropy(np.sqrt(numpy_frame_power(s))),
}
WRONG_SEQUENCE_FE = {
    "with Nyquist": lambda s: numpy_entropy(np.abs(np.fft.rfft(s)[1:]) ** 2),
    "with DC": lambda s: numpy_entropy(np.abs(np.fft.rfft(s)[:-1]) ** 2),
    "Hann": lambda s: numpy_entropy(numpy_sequence_power((s - s.mean()) * scipy.signal.get_window("hann", len(s)))),
    "over log2 of L": lambda s: float(scipy.stats.entropy(numpy_sequence_power(s), base=len(s))),
}


@pytest.mark.parametrize("wrong", WRONG_SPECTRUM_FE.values(), ids=WRONG_SPECTRUM_FE.keys())
def test_parity_rejects_another_spectrum_fe(wrong):
    signal = SIGNALS["chi"]
    with pytest.raises(AssertionError, match="not close"):
        close(spectrum_fe(torch.from_numpy(signal)), wrong(signal))


@pytest.mark.parametrize("wrong", WRONG_SEQUENCE_FE.values(), ids=WRONG_SEQUENCE_FE.keys())
def test_parity_rejects_another_sequence_fe(wrong):
    signal = SIGNALS["chi"]
    with pytest.raises(AssertionError, match="not close"):
        close(sequence_fe(torch.from_numpy(signal)), wrong(signal))


# Symmetries


def short_spectrum_fe(signal: torch.Tensor) -> torch.Tensor:
    return spectrum_fe(signal, frame_length=6, hop_length=3)


SHORT = pytest.mark.parametrize("entropy", [short_spectrum_fe, sequence_fe])


@SHORT
@SEVERAL_EXAMPLES
@given(norms=NORMS)
def test_entropy_is_nan_or_between_zero_and_one(entropy, norms):
    value = entropy(torch.from_numpy(norms)).item()
    assert math.isnan(value) or 0 <= value <= 1


@pytest.mark.parametrize("bins", [473, 2046])
def test_entropy_of_a_uniform_spectrum_does_not_exceed_one(bins):
    assert max(spectral_entropy(torch.ones(k)).item() for k in range(bins - 20, bins + 1)) <= 1


@SHORT
@SEVERAL_EXAMPLES
@given(norms=NORMS, exponent=st.integers(-20, 20))
def test_entropy_ignores_a_power_of_two_bit_for_bit(entropy, norms, exponent):
    signal = torch.from_numpy(norms)
    torch.testing.assert_close(entropy(signal * 2.0**exponent), entropy(signal), rtol=0, atol=0, equal_nan=True)


@BOTH
@pytest.mark.parametrize("scale", [1e-12, 1e-8, 0.3, 7.7, 1e8, 1e12])
def test_entropy_ignores_the_scale(entropy, scale):
    torch.testing.assert_close(entropy(noisy_norms() * scale), entropy(noisy_norms()), rtol=0, atol=1e-6)


@SEVERAL_EXAMPLES
@given(norms=ODD_NORMS, shift=st.integers(-50, 50))
def test_sequence_fe_ignores_a_circular_shift(norms, shift):
    signal = torch.from_numpy(norms)
    torch.testing.assert_close(sequence_fe(signal.roll(shift)), sequence_fe(signal), rtol=0, atol=1e-4, equal_nan=True)


@SEVERAL_EXAMPLES
@given(norms=ODD_NORMS, constant=st.integers(0, 400))
def test_sequence_fe_ignores_a_constant(norms, constant):
    signal = torch.from_numpy(norms)
    torch.testing.assert_close(sequence_fe(signal + constant), sequence_fe(signal), rtol=0, atol=1e-4, equal_nan=True)


def test_spectrum_fe_falls_as_a_constant_is_added():
    values = [spectrum_fe(noisy_norms() + constant).item() for constant in (0, 1, 10)]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.05


@BOTH
def test_a_batch_gives_what_its_signals_give_one_by_one(entropy):
    batch = noisy_norms(4, 2, 3, LENGTH)
    single = torch.stack([torch.stack([entropy(signal) for signal in row]) for row in batch])
    assert single.shape == (2, 3)
    torch.testing.assert_close(entropy(batch), single, rtol=0, atol=1e-6)


@BOTH
def test_a_strided_signal_gives_what_its_copy_gives(entropy):
    signal = noisy_norms(5, LENGTH, 3).T
    torch.testing.assert_close(entropy(signal), entropy(signal.contiguous()), rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16]
)
def test_every_dtype_is_computed_in_float32(entropy, dtype):
    signal = (100 * noisy_norms()).to(dtype)
    got = entropy(signal)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, entropy(signal.float()), rtol=0, atol=0)


@BOTH
def test_the_signal_is_left_as_it_was(entropy):
    signal = noisy_norms()
    before = signal.clone()
    entropy(signal)
    assert torch.equal(signal, before)


# Gradients


@BOTH
@pytest.mark.parametrize(
    "signal",
    [torch.zeros(LENGTH), torch.ones(LENGTH), torch.full((LENGTH,), 0.1), tone(64), tone(2), noisy_norms()],
    ids=["silent", "ones", "0.1", "tone 64", "tone 2", "noise"],
)
def test_gradient_is_finite_at_bins_without_power_and_across_scale(entropy, signal):
    signal = signal.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(signal), signal)
    assert gradient.isfinite().all()
    assert abs((gradient * signal).sum().item()) < 1e-4 * max(1.0, gradient.norm().item())


@BOTH
def test_gradient_of_an_undefined_signal_is_zero(entropy):
    batch = torch.stack([torch.zeros(LENGTH), noisy_norms()]).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(batch).nansum(), batch)
    assert gradient[0].count_nonzero() == 0
    assert gradient[1].count_nonzero() > 0


@pytest.mark.parametrize(
    ("entropy", "power"),
    [(spectrum_fe, numpy_frame_power), (sequence_fe, numpy_sequence_power)],
    ids=["spectrum", "sequence"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradient_agrees_with_float64_differences(entropy, power, seed):
    signal = noisy_norms(seed).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(signal), signal)
    direction = np.random.default_rng(seed).standard_normal(LENGTH)
    point, step = signal.detach().double().numpy(), 1e-5
    ahead, behind = (numpy_entropy(power(point + sign * step * direction)) for sign in (1, -1))
    got = (gradient.double() * torch.from_numpy(direction)).sum()
    torch.testing.assert_close(got.item(), (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("length", "options", "text"),
    [
        (
            1023,
            {},
            r"a signal of 1023 positions is shorter than one frame of 1024; use at least 1024 tokens or a shorter",
        ),
        (0, {"frame_length": 4}, r"a signal of 0 positions is shorter than one frame of 4"),
        (64, {"frame_length": 3}, r"frame_length got 3; a frame needs at least 4 tokens"),
        (64, {"frame_length": 8, "hop_length": 0}, r"hop_length got 0; frames must advance by at least 1 token"),
        (64, {"frame_length": 8, "window": "han"}, r"unknown analysis window 'han'; did you mean 'hann'"),
        (
            64,
            {"frame_length": 8, "window": "square"},
            r"unknown .* 'square'; .*allowed: hann, hamming, blackman, rectangular",
        ),
    ],
)
@pytest.mark.parametrize("function", [spectrum_fe, frame_power])
def test_frames_that_cannot_be_are_refused(function, length, options, text):
    with pytest.raises(InputError, match=text):
        function(torch.ones(length), **options)


def test_a_signal_of_exactly_one_frame_is_accepted():
    close(spectrum_fe(torch.ones(1024)), bits(4, 1) / math.log2(513), 1e-6)


@pytest.mark.parametrize("function", [sequence_fe, sequence_power])
def test_a_sequence_too_short_for_two_bins_is_refused(function):
    with pytest.raises(InputError, match="SequenceFE got a signal of 5 positions; it needs at least 6"):
        function(torch.ones(5))


@pytest.mark.parametrize("bins", [1, 0, -3])
def test_white_noise_entropy_needs_two_bins(bins):
    with pytest.raises(InputError, match=f"got {bins} bins; the entropy of fewer than 2 bins is not defined"):
        white_noise_entropy(bins)


def test_input_errors_are_value_errors():
    with pytest.raises(ValueError, match="unknown analysis window"):
        analysis_window("kaiser", 8)


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "rectangular"])
def test_entropies_are_on_the_device_of_the_signal(window):
    signal = torch.empty(3, 64, device="meta")
    assert spectrum_fe(signal, 16, 8, window).device.type == "meta"
    assert sequence_fe(signal).device.type == "meta"
