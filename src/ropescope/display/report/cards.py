"""What a page says about a result in words: model card, provenance, how to cite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.base.counting import counted
from ropescope.measurement.names import model_name
from ropescope.measurement.red_noise import expected_rhythms
from ropescope.measurement.results import ROTARY, provenance, short_name, stream_data, wavelength
from ropescope.measurement.summary import Counts, counts, format_tokens

CITATION = """\
@misc{oka-frequency-entropy,
  title  = {周波数エントロピーによる位置埋込みの解明},
  author = {岡, 佑依 and 花房, 健太郎 and 長谷川, 拓 and 西田, 京介},
  note   = {Probing Rotary Position Embeddings through Frequency Entropy},
  url    = {https://openreview.net/forum?id=1JZuEDq62N}
}"""

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """One result as text.

    Parameters
    ----------
    title
        Name of the model.
    subtitle
        Which text it was measured on.
    model, origin
        Label and text of each row of the model card and of the provenance.
    """

    title: str
    subtitle: str
    model: Rows
    origin: Rows


def card(result: xr.DataTree, name: str) -> Card:
    """Describe a result; `name` stands in for a model without an id."""
    facts = provenance(result)
    model, windows = _mapping(facts.get("model")), _without_ways(_mapping(facts.get("windows")))
    corpus = " ".join(str(windows[part]) for part in ("corpus", "config", "split") if windows.get(part))
    parameters = {key: value for key, value in _mapping(facts.get("parameters")).items() if key not in windows}
    count, length = windows.get("windows"), windows.get("length") or parameters.get("length")
    size = f"{counted(count, 'window')} of {length} tokens" if count and length else ""
    return Card(
        title=model_name(result) or name,
        subtitle=" · ".join(part for part in (corpus, size) if part),
        model=[*_rows(model), *_shape(result), *_rotation(result)],
        origin=[
            *_rows(windows),
            *_rows(parameters),
            ("versions", ", ".join(f"{key} {value}" for key, value in _mapping(facts.get("versions")).items())),
            *_rows(facts),
        ],
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _without_ways(windows: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files by their names alone; older results hold the way to them."""
    return {**windows, **{key: short_name(str(windows[key])) for key in ("corpus", "tokenizer") if windows.get(key)}}


def _rows(facts: Mapping[str, Any]) -> Rows:
    single = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    return [(key.replace("_", " "), str(value)) for key, value in single.items() if value not in (None, "", [])]


def _shape(result: xr.DataTree) -> Rows:
    sizes = {stream: stream_data(result, stream).sizes for stream in STREAMS}
    heads = ", ".join(f"{sizes[stream][HEAD_AXIS[stream]]} {stream}" for stream in STREAMS)
    return [("layers", str(sizes["query"][LAYER])), ("heads", heads), ("pairs per head", str(sizes["query"][PAIR]))]


def _rotation(result: xr.DataTree) -> Rows:
    rotary = result.children[ROTARY].to_dataset()
    turning = rotary["rotated"].any(PAIR)
    turns = wavelength(result).values
    finite = turns[np.isfinite(turns)]
    found = {stream: counts(result, stream) for stream in STREAMS}
    span = f"{format_tokens(finite.min())} to {format_tokens(finite.max())} tokens" if finite.size else "none"
    return [
        ("pairing", ", ".join(dict.fromkeys(str(pairing) for pairing in rotary["pairing"].values))),
        ("wavelengths", span),
        ("layers without rotation (NoPE)", _spans(rotary[LAYER].values[~turning.values].tolist()) or "none"),
        ("periodic pairs", ", ".join(_periodic(result, *item) for item in found.items())),
        ("silent pairs (always zero)", ", ".join(f"{of.silent} {stream}" for stream, of in found.items())),
    ]


def _periodic(result: xr.DataTree, stream: str, found: Counts) -> str:
    red = expected_rhythms(result, stream)
    noise = "" if red is None else f"; of as much red noise {red:.1f} would have a rhythm"
    kinds = f" ({found.rhythm} with a rhythm, {found.drift} drifting{noise})" if found.periodic else ""
    return f"{found.periodic} {stream}{kinds}"


def _spans(numbers: Iterable[int]) -> str:
    """Whole numbers in rising order with runs shortened: 1, 4-6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
