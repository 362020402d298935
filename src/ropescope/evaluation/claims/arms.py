"""Which pairs a model is run without, and their controls: the slowest and fastest, those past the band, the loudest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.interventions.controls import matched_random
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.measurement.results import ROTARY, mean_over_sequences, provenance, stream_data

# Where the band sits: the pair that turns so far, in radians, in the context that the model was trained on.
BAND_ANGLE = 3.66
PLAIN, TWICE_PLAIN = "plain", "twice plain"
SLOW_OFF, SLOW_STILL, FAST_OFF, FAST_STILL = "slow off", "slow still", "fast off", "fast still"
PAST_STILL, PAST_CONTROL = "past the band still", "random still"
LOUD = "loud halved"
# Random pairs, so many times as many as the loud ones.
TIMES = (1, 2, 4, 8)
# As many are halved, too; more are turned off, so that some cost the first reading as much as the loud ones do.
RANDOM = {times: "random halved" if times == 1 else f"random off x{times}" for times in TIMES}
HALF = 0.5
_QUARTER = 4
_LOUD = 16


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of running a model.

    Parameters
    ----------
    mask
        Pairs that are changed; None changes nothing.
    rotation
        Whether they lose their rotation, or are turned off.
    twice
        Whether the text is a passage read twice.
    alpha
        What is left of pairs that do not lose their rotation alone.
    """

    mask: PairMask | None = None
    rotation: bool = False
    twice: bool = False
    alpha: float = 0.0

    @property
    def pairs(self) -> int:
        """Key pairs that are changed."""
        return 0 if self.mask is None else int(self.mask.key.sum())

    @property
    def facts(self) -> list[str | float | bool]:
        """All that decides what it gives, in values that JSON can hold."""
        return ["" if self.mask is None else self.mask.digest(), self.rotation, self.twice, self.alpha]


def arms_of(result: xr.DataTree, context: int | None = None) -> dict[str, Arm]:
    """Every way of running that claims are judged by.

    Parameters
    ----------
    result
        A measurement of the model.
    context
        Tokens that it was trained on at once; None is what its configuration says.
    """
    every = select(result, "layer >= 0")
    slow, fast = (
        _everywhere(every, _extreme_quarter(result, end), name) for end, name in ((0, "slowest"), (-1, "fastest"))
    )
    arms = {
        PLAIN: Arm(),
        SLOW_OFF: Arm(slow),
        SLOW_STILL: Arm(slow, rotation=True),
        FAST_OFF: Arm(fast),
        FAST_STILL: Arm(fast, rotation=True),
        TWICE_PLAIN: Arm(twice=True),
        LOUD: Arm(_loudest(every, result, 1), twice=True, alpha=HALF),
    }
    for times, name in RANDOM.items():
        drawn = matched_random(_loudest(every, result, times), seed=times)
        arms[name] = Arm(drawn, twice=True, alpha=HALF if times == 1 else 0.0)
    past = past_the_band(result, context)
    if past is not None and past.any():
        arms[PAST_STILL] = Arm(_everywhere(every, past, "past the band"), rotation=True)
        arms[PAST_CONTROL] = Arm(_everywhere(every, _as_many(result, past), "as many random"), rotation=True)
    return arms


def past_the_band(result: xr.DataTree, context: int | None = None) -> np.ndarray | None:
    """Turning pairs that turn less in the context than the band does, (layer, pair); None where that is not known."""
    lengths, speed = contexts(result, context), speeds(result)
    return None if lengths is None else (speed > 0) & (speed * lengths[:, None] < BAND_ANGLE)


def contexts(result: xr.DataTree, context: int | None = None) -> np.ndarray | None:
    """Tokens that each layer looks back to in training: the context, or its window where attention slides, (layer)."""
    length = training_context(result) if context is None else context
    if length is None:
        return None
    layers = result.children[ROTARY].to_dataset()[LAYER].values
    config: Mapping[str, Any] = provenance(result).get("model", {}).get("config", {})
    text: Mapping[str, Any] = next(
        (part for part in (config, config.get("text_config")) if part and part.get("layer_types")), {}
    )
    kinds, window = text.get("layer_types", []), text.get("sliding_window")
    slides = [bool(window) and layer < len(kinds) and kinds[layer] == "sliding_attention" for layer in layers]
    return np.where(slides, min(length, window or length), length)


