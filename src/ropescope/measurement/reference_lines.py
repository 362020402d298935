"""What signals of no interest score under a result's frames and length: the lines that its entropies are read by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ropescope.measurement.results import provenance, window_length

if TYPE_CHECKING:
    import xarray as xr


def constant_entropy(result: xr.DataTree) -> float | None:
    """SpectrumFE of a constant signal under the result's frames, the floor of its curves; None if they are unknown."""
    import torch

    from ropescope.base.entropy import spectrum_fe

    given = provenance(result).get("parameters", {})
    if not {"frame_length", "hop_length", "window"} <= given.keys():
        return None
    frame_length = int(given["frame_length"])
    return float(spectrum_fe(torch.ones(frame_length), frame_length, int(given["hop_length"]), given["window"]))


def noise_entropy(result: xr.DataTree) -> float | None:
    """Expected SequenceFE of white noise as long as the result's windows; None if the length is unknown."""
    from ropescope.base.entropy import white_noise_entropy

    length = window_length(result)
    return None if length is None else white_noise_entropy(length // 2 - 1)
