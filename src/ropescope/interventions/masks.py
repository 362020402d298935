"""PairMask: which rotary pairs of which heads, labelled, combined with `&`, `|` and `~`, kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD, HEAD_AXIS, KEY, KV_HEAD, LAYER, PAIR, QUERY, STREAMS
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, other_weights
from ropescope.base.records import RecordKind
from ropescope.base.tables import Table

MASK = RecordKind(
    format="ropescope-mask",
    version=1,
    noun="mask",
    what="a mask",
    make="make one with 'ropescope select'",
    again="select again",
)


@dataclass(frozen=True, eq=False, repr=False)
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

    Examples
    --------
    >>> mask = rs.select(result, "spectrum_fe < 0.2") | rs.select(result, "sequence_fe < 0.6")  # doctest: +SKIP
    >>> print(mask & ~rs.select(result, "layer < 2"))  # doctest: +SKIP
    """

    query: xr.DataArray
    key: xr.DataArray
    query_present: xr.DataArray
    key_present: xr.DataArray
    pairing: tuple[str, ...]
    provenance: Mapping[str, Any]

    def streams(self) -> dict[str, xr.DataArray]:
        """Give the selected pairs by stream.

        Returns
        -------
        dict of xarray.DataArray
            `query` and `key`, boolean, dims (layer, head or kv_head, pair).

        Examples
        --------
        >>> mask.streams()["key"].sum("pair")  # doctest: +SKIP
        """
        return {QUERY: self.query, KEY: self.key}

    def present(self, stream: str) -> xr.DataArray:
        """Give the pairs that the model has in a stream.

        Parameters
        ----------
        stream
            "query" or "key".

        Returns
        -------
        xarray.DataArray
            Boolean, dims (layer, head or kv_head, pair); false where a layer has fewer heads or pairs.

        Examples
        --------
        >>> mask.present("key").sum()  # doctest: +SKIP
        """
        return self.query_present if stream == QUERY else self.key_present

    @property
    def layers(self) -> list[int]:
        """Model index of every layer.

        Returns
        -------
        list of int
            Rising, one for every attention layer.

        Examples
        --------
        >>> mask.layers[:3]  # doctest: +SKIP
        [0, 1, 2]
        """
        return [int(layer) for layer in self.query[LAYER].values]

    @property
    def measured_on(self) -> Mapping[str, Any]:
        """Which model the mask was measured on, as its result says.

        Returns
        -------
        Mapping
            What the result's provenance says of the model; empty if the mask is for any model.

        Examples
        --------
        >>> mask.measured_on["id"]  # doctest: +SKIP
        'Qwen/Qwen3-8B'
        """
        model: Mapping[str, Any] = self.provenance.get("measured", {}).get("model", {})
        return model

    def counts(self) -> xr.Dataset:
        """Count the selected pairs of every layer and stream.

        Returns
        -------
        xarray.Dataset
            `query` and `key`, dims (layer).

        Examples
        --------
        >>> mask.counts()["query"].sum()  # doctest: +SKIP
        """
        return xr.Dataset({name: array.sum([HEAD_AXIS[name], PAIR]) for name, array in self.streams().items()})

    def replaced(self, query: xr.DataArray, key: xr.DataArray, selection: str) -> PairMask:
        """Select other pairs of the same model.

        Parameters
        ----------
        query, key
            Selected pairs, boolean, of the dims of those of this mask.
        selection
            What to call them.

        Returns
        -------
        PairMask
            With the provenance of this one.

        Examples
        --------
        >>> mask.replaced(~mask.query & mask.query_present, mask.key, "others")  # doctest: +SKIP
        """
        return replace(self, query=query, key=key, provenance={**self.provenance, "selection": selection})

    def digest(self) -> str:
        """Name the selected pairs by their content, whatever their selection is called.

        Returns
        -------
        str
            SHA-256, 64 hexadecimal digits.

        Examples
        --------
        >>> mask.digest() == rs.PairMask.load("mask.safetensors").digest()  # doctest: +SKIP
        True
        """
        chosen = [self.streams()[stream].values for stream in STREAMS]
        digest = hashlib.sha256(repr([self.layers, *(array.shape for array in chosen)]).encode())
        for array in chosen:
            digest.update(np.ascontiguousarray(array, dtype=np.uint8).tobytes())
        return digest.hexdigest()

    def for_any_model(self) -> PairMask:
        """Leave out which model the mask was measured on; shape and pairing must still fit.

        Returns
        -------
        PairMask
            The same pairs, taken by models of other weights too.

        Examples
        --------
        >>> with rs.weighted_rope(fine_tuned, mask.for_any_model(), alpha=0.1):  # doctest: +SKIP
        ...     rs.perplexity(fine_tuned, windows)
        """
        return replace(self, provenance={"selection": self.provenance["selection"]})

    def __and__(self, other: PairMask) -> PairMask:
        return self._combined(other, np.logical_and, "and")

    def __or__(self, other: PairMask) -> PairMask:
        return self._combined(other, np.logical_or, "or")

    def __invert__(self) -> PairMask:
        query, key = (~array & self.present(stream) for stream, array in self.streams().items())
        return self.replaced(query, key, f"not ({self.provenance['selection']})")

    def _combined(self, other: PairMask, join: Callable[[Any, Any], Any], word: str) -> PairMask:
        alike = all(self.present(stream).equals(other.present(stream)) for stream in STREAMS)
        if self.pairing != other.pairing or not alike:
            raise InputError(f"the masks are of different models: {self._shape()} against {other._shape()}")
        if differing := other_model(self.measured_on, other.measured_on):
            ids = f"{self.measured_on.get('id')} and {other.measured_on.get('id')}"
            what = f"weights ({ids})" if other_weights(differing) else f"settings ({listed(differing)})"
            raise InputError(
                f"the masks were measured on other {what}; select both on one model "
                "(in Python mask.for_any_model() lifts the check)"
            )
        theirs = other.streams()
        query, key = (join(array, theirs[stream]) for stream, array in self.streams().items())
        return self.replaced(query, key, f"({self.provenance['selection']}) {word} ({other.provenance['selection']})")

    def _shape(self) -> str:
        kinds = dict.fromkeys(self.pairing)
        sizes = {**self.query.sizes, **self.key.sizes}
        return f"{', '.join(f'{size} {axis}s' for axis, size in sizes.items())} paired {', '.join(kinds)}"

    def __repr__(self) -> str:
        return f"<PairMask {self}; {self._shape()}>"

    def _repr_html_(self) -> str:
        counts = self.counts()
        rows = [
            [str(layer), *(str(int(counts[name].sel({LAYER: layer}))) for name in STREAMS)] for layer in self.layers
        ]
        return Table((LAYER, *(f"{name} pairs" for name in STREAMS)), rows, str(self))._repr_html_()

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

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        ResultError
            If the file cannot be written.

        Examples
        --------
        >>> mask.save("bands.safetensors")  # doctest: +SKIP
        """
        arrays = {name: getattr(self, name).values.astype(np.uint8) for name in _ARRAYS}
        arrays[LAYER] = np.asarray(self.layers, dtype=np.int64)
        facts = json.dumps({"pairing": self.pairing, "provenance": self.provenance})
        return MASK.save(path, facts, arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PairMask:
        """Read a mask from its file.

        Parameters
        ----------
        path
            File that :meth:`PairMask.save` or ``ropescope select`` wrote.

        Returns
        -------
        PairMask

        Raises
        ------
        ResultError
            If it is missing, damaged, or not a mask.

        Examples
        --------
        >>> mask = PairMask.load("bands.safetensors")  # doctest: +SKIP
        """
        facts, content = MASK.load(path, (*_ARRAYS, LAYER))
        arrays = {name: labelled(content[name].astype(bool), content[LAYER], axis) for name, axis in _ARRAYS.items()}
        return cls(**arrays, pairing=tuple(facts["pairing"]), provenance=facts["provenance"])


_ARRAYS = {"query": HEAD, "key": KV_HEAD, "query_present": HEAD, "key_present": KV_HEAD}


def labelled(values: np.ndarray, layers: np.ndarray, axis: str) -> xr.DataArray:
    """An array (layer, head or kv_head, pair) of a mask; `layers` are model indices."""
    heads, pairs = values.shape[1:]
    coords = {LAYER: layers, axis: np.arange(heads), PAIR: np.arange(pairs)}
    return xr.DataArray(values, coords=coords, dims=(LAYER, axis, PAIR))
