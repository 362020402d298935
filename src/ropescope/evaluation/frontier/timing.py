"""How long a plan's cache takes against the stock one: a text read at once, then tokens one by one, turn about."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ropescope.base.arguments import check_at_least
from ropescope.compression.thinning import thin_keys
from ropescope.evaluation.frontier.dataset import SIDES, THIN
from ropescope.model.access import input_device, undisturbed
from ropescope.model.lm_head import headless
from ropescope.run.engine import Cell

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.compression.plans import KeyPlan


@dataclass(frozen=True)
class Timing:
    """What is timed of every plan that is no baseline.

    Parameters
    ----------
    length
        Tokens of the text that the cache holds, at least 2.
    tokens
        Decoded after it, at least 1; the first warms up and does not count where there are more.
    rounds
        Times that stock and thin cache take turns, at least 1.

    Examples
    --------
    >>> rs.frontier(model, windows, plans, timing=Timing(8192))  # doctest: +SKIP
    """

    length: int
    tokens: int = 9
    rounds: int = 3


def check_timing(timing: Timing) -> None:
    """Raise InputError if a number is out of range."""
    check_at_least("length to time at", timing.length, 2)
    check_at_least("tokens to time", timing.tokens, 1)
    check_at_least("rounds of timing", timing.rounds, 1)


def timing_facts(timing: Timing) -> dict[str, Any]:
    """What the record says of it."""
    return {**asdict(timing), "threads": torch.get_num_threads()}


def not_timed(rounds: int) -> Cell:
    """What stands where nothing was timed."""
    seconds = np.full((len(SIDES), rounds), np.nan)
    return {"prefill": seconds, "decode": seconds, "extra": np.full(len(SIDES), np.nan)}


def timed(model: PreTrainedModel, plan: KeyPlan, windows: TokenIds, timing: Timing) -> Cell:
    """Seconds of prefill and of a decoded token, (side, round), and peak memory of an accelerator, (side)."""
    repeats = -(-timing.length // windows.numel())
    ids = windows.flatten().repeat(repeats)[None, : timing.length].to(input_device(model))
    found = {name: values.copy() for name, values in not_timed(timing.rounds).items()}
    with undisturbed(model):
        for place in range(timing.rounds):
            for side, name in enumerate(SIDES):
                with thin_keys(model, plan) if name == THIN else nullcontext():
                    prefill, decode, extra = _one(model, plan.cache() if name == THIN else None, ids, timing.tokens)
                found["prefill"][side, place], found["decode"][side, place] = prefill, decode
                found["extra"][side] = max(extra, found["extra"][side]) if place else extra
    return found


def _one(model: PreTrainedModel, cache: Any, ids: TokenIds, tokens: int) -> tuple[float, float, float]:
    decoder, before = headless(model), _allocated(ids.device)
    start = _now(ids.device)
    cache = decoder(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
    prefilled, steps = _now(ids.device), []
    for _ in range(tokens):
        begun = _now(ids.device)
        decoder(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        steps.append(_now(ids.device) - begun)
    return prefilled - start, float(np.median(steps[1:] or steps)), _peak(ids.device) - before


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _allocated(device: torch.device) -> float:
    """Bytes in use, from where a peak counts anew; NaN on a device that does not count them."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    return float(torch.cuda.memory_allocated(device))


def _peak(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else float("nan")
