"""Bytes go where leaving out costs most for them, and never beyond what was asked for."""

from __future__ import annotations

import pytest
import torch

from ropescope.base.errors import InputError
from ropescope.compression.budget import Budget, Offer, shared_out


def offer(*costs: float, size: int = 1, fixed: int = 0) -> Offer:
    return Offer(torch.tensor(costs, dtype=torch.float64), size, fixed)


def bytes_of(kept: dict[int, int], offers: dict[int, Offer], budget: Budget) -> int:
    numbers = sum(budget.tokens(layer) * (kept[layer] * o.size + o.fixed) for layer, o in offers.items())
    return (numbers + budget.sinks * sum(o.whole for o in offers.values())) * budget.itemsize + 4 * budget.length


def test_the_most_costly_come_first_whatever_layer_they_are_in() -> None:
    offers = {0: offer(9, 8, 1, 0.5), 1: offer(7, 0.2, 0.1, 0.05)}
    assert shared_out(offers, Budget(0.52, 1000, 0, 4, ("full", "full"))) == {0: 2, 1: 1}


def test_sinks_and_positions_are_paid_for() -> None:
    offers = {layer: offer(*range(64, 0, -1)) for layer in range(3)}
    for itemsize in (2, 4):
        for sinks in (0, 4):
            budget = Budget(0.5, 256, sinks, itemsize, ("full",) * 3)
            whole = 3 * 64 * 256 * itemsize
            assert 0.49 * whole < bytes_of(shared_out(offers, budget), offers, budget) <= 0.5 * whole


def test_a_byte_of_a_sliding_layer_is_spent_more_often() -> None:
    offers = {layer: offer(*range(64, 0, -1)) for layer in range(2)}
    kept = shared_out(offers, Budget(0.5, 1000, 0, 4, ("sliding 101", "full")))
    assert kept[0] > 60 and kept[1] < 32


def test_every_layer_keeps_something_and_in_multiples() -> None:
    offers = {0: offer(*[100.0] * 16), 1: offer(*[0.0] * 16)}
    assert shared_out(offers, Budget(0.6, 1000, 0, 4, ("full", "full")), multiple=4) == {0: 12, 1: 4}
    assert shared_out(offers, Budget(1.0, 1000, 4, 4, ("full", "full")), multiple=5) == {0: 16, 1: 16}


def test_too_little_is_said_with_what_to_do() -> None:
    budget = Budget(0.1, 20, 4, 4, ("full",))
    with pytest.raises(
        InputError, match=r"keep=0\.1 is too little to keep 4 sinks whole.*longer windows or fewer sinks"
    ):
        shared_out({0: offer(3, 2, 1)}, budget)
    with pytest.raises(InputError, match="75% never turn and cannot be dropped"):
        shared_out({0: offer(2, 1, fixed=6)}, Budget(0.5, 1000, 0, 4, ("full",)))
