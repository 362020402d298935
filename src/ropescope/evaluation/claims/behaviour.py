"""What a model does that no measurement of its norms shows: where heads look, and what it loses without some pairs.

A cell is one window looked at, or one way of running all windows. Each finished cell is kept at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ropescope.base.axes import LAYER, SEQUENCE
from ropescope.base.errors import InputError
from ropescope.base.facts import listed, other_model, versions
from ropescope.evaluation.claims.arms import Arm, arms_of
from ropescope.evaluation.claims.attending import attended
from ropescope.evaluation.claims.behaviour_dataset import ARM, BEHAVIOUR, LOOKED, READING, READINGS, VARIABLES
from ropescope.evaluation.perplexity import check_scoring, perplexity
from ropescope.interventions.derotation import derotated
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.results import provenance
from ropescope.model.access import input_device, undisturbed
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.decoder import decoder_of
from ropescope.model.identity import model_provenance
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.engine import Cell, Cells, Output, one_by_one
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.card import RotaryCard

# A look back needs distances, and a passage that is read twice some text.
LEAST_LENGTH = 64


def behaviour(
    model: PreTrainedModel,
    windows: TokenIds,
    result: xr.DataTree,
    *,
    context: int | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Look at what a model attends to, and run it without some pairs or their rotation.

    Parameters
    ----------
    model
        The model that `result` is of.
    windows
        Token ids, (sequence, position), at least 64 positions.
    result
        What :func:`ropescope.measure` gave: it says which pairs are loud, fast and slow.
    context
        Tokens that the model was trained on at once; None takes what its configuration says.
    path, overwrite
        NetCDF file for the dataset, resumed and kept as :func:`ropescope.sweep` does.
    group
        Processes that share the work, each of which makes this call with a copy of the model.
    progress
        Show how far it is.

    Returns
    -------
    xarray.Dataset
        `previous`, `diagonal`, `best` and `random` (sequence, layer, head) as :func:`attended` gives them; `nats`
        (arm, sequence), and `readings` (arm, reading, sequence) of the first half of each window read twice, both nats
        per token and NaN for arms of the other; `pairs` (arm).

    Raises
    ------
    InputError
        If `result` is of another model, or the windows do not fit.
    ResultError
        If the file or its journal cannot be written, belong to another run, or are in use.
    """
    facts = _facts(model, windows, result, context)
    workers = workers_of(model, group)
    run = _Run(model, windows, arms_of(result, context), probe(model, positions=windows.shape[1]))
    output = Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts={**facts, "device": model.device.type},
        load=BEHAVIOUR.load,
        save=BEHAVIOUR.save,
        recorded=BEHAVIOUR.provenance,
    )

    def made(cells: Cells) -> xr.Dataset:
        share = cells.shared(run.steps())
        return run.dataset(cells.everywhere(dict(share.found(one_by_one(run.cell, str)))), facts)

    return output.finished_or_made(Cells("look", "step", workers, progress), made)


def _facts(model: PreTrainedModel, windows: TokenIds, result: xr.DataTree, context: int | None) -> dict[str, Any]:
    """All that decides what is seen, once it is clear that model, windows and measurement belong together."""
    check_scoring(model, windows, None, 1)
    if windows.shape[1] < LEAST_LENGTH:
        raise InputError(f"got windows of {windows.shape[1]} tokens; to look back they need at least {LEAST_LENGTH}")
    ours = model_provenance(model)
    if differing := other_model(provenance(result).get("model", {}), ours):
        raise InputError(f"the measurement is of another model (other {listed(differing)}); measure this one")
    return {
        "ropescope": version("ropescope"),
        "model": ours,
        "windows": windows_protocol(windows),
        "measured": provenance(result)["windows"],
        "parameters": {"context": context},
        "arms": {name: arm.facts for name, arm in arms_of(result, context).items()},
        "versions": versions("torch", "transformers", "numpy", "xarray"),
    }


@dataclass(frozen=True)
class _Run:
    """Every window looked at, and every arm run over all of them."""

    model: PreTrainedModel
    windows: TokenIds
    arms: Mapping[str, Arm]
    card: RotaryCard

    def steps(self) -> dict[str, int]:
        looks = {f"window-{window:06}": 1 for window in range(len(self.windows))}
        return looks | {f"arm-{name.replace(' ', '-')}": len(self.windows) for name in self.arms}

    def cell(self, name: str) -> Cell:
        kind, _, which = name.partition("-")
        if kind == "window":
            return self._looked(int(which))
        arm = next(arm for label, arm in self.arms.items() if label.replace(" ", "-") == which)
        with self._open(arm):
            return {"nats": self._readings() if arm.twice else self._nats()}

    def _open(self, arm: Arm) -> AbstractContextManager[None]:
        if arm.mask is None:
            return nullcontext()
        return derotated(self.model, arm.mask) if arm.rotation else weighted_rope(self.model, arm.mask, arm.alpha)

    def _nats(self) -> np.ndarray:
        found = perplexity(self.model, self.windows)
        per_token: np.ndarray = found.window_nats / found.window_tokens
        return per_token

    def _readings(self) -> np.ndarray:
        """Nats per token of the same tokens at the first and at the second reading, (reading, sequence)."""
        passage = self.windows[:, : self.windows.shape[1] // 2]
        # A token that begins a text has its place at the beginning alone.
        again = passage[:, 1:] if windows_protocol(self.windows).get("bos") else passage
        twice = perplexity(self.model, torch.cat((passage, again), 1), stride=again.shape[1] - 1)
        once = perplexity(self.model, passage, stride=again.shape[1] - 1)
        return np.stack([found.window_nats / found.window_tokens for found in (once, twice)])

    def _looked(self, window: int) -> Cell:
        rotations = {rotation.layer: rotation for rotation in self.card.layers}
        found: dict[int, dict[str, np.ndarray]] = {}

        def look(call: AttentionCall) -> None:
            found[call.layer] = attended(call, rotations[call.layer])

        ids = self.windows[[window]].to(input_device(self.model))
        with undisturbed(self.model), intercepted(self.model, look):
            decoder_of(self.model)(input_ids=ids, use_cache=False)
        heads = max(rotation.heads for rotation in rotations.values())
        return {name: np.stack([_padded(found[layer][name], heads) for layer in rotations]) for name in LOOKED}

    def dataset(self, cells: Mapping[str, Cell], facts: Mapping[str, Any]) -> xr.Dataset:
        count, names = len(self.windows), list(self.arms)
        nats = np.full((len(names), count), np.nan)
        readings = np.full((len(names), len(READINGS), count), np.nan)
        for row, (name, arm) in enumerate(self.arms.items()):
            (readings if arm.twice else nats)[row] = cells[f"arm-{name.replace(' ', '-')}"]["nats"]
        values = {name: np.stack([cells[f"window-{w:06}"][name] for w in range(count)]) for name in LOOKED}
        values |= {"nats": nats, "readings": readings, "pairs": np.array([arm.pairs for arm in self.arms.values()])}
        arrays = {
            name: (dims, values[name], {"long_name": what, "units": units})
            for name, (what, units, dims) in VARIABLES.items()
        }
        layers = [rotation.layer for rotation in self.card.layers]
        labels = {ARM: names, READING: list(READINGS), LAYER: layers, SEQUENCE: range(count)}
        return xr.Dataset(arrays, labels, BEHAVIOUR.attributes(facts))


def _padded(values: np.ndarray, heads: int) -> np.ndarray:
    return np.pad(values, (0, heads - len(values)), constant_values=np.nan)
