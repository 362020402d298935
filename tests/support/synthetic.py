"""A small result with known contents: bands, periodic pairs, a layer without rotation, an undefined pair, padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ropescope.measurement.labelling import KeptNorms, build_result

BASE = 10_000.0
BAND_HEAD = (0, 1)
BAND_PAIRS = (4, 5, 6)
PERIODIC_HEAD = (1, 0)
PERIODIC_PAIRS = (1, 2)
OUTLIER_HEAD = (1, 0)
OUTLIER_PAIR = 8
UNDEFINED = (0, 0, 9)
NARROW_LAYER = 2
MISSING_PAIRS = 4
BINS = 513


def synthetic_result(
    layers: int = 4,
    heads: int = 3,
    kv_heads: int = 1,
    pairs: int = 16,
    sequences: int = 2,
    length: int = 4096,
    seed: int = 0,
    *,
    nope_layers: Sequence[int] = (3,),
    padded: bool = True,
    kept: Sequence[tuple[int, int]] = (),
    cells: int = 256,
    corpus: str | None = "wikitext",
) -> xr.DataTree:
    """Build a valid result without any model.

    Planted where the sizes allow: a band in the pairs ``BAND_PAIRS`` of ``BAND_HEAD`` and a weaker one in the first
    half of every head of ``nope_layers``; periodic pairs and an outlier in ``PERIODIC_HEAD``; a silent, hence
    undefined, pair ``UNDEFINED``. With ``padded``, ``NARROW_LAYER`` lacks its last ``MISSING_PAIRS`` pairs and, if
    there are several, its last head. Keys follow the same plan with head indices modulo ``kv_heads``. ``kept`` names
    the (layer, head) whose query norms are kept; key norms are kept for the same layers.
    """
    rng = np.random.default_rng(seed)
    streams = {"query": heads, "key": kv_heads}
    arrays = {
        name: _stream(rng, (sequences, layers, count, pairs), nope_layers, padded) for name, count in streams.items()
    }
    frequency = np.tile(BASE ** (-np.arange(pairs) / pairs), (layers, 1))
    frequency[list(nope_layers)] = np.nan
    if padded:
        frequency[NARROW_LAYER : NARROW_LAYER + 1, pairs - MISSING_PAIRS :] = np.nan
    norms = {
        name: _norms(rng, sorted({(layer, head % count) for layer, head in kept}), pairs, length, cells)
        for name, count in streams.items()
    }
    return build_result(
        arrays["query"],
        arrays["key"],
        layers=range(layers),
        frequency=frequency,
        rotated=np.isfinite(frequency),
        pairing=[f"half-split[0:{2 * pairs}]"] * layers,
        provenance=_provenance(sequences, length, corpus),
        spectra={name: _spectra(rng, arrays[name]["mean_norm"]) for name in streams},
        frame_length=2 * (BINS - 1),
        norms=norms if kept else None,
    )


def _stream(
    rng: np.random.Generator, shape: tuple[int, int, int, int], nope_layers: Sequence[int], padded: bool
) -> dict[str, np.ndarray]:
    _, layers, heads, pairs = shape
    ramp = np.linspace(0, 1, pairs)
    profile = 0.28 + 0.05 * np.sin(3 * ramp + rng.uniform(0, 6, (1, layers, heads, 1)))
    spectrum = profile + rng.normal(0, 0.012, shape)
    sequence = 0.92 - 0.06 * ramp**2 + rng.normal(0, 0.01, shape)
    norm = np.exp(rng.normal(0, 0.2, (1, layers, heads, pairs)) + rng.normal(0, 0.02, shape))
    for layer in range(layers):
        if layer in nope_layers:
            _plant(spectrum, norm, layer, None, slice(0, pairs // 2), 0.15, 1.6, rng)
    _plant(spectrum, norm, BAND_HEAD[0], BAND_HEAD[1] % heads, slice(BAND_PAIRS[0], BAND_PAIRS[-1] + 1), 0.1, 6.0, rng)
    if layers > PERIODIC_HEAD[0]:
        layer, head = PERIODIC_HEAD[0], PERIODIC_HEAD[1] % heads
        sequence[:, layer, head, list(PERIODIC_PAIRS)] = 0.45 + rng.normal(0, 0.01, (shape[0], len(PERIODIC_PAIRS)))
        spectrum[:, layer, head, OUTLIER_PAIR] = 0.47
    spectrum[:, UNDEFINED[0], UNDEFINED[1], UNDEFINED[2]] = np.nan
    sequence[:, UNDEFINED[0], UNDEFINED[1], UNDEFINED[2]] = np.nan
    norm[:, UNDEFINED[0], UNDEFINED[1], UNDEFINED[2]] = 0.0
    values = {
        "spectrum_fe": spectrum,
        "sequence_fe": sequence,
        "mean_norm": norm,
        "dc_share": np.clip(1.1 - spectrum, 0, 1),
        "dominant_period": np.where(np.isnan(sequence), np.nan, 64.0),
        "peak_share": 1 - sequence,
    }
    return {name: _pad(array, padded) for name, array in values.items()}


def _plant(
    spectrum: np.ndarray,
    norm: np.ndarray,
    layer: int,
    head: int | None,
    pairs: slice,
    entropy: float,
    gain: float,
    rng: np.random.Generator,
) -> None:
    where = (slice(None), layer, slice(None) if head is None else head, pairs)
    spectrum[where] = entropy + rng.normal(0, 0.005, spectrum[where].shape)
    norm[where] *= gain


def _pad(array: np.ndarray, padded: bool) -> np.ndarray:
    if padded and array.shape[1] > NARROW_LAYER:
        array[:, NARROW_LAYER, :, array.shape[3] - MISSING_PAIRS :] = np.nan
        if array.shape[2] > 1:
            array[:, NARROW_LAYER, -1] = np.nan
    return array


def _spectra(rng: np.random.Generator, mean_norm: np.ndarray) -> np.ndarray:
    """Most power at zero frequency, the rest falling off; NaN for absent heads."""
    _, layers, heads, _ = mean_norm.shape
    power = np.exp(rng.normal(0, 0.1, (layers, heads, BINS))) / (1 + np.arange(BINS)) ** 1.5
    power[np.isnan(mean_norm).all((0, 3))] = np.nan
    return power / power.sum(-1, keepdims=True)


def _norms(rng: np.random.Generator, kept: Sequence[tuple[int, int]], pairs: int, length: int, cells: int) -> KeptNorms:
    position = np.arange(cells) * (length // cells)
    values = np.exp(rng.normal(0, 0.3, (len(kept), pairs, cells)))
    for entry, (layer, _) in enumerate(kept):
        if layer == PERIODIC_HEAD[0]:
            values[entry, list(PERIODIC_PAIRS)] *= 2 + 1.5 * np.sin(2 * np.pi * position / 256)
        else:
            values[entry, list(BAND_PAIRS)] *= 6
    layer, head = (np.array([where[axis] for where in kept], dtype=np.int64) for axis in (0, 1))
    return KeptNorms(layer=layer, head=head, position=position, values=values)


def _provenance(sequences: int, length: int, corpus: str | None) -> dict[str, object]:
    return {
        "ropescope": "0.1.0",
        "model": {
            "id": "synthetic/tiny-irope",
            "revision": None,
            "architecture": "SyntheticForCausalLM",
            "dtype": "float32",
            "attention": "sdpa",
            "fingerprint": "0" * 16,
        },
        "windows": {"corpus": corpus, "split": "validation", "length": length, "windows": sequences},
        "parameters": {"length": length, "frame_length": 1024, "hop_length": 512, "window": "hann", "batch_size": 1},
        "versions": {"python": "3.12", "torch": "2.13"},
        "created": "2026-01-01T00:00:00+00:00",
    }
