"""Frequency Entropy of a whole model: one pass over token windows, everything reduced where it arises.

The pass runs the decoder alone (never the language-model head) and ends when the last attention has been seen. What
is left of a window is kept at once where a file is asked for; processes that share the windows meet at the end only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ropescope.base.arguments import AUTO, BatchSize, check_analysis_window, check_frames
from ropescope.base.errors import InputError, NonFiniteError
from ropescope.base.facts import versions
from ropescope.measurement.assembly import Collection
from ropescope.measurement.heads import with_norms_worth_seeing
from ropescope.measurement.reduction import LARGEST_NORM, Frames, PassEnded, Reducer
from ropescope.measurement.results import load, recorded_facts, save
from ropescope.model.access import check_windows, input_device, undisturbed
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.card import RotaryCard
from ropescope.model.conventions import is_placed
from ropescope.model.decoder import decoder_of
from ropescope.model.identity import model_provenance
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import Batches, batches_of
from ropescope.run.engine import Cell, Cells, Output, in_batches
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

NormHeads = Iterable[tuple[int | None, int | None]] | Literal["auto"]
_HEATMAP_STRETCHES = 512


def measure(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    frame_length: int = 1024,
    hop_length: int = 512,
    window: str = "hann",
    batch_size: BatchSize = 1,
    norm_heads: NormHeads = (),
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.DataTree:
    """SpectrumFE and SequenceFE of every layer, head and rotary pair, for queries and keys.

    Parameters
    ----------
    model
        Any transformers model whose attention goes through the attention interface.
    windows
        Token ids, shape (sequence, position), as :func:`ropescope.token_windows` gives them; at least one frame long.
    frame_length, hop_length, window
        Frames of SpectrumFE in tokens and their analysis window, as in :func:`ropescope.spectrum_fe`.
    batch_size
        Windows in one forward pass, at least 1; "auto" takes as many as the memory of the accelerator holds.
    norm_heads
        (layer, query head) whose norms over the first window are kept for heatmaps; None stands for every layer or
        head. Keys keep the key head that serves the query head. More than 512 positions are averaged to at most that.
        "auto" keeps those of the first head of every layer and of the heads worth seeing, which
        :func:`ropescope.default_heads` finds once all windows are measured; until then those of all heads are held.
    path
        NetCDF file for the result. Beside it a folder ``<path>.partial`` keeps every finished batch until the file is
        complete: the same call after a crash goes on there, and ends with the same bytes.
    overwrite
        Measure anew and replace whatever file is at `path`. Without it a file that holds this very measurement is read
        and returned, and any other is refused. All that decides the numbers tells: weights, config, frequencies,
        adapters, hooks and interventions that are open, windows, parameters, versions; what the model is called and
        where it lies do not.
    group
        Processes that share the windows, each of which makes this call with a copy of the model; all of them get the
        whole result, the first writes it. None is this process alone, or, where transformers has spread the model
        over processes (tensor parallelism), all of those.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    xarray.DataTree
        Groups `query` and `key` with `spectrum_fe`, `sequence_fe`, `mean_norm`, `dc_share`, `dominant_period` (tokens)
        and `peak_share` over (sequence, layer, head or kv_head, pair), and `mean_spectrum` over (layer, head or
        kv_head, bin); group `rotary` with `frequency` (rad/token), `rotated` and `pairing`. NaN where an entropy is
        undefined: a silent pair, or a flat one for SequenceFE.

    Raises
    ------
    InputError
        If the windows are empty, too short or of another vocabulary, or a head asked for does not exist.
    NonFiniteError
        If a query or key is not finite; names layer, head and position.
    ModelError
        If the memory does not suffice for one batch.
    ResultError
        If the file or its journal cannot be written, belong to another measurement, or are in use; no finished batch
        is lost.
    WorkerError
        If another process of the group has ended.

    References
    ----------
    Frequency Entropy paper, section 3 and appendix A.1.

    Examples
    --------
    >>> result = measure(model, windows)  # doctest: +SKIP
    >>> result["query"].spectrum_fe.mean("sequence").min()  # doctest: +SKIP
    """
    frames = Frames(frame_length, hop_length, window)
    check_windows(model, windows, batch_size)
    check_frames(windows.shape[1], frame_length, hop_length)
    check_analysis_window(window)
    workers = workers_of(model, group)
    batches = batches_of(batch_size, model.device.type, workers)
    card = probe(model, positions=windows.shape[1])
    reducer = _reducer(model, card, frames, norm_heads)
    facts = _facts(model, windows, reducer, batch_size, automatic=norm_heads == AUTO)
    output = Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts={**facts, "device": model.device.type},
        load=load,
        save=save,
        recorded=recorded_facts,
    )

    def made(cells: Cells) -> xr.DataTree:
        collection = _Pass(model, windows, reducer, batches).collected(cells, card)
        result = collection.result(_provenance(facts, collection, cells.begun()))
        return with_norms_worth_seeing(result) if norm_heads == AUTO else result

    return output.finished_or_made(Cells("measure", "window", workers, progress), made)


@dataclass(frozen=True, slots=True)
class _Pass:
    """A model's pass over windows: what is computed of each."""

    model: PreTrainedModel
    windows: TokenIds
    reducer: Reducer
    batches: Batches

    def collected(self, cells: Cells, card: RotaryCard) -> Collection:
        """All windows, this process's share of them reduced here or taken from the journal."""
        units = self.batches.units(len(self.windows))
        share = cells.shared({name: len(unit) for name, unit in units.items()})
        collection = Collection(card, self.reducer, self.windows.shape[1], share.total())
        for name, cell in share.found(in_batches(self.batches, units, self._reduced, self._cells)):
            collection.add(units[name], cell)
        collection.share(cells.workers)
        return collection

    def _reduced(self, batch: list[int]) -> dict[str, np.ndarray]:
        """What the windows of a batch come to."""
        self.reducer.begin(first_window=batch[0] == 0)
        _run(self.model, self.windows[batch], self.reducer)
        self.reducer.fetch()
        if not self.reducer.finite():
            _locate_non_finite(self.model, self.windows[batch])
        return {**self.reducer.batch(), "batch_size": np.full(len(batch), len(batch))}

    def _cells(self, batch: list[int], reduced: Cell) -> Iterator[tuple[str, Cell]]:
        """Norms are of the first window alone."""
        norms = {name: values for name, values in reduced.items() if name.endswith("_norms")}
        by_window = {name: values for name, values in reduced.items() if name not in norms}
        for name, rows in self.batches.split(batch, by_window):
            yield name, rows | (norms if name == self.batches.name(0) else {})


