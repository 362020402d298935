"""The command report: everything known about one or more models as one web page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ropescope.base.errors import InputError
from ropescope.cli.options import OUTPUT_GROUP, app, load_results, named
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.base.tables import Section


@app.command
def report(
    *files: Annotated[Path, Parameter(help="Files of `ropescope measure`, `ropescope sweep` and `ropescope tasks`.")],
    output: Annotated[Path, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = Path("report.html"),
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Write one HTML file to explore results in a browser, offline.

    It maps both entropies over layers, heads and pairs, follows a click or the arrow keys to a head's curves, norms,
    mean spectrum and periods, and recounts as thresholds move; a link brings a view back. Sweeps follow as curves and
    tables, then tasks, what several results have in common, and where bands live.

    Example: `ropescope report qwen3.nc qwen3-sweep.nc qwen3-tasks.nc --output qwen3.html`

    Parameters
    ----------
    output
        HTML file to write.
    overwrite
        Replace the HTML file if it exists.
    """
    from ropescope.base.files import check_target
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.evaluation.tasks.dataset import TASKS

    target = check_target(output, overwrite=overwrite)
    measured, swept, evaluated = _sorted(files)
    results = load_results(measured)
    sweeps = {name: SWEEP.load(path) for name, path in named(swept).items()}
    tasks = {name: TASKS.load(path) for name, path in named(evaluated).items()}
    write_report(results, target, sweeps, tasks)
    say(f"report: {output} ({target.stat().st_size / 1e6:.1f} MB)")


def write_report(
    results: Mapping[str, xr.DataTree],
    target: Path,
    sweeps: Mapping[str, xr.Dataset] | None = None,
    tasks: Mapping[str, xr.Dataset] | None = None,
) -> None:
    """Write the page: the explorer, the sweeps, then tasks, comparison and where bands live in words."""
    from ropescope.base.files import written_whole
    from ropescope.display.report import render
    from ropescope.evaluation.tasks.table import tasks_section

    sections = [tasks_section(data, name) for name, data in (tasks or {}).items()]
    page = render(results, sweeps=sweeps, sections=[*sections, *_compared(results), *_lived(results)])
    with written_whole(target) as partial:
        partial.write_text(page, encoding="utf-8")


def _sorted(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Measurements, sweeps and tasks; what is none of them goes with the measurements, whose loading says so."""
    from ropescope.base.netcdf import schema_of
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.evaluation.tasks.dataset import TASKS

    schemas = {path: schema_of(path) for path in paths}
    sweeps, tasks = ([p for p in paths if schemas[p] == each.name] for each in (SWEEP, TASKS))
    measurements = [path for path in paths if path not in (*sweeps, *tasks)]
    if not measurements:
        raise InputError("report got no measurement; name at least one file of 'ropescope measure'")
    return measurements, sweeps, tasks


def _compared(results: Mapping[str, xr.DataTree]) -> Sequence[Section]:
    from ropescope.analysis.comparability import pair_by_pair
    from ropescope.analysis.comparison_in_words import same_places, spread_compared

    if len(results) < 2:
        return ()
    return same_places(results) if pair_by_pair(results) else (spread_compared(results),)


def _lived(results: Mapping[str, xr.DataTree]) -> list[Section]:
    from ropescope.analysis.places_in_words import where_bands_live

    return [where_bands_live(result, name if len(results) > 1 else "") for name, result in results.items()]
