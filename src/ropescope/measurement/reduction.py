"""Queries and keys of attention turned into entropies where they arise, a few heads at a time, and dropped at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.base.arguments import MAIN_LOBE
from ropescope.base.axes import KEY, QUERY, STREAMS
from ropescope.base.entropy import frame_power, sequence_power, spectral_entropy
from ropescope.base.rotary import Pairing, pair_norms

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.base.axes import Heads, Power
    from ropescope.model.attention import AttentionCall
    from ropescope.model.card import LayerRotation

VARIABLES = ("spectrum_fe", "sequence_fe", "mean_norm", "dc_share", "dominant_period", "peak_share")
# The power of a longer sequence of larger norms may overflow float32.
LARGEST_NORM = 1e13
# Norms of this many positions are reduced at once; the transforms need about eight times their memory.
_CHUNK = 2**21


@dataclass(frozen=True, slots=True)
class Frames:
    """How SpectrumFE cuts a signal into frames."""

    frame_length: int = 1024
    hop_length: int = 512
    window: str = "hann"


class PassEnded(Exception):
    """Every attention has been seen; nothing after it is needed."""


@dataclass(slots=True)
class Reducer:
    """Handler of the seam: what one batch's queries and keys come to, on their own device until it is taken.

    Parameters
    ----------
    rotations
        What positions do, by layer.
    frames
        Frames of SpectrumFE.
    kept
        Query heads whose norms over the first window are kept, by layer.
    stretch
        Positions that one value of kept norms averages.
    ends_early
        Whether to raise :class:`PassEnded` after the last attention.
    """

    rotations: Mapping[int, LayerRotation]
    frames: Frames
    kept: Mapping[int, Sequence[int]]
    stretch: int
    ends_early: bool
    keeps_norms: bool = False
    values: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    spectra: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    norms: dict[str, list[Tensor]] = field(default_factory=dict)

    def begin(self, first_window: bool) -> None:
        """Forget the batch before; the next one begins with the first window or not."""
        self.values, self.spectra, self.norms = {}, {}, {}
        self.keeps_norms = first_window and bool(self.kept)

    def __call__(self, call: AttentionCall) -> None:
        rotation = self.rotations[call.layer]
        for stream, heads in ((QUERY, call.query), (KEY, call.key)):
            values, spectra = _reduce(heads, rotation.pairing, self.frames)
            self.values[stream, call.layer] = call.all_heads(values, 2)
            self.spectra[stream, call.layer] = call.all_heads(spectra, 1)
            if self.keeps_norms:
                self._keep_norms(stream, call, rotation)
        if self.ends_early and len(self.values) == 2 * len(self.rotations):
            raise PassEnded

    def _keep_norms(self, stream: str, call: AttentionCall, rotation: LayerRotation) -> None:
        held = call.heads if stream == QUERY else call.kv_heads
        heads = (call.query if stream == QUERY else call.key)[0]
        for head in self.kept_heads(stream, rotation):
            # Every process takes part, whichever of them holds the head.
            mine = heads[head - held.start if held.start <= head < held.stop else 0]
            norms = call.all_heads(_averaged(pair_norms(mine, rotation.pairing).T, self.stretch)[None], 0)
            self.norms.setdefault(stream, []).append(norms[head // heads.shape[0]])

    def kept_heads(self, stream: str, rotation: LayerRotation) -> list[int]:
        """Heads of a layer whose norms are kept; keys keep the key head that serves the query head."""
        group = 1 if stream == QUERY else rotation.heads // rotation.kv_heads
        return sorted({head // group for head in self.kept.get(rotation.layer, ())})

    def fetch(self) -> None:
        """Bring the batch to the CPU; the only wait for the device."""
        self.values = {place: values.cpu() for place, values in self.values.items()}
        self.spectra = {place: spectra.cpu() for place, spectra in self.spectra.items()}
        self.norms = {stream: [norms.cpu() for norms in kept] for stream, kept in self.norms.items()}

    def finite(self) -> bool:
        """Whether all norms of the batch were finite, and their power too."""
        mean_norm = VARIABLES.index("mean_norm")
        return all(bool((values[mean_norm] < LARGEST_NORM).all()) for values in self.values.values())

    def batch(self) -> dict[str, np.ndarray]:
        """The batch as arrays, layers with fewer heads or pairs padded with NaN.

        `query` and `key` are (window, variable, layer, head, pair), `query_spectra` and `key_spectra` (window, layer,
        head, bin), and with the first window `query_norms` and `key_norms` (kept, pair, stretch).
        """
        found = {stream: padded(self._of(self.values, stream)).swapaxes(0, 2) for stream in STREAMS}
        found |= {f"{stream}_spectra": padded(self._of(self.spectra, stream)).swapaxes(0, 1) for stream in STREAMS}
        return found | {f"{stream}_norms": padded(norms) for stream, norms in self.norms.items()}

    def _of(self, tensors: Mapping[tuple[str, int], Tensor], stream: str) -> list[Tensor]:
        return [tensors[stream, layer] for layer in self.rotations]


def padded(tensors: Sequence[Tensor]) -> np.ndarray:
    """Tensors of different sizes on top of each other, NaN where one has fewer."""
    shape = np.max([tuple(tensor.shape) for tensor in tensors], axis=0)
    stacked = np.full((len(tensors), *shape), np.nan, dtype=np.float32)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor.numpy()
    return stacked


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


def _averaged(norms: Tensor, length: int) -> Tensor:
    """Mean over stretches of `length` positions; the last may hold fewer, (..., stretch)."""
    return torch.nn.functional.avg_pool1d(norms, length, ceil_mode=True)
