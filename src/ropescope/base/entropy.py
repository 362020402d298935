"""Frequency Entropy: spectra of a signal along the positions, and their Shannon entropy.

Pure functions on tensors of any leading dimensions, on any device, differentiable. Arithmetic is float32 whatever
comes in. Source: the Frequency Entropy paper, section 3, equations 2 to 6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.signal import windows as signal_windows

from ropescope.base.arguments import check_analysis_window, check_frames
from ropescope.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.base.axes import Entropy, Power, Signal

_TINY = torch.finfo(torch.float32).tiny


def spectrum_fe(signal: Signal, frame_length: int = 1024, hop_length: int = 512, window: str = "hann") -> Entropy:
    r"""SpectrumFE: normalised entropy of the time-averaged short-time power spectrum.

    .. math:: \tilde H = -\frac{1}{\log_2 K} \sum_k p_k \log_2 p_k, \quad p_k = S_k / \sum_k S_k

    with :math:`S_k` from :func:`frame_power` and :math:`K = F/2 + 1` bins, DC and Nyquist included. Low marks a
    *frequency band*: a pair whose norm is high and steady.

    Parameters
    ----------
    signal
        Norms of one rotary pair along the positions, shape (..., position), at least one frame long.
    frame_length
        Tokens in one frame F, at least 4.
    hop_length
        Tokens from one frame to the next, at least 1.
    window
        Analysis window: "hann" (periodic), "hamming", "blackman" or "rectangular".

    Returns
    -------
    Tensor
        Shape (...), float32, in [0, 1]; NaN where the signal is silent. A constant signal gives 0.0802 with the
        defaults, the floor in practice.

    Raises
    ------
    InputError
        If the signal is shorter than a frame, or a parameter is out of range.

    References
    ----------
    Frequency Entropy paper, section 3.2, equations 3, 5 and 6.

    Examples
    --------
    >>> round(spectrum_fe(torch.ones(4096)).item(), 4)
    0.0802
    """
    return spectral_entropy(frame_power(signal, frame_length, hop_length, window))


def sequence_fe(signal: Signal) -> Entropy:
    r"""SequenceFE: normalised entropy of the power spectrum of the whole sequence, without DC and Nyquist.

    The formula of :func:`spectrum_fe` over the bins of :func:`sequence_power`. Low marks a *periodic* pair. White
    noise scores :func:`white_noise_entropy`, which depends on the length.

    Parameters
    ----------
    signal
        Norms of one rotary pair along the positions, shape (..., position), at least 6 positions.

    Returns
    -------
    Tensor
        Shape (...), float32, in [0, 1]; NaN where the signal is flat: nothing outside DC but rounding.

    Raises
    ------
    InputError
        If the signal is shorter than 6 positions.

    References
    ----------
    Frequency Entropy paper, section 3.2, equations 4 to 6.

    Examples
    --------
    >>> n = torch.arange(4096)
    >>> sequence_fe(1 + 0.5 * torch.cos(2 * torch.pi * 64 * n / 4096)).item() < 0.01
    True
    """
    return spectral_entropy(sequence_power(signal))


def white_noise_entropy(bins: int) -> float:
    r"""Expected normalised entropy of a periodogram of white noise, in closed form.

    The normalised periodogram of white noise is uniform on the simplex, so

    .. math:: E[\tilde H] = \frac{1}{\ln K} \sum_{k=2}^{K} \frac{1}{k}.

    Parameters
    ----------
    bins
        Number of bins K, at least 2.

    Returns
    -------
    float
        0.9446 at the 2047 bins of a SequenceFE over 4096 tokens.

    Raises
    ------
    InputError
        If there are fewer than 2 bins.

    Examples
    --------
    >>> round(white_noise_entropy(2047), 4)
    0.9446
    """
    if bins < 2:
        raise InputError(f"white_noise_entropy got {bins} bins; the entropy of fewer than 2 bins is not defined")
    return math.fsum(1 / k for k in range(2, bins + 1)) / math.log(bins)


def frame_power(signal: Signal, frame_length: int = 1024, hop_length: int = 512, window: str = "hann") -> Power:
    r"""Time-averaged power of the short-time Fourier transform, without padding or detrending.

    .. math:: S_k = \frac{1}{T} \sum_{t=0}^{T-1} \Big| \sum_{n=0}^{F-1} s[tH+n]\, w[n]\, e^{-2\pi i k n / F} \Big|^2

    Parameters
    ----------
    signal, frame_length, hop_length, window
        As in :func:`spectrum_fe`.

    Returns
    -------
    Tensor
        Shape (..., F/2 + 1), float32, from T = floor((L - F) / hop) + 1 frames.

    References
    ----------
    Frequency Entropy paper, equation 3.
    """
    check_frames(signal.shape[-1], frame_length, hop_length)
    weights = analysis_window(window, frame_length, signal.device)
    frames = signal.float().unfold(-1, frame_length, hop_length)
    spectrum = torch.fft.rfft(frames * weights)
    power: Tensor = (spectrum.real.square() + spectrum.imag.square()).mean(-2)
    return power


def sequence_power(signal: Signal, rounding: float | None = None) -> Power:
    r"""Power of the discrete Fourier transform of the whole signal, bins 1 to floor(L/2) - 1.

    .. math:: S_k = \Big| \sum_{n=0}^{L-1} s[n]\, e^{-2\pi i k n / L} \Big|^2

    Parameters
    ----------
    signal
        Shape (..., position), at least 6 positions.
    rounding
        Relative rounding of the data that the signal was computed from; default the machine epsilon of its dtype,
        and never less than four times that of float32, which the transform itself needs.

    Returns
    -------
    Tensor
        Shape (..., floor(L/2) - 1), float32. All zero where the signal is flat: where the root mean square of what
        these bins hold is at most `rounding` times that of the signal.

    References
    ----------
    Frequency Entropy paper, equation 4.
    """
    length = signal.shape[-1]
    if length < 6:
        raise InputError(f"SequenceFE got a signal of {length} positions; it needs at least 6 to have two bins")
    if rounding is None:
        rounding = torch.finfo(signal.dtype).eps if signal.is_floating_point() else 0.0
    rounding = max(rounding, 4 * torch.finfo(torch.float32).eps)
    signal = signal.float()
    # DC is dropped, so taking the mean out first only keeps its rounding out of the other bins.
    spectrum = torch.fft.rfft(signal - signal.mean(-1, keepdim=True))[..., 1 : length // 2]
    power: Tensor = spectrum.real.square() + spectrum.imag.square()
    flat = 2 * power.sum(-1, keepdim=True) <= rounding**2 * length * signal.square().sum(-1, keepdim=True)
    return power.masked_fill(flat, 0.0)


def spectral_entropy(power: Power) -> Entropy:
    r"""Shannon entropy of a power spectrum over the entropy of a uniform one.

    Parameters
    ----------
    power
        Power per bin, shape (..., bin), not negative, at least 2 bins.

    Returns
    -------
    Tensor
        Shape (...), float32, in [0, 1]; NaN where the total power is zero.

    References
    ----------
    Frequency Entropy paper, equations 5 and 6.
    """
    power = power.float()
    total = power.sum(-1, keepdim=True)
    p = power / total.masked_fill(total == 0, 1.0)
    # clamp keeps 0 log 0 at 0, and its gradient finite.
    entropy: Tensor = -(p * p.clamp_min(_TINY).log()).sum(-1) / math.log(power.shape[-1])
    return entropy.clamp_max(1.0).masked_fill(total.squeeze(-1) == 0, math.nan)


def analysis_window(name: str, length: int, device: torch.device | None = None) -> Tensor:
    """The periodic analysis window of that name, float32, shape (length,)."""
    check_analysis_window(name)
    if name == "rectangular":
        return torch.ones(length, device=device)
    make = {"hann": signal_windows.hann, "hamming": signal_windows.hamming, "blackman": signal_windows.blackman}[name]
    return make(length, sym=False, dtype=torch.float32, device=device)
