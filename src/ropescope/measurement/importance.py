"""What every pair is worth to the model: how much its loss feels the pair's scale, and its rotation.

One forward and a few backward passes a window. What is found of a window is kept at once where a file is asked for;
processes that share the windows meet at the end only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.arguments import AUTO, BatchSize, check_at_least
from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.base.facts import versions
from ropescope.measurement.backward import Felt, importance_of
from ropescope.measurement.labelling import label_importance
from ropescope.measurement.results import IMPORTANCE, load, recorded_facts, save
from ropescope.model.access import frequency_in_force, undisturbed
from ropescope.model.attention import intercepted
from ropescope.model.decoder import decoder_layers
from ropescope.model.gradients import differentiable
from ropescope.model.identity import model_provenance
from ropescope.model.lm_head import check_next_tokens
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import Batches, batches_of
from ropescope.run.engine import Cells, Output, in_batches
from ropescope.run.workers import Lockstep, Workers, workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.card import RotaryCard


def importance(
    model: PreTrainedModel,
    windows: TokenIds,
    draws: int = 2,
    *,
    seed: int = 0,
    checkpointing: bool = False,
    batch_size: BatchSize = 1,
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.DataTree:
    r"""What every rotary pair of every head is worth to the model, from a few backward passes.

    .. math:: F = \frac{1}{N} E_{y \sim p}\Big[\Big(\frac{\partial}{\partial\alpha}
        \sum_n \ln p(y_{n+1} \mid x_{\le n})\Big)^2\Big]

    at :math:`\alpha = 1`, where :math:`\alpha` scales pair j of a query head, or of a key head for its whole group, and
    the N next tokens y of a window are drawn from the model itself: then products of different tokens vanish in the
    mean, and F is the curvature of the KL divergence from the unchanged model. Turning the pair down to
    :math:`\alpha` costs about :math:`\tfrac{1}{2} F (1-\alpha)^2` nats a token. Weights get no gradient.

    Parameters
    ----------
    model
        Any transformers causal language model whose attention goes through the attention interface and which autograd
        can go through.
    windows
        Token ids, shape (sequence, position), at least 2 positions, as :func:`ropescope.token_windows` gives them.
    draws
        Draws of all next tokens of a window, at least 1; each costs a backward pass.
    seed
        Of the draws. Every window has its own, so neither batches nor processes change them.
    checkpointing
        Keep only what enters each layer and run the layer again in every backward pass: less memory, more time, the
        same numbers.
    batch_size
        Windows in one pass, at least 1; "auto" takes as many as the memory of the accelerator holds.
    path, overwrite
        NetCDF file for the result, resumed and kept as :func:`ropescope.measure` does.
    group
        Processes that share the windows, each of which makes this call with a copy of the model; all of them get the
        whole result, the first writes it. None is this process alone.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key`, each with `fisher`, `gradient` (of the text's own next tokens, signed) and both for
        the rotation, `rotation_fisher` and `rotation_gradient`: with respect to the strength of
        :func:`ropescope.derotated` at 0, which turns a pair for a key head's whole group, so that the query heads of
        a group share a value. Dims (sequence, layer, head or kv_head, pair), nats per token. Exactly 0 for a silent
        pair, and for the rotation of one that does not turn; NaN where a layer has fewer heads or pairs.

    Raises
    ------
    InputError
        If the windows are empty, too short or of another vocabulary, draws or seed are out of range, or the model is
        spread over processes.
    ModelError
        If the model has no head, no gradient comes through it, or the memory does not suffice for one batch.
    NonFiniteError
        If a derivative is not finite; names layer, head and pair.
    ResultError
        If the file or its journal cannot be written, belong to another run, or are in use; no finished batch is lost.
    WorkerError
        If another process of the group has ended.

    References
    ----------
    Amari, Natural gradient works efficiently in learning, Neural Computation 10 (1998); for drawn against given tokens
    Kunstner et al., Limitations of the empirical Fisher approximation, NeurIPS 2019.

    Examples
    --------
    >>> worth = importance(model, windows)  # doctest: +SKIP
    >>> mask = select(result, "fisher > 1e-4", importance=worth)  # doctest: +SKIP
    """
    _check(model, windows, draws, seed, batch_size)
    workers = workers_of(model, group)
    _check_place(model, workers, checkpointing)
    card = probe(model, positions=windows.shape[1])
    facts = _facts(model, windows, draws, seed, batch_size)
    run = _Pass(
        model=model,
        windows=windows,
        draws=draws,
        seed=seed,
        checkpointing=checkpointing,
        batches=batches_of(batch_size, model.device.type, workers),
        felt=_felt(model, card),
    )

    def made(cells: Cells) -> xr.DataTree:
        values, sizes = run.collected(cells)
        used = {"batch_sizes": sizes} if batch_size == AUTO else {}
        provenance = {**facts, "parameters": {**facts["parameters"], **used}, "created": cells.begun()}
        return label_importance(values, [rotation.layer for rotation in card.layers], provenance)

    output = _output(path, overwrite, facts, model.device.type)
    return output.finished_or_made(Cells("importance", "window", workers, progress), made)


def _felt(model: PreTrainedModel, card: RotaryCard) -> Felt:
    return Felt(
        {rotation.layer: rotation for rotation in card.layers},
        {rotation.layer: frequency_in_force(model, rotation) for rotation in card.layers},
    )


def _output(path: str | Path | None, overwrite: bool, facts: dict[str, Any], device: str) -> Output[xr.DataTree]:
    return Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts={**facts, "device": device},
        load=partial(load, schema=IMPORTANCE),
        save=save,
        recorded=recorded_facts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Windows forwards and back: what is computed of each."""

    model: PreTrainedModel
    windows: TokenIds
    draws: int
    seed: int
    checkpointing: bool
    batches: Batches
    felt: Felt

    def collected(self, cells: Cells) -> tuple[dict[str, np.ndarray], list[int]]:
        """By stream (window, variable, layer, head, pair) in every process, and which batch sizes were used."""
        units = self.batches.units(len(self.windows))
        share = cells.shared({name: len(unit) for name, unit in units.items()})
        found = cells.everywhere(dict(share.found(in_batches(self.batches, units, self._of_batch))))
        values = {stream: np.concatenate([found[name][stream] for name in units]) for stream in STREAMS}
        return values, sorted({int(size) for cell in found.values() for size in cell["batch_size"]})

    def _of_batch(self, batch: list[int]) -> dict[str, np.ndarray]:
        uniforms = torch.stack([self._uniforms(window) for window in batch], 1)
        try:
            with (
                undisturbed(self.model),
                differentiable(self.model, checkpointing=self.checkpointing),
                intercepted(self.model, self.felt),
            ):
                found = importance_of(self.model, self.windows[batch], self.felt, uniforms)
        finally:
            self.felt.leaves.clear()
        return {**found, "batch_size": np.full(len(batch), len(batch))}

    def _uniforms(self, window: int) -> Tensor:
        """What decides the draws of a window, (draw, position)."""
        random = np.random.default_rng([self.seed, window])
        return torch.from_numpy(random.random((self.draws, self.windows.shape[1] - 1)))


def _check(model: PreTrainedModel, windows: TokenIds, draws: int, seed: int, batch_size: BatchSize) -> None:
    check_next_tokens(model, windows, batch_size)
    check_at_least("draws", draws, 1)
    check_at_least("seed", seed, 0)


def _check_place(model: PreTrainedModel, workers: Workers, checkpointing: bool) -> None:
    """Refuse what would end in the middle: layers over processes, and layers that cannot be run again."""
    if isinstance(workers, Lockstep):
        raise InputError(
            "importance got a model spread over processes (tensor parallelism), whose gradients it cannot gather; "
            "spread its layers (device_map) or share the windows"
        )
    if checkpointing:
        decoder_layers(model)


def _facts(model: PreTrainedModel, windows: TokenIds, draws: int, seed: int, batch_size: BatchSize) -> dict[str, Any]:
    """All that decides the values of a window."""
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "parameters": {"length": windows.shape[1], "draws": draws, "seed": seed, "batch_size": batch_size},
        "versions": versions("torch", "transformers", "numpy", "xarray"),
    }
