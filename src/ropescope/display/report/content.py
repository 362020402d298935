"""What a page holds of a result and of a sweep: facts as JSON, arrays as packed text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import BIN, HEAD_AXIS, HEAD_NAMES, LAYER, PAIR, POSITION, SEQUENCE, STREAM_NAMES, STREAMS
from ropescope.base.counting import counted
from ropescope.base.selections import PAPER, SCALES, SILENT, VARIABLE_LABELS, Selection
from ropescope.base.strengths import strength_of
from ropescope.display.report.encoding import (
    ABSENT,
    BYTE_MISSING,
    BYTE_TOP,
    CODES_PER_STEP,
    DECADES,
    STEPS,
    UNDEFINED,
    encode_entropies,
    encode_log_power,
    encode_norms,
    packed,
)
from ropescope.evaluation.sweep.changes import mean_perplexity
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST_NORM, RANDOM, SELECTION, STREAM, SWEEP
from ropescope.measurement.heads import default_heads
from ropescope.measurement.reference_lines import constant_entropy, noise_entropy
from ropescope.measurement.results import (
    KEPT,
    MEAN_SPECTRUM,
    NORM,
    ROTARY,
    mean_over_sequences,
    stream_data,
    wavelength,
    window_length,
)

# Bytes for the kept norms of a stream, before compression: every head of a small model, some heads of a large one.
_NORM_VALUES = 3 * 2**20
DETAILS = ("mean_norm", "dc_share", "dominant_period", "peak_share")
ENCODING = {
    "steps": STEPS,
    "codes_per_step": CODES_PER_STEP,
    "undefined": UNDEFINED,
    "absent": ABSENT,
    "byte_top": BYTE_TOP,
    "byte_missing": BYTE_MISSING,
    "decades": DECADES,
}
# Stands for a wavelength that nothing in the model shows, in the page's JSON, which has no NaN.
UNKNOWN = "?"


@dataclass(frozen=True)
class Packed:
    """Arrays of a page under the id of their element.

    Parameters
    ----------
    name
        Made of digits, letters and hyphens.
    text
        base64 of the compressed arrays.
    """

    name: str
    text: str


def result_content(result: xr.DataTree, name: str, number: int) -> tuple[dict[str, Any], list[Packed]]:
    """Facts and arrays of one result.

    Parameters
    ----------
    result : xarray.DataTree
    name : str
        What the page calls it.
    number : int
        Its place on the page; the arrays are named ``NUMBER-STREAM-PART``.

    Returns
    -------
    dict
        Plain numbers and strings that JSON can hold; infinite wavelengths are null, those not known `UNKNOWN`.
    list of Packed
        For each stream `entropies`, `details`, `spectra` and, where norms were kept, `norms`.
    """
    turns = wavelength(result)
    facts = {
        "name": name,
        "layers": turns[LAYER].values.tolist(),
        "pairs": turns.sizes[PAIR],
        "rotated": result.children[ROTARY].to_dataset()["rotated"].any(PAIR).values.tolist(),
        "wavelengths": [[_tokens(value) for value in row] for row in turns.transpose(LAYER, PAIR).values.tolist()],
        "length": window_length(result),
        "references": {"spectrum_fe": constant_entropy(result), "sequence_fe": noise_entropy(result)},
        "streams": {stream: _stream_facts(result, stream) for stream in STREAMS},
    }
    return facts, [part for stream in STREAMS for part in _stream_arrays(result, stream, f"{number}-{stream}")]


def sweep_content(data: xr.Dataset) -> list[dict[str, Any]]:
    """Perplexity over alpha of every selection of a sweep, and of its controls; null where one was not asked for."""
    strength = asdict(strength_of(SWEEP.provenance(data)))
    return [{"strength": strength} | _selection_content(data.sel({SELECTION: name})) for name in data[SELECTION].values]


def page_content(results: Sequence[dict[str, Any]], sweeps: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """All facts of a page, and the conventions that its scripts share with this package."""
    from bokeh.palettes import Cividis256, Magma256, Viridis256

    return {
        "encoding": ENCODING,
        "palettes": {"viridis": list(Viridis256), "cividis": list(Cividis256), "magma": list(Magma256)},
        "unknown": UNKNOWN,
        "labels": VARIABLE_LABELS,
        "selections": [_selection_facts(selection) for selection in PAPER.values()],
        "scales": {name: list(scale) for name, scale in SCALES.items()},
        "results": list(results),
        "sweeps": list(sweeps),
    }


def _selection_facts(selection: Selection) -> dict[str, Any]:
    return {
        "key": selection.key,
        "entropy": selection.variable,
        "name": selection.label,
        "sign": selection.comparison,
        "threshold": selection.threshold,
    }


def _tokens(value: float) -> float | str | None:
    return UNKNOWN if np.isnan(value) else _number(value)


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _stream_facts(result: xr.DataTree, stream: str) -> dict[str, Any]:
    data = stream_data(result, stream)
    layers = data[LAYER].values.tolist()
    return {
        "name": STREAM_NAMES[stream],
        "head_name": HEAD_NAMES[stream],
        "heads": data.sizes[HEAD_AXIS[stream]],
        "sequences": data.sizes[SEQUENCE],
        "bins": data.sizes[BIN],
        "silent": SILENT.holds(mean_over_sequences(data)["mean_norm"]).sum((HEAD_AXIS[stream], PAIR)).values.tolist(),
        "start": _start(result, stream),
        "norms": _norm_facts(data, stream, layers),
    }


def _start(result: xr.DataTree, stream: str) -> list[int]:
    """Place of the layer, head and pair to look at first: the strongest band."""
    heads = default_heads(result, stream)
    if not heads:
        return [0, 0, 0]
    entropy = mean_over_sequences(stream_data(result, stream))["spectrum_fe"]
    layer, head = entropy[LAYER].values.tolist().index(heads[0][0]), heads[0][1]
    own = entropy.isel({LAYER: layer, HEAD_AXIS[stream]: head}).values
    return [layer, head, 0 if np.isnan(own).all() else int(np.nanargmin(own))]


def _norm_facts(data: xr.Dataset, stream: str, layers: list[int]) -> dict[str, Any] | None:
    if NORM not in data or not data.sizes[KEPT]:
        return None
    _, position = _coarse_norms(data)
    stretch = position[1] - position[0] if len(position) > 1 else 1
    kept = zip(data["kept_layer"].values.tolist(), data[f"kept_{HEAD_AXIS[stream]}"].values.tolist(), strict=True)
    return {
        "heads": [[layers.index(layer), head] for layer, head in kept],
        "stretches": len(position),
        "start": int(position[0]),
        "end": int(position[-1] + stretch),
    }


def _coarse_norms(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Kept norms (kept, pair, position) and the first token of each stretch, joined where many heads are kept."""
    norms, position = data[NORM].values, data[POSITION].values
    starts = np.arange(0, len(position), math.ceil(norms.size / _NORM_VALUES))
    sizes = np.diff([*starts, len(position)])
    return np.add.reduceat(norms, starts, axis=-1) / sizes, position[starts]


