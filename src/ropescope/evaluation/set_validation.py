"""Does importance, added up over pairs, say what turning whole sets of them down costs? Held against the true KL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError, NonFiniteError
from ropescope.base.facts import listed, other_model, versions
from ropescope.base.statistics import ESTIMATE, ESTIMATES, LEAST_WINDOWS, jackknife
from ropescope.evaluation.ablation import Unchanged
from ropescope.evaluation.set_prediction import SET_VALIDATION, VARIABLES, predicted_kl
from ropescope.evaluation.sweep.arms import cell_name, check_masks, checked_alphas
from ropescope.evaluation.sweep.dataset import ALPHA, SELECTION, STREAM
from ropescope.interventions.fitting import fitting_card
from ropescope.interventions.masks import PairMask
from ropescope.interventions.weighting import scaling
from ropescope.measurement.results import provenance
from ropescope.model.identity import model_provenance
from ropescope.model.lm_head import check_next_tokens
from ropescope.model.windows import windows_protocol
from ropescope.run.engine import Cell, Cells, Output, one_by_one
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.card import RotaryCard

STRENGTHS = (0.0, 0.5, 0.8, 0.9, 0.95)


def validate_sets(
    model: PreTrainedModel,
    windows: TokenIds,
    importance: xr.DataTree,
    selections: Mapping[str, PairMask],
    *,
    alphas: Iterable[float] = STRENGTHS,
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Turn whole sets of pairs down, and say how far their importance, added up, foretold what that costs.

    Each selection is weighted at each strength as :func:`ropescope.weighted_rope` does it; what comes out is held
    against :func:`ropescope.predicted_kl`. Layers below the first selected pair are not run again.

    Parameters
    ----------
    model, windows
        The model that `importance` is of, and token ids to judge on, (sequence, position), at least 2 positions.
    importance
        What :func:`ropescope.importance` gave.
    selections
        Masks by name, at least one.
    alphas
        Strengths, 0 to less than 1, at least one.
    path, overwrite
        NetCDF file for the dataset, resumed and kept as :func:`ropescope.sweep` does.
    group
        Processes that share the work, each of which makes this call with a copy of the model.
    progress
        Show how far it is.

    Returns
    -------
    xarray.Dataset
        `kl` and `nll` (selection, alpha, sequence), what it costs, nats per token; `predicted_kl` (selection, alpha);
        `ratio` (selection, alpha, estimate), predicted over true KL of all windows, with a 95 % jackknife interval over
        them, NaN with fewer than five; `selected_pairs` (selection, stream).

    Raises
    ------
    InputError
        If `importance` or a mask is of another model, the windows do not fit, or strengths are missing or out of range.
    NonFiniteError
        If a set's loss leaves no finite probability.
    ResultError
        If the file or its journal cannot be written, belong to another run, or are in use; no finished cell is lost.

    Examples
    --------
    >>> check = validate_sets(model, windows, worth, {"bands": rs.select(result, "bands")})  # doctest: +SKIP
    >>> check.ratio.sel(selection="bands", alpha=0.9, estimate="value").item()  # doctest: +SKIP
    """
    check_next_tokens(model, windows)
    strengths = _checked(selections, alphas)
    workers, of_cells = workers_of(model, group), _facts_of_cells(model, windows)
    known = provenance(importance)
    if differing := other_model(known.get("model", {}), of_cells["model"]):
        raise InputError(f"the importance is of another model (other {listed(differing)}); run it on this one")
    masks = dict(selections)
    for mask in masks.values():
        card = fitting_card(model, mask)
    predicted = np.array([[predicted_kl(importance, mask, alpha) for alpha in strengths] for mask in masks.values()])
    chosen = {name: {**mask.provenance, "sha256": mask.digest()} for name, mask in masks.items()}
    facts = {**of_cells, "importance": known, "selections": chosen, "alphas": list(strengths)}
    run = _Sets(model, windows, card, masks, strengths)

    def made(cells: Cells) -> xr.Dataset:
        steps = dict.fromkeys(run.cells(), 1)
        return _dataset(run, cells.everywhere(dict(cells.shared(steps).found(run.computed))), predicted, facts)

    output = Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts={**of_cells, "device": model.device.type},
        load=SET_VALIDATION.load,
        save=SET_VALIDATION.save,
        recorded=SET_VALIDATION.provenance,
    )
    return output.finished_or_made(Cells("validate sets", "set", workers, progress), made)


