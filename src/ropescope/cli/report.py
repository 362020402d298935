"""The command report: everything known about one or more models as one web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ropescope.base.errors import InputError
from ropescope.cli.options import OUTPUT_GROUP, Labels, app
from ropescope.cli.printing import say


@app.command
def report(
    *files: Annotated[
        Path,
        Parameter(
            help="Files of `ropescope measure`, `importance`, `sweep`, `compress`, `tasks` and `claims --model`."
        ),
    ],
    label: Labels = (),
    output: Annotated[Path, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = Path("report.html"),
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Write one HTML file to explore results in a browser, offline.

    It maps both entropies over layers, heads and pairs, follows a click or the arrow keys to a head's curves, norms,
    mean spectrum and periods, and recounts as thresholds move; a link brings a view back. On top stands how many of the
    claims on rotary pairs hold by all that is given. Sweeps follow as curves and tables, then the claims, whether
    Frequency Entropy foretells importance, tasks, thin keys, what several results have in common, and where bands live.

    Example: `ropescope report qwen3.nc qwen3-worth.nc qwen3-sweep.nc --output qwen3.html`

    Parameters
    ----------
    label
        What to call each file, in their order; default its model, and its text and length where they tell files apart.
        Files of different kinds may have the same.
    output
        HTML file to write.
    overwrite
        Replace the HTML file if it exists.
    """
    import ropescope as rs
    from ropescope.base.files import check_target, named
    from ropescope.base.netcdf import check_source
    from ropescope.measurement.names import check_labels

    if not files:
        raise InputError("report got no measurement; name at least one file of 'ropescope measure'")
    check_target(output, overwrite=overwrite)
    check_labels(label, len(files))
    for path in named(files).values():
        check_source(path)
    target = rs.report(files, output, labels=label, overwrite=overwrite)
    say(f"report: {output} ({target.stat().st_size / 1e6:.1f} MB)")