def _stream_arrays(result: xr.DataTree, stream: str, prefix: str) -> list[Packed]:
    data = stream_data(result, stream)
    order = (LAYER, HEAD_AXIS[stream], PAIR)
    mean = mean_over_sequences(data).transpose(*order)
    present = mean["mean_norm"].notnull().values
    ends = {"low": data.min(SEQUENCE, skipna=True), "high": data.max(SEQUENCE, skipna=True)}
    spread = [
        encode_entropies(ends[end][name].transpose(*order).values, present)
        for name in ("spectrum_fe", "sequence_fe")
        for end in ("low", "high")
    ]
    entropies = [encode_entropies(mean[name].values, present) for name in ("spectrum_fe", "sequence_fe")]
    details = [mean[name].values.astype(np.float32) for name in DETAILS]
    spectra = data[MEAN_SPECTRUM].transpose(LAYER, HEAD_AXIS[stream], BIN).values
    parts = {"entropies": entropies, "details": [*details, *spread], "spectra": [encode_log_power(spectra)]}
    if NORM in data and data.sizes[KEPT]:
        parts["norms"] = list(encode_norms(_coarse_norms(data)[0]))
    return [Packed(f"{prefix}-{part}", packed(*arrays)) for part, arrays in parts.items()]


def _selection_content(data: xr.Dataset) -> dict[str, Any]:
    perplexity = data["perplexity"]
    arms = [str(arm) for arm in perplexity[ARM].values]
    random = perplexity.isel({ARM: [place for place, arm in enumerate(arms) if arm.startswith(RANDOM)]})
    lowest = perplexity.isel({ARM: [place for place, arm in enumerate(arms) if arm == LOWEST_NORM]})
    pairs = int(data["selected_pairs"].sum(STREAM))
    return {
        "name": str(data[SELECTION].values),
        "pairs": pairs,
        "count": counted(pairs, "pair") if pairs else "no such pairs",
        "alphas": data[ALPHA].values.tolist(),
        "selected": _numbers(perplexity.sel({ARM: SELECTION})),
        "random_mean": _numbers(mean_perplexity(random)),
        "random_low": _numbers(random.min(ARM)),
        "random_high": _numbers(random.max(ARM)),
        "lowest_norm": _numbers(mean_perplexity(lowest)),
    }


def _numbers(values: xr.DataArray) -> list[float | None]:
    return [_number(value) for value in values.values.tolist()]