def _facts_of_cells(model: PreTrainedModel, windows: TokenIds) -> dict[str, Any]:
    """All that decides what a mask at a strength costs."""
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "versions": versions("torch", "transformers", "numpy", "xarray"),
    }


def _checked(selections: Mapping[str, PairMask], alphas: Iterable[float]) -> tuple[float, ...]:
    """The strengths in rising order, once these, and the masks, are what can be asked for."""
    if not selections:
        raise InputError("got no selections; give at least one mask by name, as in {'bands': mask}")
    check_masks(selections)
    strengths = checked_alphas(alphas, "alphas")
    if 1.0 in strengths:
        raise InputError("alphas got 1, at which nothing changes; give numbers from 0 to less than 1")
    return tuple(sorted(set(strengths)))


@dataclass(slots=True)
class _Sets:
    """Sets of pairs turned down, window by window."""

    model: PreTrainedModel
    windows: TokenIds
    card: RotaryCard
    masks: dict[str, PairMask]
    alphas: tuple[float, ...]
    _window: int = -1
    _unchanged: Unchanged | None = None

    def places(self) -> Iterator[tuple[str, tuple[int, str, float]]]:
        """Cell, window, selection and strength of everything asked for, windows first: what one needs is made once."""
        for window in range(len(self.windows)):
            for name, mask in self.masks.items():
                for alpha in self.alphas:
                    yield f"window-{window:06}-{cell_name(mask, alpha)}", (window, name, alpha)

    def cells(self) -> dict[str, tuple[int, str, float]]:
        """What stands for each cell, equal ones once."""
        return dict(self.places())

    def computed(self, names: Sequence[str], steps: Any) -> Iterator[tuple[str, Cell]]:
        where = self.cells()

        def described(name: str) -> str:
            window, selection, alpha = where[name]
            return f"window {window}, {selection} at {alpha:g}"

        yield from one_by_one(lambda name: self._cell(*where[name]), described)(names, steps)  # type: ignore[misc]

    def _cell(self, window: int, name: str, alpha: float) -> dict[str, np.ndarray]:
        """(KL, change of NLL)."""
        layer = self._first_layer(self.masks[name])
        if layer is None:
            return {"found": np.zeros(2)}
        if self._window != window or self._unchanged is None:
            self._unchanged = None
            self._unchanged, self._window = Unchanged.of(self.model, self.windows[[window]]), window
        found = np.array(self._unchanged.against(layer, scaling(self.card, self.masks[name], alpha)))
        if not np.isfinite(found).all():
            raise NonFiniteError(
                f"with {name} at alpha {alpha:g} the model gives tokens of window {window} no finite probability; "
                "check the weights, or use dtype float32 or bfloat16"
            )
        return {"found": found}

    def _first_layer(self, mask: PairMask) -> int | None:
        touched = np.any([array.values.any((1, 2)) for array in mask.streams().values()], axis=0)
        return self.card.layers[int(touched.argmax())].layer if touched.any() else None


def _dataset(run: _Sets, cells: Mapping[str, Cell], predicted: np.ndarray, facts: Mapping[str, Any]) -> xr.Dataset:
    found = np.empty((len(run.masks), len(run.alphas), len(run.windows), 2))
    for cell, (window, name, alpha) in run.places():
        found[list(run.masks).index(name), run.alphas.index(alpha), window] = cells[cell]["found"]
    kl = np.moveaxis(found[..., 0], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = jackknife(lambda rows: predicted / rows.mean(0), kl, least=LEAST_WINDOWS)
    variables = {
        "kl": found[..., 0],
        "nll": found[..., 1],
        "predicted_kl": predicted,
        "ratio": np.where(predicted[..., None] > 0, ratio, np.nan),
        "selected_pairs": np.array([[int(array.sum()) for array in m.streams().values()] for m in run.masks.values()]),
    }
    arrays = {
        name: (dims, variables[name], {"long_name": text, "units": unit})
        for name, (text, unit, dims) in VARIABLES.items()
    }
    labels = {SELECTION: list(run.masks), ALPHA: list(run.alphas), STREAM: list(STREAMS), ESTIMATE: list(ESTIMATES)}
    return xr.Dataset(arrays, labels, SET_VALIDATION.attributes(facts))
