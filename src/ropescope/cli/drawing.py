"""Figures and tables into files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.axes import KEY, QUERY
from ropescope.base.errors import InputError, ResultError, RopescopeError, first_line
from ropescope.base.files import named
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


# Cells of maps are crisp at the width of a page's column.
_DPI = 200


def report_sweep(data: xr.Dataset, target: Path, model: str) -> None:
    """Print the table, and write it and the curves beside the sweep."""
    from ropescope.evaluation.sweep.changes import sweep_table
    from ropescope.evaluation.sweep.in_words import findings

    def curves() -> Figure:
        from ropescope.display.figures.curves import sweep_curves

        return sweep_curves({model: data})

    _report("sweep", "curves", target, partial(sweep_table, data), curves, findings(data))


def report_frontier(data: xr.Dataset, target: Path, model: str) -> None:
    """Print the table, and write it and the figure beside the frontier."""
    from ropescope.evaluation.frontier.changes import frontier_table
    from ropescope.evaluation.frontier.in_words import findings

    def curves() -> Figure:
        from ropescope.display.figures.frontier import frontier_curves

        return frontier_curves({model: data})

    _report("frontier", "figure", target, partial(frontier_table, data), curves, findings(data))


def _report(
    what: str,
    drawn: str,
    target: Path,
    table: Callable[..., str],
    figure: Callable[[], Figure],
    sentences: Iterable[str],
) -> None:
    """Print table and sentences, and write table and figure beside the file, whatever keeps Matplotlib from drawing."""
    for extension, format in ((".md", "markdown"), (".csv", "csv")):
        write_text(target.with_suffix(extension), table(format=format).rstrip("\n") + "\n")
    try:
        with drawing(f"the {what} is in {target}"):
            save_figure(figure(), target.with_suffix(".png"))
    finally:
        say(table(), end="\n\n")
        say("\n".join(sentences))
        say(f"\n{what}: {target}\n{drawn} and tables: the same name with .png, .md and .csv")


def check_companions(target: Path, extensions: Iterable[str]) -> None:
    """Say before long work whether an output and the files beside it can be written, none of them over it."""
    from ropescope.base.files import check_target

    check_target(target)
    for extension in extensions:
        if target.suffix.lower() == extension:
            raise InputError(f"got --output {target}, but {extension} is for the table beside it: end it with .nc")
        check_target(target.with_suffix(extension))


@contextmanager
def drawing(kept: str) -> Iterator[None]:
    """Say in one line what keeps Matplotlib from drawing; `kept` says what is not lost."""
    try:
        yield
    except RopescopeError:
        raise
    except Exception as error:  # settings of a person may fail anywhere in it
        raise ResultError(
            f"cannot draw: {first_line(error)}; {kept}: mend Matplotlib's settings, then run 'ropescope figures'"
        ) from error


def write_text(path: Path, text: str) -> Path:
    from ropescope.base.files import check_target, written_whole

    with written_whole(check_target(path)) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def draw_result(
    result: xr.DataTree,
    stem: str,
    heads: list[tuple[int | None, int | None]],
    streams: Iterable[str],
    formats: Formats,
    folder: Path,
    importance: xr.DataTree | None = None,
) -> Iterable[Path]:
    """Panel and overview of each stream, and a map of every variable that was joined; importance joined if given."""
    from ropescope.measurement.heads import key_heads
    from ropescope.measurement.joining import joined

    make_folder(folder)
    drawn, chosen = result if importance is None else joined(result, importance), list(streams)
    with drawing("the result is as it was"):
        for stream in chosen:
            shown = [(int(layer or 0), int(head or 0)) for layer, head in heads]
            if stream == KEY and QUERY in chosen:
                shown = key_heads(result, shown)
            for name, figure in _of_stream(drawn, shown, stream):
                yield from save_in_formats(figure, folder / f"{stem}-{stream}-{name}", formats)
        if importance is not None:
            from ropescope.display.figures.importance import importance_scatter

            yield from save_in_formats(importance_scatter(result, importance), folder / f"{stem}-importance", formats)


def _of_stream(result: xr.DataTree, heads: list[tuple[int, int]], stream: str) -> Iterator[tuple[str, Figure]]:
    """Figures of one stream by the end of their name."""
    from ropescope.display.figures.heads import panel
    from ropescope.display.figures.maps import overview, variable_map
    from ropescope.measurement.heads import default_heads
    from ropescope.measurement.joining import further_variables
    from ropescope.measurement.results import stream_data

    yield "panel", panel(result, heads or default_heads(result, stream), stream)
    yield "overview", overview(result, stream)
    for variable in further_variables(stream_data(result, stream)):
        yield variable.name, variable_map(result, variable.name, stream)


def draw_sweeps(paths: list[Path], formats: Formats, folder: Path, labels: Sequence[str] = ()) -> Iterable[Path]:
    """One figure of all sweeps."""
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.measurement.names import called

    sweeps = called({name: SWEEP.load(path) for name, path in named(paths).items()}, labels)
    make_folder(folder)
    with drawing("the sweeps are as they were"):
        from ropescope.display.figures.curves import sweep_curves

        yield from save_in_formats(sweep_curves(sweeps), folder / f"{paths[0].stem}-curves", formats)


def draw_frontiers(paths: list[Path], formats: Formats, folder: Path, labels: Sequence[str] = ()) -> Iterable[Path]:
    """One figure of all frontiers of thin keys."""
    from ropescope.evaluation.frontier.dataset import FRONTIER
    from ropescope.measurement.names import called

    frontiers = called({name: FRONTIER.load(path) for name, path in named(paths).items()}, labels)
    make_folder(folder)
    with drawing("the frontiers are as they were"):
        from ropescope.display.figures.frontier import frontier_curves

        yield from save_in_formats(frontier_curves(frontiers), folder / f"{paths[0].stem}-curves", formats)


def draw_sets(paths: list[Path], formats: Formats, folder: Path, labels: Sequence[str] = ()) -> Iterable[Path]:
    """A figure for each validation of sets."""
    from ropescope.evaluation.set_prediction import SET_VALIDATION
    from ropescope.measurement.names import labelled

    checks = {path: SET_VALIDATION.load(path) for path in paths}
    checks |= {path: labelled(checks[path], label) for path, label in zip(paths, labels, strict=False)}
    make_folder(folder)
    with drawing("the validations are as they were"):
        from ropescope.display.figures.sets import set_predictions

        for path, check in checks.items():
            yield from save_in_formats(set_predictions(check), folder / path.stem, formats)


@dataclass(frozen=True)
class Formats:
    """File formats of figures, and their width in inches and font where these are not the usual ones."""

    extensions: Sequence[str]
    width: float | None = None
    font: str | None = None

    def __post_init__(self) -> None:
        if self.width is not None and not 2 <= self.width <= 40:
            raise InputError(f"got --width {self.width:g}; a figure is 2 to 40 inches wide")
        if self.font is None:
            return
        from matplotlib.font_manager import findfont

        try:
            findfont(self.font, fallback_to_default=False)
        except ValueError as error:
            raise InputError(f"got --font {self.font!r}, which Matplotlib does not find; install it first") from error

    def applied(self, figure: Figure) -> Figure:
        """The figure at this width, as high in proportion, its words in this font and of their usual size."""
        if self.width is not None:
            figure.set_size_inches(figure.get_size_inches() * self.width / figure.get_size_inches()[0])
        if self.font is not None:
            from matplotlib.text import Text

            for text in figure.findobj(Text):
                text.set(fontfamily=self.font)
        return figure


def save_in_formats(figure: Figure, stem: Path, formats: Formats) -> Iterator[Path]:
    """The figure in every format; a stem may hold a dot."""
    for extension in formats.extensions:
        yield save_figure(formats.applied(figure), stem.with_name(f"{stem.name}.{extension}"))


def save_figure(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    from ropescope.base.files import check_target, written_whole

    # Type 42: journals refuse the outlines (Type 3) that Matplotlib writes by itself.
    with written_whole(check_target(path)) as unfinished, mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(unfinished, dpi=_DPI)
    return path


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder}: {error.strerror}; choose another --output-dir") from error
