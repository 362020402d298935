"""The selections that have a name, and what an expression may compare, as a text to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ropescope.base.axes import STREAMS
from ropescope.base.counting import counted
from ropescope.base.pair_variables import pair_variables
from ropescope.base.selections import NAMED
from ropescope.interventions.selection import select

if TYPE_CHECKING:
    import xarray as xr

_PLACES = (
    ("layer", "model layer"),
    ("head", "query head, or key head for keys"),
    ("pair", "rotary pair"),
    ("frequency", "how fast the pair turns (rad/token)"),
    ("rotated", "a condition: the layer turns the pair"),
    ("defined", "a condition: both entropies have a value"),
)


def selections_text(result: xr.DataTree | None = None) -> str:
    """List the named selections with their expressions, and the names that expressions are made of.

    Parameters
    ----------
    result
        A measurement, in which the pairs of each selection are counted; None counts none.

    Returns
    -------
    str
        Two lists.
    """
    held = {} if result is None else {name: _counts(result, name) for name in NAMED}
    named = [(name, expression, *held.get(name, ())) for name, expression in NAMED.items()]
    variables = [(name, each.axis_label) for name, each in pair_variables().items()]
    return "\n".join(
        ["selections", *_columns(named), "", "what expressions compare", *_columns([*variables, *_PLACES])]
    )


def _counts(result: xr.DataTree, name: str) -> list[str]:
    counts = select(result, name).counts()
    return [counted(int(counts[stream].sum()), f"{stream} pair") for stream in STREAMS]


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
