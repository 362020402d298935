"""The command select: how many pairs satisfy an expression, and a mask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ropescope.base.axes import STREAMS
from ropescope.cli.options import (
    ResultPath,
    WorthPath,
    app,
    worth_of,
)
from ropescope.cli.printing import say


@app.command
def select(
    result: ResultPath,
    selection: Annotated[str, Parameter(help="Expression, or a selection by name.")],
    *,
    importance: WorthPath = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Select pairs of a result by an expression, and say how many there are in each layer.

    Expressions compare spectrum_fe, sequence_fe, mean_norm, dc_share, dominant_period, peak_share, layer, head, pair,
    frequency and rotated with numbers, joined by and, or, not and parentheses; with `--importance` also fisher,
    gradient, rotation_fisher and rotation_gradient. By name: bands, spectrum-outliers,
    periodic, table1 of the paper, and silent, the pairs that are exactly zero.

    Example: `ropescope select qwen3.nc "spectrum_fe < 0.2 and layer >= 4" --output bands.safetensors`

    Parameters
    ----------
    output
        Mask file (safetensors) to write; default none.
    overwrite
        Replace the mask file if it exists.
    """
    import ropescope as rs
    from ropescope.base.files import check_target
    from ropescope.measurement.results import load

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
