"""Figures and tables into files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.errors import ResultError

if TYPE_CHECKING:
    import xarray as xr


def report_sweep(data: xr.Dataset, target: Path, model: str) -> None:
    """Print the table, and write it and the curves beside the sweep."""
    from ropescope.base.files import check_target, written_whole
    from ropescope.display.figures.curves import sweep_curves
    from ropescope.evaluation.sweep.changes import sweep_table
    from ropescope.evaluation.sweep.in_words import findings

    print(sweep_table(data), end="\n\n")
    print("\n".join(findings(data)))
    save_figure(sweep_curves({model: data}), target.with_suffix(".png"))
    with written_whole(check_target(target.with_suffix(".md"))) as partial:
        partial.write_text(sweep_table(data, format="markdown"))
    with written_whole(check_target(target.with_suffix(".csv"))) as partial:
        partial.write_text(sweep_table(data, format="csv"))
    print(f"\nsweep: {target}\ncurves and tables: the same name with .png, .md and .csv")


def draw_result(
    result: xr.DataTree,
    stem: str,
    heads: list[tuple[int | None, int | None]],
    streams: Iterable[str],
    formats: Iterable[str],
    folder: Path,
) -> Iterable[Path]:
    from ropescope.analysis.heads import default_heads
    from ropescope.display.figures.heads import panel
    from ropescope.display.figures.maps import overview

    make_folder(folder)
    for stream in streams:
        shown = [(int(layer or 0), int(head or 0)) for layer, head in heads] or default_heads(result, stream)
        drawn = {"panel": panel(result, shown, stream), "overview": overview(result, stream)}
        for name, figure in drawn.items():
            for extension in formats:
                yield save_figure(figure, folder / f"{stem}-{stream}-{name}.{extension}")


def draw_sweeps(paths: list[Path], formats: Iterable[str], folder: Path) -> Iterable[Path]:
    from ropescope.display.figures.curves import sweep_curves
    from ropescope.evaluation.sweep.dataset import SWEEP

    figure = sweep_curves({path.stem: SWEEP.load(path) for path in paths})
    make_folder(folder)
    for extension in formats:
        yield save_figure(figure, folder / f"{paths[0].stem}-curves.{extension}")


def save_figure(figure: Any, path: Path) -> Path:
    from ropescope.base.files import check_target, written_whole

    with written_whole(check_target(path)) as partial:
        figure.savefig(partial, dpi=150)
    return path


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder}: {error.strerror}; choose another --output-dir") from error
