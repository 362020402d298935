"""Which results can be compared pair by pair, and on which scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.base.counting import counted
from ropescope.base.entropy import white_noise_entropy
from ropescope.base.errors import InputError, ResultError
from ropescope.measurement.results import ROTARY, provenance, stream_data, window_length

FRAME = ("frame_length", "hop_length", "window")


def differences(first: xr.DataTree, other: xr.DataTree) -> list[str]:
    """What keeps two results from being compared pair by pair: layers, heads, pairs, pairing, rotation; or nothing.

    Parameters
    ----------
    first, other
        What :func:`ropescope.measure` gave.

    Returns
    -------
    list of str
        "layers: 0 to 29 against 0 to 31", the first result's first. Frequencies may differ.
    """
    found = [
        f"{name}: {_written(ours)} against {_written(theirs)}"
        for name, ours, theirs in zip(_SHAPE, _shape(first), _shape(other), strict=True)
        if ours != theirs
    ]
    if found:
        return found
    mine, theirs = (result.children[ROTARY].to_dataset() for result in (first, other))
    layers = mine[LAYER].values
    unlike = {
        "pairing": (mine["pairing"] != theirs["pairing"]).values,
        "rotated pairs": (mine["rotated"] != theirs["rotated"]).any(PAIR).values,
        **{f"{stream} heads or pairs": _unlike_presence(first, other, stream) for stream in STREAMS},
    }
    return [_in_layers(name, layers[where], mine, theirs) for name, where in unlike.items() if where.any()]


def pair_by_pair(results: Mapping[str, xr.DataTree]) -> bool:
    """Whether results are to be matched pair by pair.

    They are if their pairs match, and also where those of one model do not, so that an error says what differs.
    """
    first, *others = results.values()
    unmatched = [_weights(other) for other in others if differences(first, other)]
    return bool(others) and (not unmatched or _weights(first) in unmatched)


def check_pairwise(results: Mapping[str, xr.DataTree]) -> None:
    """Refuse results whose pairs are not the same ones.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        A result has other layers, heads, pairs, pairing or rotation than the first, or other frames of SpectrumFE.
    """
    check_frames(results)
    (name, first), *others = results.items()
    for other_name, other in others:
        if found := differences(first, other):
            raise ResultError(
                f"cannot compare {other_name} with {name} pair by pair: {'; '.join(found)}; give results of one "
                f"architecture, or compare distributions over depth and wavelength (--view distributions)"
            )


def check_frames(results: Mapping[str, xr.DataTree]) -> None:
    """Refuse fewer than two results, and results whose SpectrumFE is not on one scale.

    Raises
    ------
    InputError
        There are fewer than two results.
    ResultError
        Frame length, hop length or window differ.
    """
    if len(results) < 2:
        raise InputError(f"got {len(results)} result to compare; give at least two under different names")
    (name, first), *others = results.items()
    ours = _frame(first)
    for other_name, other in others:
        if (theirs := _frame(other)) != ours:
            found = [f"{what} {a!r} against {b!r}" for what, a, b in zip(FRAME, ours, theirs, strict=True) if a != b]
            raise ResultError(
                f"cannot compare SpectrumFE of {other_name} with {name}: {', '.join(found)}; "
                "measure both with the same frames"
            )


def on_scale_of(first: xr.DataTree, other: xr.DataTree) -> xr.DataTree:
    """Another result with its SequenceFE put on the first one's scale through the white-noise reference.

    White noise scores more the longer it is, so SequenceFE is multiplied by the reference at the first's length over
    the reference at its own. Results of one length come back as they are.
    """
    factor = noise_reference(first) / noise_reference(other)
    if factor == 1:
        return other
    groups = {f"/{name}": node.to_dataset() for name, node in other.children.items()}
    for stream in STREAMS:
        data = groups[f"/{stream}"]
        groups[f"/{stream}"] = data.assign(sequence_fe=data["sequence_fe"] * factor)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = other.attrs
    return tree


def noise_reference(result: xr.DataTree) -> float:
    """SequenceFE of white noise of a result's length."""
    return white_noise_entropy(length_of(result) // 2 - 1)


def length_of(result: xr.DataTree) -> int:
    """Tokens in a window of a result.

    Raises
    ------
    ResultError
        The provenance does not say.
    """
    length = window_length(result)
    if length is None:
        raise ResultError("got a result that does not say how many tokens its windows have; measure again")
    return length


def notes(results: Mapping[str, xr.DataTree]) -> list[str]:
    """What a reader must know of how results that differ were compared with the first one; one sentence each."""
    (name, first), *others = results.items()
    lengths = {label: length_of(result) for label, result in results.items()}
    found = []
    if len(set(lengths.values())) > 1:
        references = ", ".join(
            f"{label} {n} tokens {noise_reference(results[label]):.4f}" for label, n in lengths.items()
        )
        found.append(
            "Lengths differ, so SequenceFE is compared through the white-noise reference "
            f"({references}): values of the others, and their threshold, are on the scale of {name}."
        )
    turning = [label for label, other in others if not differences(first, other) and not _turn_alike(first, other)]
    if turning:
        found.append(f"{', '.join(turning)}: frequencies differ from {name}'s; pairs are matched by index.")
    return found


_SHAPE = ("layers", "query heads", "key heads", "pairs")


def _weights(result: xr.DataTree) -> object:
    return provenance(result).get("model", {}).get("fingerprint")


def _shape(result: xr.DataTree) -> tuple[list[int], ...]:
    query, key = (stream_data(result, stream) for stream in STREAMS)
    columns = (query[LAYER], query[HEAD_AXIS["query"]], key[HEAD_AXIS["key"]], query[PAIR])
    return tuple(column.values.tolist() for column in columns)


def _written(indices: list[int]) -> str:
    if len(indices) > 1 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]} to {indices[-1]}"
    return ", ".join(map(str, indices))


def _unlike_presence(first: xr.DataTree, other: xr.DataTree, stream: str) -> np.ndarray:
    present = [stream_data(result, stream)["mean_norm"].notnull().any("sequence") for result in (first, other)]
    unlike: np.ndarray = (present[0] != present[1]).any([HEAD_AXIS[stream], PAIR]).values
    return unlike


def _in_layers(name: str, layers: np.ndarray, mine: xr.Dataset, theirs: xr.Dataset) -> str:
    place = f"in {counted(len(layers), 'layer')} ({_written(layers.tolist())})"
    if name != "pairing":
        return f"{name} differ {place}"
    ours, other = (str(data["pairing"].sel({LAYER: layers[0]}).values) for data in (mine, theirs))
    return f"pairing: {ours} against {other} {place}"


def _turn_alike(first: xr.DataTree, other: xr.DataTree) -> bool:
    ours, theirs = (result.children[ROTARY].to_dataset()["frequency"].values for result in (first, other))
    return bool(np.allclose(ours, theirs, rtol=1e-3, equal_nan=True))


def _frame(result: xr.DataTree) -> tuple[object, ...]:
    parameters = provenance(result).get("parameters", {})
    return tuple(parameters.get(name) for name in FRAME)
