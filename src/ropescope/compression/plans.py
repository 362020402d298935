"""KeyPlan: what a key cache keeps of every key, layer by layer, kept itself as one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.key_plans import Method
from ropescope.base.records import RecordKind, digest
from ropescope.base.tables import preformatted

if TYPE_CHECKING:
    from torch import Tensor

    from ropescope.compression.cache import ThinKeyCache

PLAN = RecordKind(
    format="ropescope-keys",
    version=1,
    noun="plan",
    what="a plan of thin keys",
    make="make one with ropescope.plan_keys",
    again="plan again",
)


@dataclass(frozen=True, eq=False, slots=True)
class LatentLayer:
    r"""All key heads of a layer together, before rotation, as r numbers: :math:`z = (k - \mu) W`, rebuilt as
    :math:`\mu + z U`.

    Parameters
    ----------
    layer
        Index of the layer in the model.
    mean
        :math:`\mu`, shape (kv_head * head_dim), float32.
    down, up
        W and U, shapes (kv_head * head_dim, rank) and (rank, kv_head * head_dim), float32.
    """

    layer: int
    mean: Tensor
    down: Tensor
    up: Tensor

    @property
    def kept(self) -> int:
        """Numbers stored of a token's keys."""
        return self.down.shape[1]

    @property
    def whole(self) -> int:
        """Numbers that a token's keys have."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False, slots=True)
class DropLayer:
    """The dimensions of every key head of a layer that are stored; queries leave the others out, too.

    Parameters
    ----------
    layer
        Index of the layer in the model.
    head_dim
        Dimensions of a head.
    dimensions
        Shape (kv_head, kept dimension), int64, rising.
    """

    layer: int
    head_dim: int
    dimensions: Tensor

    @property
    def kept(self) -> int:
        """Numbers stored of a token's keys."""
        return self.dimensions.numel()

    @property
    def whole(self) -> int:
        """Numbers that a token's keys have."""
        return len(self.dimensions) * self.head_dim


LayerPlan = LatentLayer | DropLayer
_LAYERS: dict[str, type[LatentLayer | DropLayer]] = {"latent": LatentLayer, "drop": DropLayer}


@dataclass(frozen=True, eq=False, repr=False)
class KeyPlan:
    """What a key cache keeps of every key, as :func:`ropescope.plan_keys` makes it.

    Parameters
    ----------
    method
        "latent": keys before rotation are projected on a few directions, all heads of a layer together, and rebuilt.
        "drop": some pairs are not stored, and queries leave them out.
    layers
        One plan for every attention layer that makes keys of its own.
    shared
        Layers that attend to another layer's keys, each with that other layer.
    stores
        What the cache of the model keeps for each of its layers: "full", "sliding 512", "linear 1", "none".
    sinks
        How many of a text's first tokens keep whole keys (attention sinks).
    provenance
        Which model was calibrated on which text, with which parameters.

    Examples
    --------
    >>> plan = KeyPlan.load("half.safetensors")  # doctest: +SKIP
    >>> print(plan)  # doctest: +SKIP
    """

    method: Method
    layers: tuple[LayerPlan, ...]
    shared: Mapping[int, int]
    stores: tuple[str, ...]
    sinks: int
    provenance: Mapping[str, Any]

    def cache(self) -> ThinKeyCache:
        """An empty key and value cache that keeps its keys as this plan says, for use inside :func:`thin_keys`.

        Returns
        -------
        ThinKeyCache

        Examples
        --------
        >>> with thin_keys(model, plan):  # doctest: +SKIP
        ...     model.generate(**inputs, past_key_values=plan.cache())
        """
        from ropescope.compression.cache import ThinKeyCache

        return ThinKeyCache(self)

    @property
    def way(self) -> str:
        """How keys are thinned: the method, or the baseline whose order the pairs are kept in.

        Returns
        -------
        str

        Examples
        --------
        >>> plan.way  # doctest: +SKIP
        'latent'
        """
        return str(self.provenance.get("parameters", {}).get("order") or self.method)

    @property
    def made_for(self) -> Mapping[str, Any]:
        """Which model the plan was calibrated on.

        Returns
        -------
        mapping
            Its provenance, the fingerprint of its weights included.

        Examples
        --------
        >>> plan.made_for["id"]  # doctest: +SKIP
        """
        model: Mapping[str, Any] = self.provenance.get("model", {})
        return model

    def digest(self) -> str:
        """SHA-256 of all that decides what is kept.

        Returns
        -------
        str
            Hexadecimal.

        Examples
        --------
        >>> plan.digest() == KeyPlan.load("half.safetensors").digest()  # doctest: +SKIP
        """
        return digest(self._content(), self._facts(provenance=False))

    def __repr__(self) -> str:
        return f"<KeyPlan {self}>"

    def _repr_html_(self) -> str:
        return preformatted(self)

    def __str__(self) -> str:
        kept, whole = sum(plan.kept for plan in self.layers), sum(plan.whole for plan in self.layers)
        shares = [plan.kept / plan.whole for plan in self.layers]
        return (
            f"{self.method}: {kept} of {whole} numbers of a token's keys in {len(self.layers)} layers "
            f"({kept / whole:.1%}; {min(shares):.0%} to {max(shares):.0%} of a layer), {self.sinks} sinks whole"
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the plan with its provenance as one safetensors file, whole or not at all.

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
        >>> plan.save("half.safetensors")  # doctest: +SKIP
        """
        return PLAN.save(path, self._facts(provenance=True), self._content(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyPlan:
        """Read a plan file.

        Parameters
        ----------
        path
            File that :meth:`KeyPlan.save` wrote.

        Returns
        -------
        KeyPlan

        Raises
        ------
        ResultError
            If it is missing, damaged, or not a plan.

        Examples
        --------
        >>> plan = KeyPlan.load("half.safetensors")  # doctest: +SKIP
        """
        facts, content = PLAN.load(path)
        kind = _LAYERS[facts["method"]]
        layers = tuple(kind(**numbers, **_tensors(content, numbers["layer"])) for numbers in facts["layers"])
        return cls(
            method=facts["method"],
            layers=layers,
            shared={int(layer): source for layer, source in facts["shared"].items()},
            stores=tuple(facts["stores"]),
            sinks=facts["sinks"],
            provenance=facts["provenance"],
        )

    def _content(self) -> dict[str, np.ndarray]:
        named = [(plan, field.name, getattr(plan, field.name)) for plan in self.layers for field in fields(plan)]
        return {
            f"{plan.layer}.{name}": value.cpu().numpy()
            for plan, name, value in named
            if isinstance(value, torch.Tensor)
        }

    def _facts(self, *, provenance: bool) -> str:
        numbers = [
            {field.name: value for field in fields(plan) if isinstance(value := getattr(plan, field.name), int)}
            for plan in self.layers
        ]
        facts = {
            "method": self.method,
            "layers": numbers,
            "shared": {str(layer): source for layer, source in sorted(self.shared.items())},
            "stores": self.stores,
            "sinks": self.sinks,
        }
        return json.dumps({**facts, "provenance": self.provenance} if provenance else facts)


def _tensors(content: Mapping[str, np.ndarray], layer: int) -> dict[str, Any]:
    prefix = f"{layer}."
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in content.items() if name.startswith(prefix)
    }
