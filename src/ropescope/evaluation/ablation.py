"""Single pairs taken away for true, one after the other; only the layers from the pair's own on are run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ropescope.base.axes import SEQUENCE, STREAMS
from ropescope.base.errors import NonFiniteError
from ropescope.interventions.derotation import turning_back
from ropescope.interventions.masks import PairMask
from ropescope.interventions.weighting import scaling
from ropescope.model.access import undisturbed, vocabulary_size
from ropescope.model.card import RotaryCard
from ropescope.model.lm_head import logits_of, positions_at_once
from ropescope.model.partial_forward import Recorded, recorded
from ropescope.run.batching import fitted
from ropescope.run.engine import Cell, one_by_one

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.attention import Handler

SCALE, ROTATION = "scale", "rotation"
KINDS = (SCALE, ROTATION)
# Logits compared at once: on a CPU what its cache holds.
_COMPARED = {"cpu": 2**20, "accelerator": 2**26}
# What the exponential of, in float32, is not yet infinite.
_LARGEST = 80.0


@dataclass(slots=True)
class Ablation:
    """Single pairs taken away, window by window and layer by layer."""

    model: PreTrainedModel
    windows: TokenIds
    card: RotaryCard
    worth: xr.DataTree
    stream: str
    sample: list[tuple[int, int, int]]
    kinds: Sequence[str]
    _window: int = -1
    _unchanged: Unchanged | None = None

    def rows(self) -> dict[int, list[int]]:
        """Which of the sampled pairs are in each layer, by its row."""
        rows = sorted({place[0] for place in self.sample})
        return {row: [n for n, place in enumerate(self.sample) if place[0] == row] for row in rows}

    def cells(self) -> dict[str, tuple[int, int]]:
        """Window and row of the layer of every cell, windows first: what a window needs is made once."""
        return {f"window-{w:06}-row-{row:04}": (w, row) for w in range(len(self.windows)) for row in self.rows()}

    def steps(self) -> dict[str, int]:
        counts = {row: len(places) for row, places in self.rows().items()}
        return {name: counts[row] for name, (_, row) in self.cells().items()}

    def computed(self, names: Sequence[str], steps: Any) -> Iterator[tuple[str, Cell]]:
        where = self.cells()
        compute = one_by_one(lambda name: self._fitted(*where[name]), lambda name: f"window {where[name][0]}")
        yield from compute(names, steps)  # type: ignore[misc]

    def _fitted(self, window: int, row: int) -> dict[str, np.ndarray]:
        return fitted(lambda: self._cell(window, row), "a window and all its logits")

    def _cell(self, window: int, row: int) -> dict[str, np.ndarray]:
        """(kind, pair, KL or change of NLL)."""
        if self._window != window or self._unchanged is None:
            self._unchanged = None
            self._unchanged, self._window = Unchanged.of(self.model, self.windows[[window]]), window
        found = np.full((len(KINDS), len(self.rows()[row]), 2), np.nan)
        for kind, of_kind in zip(KINDS, found, strict=True):
            for place, values in zip(self.rows()[row], of_kind, strict=True):
                if kind in self.kinds and self._turns(kind, self.sample[place]):
                    values[:] = self._unchanged.against(self.card.layers[row].layer, self._handler(kind, place))
                    self._check_finite(values, place)
        return {"found": found}

    def _turns(self, kind: str, place: tuple[int, int, int]) -> bool:
        fisher = self.worth[self.stream].to_dataset()["rotation_fisher"].values
        return kind == SCALE or bool((fisher[:, *place] > 0).any())

    def _handler(self, kind: str, place: int) -> Handler:
        mask = self._mask(self.sample[place])
        if kind == SCALE:
            return scaling(self.card, mask, 0.0)
        return turning_back(self.model, self.card, mask, 1.0)

    def _mask(self, place: tuple[int, int, int]) -> PairMask:
        present = {name: self.worth[name].to_dataset()["fisher"].notnull().any(SEQUENCE) for name in STREAMS}
        chosen = {name: array & False for name, array in present.items()}
        chosen[self.stream].values[place] = True
        pairing = tuple(str(rotation.pairing) for rotation in self.card.layers)
        arrays = (chosen["query"], chosen["key"], present["query"], present["key"])
        return PairMask(*arrays, pairing=pairing, provenance={"selection": "one pair"})

    def _check_finite(self, values: np.ndarray, place: int) -> None:
        if not np.isfinite(values).all():
            row, head, pair = self.sample[place]
            raise NonFiniteError(
                f"without {self.stream} pair {pair} of layer {self.card.layers[row].layer}, head {head} the model "
                "gives tokens no finite probability; check the weights, or use dtype float32 or bfloat16"
            )


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A window as the model stands: what its layers gave, and all its logits, (position, vocabulary)."""

    ran: Recorded
    logits: list[Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, window: TokenIds) -> Unchanged:
        ran = recorded(model, window)
        return cls(ran, [part.clone() for part, _ in _logits(ran, ran.output.last_hidden_state)])

    def against(self, layer: int, handler: Handler) -> tuple[float, float]:
        """KL divergence of what the model gives with a handler, and the change of the loss, nats per token."""
        hidden = self.ran.hidden_states(layer, handler)
        found = []
        for ours, (theirs, targets) in zip(self.logits, _logits(self.ran, hidden), strict=True):
            parts = (values.split(_rows(ours)) for values in (ours, theirs, targets))
            found += [lost(*part) for part in zip(*parts, strict=True)]
        divergence, change = torch.cat(found, 1).double().mean(1).tolist()
        return divergence, change


def lost(ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """KL divergence and change of the loss at each position, (2, position); `theirs` is written over.

    With x the difference of logits less its mean under p, the divergence is ln(sum of p exp(x)), without a
    normaliser.
    """
    probability = ours.softmax(-1)
    difference = theirs.sub_(ours)
    if probability.amin() == 0:
        difference.masked_fill_(ours == -torch.inf, 0.0)
    difference -= torch.linalg.vecdot(probability, difference)[:, None]
    own = difference.gather(-1, targets[:, None])[:, 0]
    if difference.amax() > _LARGEST:
        divergence = ours.log_softmax(-1).add_(difference).logsumexp(-1)
    else:
        # No first order either, which only rounding would keep from summing to 0.
        curved = torch.expm1(difference).sub_(difference)
        divergence = torch.linalg.vecdot(probability, curved).log1p()
    return torch.stack((divergence, divergence - own))


def _rows(logits: Tensor) -> int:
    return max(1, _COMPARED["cpu" if logits.device.type == "cpu" else "accelerator"] // logits.shape[-1])


def _logits(ran: Recorded, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of a few positions at a time, in float32 at least, and the tokens that come next."""
    scored = hidden.shape[1] - 1
    size = positions_at_once(hidden, vocabulary_size(ran.model), scored)
    for start in range(0, scored, size):
        part = slice(start, min(start + size, scored))
        with undisturbed(ran.model):
            logits = logits_of(ran.model, ran.output, hidden[0, part], ran.ids[0, part])
            targets = ran.ids[0, part.start + 1 : part.stop + 1].to(logits.device)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32)), targets
