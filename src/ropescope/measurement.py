"""Frequency Entropy of a whole model: one pass over token windows, everything reduced where it arises.

The pass runs the decoder alone (never the language-model head) and ends when the last attention has been seen. Queries
and keys are turned into norms, spectra and entropies on their own device, a few heads at a time, and dropped at once.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ropescope.attention import AttentionCall, intercepted
from ropescope.axes import KEY, QUERY, STREAMS
from ropescope.entropy import (
    MAIN_LOBE,
    analysis_window,
    check_frames,
    frame_power,
    sequence_power,
    spectral_entropy,
)
from ropescope.errors import InputError, NonFiniteError
from ropescope.live import check_windows, model_provenance, undisturbed
from ropescope.probing import LayerRotation, RotaryCard, probe
from ropescope.results import KeptNorms, build_result
from ropescope.rotary import Pairing, pair_norms
from ropescope.windows import windows_protocol

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.axes import Heads, Power, TokenIds

VARIABLES = ("spectrum_fe", "sequence_fe", "mean_norm", "dc_share", "dominant_period", "peak_share")
# Norms of this many positions are reduced at once; the transforms need about eight times their memory.
_CHUNK = 2**21
_HEATMAP_CELLS = 512
# The power of a longer sequence of larger norms may overflow float32.
_LARGEST_NORM = 1e13


@dataclass(frozen=True, slots=True)
class Frames:
    """How SpectrumFE cuts a signal into frames."""

    frame_length: int = 1024
    hop_length: int = 512
    window: str = "hann"


def measure(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    frame_length: int = 1024,
    hop_length: int = 512,
    window: str = "hann",
    batch_size: int = 1,
    norm_heads: Iterable[tuple[int | None, int | None]] = (),
    progress: bool = False,
) -> xr.DataTree:
    """SpectrumFE and SequenceFE of every layer, head and rotary pair, for queries and keys.

    Parameters
    ----------
    model
        Any transformers model whose attention goes through the attention interface.
    windows
        Token ids, shape (sequence, position), as :func:`ropescope.token_windows` gives them; at least one frame long.
    frame_length, hop_length, window
        Frames of SpectrumFE in tokens and their analysis window, as in :func:`ropescope.spectrum_fe`.
    batch_size
        Windows in one forward pass, at least 1.
    norm_heads
        (layer, query head) whose norms over the first window are kept for heatmaps; None stands for every layer or
        head. Keys keep the key head that serves the query head. More than 512 positions are averaged to at most that.
    progress
        Show a progress bar on a terminal.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key` with `spectrum_fe`, `sequence_fe`, `mean_norm`, `dc_share`, `dominant_period` (tokens)
        and `peak_share` over (sequence, layer, head or kv_head, pair), and `mean_spectrum` over (layer, head or
        kv_head, bin); group `rotary` with `frequency` (rad/token), `rotated` and `pairing`. NaN where an entropy is
        undefined: a silent pair, or a flat one for SequenceFE.

    Raises
    ------
    InputError
        If the windows are empty, too short or of another vocabulary, or a head asked for does not exist.
    NonFiniteError
        If a query or key is not finite; names layer, head and position.

    References
    ----------
    Frequency Entropy paper, section 3 and appendix A.1.

    Examples
    --------
    >>> result = measure(model, windows)  # doctest: +SKIP
    >>> result["query"].spectrum_fe.mean("sequence").min()  # doctest: +SKIP
    """
    frames = Frames(frame_length, hop_length, window)
    check_windows(model, windows, batch_size)
    check_frames(windows.shape[1], frame_length, hop_length)
    analysis_window(window, frame_length)
    card = probe(model, positions=windows.shape[1])
    reducer = _Reducer(
        rotations={rotation.layer: rotation for rotation in card.layers},
        frames=frames,
        kept=_kept_heads(card, norm_heads),
        cell_width=math.ceil(windows.shape[1] / _HEATMAP_CELLS),
        ends_early=not _offloaded(model),
    )
    with tqdm(total=len(windows), unit="window", disable=None if progress else True) as bar:
        for batch in windows.split(batch_size):
            _run(model, batch, reducer)
            reducer.finish_batch()
            if not reducer.finite():
                _locate_non_finite(model, batch)
            bar.update(len(batch))
    return _assemble(reducer, card, _provenance(model, windows, frames, batch_size))


class _PassEnded(Exception):
    """Every attention has been seen; nothing after it is needed."""


@dataclass(slots=True)
class _Reducer:
    """Handler of the seam: turns q and k of each layer into entropies and keeps nothing else."""

    rotations: Mapping[int, LayerRotation]
    frames: Frames
    kept: Mapping[int, list[int]]
    cell_width: int
    ends_early: bool
    batch: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    done: dict[tuple[str, int], list[np.ndarray]] = field(default_factory=dict)
    spectra: dict[tuple[str, int], list[np.ndarray]] = field(default_factory=dict)
    norms: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)

    def __call__(self, call: AttentionCall) -> None:
        rotation = self.rotations[call.layer]
        for stream, heads in ((QUERY, call.query), (KEY, call.key)):
            self.batch[stream, call.layer] = _reduce(heads, rotation.pairing, self.frames)
            if not self.done:
                self._keep_norms(stream, heads[0], rotation)
        if self.ends_early and len(self.batch) == 2 * len(self.rotations):
            raise _PassEnded

    def _keep_norms(self, stream: str, heads: Heads, rotation: LayerRotation) -> None:
        group = 1 if stream == QUERY else rotation.heads // rotation.kv_heads
        for head in sorted({head // group for head in self.kept.get(rotation.layer, ())}):
            norms = pair_norms(heads[head], rotation.pairing).T
            self.norms[stream, rotation.layer, head] = _average_cells(norms, self.cell_width).cpu().numpy()

    def finish_batch(self) -> None:
        """Bring the batch's results to the CPU; the only wait for the device."""
        for place, (values, spectra) in self.batch.items():
            self.done.setdefault(place, []).append(values.cpu().numpy())
            self.spectra.setdefault(place, []).append(spectra.cpu().numpy())
        self.batch.clear()

    def finite(self) -> bool:
        """Whether all norms of the last batch were finite, and their power too."""
        mean_norm = VARIABLES.index("mean_norm")
        return all((values[-1][mean_norm] < _LARGEST_NORM).all() for values in self.done.values())


def _reduce(heads: Heads, pairing: Pairing, frames: Frames) -> tuple[Tensor, Tensor]:
    """All variables of one layer and stream, (variable, batch, head, pair), and mean spectra, (batch, head, bin).

    A few heads at a time.
    """
    rounding = torch.finfo(heads.dtype).eps
    flat = heads.flatten(0, 1)
    per_chunk = max(1, _CHUNK // (flat.shape[1] * pairing.pairs))
    chunks = [_reduce_chunk(chunk, pairing, frames, rounding) for chunk in flat.split(per_chunk)]
    values, spectra = zip(*chunks, strict=True)
    return torch.cat(values, dim=1).unflatten(1, heads.shape[:2]), torch.cat(spectra).unflatten(0, heads.shape[:2])


def _reduce_chunk(heads: Heads, pairing: Pairing, frames: Frames, rounding: float) -> tuple[Tensor, Tensor]:
    signal = pair_norms(heads, pairing).transpose(-1, -2).contiguous()
    local = frame_power(signal, frames.frame_length, frames.hop_length, frames.window)
    whole = sequence_power(signal, rounding)
    total = local.sum(-1)
    peak, peak_bin = whole.max(-1)
    undefined = peak == 0
    values = torch.stack(
        (
            spectral_entropy(local),
            spectral_entropy(whole),
            signal.mean(-1),
            local[..., : MAIN_LOBE[frames.window] + 1].sum(-1) / total,
            (signal.shape[-1] / (peak_bin + 1)).masked_fill(undefined, torch.nan),
            peak / whole.sum(-1),
        )
    )
    return values, _mean_spectrum(local, total)


def _mean_spectrum(power: Power, total: Tensor) -> Tensor:
    """Mean over the sounding pairs of power divided by its sum, (..., bin); NaN where every pair is silent."""
    sounding = total > 0
    weight = torch.where(sounding, 1 / total, 0.0) / sounding.sum(-1, keepdim=True)
    mean: Tensor = (weight.unsqueeze(-2) @ power).squeeze(-2)
    return mean


def _average_cells(norms: Tensor, width: int) -> Tensor:
    """Mean over cells of `width` positions; the last cell may hold fewer, (..., cell)."""
    return torch.nn.functional.avg_pool1d(norms, width, ceil_mode=True)


def _run(model: PreTrainedModel, batch: TokenIds, handler: Any) -> None:
    """Run the decoder over a batch with `handler` at every attention, without head and cache."""
    with undisturbed(model), suppress(_PassEnded), intercepted(model, handler):
        model.get_decoder()(input_ids=batch.to(model.device), use_cache=False)


def _offloaded(model: PreTrainedModel) -> bool:
    """Whether weights move in and out around each module; such a pass must run to its end to move them back."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _locate_non_finite(model: PreTrainedModel, batch: TokenIds) -> None:
    """Run the batch again to say where the first non-finite value is."""
    _run(model, batch, AttentionCall.check_finite)
    raise NonFiniteError(f"pair norms exceed {_LARGEST_NORM:.0e}, so their power overflows float32; check the weights")


def _kept_heads(card: RotaryCard, wanted: Iterable[tuple[int | None, int | None]]) -> dict[int, list[int]]:
    """Query heads to keep norms of, by layer."""
    kept: dict[int, set[int]] = {}
    for layer, head in wanted:
        rotations = [r for r in card.layers if layer in (None, r.layer) and (head is None or 0 <= head < r.heads)]
        if not rotations:
            layers = [rotation.layer for rotation in card.layers]
            raise InputError(
                f"no such head: layer {layer}, head {head}; layers are {layers[0]} to {layers[-1]}, "
                f"query heads 0 to {max(rotation.heads for rotation in card.layers) - 1}"
            )
        for rotation in rotations:
            kept.setdefault(rotation.layer, set()).update(range(rotation.heads) if head is None else [head])
    return {layer: sorted(heads) for layer, heads in kept.items()}


def _assemble(reducer: _Reducer, card: RotaryCard, provenance: Mapping[str, object]) -> xr.DataTree:
    pairs = max(rotation.pairing.pairs for rotation in card.layers)
    frequency = np.full((len(card.layers), pairs), np.nan)
    for row, rotation in enumerate(card.layers):
        frequency[row, : rotation.pairing.pairs] = rotation.frequency.numpy()
    return build_result(
        _stack_layers(reducer, card, QUERY),
        _stack_layers(reducer, card, KEY),
        spectra={stream: _stack_spectra(reducer, card, stream) for stream in STREAMS},
        frame_length=reducer.frames.frame_length,
        layers=[rotation.layer for rotation in card.layers],
        frequency=frequency,
        rotated=frequency > 0,
        pairing=[str(rotation.pairing) for rotation in card.layers],
        provenance=provenance,
        norms={stream: norms for stream in STREAMS if (norms := _stack_norms(reducer, stream)) is not None},
    )


def _stack_layers(reducer: _Reducer, card: RotaryCard, stream: str) -> dict[str, np.ndarray]:
    """Every variable over (sequence, layer, head, pair), layers with fewer heads or pairs padded with NaN."""
    layers = [np.concatenate(reducer.done[stream, rotation.layer], axis=1) for rotation in card.layers]
    heads, pairs = (max(values.shape[axis] for values in layers) for axis in (2, 3))
    stacked = np.full((len(VARIABLES), layers[0].shape[1], len(layers), heads, pairs), np.nan, dtype=np.float32)
    for row, values in enumerate(layers):
        stacked[:, :, row, : values.shape[2], : values.shape[3]] = values
    return dict(zip(VARIABLES, stacked, strict=True))


def _stack_spectra(reducer: _Reducer, card: RotaryCard, stream: str) -> np.ndarray:
    """Mean spectra over (layer, head, bin), mean over the sequences where a head sounds, NaN where none does."""
    layers = [np.concatenate(reducer.spectra[stream, rotation.layer]) for rotation in card.layers]
    stacked = np.full((len(layers), max(values.shape[1] for values in layers), layers[0].shape[2]), np.nan, np.float32)
    for row, values in enumerate(layers):
        sounding = np.isfinite(values).all(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            mean = np.where(sounding, values, 0).sum(0, dtype=np.float64) / sounding.sum(0)
        stacked[row, : mean.shape[0]] = mean
    return stacked


def _stack_norms(reducer: _Reducer, stream: str) -> KeptNorms | None:
    kept = {place[1:]: norms for place, norms in sorted(reducer.norms.items()) if place[0] == stream}
    if not kept:
        return None
    pairs = max(norms.shape[0] for norms in kept.values())
    values = np.stack([np.pad(n, ((0, pairs - len(n)), (0, 0)), constant_values=np.nan) for n in kept.values()])
    layer, head = np.array(list(kept)).T
    return KeptNorms(layer, head, np.arange(values.shape[-1]) * reducer.cell_width, values)


def _provenance(model: PreTrainedModel, windows: TokenIds, frames: Frames, batch_size: int) -> dict[str, object]:
    packages = ("ropescope", "torch", "transformers", "numpy", "xarray")
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "parameters": {"length": windows.shape[1], **asdict(frames), "batch_size": batch_size},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages[1:]},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
