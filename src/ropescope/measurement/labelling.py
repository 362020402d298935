"""The arrays of a measurement with their axes, units and meanings: what a result is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import BIN, HEAD_AXIS, KEY, LAYER, PAIR, POSITION, QUERY, SEQUENCE, STREAMS
from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.pair_variables import MEASURED, WORTH, PairVariable, pair_variables
from ropescope.measurement.results import (
    IMPORTANCE,
    KEPT,
    MEAN_SPECTRUM,
    NORM,
    ROTARY,
    ROTARY_VARIABLES,
    SCHEMA,
    SCHEMA_VERSION,
    attributes_of,
)

COORDINATES = {
    LAYER: ("model layer", "1"),
    "head": ("query head", "1"),
    "kv_head": ("key head", "1"),
    PAIR: ("rotary pair", "1"),
    SEQUENCE: ("sequence", "1"),
    POSITION: ("first token of the cell", "token"),
    "kept_layer": ("model layer of the kept norms", "1"),
    "kept_head": ("query head of the kept norms", "1"),
    "kept_kv_head": ("key head of the kept norms", "1"),
}


@dataclass(frozen=True)
class KeptNorms:
    """Pair norms along the first sequence for the heads asked for.

    Parameters
    ----------
    layer, head : integer arrays (kept)
        Model layer and head (key head for keys) of each entry.
    position : integer array (position)
        Token index at the start of each stretch; a long sequence is averaged over stretches.
    values : array (kept, pair, position)
        L2 norm of the pair, in the model's own units.
    """

    layer: np.ndarray
    head: np.ndarray
    position: np.ndarray
    values: np.ndarray


def build_result(
    query: Mapping[str, np.ndarray],
    key: Mapping[str, np.ndarray],
    *,
    layers: Sequence[int],
    frequency: np.ndarray,
    rotated: np.ndarray,
    pairing: Sequence[str],
    provenance: Mapping[str, object],
    spectra: Mapping[str, np.ndarray],
    frame_length: int,
    norms: Mapping[str, KeptNorms] | None = None,
) -> xr.DataTree:
    """Label the arrays of a measurement.

    Parameters
    ----------
    query, key : mappings from the name of each measured variable to an array (sequence, layer, head, pair)
        NaN where a layer has fewer heads or pairs than the widest layer.
    layers : sequence of int
        Model index of each layer.
    frequency : array (layer, pair), rad/token
        Negative where the pair turns backwards; NaN where the pair is not rotated, or how fast is not known.
    rotated : boolean array (layer, pair)
    pairing : sequence of str (layer)
    provenance : mapping that JSON can hold
        What was measured, with which parameters and versions.
    spectra : mapping from "query" and "key" to an array (layer, head, bin)
        Mean over sequences and sounding pairs of each head's short-time power divided by its sum; NaN where a
        layer has fewer heads.
    frame_length : int
        Tokens in a frame of those spectra: bin k stands for k / frame_length cycles per token.
    norms : mapping from "query" and "key" to `KeptNorms`, optional

    Returns
    -------
    xarray.DataTree
        Groups ``query``, ``key`` and ``rotary``.

    Raises
    ------
    InputError
        A variable is missing or unknown, a shape does not fit, or the provenance is not JSON.
    """
    shape = np.shape(frequency)
    kept = norms or {}
    groups = {
        stream: _stream_group(stream, arrays, layers, shape, kept.get(stream)).merge(
            _spectrum_group(stream, spectra[stream], (len(layers), np.shape(arrays["mean_norm"])[2]), frame_length)
        )
        for stream, arrays in ((QUERY, query), (KEY, key))
    }
    groups[ROTARY] = _rotary_group(layers, frequency, rotated, pairing)
    tree = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})
    tree.attrs = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "provenance": _to_json(provenance)}
    return tree


def label_pairs(values: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> xr.DataTree:
    """Label a measurement of one's own, so that :func:`ropescope.select` and the others can take it.

    Parameters
    ----------
    values
        By the name of a registered variable, then by "query" and "key", then by model layer: an array (head, pair).
        Layers with fewer heads or pairs are padded with NaN.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key` with the variables over (layer, head or kv_head, pair).

    Raises
    ------
    InputError
        A variable is not registered, or a stream is missing.

    Examples
    --------
    >>> one = {0: [[1.0, 2.0]], 1: [[3.0, 4.0]]}
    >>> label_pairs({"mean_norm": {"query": one, "key": one}})["query"].mean_norm.shape
    (2, 1, 2)
    """
    known = pair_variables()
    for name, streams in values.items():
        if name not in known or set(streams) != set(STREAMS):
            raise InputError(
                f"got variable {name!r} for {', '.join(streams) or 'no stream'}; register it first, and give {QUERY} "
                f"and {KEY}"
            )
    groups = {
        f"/{stream}": xr.Dataset({name: _padded(known[name], stream, given[stream]) for name, given in values.items()})
        for stream in STREAMS
    }
    return xr.DataTree.from_dict(groups)


def label_importance(
    values: Mapping[str, np.ndarray], layers: Sequence[int], provenance: Mapping[str, object]
) -> xr.DataTree:
    """Label what :func:`ropescope.importance` found: by stream an array (sequence, variable, layer, head, pair)."""
    groups = {}
    for stream in STREAMS:
        dims = (SEQUENCE, LAYER, HEAD_AXIS[stream], PAIR)
        sequences, _, _, heads, pairs = values[stream].shape
        variables = {
            each.name: (dims, values[stream][:, row], attributes_of(each.label, each.unit, each.text))
            for row, each in enumerate(WORTH)
        }
        sizes = dict(zip(dims, (range(sequences), layers, range(heads), range(pairs)), strict=True))
        groups[f"/{stream}"] = xr.Dataset(variables, {name: _coordinate(name, at) for name, at in sizes.items()})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"schema": IMPORTANCE, "schema_version": 1, "provenance": _to_json(provenance)}
    return tree


def _padded(variable: PairVariable, stream: str, layers: Mapping[int, Any]) -> xr.DataArray:
    arrays = {layer: np.asarray(values, dtype=np.float64) for layer, values in sorted(layers.items())}
    shape = np.max([array.shape for array in arrays.values()], axis=0)
    stacked = np.full((len(arrays), *shape), np.nan)
    for row, array in zip(stacked, arrays.values(), strict=True):
        row[: array.shape[0], : array.shape[1]] = array
    head = HEAD_AXIS[stream]
    sizes = {LAYER: list(arrays), head: range(shape[0]), PAIR: range(shape[1])}
    coords = {name: _coordinate(name, list(places)) for name, places in sizes.items()}
    meaning = attributes_of(variable.label, variable.unit, variable.text)
    return xr.DataArray(stacked, coords=coords, dims=(LAYER, head, PAIR), attrs=meaning)


def _coordinate(name: str, values: Any, dim: str | None = None) -> tuple[str, np.ndarray, dict[str, str]]:
    return (dim or name, np.asarray(values, dtype=np.int64), attributes_of(*COORDINATES[name]))


def _stream_group(
    stream: str,
    arrays: Mapping[str, np.ndarray],
    layers: Sequence[int],
    layer_pairs: tuple[int, ...],
    norms: KeptNorms | None,
) -> xr.Dataset:
    head = HEAD_AXIS[stream]
    sequences, heads = _check_stream_arrays(stream, arrays, len(layers), layer_pairs)
    dims = (SEQUENCE, LAYER, head, PAIR)
    variables = {
        each.name: (
            dims,
            np.asarray(arrays[each.name], dtype=np.float32),
            attributes_of(each.label, each.unit, each.text),
        )
        for each in MEASURED
    }
    sizes = {SEQUENCE: range(sequences), LAYER: layers, head: range(heads), PAIR: range(layer_pairs[1])}
    data = xr.Dataset(variables, coords={name: _coordinate(name, values) for name, values in sizes.items()})
    return data if norms is None else data.merge(_norm_group(stream, norms, layer_pairs[1]))


def _spectrum_group(stream: str, spectra: np.ndarray, layer_heads: tuple[int, int], frame_length: int) -> xr.Dataset:
    expected = (*layer_heads, frame_length // 2 + 1)
    if np.shape(spectra) != expected:
        raise InputError(
            f"got {stream} spectra of shape {np.shape(spectra)}; (layer, head, bin) must be {expected}: give one "
            "spectrum of frame_length // 2 + 1 bins per layer and head"
        )
    meaning = attributes_of(
        "mean spectrum", "1", "mean over sequences and pairs of the share of short-time power in a bin"
    )
    frequency = np.arange(expected[2]) / frame_length
    return xr.Dataset(
        {MEAN_SPECTRUM: ((LAYER, HEAD_AXIS[stream], BIN), np.asarray(spectra, dtype=np.float32), meaning)},
        coords={BIN: (BIN, frequency, attributes_of("frequency of the bin", "cycle/token"))},
    )


def _norm_group(stream: str, norms: KeptNorms, pairs: int) -> xr.Dataset:
    expected = (len(norms.layer), pairs, len(norms.position))
    if np.shape(norms.values) != expected or len(norms.head) != len(norms.layer):
        raise InputError(
            f"got {stream} norms of shape {np.shape(norms.values)} for {len(norms.head)} heads; "
            f"(kept, pair, position) must be {expected}: build one entry per layer and head kept"
        )
    meaning = attributes_of("pair norm", "1", "L2 norm of the pair along the first sequence, mean over the cell")
    head = f"kept_{HEAD_AXIS[stream]}"
    return xr.Dataset(
        {NORM: ((KEPT, PAIR, POSITION), np.asarray(norms.values, dtype=np.float32), meaning)},
        coords={
            "kept_layer": _coordinate("kept_layer", norms.layer, KEPT),
            head: _coordinate(head, norms.head, KEPT),
            POSITION: _coordinate(POSITION, norms.position),
        },
    )


def _rotary_group(
    layers: Sequence[int], frequency: np.ndarray, rotated: np.ndarray, pairing: Sequence[str]
) -> xr.Dataset:
    if np.shape(rotated) != np.shape(frequency) or len(pairing) != len(layers):
        raise InputError(
            f"got rotated of shape {np.shape(rotated)} and {len(pairing)} pairings for frequency of shape "
            f"{np.shape(frequency)}: give one flag per (layer, pair) and one pairing per layer"
        )
    values = {
        "frequency": np.asarray(frequency, dtype=np.float64),
        "rotated": np.asarray(rotated, dtype=bool),
        "pairing": np.asarray(pairing, dtype=np.str_),
    }
    variables = {
        name: (dims, values[name], attributes_of(long_name, units, description))
        for name, (long_name, units, description, dims) in ROTARY_VARIABLES.items()
    }
    sizes = {LAYER: layers, PAIR: range(np.shape(frequency)[1])}
    return xr.Dataset(variables, coords={name: _coordinate(name, index) for name, index in sizes.items()})


def _check_stream_arrays(
    stream: str, arrays: Mapping[str, np.ndarray], layers: int, layer_pairs: tuple[int, ...]
) -> tuple[int, int]:
    names = [variable.name for variable in MEASURED]
    for name in sorted(arrays.keys() ^ set(names)):
        kind = "unknown" if name in arrays else "missing"
        raise InputError(f"got {stream} arrays with {name!r} {kind}: {did_you_mean(name, names)}")
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    first = shapes["spectrum_fe"]
    expected = (*first[:1], layers, *first[2:3], *layer_pairs[1:])
    for name, shape in shapes.items():
        if shape != expected or layer_pairs[:1] != (layers,):
            raise InputError(
                f"got {stream} {name} of shape {shape} with {layers} layers and frequency of shape {layer_pairs}; "
                f"(sequence, layer, head, pair) must agree with (layer, pair): pad shorter layers with NaN"
            )
    return first[0], first[2]


def _to_json(content: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(content), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"got a provenance that JSON cannot hold ({error}): use plain numbers and strings") from error
