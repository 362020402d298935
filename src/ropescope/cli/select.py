"""The command select: how many pairs satisfy an expression, and a mask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.cli.options import (
    WorthPath,
    app,
    worth_of,
)
from ropescope.cli.printing import say


@app.command
def select(
    result: Annotated[Path | None, Parameter(help="Result file of `ropescope measure`.")] = None,
    selection: Annotated[str | None, Parameter(help="Expression, or a selection by name.")] = None,
    *,
    listing: Annotated[bool, Parameter(name="--list", negative="")] = False,
    importance: WorthPath = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Select pairs of a result by an expression, and say how many there are in each layer.

    Expressions compare spectrum_fe, sequence_fe, mean_norm, dc_share, dominant_period, peak_share, layer, head, pair
    and frequency with numbers, joined by and, or, not and parentheses with each other and with rotated and defined;
    with `--importance` also fisher, gradient, rotation_fisher and rotation_gradient. `--list` explains all of them, and
    the selections by name; with a result it counts what these hold there.

    Example: `ropescope select qwen3.nc "spectrum_fe < 0.2 and layer >= 4" --output bands.safetensors`

    Parameters
    ----------
    listing
        Print the selections that have a name, and what an expression may compare.
    output
        Mask file (safetensors) to write; default none.
    overwrite
        Replace the mask file if it exists.
    """
    import ropescope as rs
    from ropescope.base.files import check_target
    from ropescope.interventions.named import selections_text
    from ropescope.measurement.results import load

    if listing:
        say(selections_text(None if result is None else load(result)))
        return
    if result is None or selection is None:
        raise InputError("select got no expression; give RESULT and one, or --list to see what there is")
    if output is not None:
        check_target(output, overwrite=overwrite)
    mask = rs.select(load(result), selection, importance=worth_of(importance))
    written = None if output is None else mask.save(output, overwrite=overwrite)
    say(mask)
    for layer, counts in zip(
        mask.layers, zip(*(mask.counts()[name].values for name in STREAMS), strict=True), strict=True
    ):
        say(f"  layer {layer:>3}  query {counts[0]:>5}  key {counts[1]:>5}")
    if written is not None:
        say(f"mask: {written}")
