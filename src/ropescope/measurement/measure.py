"""Frequency Entropy of a whole model: one pass over token windows, everything reduced where it arises.

The pass runs the decoder alone (never the language-model head) and ends when the last attention has been seen. What
is left of a window is kept at once where a file is asked for; processes that share the windows meet at the end only.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropescope.base.arguments import AUTO, BatchSize, check_analysis_window, check_frames
from ropescope.base.errors import InputError, NonFiniteError
from ropescope.base.facts import finished
from ropescope.base.files import check_target
from ropescope.measurement.assembly import Collection
from ropescope.measurement.reduction import LARGEST_NORM, Frames, PassEnded, Reducer
from ropescope.measurement.results import load, recorded_facts, save
from ropescope.model.access import check_windows, input_device, undisturbed
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.card import RotaryCard
from ropescope.model.decoder import decoder_of
from ropescope.model.identity import model_provenance
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import Batches, batches_of
from ropescope.run.journal import Journal, drop_journal, journal_of, unseen
from ropescope.run.progress import progress as steps_of
from ropescope.run.workers import Workers, workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

_HEATMAP_CELLS = 512


def measure(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    frame_length: int = 1024,
    hop_length: int = 512,
    window: str = "hann",
    batch_size: BatchSize = 1,
    norm_heads: Iterable[tuple[int | None, int | None]] = (),
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
    reducer = Reducer(
        rotations={rotation.layer: rotation for rotation in card.layers},
        frames=frames,
        kept=_kept_heads(card, norm_heads),
        cell_width=math.ceil(windows.shape[1] / _HEATMAP_CELLS),
        ends_early=not _offloaded(model),
    )
    facts = _facts(model, windows, reducer, batch_size)
    configuration = {**facts, "device": model.device.type}
    target = None if path is None else check_target(path)
    if target is not None and workers.agreed(workers.leading and finished(target, facts, recorded_facts, overwrite)):
        drop_journal(target, configuration, workers)
        return load(target)
    with nullcontext() if target is None else journal_of(target, configuration, workers) as journal:
        collection = _Pass(model, windows, reducer, batches, workers, journal).collected(card, progress)
        begun = workers.agreed(datetime.now(UTC).isoformat(timespec="seconds") if journal is None else journal.begun)
        result = collection.result(_provenance(facts, collection, begun))
        if target is not None and journal is not None and workers.leading:
            save(result, target)
            journal.remove()
    return result


@dataclass(frozen=True, slots=True)
class _Pass:
    """A model's pass over windows: who shares it, and where what is finished is kept."""

    model: PreTrainedModel
    windows: TokenIds
    reducer: Reducer
    batches: Batches
    workers: Workers
    journal: Journal | None

    def collected(self, card: RotaryCard, progress: bool) -> Collection:
        """All windows, this process's share of them reduced here or taken from the journal."""
        units = self.batches.units(len(self.windows))
        done, left = self.workers.divided(list(units), lambda name: self._kept(name) is not None)
        known, ahead = (sum(len(units[name]) for name in names) for names in (done, left))
        collection = Collection(card, self.reducer, self.windows.shape[1], known + ahead)
        for name in done:
            collection.add(units[name], self._known(name))
        shown = progress and self.workers.leading
        with steps_of("measure", known + ahead, "window", known=known, shown=shown) as steps:
            for batch, reduced in self.batches.run([units[name] for name in left], self._reduced):
                for unit, cell in _cells(batch, reduced, self.batches):
                    collection.add(unit, cell)
                    if self.journal is not None and self.workers.keeping:
                        self.journal.write_arrays(self.batches.name(unit[0]), cell)
                steps.update(len(batch))
        collection.share(self.workers)
        return collection

    def _reduced(self, batch: list[int]) -> dict[str, np.ndarray]:
        """What the windows of a batch come to."""
        self.reducer.begin(first_window=batch[0] == 0)
        _run(self.model, self.windows[batch], self.reducer)
        self.reducer.fetch()
        if not self.reducer.finite():
            _locate_non_finite(self.model, self.windows[batch])
        return {**self.reducer.batch(), "batch_size": np.full(len(batch), len(batch))}

    def _kept(self, name: str) -> dict[str, np.ndarray] | None:
        return None if self.journal is None else self.journal.read_arrays(name)

    def _known(self, name: str) -> dict[str, np.ndarray]:
        """A finished unit, which the leading process has seen in the journal."""
        cell = self._kept(name)
        if cell is None:
            raise unseen(name)
        return cell


def _cells(
    batch: list[int], reduced: Mapping[str, np.ndarray], batches: Batches
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """What is kept together: a batch of a given size, or each window of an automatic one."""
    if batches.size != AUTO:
        yield batch, dict(reduced)
        return
    for row, window in enumerate(batch):
        rows = {name: values[row : row + 1] for name, values in reduced.items() if not name.endswith("_norms")}
        norms = {name: values for name, values in reduced.items() if name.endswith("_norms") and window == 0}
        yield [window], rows | norms


def _run(model: PreTrainedModel, batch: TokenIds, handler: Any) -> None:
    """Run the decoder over a batch with `handler` at every attention, without head and cache."""
    with undisturbed(model), suppress(PassEnded), intercepted(model, handler):
        decoder_of(model)(input_ids=batch.to(input_device(model)), use_cache=False)


def _offloaded(model: PreTrainedModel) -> bool:
    """Whether weights move in and out around each module; such a pass must run to its end to move them back."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _locate_non_finite(model: PreTrainedModel, batch: TokenIds) -> None:
    """Run the batch again to say where the first non-finite value is."""
    _run(model, batch, AttentionCall.check_finite)
    raise NonFiniteError(f"pair norms exceed {LARGEST_NORM:.0e}, so their power overflows float32; check the weights")


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


def _facts(model: PreTrainedModel, windows: TokenIds, reducer: Reducer, batch_size: BatchSize) -> dict[str, Any]:
    """All that decides the values of a window."""
    packages = ("ropescope", "torch", "transformers", "numpy", "xarray")
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "parameters": {"length": windows.shape[1], **asdict(reducer.frames), "batch_size": batch_size},
        "norm_heads": [[layer, list(heads)] for layer, heads in sorted(reducer.kept.items())],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages[1:]},
    }


def _provenance(facts: Mapping[str, Any], collection: Collection, created: str) -> dict[str, Any]:
    sizes = {"batch_sizes": sorted(collection.batch_sizes)} if facts["parameters"]["batch_size"] == AUTO else {}
    return {**facts, "parameters": {**facts["parameters"], **sizes}, "created": created}
