"""PairMask: which rotary pairs of which heads, labelled, combined with `&`, `|` and `~`, kept as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ropescope.axes import HEAD, HEAD_AXIS, KEY, KV_HEAD, LAYER, PAIR, QUERY
from ropescope.errors import InputError, ResultError, first_line
from ropescope.files import check_target, written_whole

SCHEMA = "ropescope-mask"
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class PairMask:
    """A selection of rotary pairs, per query head and per key head.

    Parameters
    ----------
    query, key
        Selected pairs, boolean, dims (layer, head, pair) and (layer, kv_head, pair); `layer` holds model indices.
    query_present, key_present
        Pairs that the model has, boolean, of the same dims; false where a layer has fewer heads or pairs.
    pairing
        Pairing of every layer, such as "half-split[0:64]".
    provenance
        Where the mask comes from: `selection`, and under `measured` the provenance of the result.
    """

    query: xr.DataArray
    key: xr.DataArray
    query_present: xr.DataArray
    key_present: xr.DataArray
    pairing: tuple[str, ...]
    provenance: Mapping[str, Any]

    def streams(self) -> dict[str, xr.DataArray]:
        """The selected pairs by stream."""
        return {QUERY: self.query, KEY: self.key}

    def present(self, stream: str) -> xr.DataArray:
        """The pairs that the model has in a stream."""
        return self.query_present if stream == QUERY else self.key_present

    @property
    def layers(self) -> list[int]:
        """Model index of every layer."""
        return [int(layer) for layer in self.query[LAYER].values]

    def counts(self) -> xr.Dataset:
        """Selected pairs of every layer and stream, dims (layer)."""
        return xr.Dataset({name: array.sum([HEAD_AXIS[name], PAIR]) for name, array in self.streams().items()})

    def replaced(self, query: xr.DataArray, key: xr.DataArray, selection: str) -> PairMask:
        """The same model's pairs, selected otherwise."""
        return replace(self, query=query, key=key, provenance={**self.provenance, "selection": selection})

    def for_any_model(self) -> PairMask:
        """The mask without the identity of the model that it was measured on; shape and pairing must still fit."""
        return replace(self, provenance={"selection": self.provenance["selection"]})

    def __and__(self, other: PairMask) -> PairMask:
        return self._combined(other, np.logical_and, "and")

    def __or__(self, other: PairMask) -> PairMask:
        return self._combined(other, np.logical_or, "or")

    def __invert__(self) -> PairMask:
        query, key = (~array & self.present(stream) for stream, array in self.streams().items())
        return self.replaced(query, key, f"not ({self.provenance['selection']})")

    def _combined(self, other: PairMask, join: Callable[[Any, Any], Any], word: str) -> PairMask:
        if self.pairing != other.pairing or self.layers != other.layers or self.query.shape != other.query.shape:
            raise InputError(
                f"the masks are of different models: {dict(self.query.sizes)} paired {self.pairing[0]} against "
                f"{dict(other.query.sizes)} paired {other.pairing[0]}"
            )
        theirs = other.streams()
        query, key = (join(array, theirs[stream]) for stream, array in self.streams().items())
        return self.replaced(query, key, f"({self.provenance['selection']}) {word} ({other.provenance['selection']})")

    def __str__(self) -> str:
        totals = [f"{int(a.sum())} of {int(self.present(s).sum())} {s} pairs" for s, a in self.streams().items()]
        return f"{self.provenance['selection']}: {', '.join(totals)}"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the mask with its provenance as one safetensors file, whole or not at all.

        Parameters
        ----------
        path
            The folder must exist.
        overwrite
            Whether an existing file may be replaced.

        Raises
        ------
        ResultError
            If the file cannot be written.
        """
        from safetensors.numpy import save

        arrays = {name: getattr(self, name) for name in _ARRAYS}
        content = {name: np.ascontiguousarray(array.values.astype(np.uint8)) for name, array in arrays.items()}
        content[LAYER] = np.asarray(self.layers, dtype=np.int64)
        facts = {"pairing": self.pairing, "provenance": self.provenance, "version": SCHEMA_VERSION}
        target = check_target(Path(path), overwrite=overwrite)
        with written_whole(target) as partial:
            partial.write_bytes(save(content, {"format": SCHEMA, "ropescope": json.dumps(facts)}))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PairMask:
        """Read a mask file.

        Raises
        ------
        ResultError
            If it is missing, damaged, or not a mask.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ResultError(f"cannot read the mask {path}: {first_line(error)}; select again") from error
        facts = json.loads(metadata.get("ropescope", "{}")) if metadata.get("format") == SCHEMA else {}
        if facts.get("version") != SCHEMA_VERSION or not {*_ARRAYS, LAYER} <= set(content):
            raise ResultError(
                f"{path} is not a mask of this version ({SCHEMA_VERSION}); make it with 'ropescope select'"
            )
        layers = content[LAYER]
        arrays = {name: _labelled(content[name].astype(bool), layers, axis) for name, axis in _ARRAYS.items()}
        return cls(**arrays, pairing=tuple(facts["pairing"]), provenance=facts["provenance"])


_ARRAYS = {"query": HEAD, "key": KV_HEAD, "query_present": HEAD, "key_present": KV_HEAD}


def _labelled(values: np.ndarray, layers: np.ndarray, axis: str) -> xr.DataArray:
    heads, pairs = values.shape[1:]
    coords = {LAYER: layers, axis: np.arange(heads), PAIR: np.arange(pairs)}
    return xr.DataArray(values, coords=coords, dims=(LAYER, axis, PAIR))
