"""How bytes are shared out over layers: what costs most to leave out, for the bytes it takes, comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ropescope.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_POSITION_BYTES = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bytes thin keys may take for a text.

    Parameters
    ----------
    keep
        Share of the bytes of the stock keys, above 0 to 1.
    length
        Tokens of the text.
    sinks
        First tokens that stay whole.
    itemsize
        Bytes of a stored number.
    stores
        What the cache keeps of every layer.
    """

    keep: float
    length: int
    sinks: int
    itemsize: int
    stores: Sequence[str]

    def tokens(self, layer: int) -> int:
        """How many tokens of the text a layer's cache holds at its end."""
        kind, _, number = self.stores[layer].partition(" ")
        return min(self.length, int(number) - 1) if kind == "sliding" else self.length

    def numbers(self, offers: Mapping[int, Offer]) -> int:
        """How many numbers may be stored beside sinks and positions."""
        whole = sum(self.tokens(layer) * offer.whole for layer, offer in offers.items())
        sinks = self.sinks * sum(offer.whole for offer in offers.values())
        return int(self.keep * whole) - sinks - self.length * _POSITION_BYTES // self.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """What a layer can keep, step by step.

    Parameters
    ----------
    costs
        Of leaving out each step, falling, (step).
    size
        Numbers of a token's keys that a step takes.
    fixed
        Numbers that are kept whatever happens.
    """

    costs: Tensor
    size: int
    fixed: int = 0

    @property
    def whole(self) -> int:
        """Numbers of a token's keys with all steps."""
        return self.fixed + self.size * len(self.costs)


def shared_out(offers: Mapping[int, Offer], budget: Budget, multiple: int = 1) -> dict[int, int]:
    """How many steps each layer keeps: in multiples, and at least one multiple everywhere.

    Raises
    ------
    InputError
        If the budget is too small for that.
    """
    if budget.keep == 1:
        return {layer: len(offer.costs) for layer, offer in offers.items()}
    left = budget.numbers(offers) - sum(budget.tokens(layer) * offer.fixed for layer, offer in offers.items())
    kept, closed = dict.fromkeys(offers, 0), set()
    for more, _, layer, count in sorted(_steps(offers, budget, multiple)):
        numbers = count * offers[layer].size * budget.tokens(layer)
        if numbers > left and not more:
            raise InputError(_too_little(offers, budget))
        if numbers > left or layer in closed:
            closed.add(layer)
            continue
        kept[layer] += count
        left -= numbers
    return kept


def _steps(offers: Mapping[int, Offer], budget: Budget, multiple: int) -> list[tuple[bool, float, int, int]]:
    """Every multiple of every layer: whether it has one already, less the cost for its bytes, layer, steps in it."""
    return [
        (start > 0, -float(part.mean()) / (offer.size * budget.tokens(layer)), layer, len(part))
        for layer, offer in offers.items()
        for start in range(0, len(offer.costs), multiple)
        for part in [offer.costs[start : start + multiple]]
    ]


def _too_little(offers: Mapping[int, Offer], budget: Budget) -> str:
    fixed = sum(offer.fixed for offer in offers.values()) / sum(offer.whole for offer in offers.values())
    beside = (
        f", of which {fixed:.0%} never turn and cannot be dropped (method='latent' thins them, too)" if fixed else ""
    )
    return (
        f"keep={budget.keep} is too little to keep {budget.sinks} sinks whole and something of every layer's keys at "
        f"{budget.length} tokens{beside}; keep more, or take longer windows or fewer sinks"
    )