def _run(model: PreTrainedModel, batch: TokenIds, handler: Any) -> None:
    """Run the decoder over a batch with `handler` at every attention, without head and cache."""
    with undisturbed(model), suppress(PassEnded), intercepted(model, handler):
        decoder_of(model)(input_ids=batch.to(input_device(model)), use_cache=False)


def _offloaded(model: PreTrainedModel) -> bool:
    """Whether weights move in and out around each module; such a pass must run to its end to move them back."""
    return any(is_placed(module) for module in model.modules())


def _locate_non_finite(model: PreTrainedModel, batch: TokenIds) -> None:
    """Run the batch again to say where the first non-finite value is."""
    _run(model, batch, AttentionCall.check_finite)
    raise NonFiniteError(f"pair norms exceed {LARGEST_NORM:.0e}, so their power overflows float32; check the weights")


def _reducer(model: PreTrainedModel, card: RotaryCard, frames: Frames, norm_heads: NormHeads) -> Reducer:
    return Reducer(
        rotations={rotation.layer: rotation for rotation in card.layers},
        frames=frames,
        kept=_kept_heads(card, [(None, None)] if isinstance(norm_heads, str) else norm_heads),
        stretch=math.ceil(card.positions / _HEATMAP_STRETCHES),
        ends_early=not _offloaded(model),
    )


def _kept_heads(card: RotaryCard, wanted: Iterable[tuple[int | None, int | None]]) -> dict[int, list[int]]:
    """Query heads to keep norms of, by layer."""
    kept: dict[int, set[int]] = {}
    for layer, head in wanted:
        rotations = [r for r in card.layers if layer in (None, r.layer) and (head is None or 0 <= head < r.heads)]
        if not rotations:
            layers = [rotation.layer for rotation in card.layers]
            raise InputError(
                f"no such head: layer {layer}, head {head}; layers are {layers[0]} to {layers[-1]}, "
                f"query heads 0 to {max(rotation.heads for rotation in card.layers) - 1}"
            )
        for rotation in rotations:
            kept.setdefault(rotation.layer, set()).update(range(rotation.heads) if head is None else [head])
    return {layer: sorted(heads) for layer, heads in kept.items()}


def _facts(
    model: PreTrainedModel, windows: TokenIds, reducer: Reducer, batch_size: BatchSize, *, automatic: bool
) -> dict[str, Any]:
    """All that decides the values of a window."""
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "parameters": {"length": windows.shape[1], **asdict(reducer.frames), "batch_size": batch_size},
        "norm_heads": AUTO if automatic else [[layer, list(heads)] for layer, heads in sorted(reducer.kept.items())],
        "versions": versions("torch", "transformers", "numpy", "xarray"),
    }


def _provenance(facts: Mapping[str, Any], collection: Collection, created: str) -> dict[str, Any]:
    sizes = {"batch_sizes": sorted(collection.batch_sizes)} if facts["parameters"]["batch_size"] == AUTO else {}
    return {**facts, "parameters": {**facts["parameters"], **sizes}, "created": created}
