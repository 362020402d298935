"""The schema of a measurement result, and one file for it: written whole or not at all, read fully into memory."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import BIN, HEAD_AXIS, KEY, LAYER, PAIR, POSITION, QUERY, SEQUENCE, STREAMS
from ropescope.base.errors import InputError, ResultError, UnreadableError, did_you_mean, first_line
from ropescope.base.files import check_target, written_whole

SCHEMA = "ropescope-measurement"
SCHEMA_VERSION = 2
ROTARY = "rotary"
KEPT = "kept"
NORM = "norm"
MEAN_SPECTRUM = "mean_spectrum"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

PAIR_VARIABLES = {
    "spectrum_fe": ("SpectrumFE", "1", "entropy of the short-time spectrum of the pair's norm, 0 to 1"),
    "sequence_fe": ("SequenceFE", "1", "entropy of the whole-sequence spectrum of the pair's norm, 0 to 1"),
    "mean_norm": ("mean norm", "1", "mean over positions of the pair's L2 norm; NaN where the model has no such pair"),
    "dc_share": ("DC share", "1", "share of SpectrumFE's power in the lobe around zero frequency, 0 to 1"),
    "dominant_period": ("dominant period", "token", None),
    "peak_share": ("peak share", "1", "share of SequenceFE's power in its strongest bin, 0 to 1"),
}
ROTARY_VARIABLES = {
    "frequency": ("angular frequency", "rad/token", None, (LAYER, PAIR)),
    "rotated": ("rotated", "1", "whether the layer rotates the pair", (LAYER, PAIR)),
    "pairing": ("pairing", "1", "which head dimensions make a pair, e.g. half-split[0:64]", (LAYER,)),
}
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
        Token index at the start of each cell; a long sequence is averaged into cells.
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
    query, key : mappings from each name in ``PAIR_VARIABLES`` to an array (sequence, layer, head, pair)
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


def provenance(result: xr.DataTree) -> dict[str, Any]:
    """Say what was measured, with which parameters and versions.

    Raises
    ------
    ResultError
        The result carries no readable provenance.
    """
    text = result.attrs.get("provenance")
    try:
        parsed = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ResultError(f"got a result with provenance {text!r}; it must be a JSON object: measure again")
    return parsed


def stream_data(result: xr.DataTree, stream: str) -> xr.Dataset:
    """Give the group of one stream.

    Raises
    ------
    InputError
        ``stream`` is not "query" or "key".
    """
    if stream not in STREAMS:
        raise InputError(f"got stream {stream!r}: {did_you_mean(stream, STREAMS)}")
    return result.children[stream].to_dataset()


def mean_over_sequences(data: xr.Dataset) -> xr.Dataset:
    """Average every (sequence, layer, head, pair) variable over the sequences where it is defined, in float64.

    A pair that is defined in no sequence stays NaN.
    """
    per_sequence = data[[name for name in data.data_vars if SEQUENCE in data[name].dims]]
    return per_sequence.astype(np.float64).mean(SEQUENCE, skipna=True)


def wavelength(result: xr.DataTree) -> xr.DataArray:
    """Tokens in one turn of each pair, 2π / frequency: dims (layer, pair).

    Infinite where nothing turns, NaN where the pair is silent wherever it could be seen to turn.
    """
    rotary = result.children[ROTARY].to_dataset()
    speed = abs(rotary["frequency"])
    turning = rotary["rotated"] & (speed != 0)
    turn = (2 * math.pi / speed.where(turning)).where(turning, np.inf).rename("wavelength")
    return turn.assign_attrs(_attributes("wavelength", "token"))


def save(result: xr.DataTree, path: str | Path, *, overwrite: bool = True) -> Path:
    """Write a result as one NetCDF4 file, whole or not at all.

    Parameters
    ----------
    result : xarray.DataTree
    path : str or Path
        The folder must exist.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ResultError
        The result does not follow the schema, or the file cannot be written.
    """
    _check_layout(result, "result to save")
    target = check_target(path, overwrite=overwrite)
    with written_whole(target) as partial:
        _write(result, partial)
    return target


def load(path: str | Path) -> xr.DataTree:
    """Read a result file fully into memory and close it.

    Raises
    ------
    ResultError
        The file is missing, damaged, not a ropescope result, or of another schema version.
    UnreadableError
        Another process holds the file open for writing, it may not be read, or the disk fails.
    """
    with reading(Path(path), "measure again"):
        _check_source(Path(path))
        _read_attributes(Path(path))
        with closing(xr.open_datatree(path, engine="h5netcdf", decode_times=False)) as opened:
            tree = _without_encoding(opened.load())
    _check_layout(tree, str(path))
    tree.attrs["schema_version"] = int(tree.attrs["schema_version"])
    return tree


def recorded_facts(path: Path) -> dict[str, Any]:
    """The facts that a measurement's file was made from."""
    found = provenance(load(path))
    found.get("parameters", {}).pop("batch_sizes", None)
    return found


