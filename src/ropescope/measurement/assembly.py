"""Reduced windows put together to a result, whichever process reduced them and in whichever order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ropescope.base.axes import QUERY, STREAMS
from ropescope.measurement.labelling import KeptNorms, build_result
from ropescope.measurement.reduction import VARIABLES

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.measurement.reduction import Reducer
    from ropescope.model.card import RotaryCard
    from ropescope.run.workers import Workers

# Spectra are at most 1 and are summed as integers of this unit: an exact sum of up to 32768 windows is the same in
# every order, so it does not show which process did what.
_UNIT = 2.0**-48


class Collection:
    """What windows come to, as far as this process has them.

    Parameters
    ----------
    card
        The rotations of the model.
    reducer
        What reduces the windows.
    length
        Tokens in a window.
    count
        Windows that this process will add.
    """

    def __init__(self, card: RotaryCard, reducer: Reducer, length: int, count: int) -> None:
        self.card, self.frame_length, self.stretch = card, reducer.frames.frame_length, reducer.stretch
        self.kept = {
            stream: [
                (rotation.layer, head) for rotation in card.layers for head in reducer.kept_heads(stream, rotation)
            ]
            for stream in STREAMS
        }
        self.windows: list[int] = []
        self.batch_sizes: set[int] = set()
        self.norms: dict[str, np.ndarray] = {}
        layers, pairs = len(card.layers), max(rotation.pairing.pairs for rotation in card.layers)
        bins, stretches = self.frame_length // 2 + 1, -(-length // self.stretch)
        self.values, self.spectra, self.sounding = {}, {}, {}
        for stream in STREAMS:
            heads = max(rotation.heads if stream == QUERY else rotation.kv_heads for rotation in card.layers)
            self.values[stream] = np.empty((count, len(VARIABLES), layers, heads, pairs), dtype=np.float32)
            self.spectra[stream] = np.zeros((layers, heads, bins), dtype=np.int64)
            self.sounding[stream] = np.zeros((layers, heads, 1), dtype=np.int64)
            self.norms[stream] = np.empty((0, len(self.kept[stream]), pairs, stretches), dtype=np.float32)

    def add(self, windows: Sequence[int], batch: Mapping[str, np.ndarray]) -> None:
        """Take in what :meth:`Reducer.batch` gave for these windows."""
        rows = slice(len(self.windows), len(self.windows) + len(windows))
        self.windows.extend(windows)
        self.batch_sizes.update(batch["batch_size"].tolist())
        for stream in STREAMS:
            self.values[stream][rows] = batch[stream]
            spectra = batch[f"{stream}_spectra"]
            sounding = np.isfinite(spectra).all(-1, keepdims=True)
            shares = np.where(sounding, spectra, 0).astype(np.float64) / _UNIT
            self.spectra[stream] += np.rint(shares).astype(np.int64).sum(0)
            self.sounding[stream] += sounding.sum(0)
            if f"{stream}_norms" in batch:
                norms = batch[f"{stream}_norms"]
                wide = np.full((1, *self.norms[stream].shape[1:]), np.nan, dtype=np.float32)
                wide[0, :, : norms.shape[1]] = norms
                self.norms[stream] = wide

    def share(self, workers: Workers) -> None:
        """Give all processes what each of them has."""
        order = np.argsort(workers.joined(np.array(self.windows, dtype=np.int64)))
        for stream in STREAMS:
            values = workers.joined(self.values[stream])
            self.values[stream] = values if (np.diff(order) == 1).all() else values[order]
            self.spectra[stream] = workers.summed(self.spectra[stream])
            self.sounding[stream] = workers.summed(self.sounding[stream])
            self.norms[stream] = workers.joined(self.norms[stream])
        self.batch_sizes = {size for sizes in workers.gathered(sorted(self.batch_sizes)) for size in sizes}

    def result(self, provenance: Mapping[str, object]) -> xr.DataTree:
        """The result of all windows, labelled."""
        frequency = np.full((len(self.card.layers), self.values[QUERY].shape[-1]), np.nan)
        rotated = np.zeros(frequency.shape, dtype=bool)
        for row, rotation in enumerate(self.card.layers):
            frequency[row, : rotation.pairing.pairs] = rotation.frequency.numpy()
            rotated[row, : rotation.pairing.pairs] = rotation.rotated.numpy()
        query, key = (dict(zip(VARIABLES, self.values[stream].swapaxes(0, 1), strict=True)) for stream in STREAMS)
        return build_result(
            query,
            key,
            spectra={stream: self._mean_spectrum(stream) for stream in STREAMS},
            frame_length=self.frame_length,
            layers=[rotation.layer for rotation in self.card.layers],
            frequency=frequency,
            rotated=rotated,
            pairing=[str(rotation.pairing) for rotation in self.card.layers],
            provenance=provenance,
            norms={stream: self._kept_norms(stream) for stream in STREAMS if self.kept[stream]},
        )

    def _mean_spectrum(self, stream: str) -> np.ndarray:
        """Mean over the windows where a head sounds, (layer, head, bin), NaN where it never does."""
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = self.spectra[stream] * _UNIT / self.sounding[stream]
        return mean.astype(np.float32)

    def _kept_norms(self, stream: str) -> KeptNorms:
        layer, head = np.array(self.kept[stream]).T
        norms = self.norms[stream][0]
        return KeptNorms(layer, head, np.arange(norms.shape[-1]) * self.stretch, norms)