def contexts_in_words(lengths: np.ndarray) -> str:
    """What those contexts are, as "8192 tokens"."""
    return f"{' or '.join(str(length) for length in sorted(set(lengths.tolist()), reverse=True))} tokens"


def training_context(result: xr.DataTree) -> int | None:
    """Tokens of the context that the model's configuration names, before any extension; None where it names none."""
    return _found(provenance(result).get("model", {}).get("config", {}))


def _found(config: Any) -> int | None:
    if not isinstance(config, Mapping):
        return None
    for name in ("original_max_position_embeddings", "max_position_embeddings"):
        inner = [config.get(name), *(part.get(name) for part in config.values() if isinstance(part, Mapping))]
        if known := [value for value in inner if isinstance(value, int) and value > 0]:
            return known[0]
    return None


def speeds(result: xr.DataTree) -> np.ndarray:
    """Radians per token of every turning pair, (layer, pair), 0 where nothing turns or the speed is not known."""
    rotary = result.children[ROTARY].to_dataset()
    speed = np.abs(np.nan_to_num(rotary["frequency"].transpose(LAYER, PAIR).values))
    turning: np.ndarray = np.where(rotary["rotated"].transpose(LAYER, PAIR).values, speed, 0.0)
    return turning


def _extreme_quarter(result: xr.DataTree, end: int) -> np.ndarray:
    """The slowest (end 0) or fastest (-1) quarter of each layer's turning pairs, (layer, pair)."""
    speed = speeds(result)
    chosen = np.zeros_like(speed, dtype=bool)
    for row, own in zip(chosen, speed, strict=True):
        turning = np.flatnonzero(own > 0)
        ordered = turning[np.argsort(own[turning], kind="stable")][:: 1 if end == 0 else -1]
        row[ordered[: math.ceil(len(turning) / _QUARTER)]] = True
    return chosen


def _as_many(result: xr.DataTree, pairs: np.ndarray) -> np.ndarray:
    """As many random turning pairs in every layer, which all its heads share, as derotation does."""
    random = np.random.default_rng(0)
    chosen = np.zeros_like(pairs)
    for row, own, turning in zip(chosen, pairs, speeds(result) > 0, strict=True):
        row[random.permutation(np.flatnonzero(turning))[: own.sum()]] = True
    return chosen


def _everywhere(every: PairMask, pairs: np.ndarray, name: str) -> PairMask:
    """The same pairs in every head of a layer, queries and keys."""
    chosen = {
        stream: array & xr.DataArray(pairs, coords={LAYER: array[LAYER], PAIR: array[PAIR]}, dims=(LAYER, PAIR))
        for stream, array in every.streams().items()
    }
    ordered = {stream: chosen[stream].transpose(LAYER, HEAD_AXIS[stream], PAIR) for stream in STREAMS}
    return every.replaced(ordered["query"], ordered["key"], name)


def _loudest(every: PairMask, result: xr.DataTree, times: int) -> PairMask:
    """The pairs of highest mean norm of every head: a sixteenth of its pairs, so many times."""
    drawn = {}
    for stream, array in every.streams().items():
        norm = mean_over_sequences(stream_data(result, stream))["mean_norm"].transpose(*array.dims).values
        wanted = times * np.ceil(array.values.sum(-1, keepdims=True) / _LOUD)
        rank = np.where(array.values, -norm, np.inf).argsort(-1, kind="stable").argsort(-1)
        drawn[stream] = array.copy(data=array.values & (rank < wanted))
    return every.replaced(drawn["query"], drawn["key"], f"loudest, {times}/{_LOUD} of each head")