@contextmanager
def reading(path: Path, again: str) -> Iterator[None]:
    """Say of a NetCDF4 file that cannot be read whether it is damaged or only out of reach.

    Parameters
    ----------
    path : Path
    again : str
        What to do to have a damaged file anew.

    Raises
    ------
    ResultError
        The file is damaged.
    UnreadableError
        Another process holds the file open for writing, it may not be read, or the disk fails.
    """
    try:
        yield
    except ResultError:
        raise
    except Exception as error:  # a damaged file makes HDF5 raise almost any type
        if reason := _out_of_reach(error):
            raise UnreadableError(f"cannot read {path} now: {reason}; it is left as it is") from error
        raise ResultError(f"{path} is damaged or cut short ({first_line(error)}): copy it again or {again}") from error


def _out_of_reach(error: Exception) -> str | None:
    """What the system says; None where it says nothing, so that the content must be at fault."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice"
    if not isinstance(error, OSError):
        return None
    told = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(told[1]) if told else 0)
    if number in (errno.EAGAIN, errno.EWOULDBLOCK):
        return "another process holds it open for writing; wait until that has closed it"
    # the last three are what the system says to places in a file that a damaged one points to
    silent = number in (0, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW)
    return None if silent else f"{os.strerror(number)}; see to that first"


def schema_of(path: str | Path) -> str | None:
    """The schema that a NetCDF file says it follows, such as "ropescope-sweep"; None where it says nothing readable."""
    import h5py

    with reading(Path(path), "make it again"):
        _check_source(Path(path))
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs["schema"])
    except (OSError, KeyError):
        return None


def _attributes(long_name: str, units: str, description: str | None = None) -> dict[str, str]:
    given = {"long_name": long_name, "units": units, "description": description}
    return {name: text for name, text in given.items() if text is not None}


def _coordinate(name: str, values: Any, dim: str | None = None) -> tuple[str, np.ndarray, dict[str, str]]:
    return (dim or name, np.asarray(values, dtype=np.int64), _attributes(*COORDINATES[name]))


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
        name: (dims, np.asarray(arrays[name], dtype=np.float32), _attributes(*meaning))
        for name, meaning in PAIR_VARIABLES.items()
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
    meaning = _attributes(
        "mean spectrum", "1", "mean over sequences and pairs of the share of short-time power in a bin"
    )
    frequency = np.arange(expected[2]) / frame_length
    return xr.Dataset(
        {MEAN_SPECTRUM: ((LAYER, HEAD_AXIS[stream], BIN), np.asarray(spectra, dtype=np.float32), meaning)},
        coords={BIN: (BIN, frequency, _attributes("frequency of the bin", "cycle/token"))},
    )


def _norm_group(stream: str, norms: KeptNorms, pairs: int) -> xr.Dataset:
    expected = (len(norms.layer), pairs, len(norms.position))
    if np.shape(norms.values) != expected or len(norms.head) != len(norms.layer):
        raise InputError(
            f"got {stream} norms of shape {np.shape(norms.values)} for {len(norms.head)} heads; "
            f"(kept, pair, position) must be {expected}: build one entry per layer and head kept"
        )
    meaning = _attributes("pair norm", "1", "L2 norm of the pair along the first sequence, mean over the cell")
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
        name: (dims, values[name], _attributes(long_name, units, description))
        for name, (long_name, units, description, dims) in ROTARY_VARIABLES.items()
    }
    sizes = {LAYER: layers, PAIR: range(np.shape(frequency)[1])}
    return xr.Dataset(variables, coords={name: _coordinate(name, index) for name, index in sizes.items()})


def _check_stream_arrays(
    stream: str, arrays: Mapping[str, np.ndarray], layers: int, layer_pairs: tuple[int, ...]
) -> tuple[int, int]:
    for name in arrays.keys() ^ PAIR_VARIABLES.keys():
        kind = "unknown" if name in arrays else "missing"
        raise InputError(f"got {stream} arrays with {name!r} {kind}: {did_you_mean(name, PAIR_VARIABLES)}")
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


def _check_layout(tree: xr.DataTree, source: str) -> None:
    if tree.attrs.get("schema") != SCHEMA:
        raise ResultError(
            f"{source} is not a ropescope result: its schema is {tree.attrs.get('schema')!r}, "
            f"not {SCHEMA!r}; give a file written by 'ropescope measure'"
        )
    _check_version(tree.attrs.get("schema_version"), source)
    for group, variables in _layout().items():
        found = tree.children[group].to_dataset() if group in tree.children else xr.Dataset()
        for name, dims in variables.items():
            if name not in found or found[name].dims != dims:
                got = f"dims {found[name].dims}" if name in found else "no such variable"
                raise ResultError(f"{source}: {group}/{name} must have dims {dims}, got {got}; measure again")
    provenance(tree)


def _check_version(version: Any, source: str) -> None:
    if version == SCHEMA_VERSION:
        return
    newer = isinstance(version, (int, np.integer)) and version > SCHEMA_VERSION
    remedy = "upgrade ropescope" if newer else "measure again"
    raise ResultError(f"{source} has schema version {version}; this ropescope reads version {SCHEMA_VERSION}: {remedy}")


def _layout() -> dict[str, dict[str, tuple[str, ...]]]:
    layout: dict[str, dict[str, tuple[str, ...]]] = {
        stream: {
            **dict.fromkeys(PAIR_VARIABLES, (SEQUENCE, LAYER, HEAD_AXIS[stream], PAIR)),
            MEAN_SPECTRUM: (LAYER, HEAD_AXIS[stream], BIN),
        }
        for stream in STREAMS
    }
    return layout | {ROTARY: {name: meaning[3] for name, meaning in ROTARY_VARIABLES.items()}}


def _check_source(path: Path) -> None:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ResultError(f"cannot read {path}: it {kind}; give a result file written by 'ropescope measure'")
    with path.open("rb") as file:
        signature = file.read(len(HDF5_SIGNATURE))
    if signature != HDF5_SIGNATURE:
        raise ResultError(f"{path} is not a NetCDF4 file; give a result file written by 'ropescope measure'")


def _read_attributes(path: Path) -> None:
    """Fail on damaged structure here: h5netcdf would fail half built and complain again when it is collected."""
    import h5py

    def read(_: str, item: h5py.HLObject) -> None:
        list(item.attrs.items())

    with h5py.File(path, "r") as file:
        read("/", file)
        file.visititems(read)


def _without_encoding(tree: xr.DataTree) -> xr.DataTree:
    clean: xr.DataTree = tree.map_over_datasets(lambda data: data.drop_encoding())
    return clean


def _write(result: xr.DataTree, path: Path) -> None:
    compression = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    encoding = {
        f"/{group}": {str(name): compression for name, data in node.data_vars.items() if data.dtype.kind == "f"}
        for group, node in result.children.items()
    }
    # through memory, since HDF5 on a full disk also complains from its destructors
    content = _without_encoding(result).to_netcdf(engine="h5netcdf", encoding=encoding)
    path.write_bytes(content)
