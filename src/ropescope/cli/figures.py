"""The command figures: results and sweeps as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ropescope.base.errors import InputError
from ropescope.base.files import named
from ropescope.cli.drawing import Formats, draw_frontiers, draw_result, draw_sets, draw_sweeps
from ropescope.cli.options import (
    Format,
    Labels,
    Stream,
    WorthPath,
    app,
    parse_heads,
    streams_of,
    worth_of,
)
from ropescope.cli.printing import say

Draw = Callable[[list[Path], Formats, Path, list[str]], Iterable[Path]]


@app.command
def figures(
    *results: Annotated[
        Path, Parameter(help="Files of `ropescope measure`, `sweep` and `compress`, or a validation of sets.")
    ],
    importance: WorthPath = None,
    heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    stream: Stream = "both",
    label: Labels = (),
    format: Annotated[tuple[Format, ...], Parameter(consume_multiple=True, negative="")] = ("png",),
    width: float | None = None,
    font: str | None = None,
    output_dir: Path = Path(),
) -> None:
    """Draw results: the panel of chosen heads, the overview of all layers, the curves of sweeps and of thin keys.

    The panel shows, for each head, SpectrumFE and SequenceFE over the pairs and the norms over the positions (figures
    1, 2 and 4 of the paper). The overview maps layer by pair. With importance the panel shows it too, it is mapped, and
    set against SpectrumFE pair by pair. All sweeps go into one figure, a line for each (figure 3); all files of thin
    keys into another, a panel for each. Of a validation of sets, true KL divergence is drawn over the predicted one.

    Example: `ropescope figures qwen3.nc --heads 6:0 1:0 --stream key --format png pdf`

    Parameters
    ----------
    heads
        LAYER:HEAD to draw, query heads unless --stream is key, and the key heads that these attend to; default the
        strongest band, the most periodic head, and a NoPE head or the highest outlier.
    stream
        query, key or both.
    label
        What to call each file, in their order; default its model, and its text and length where they tell files apart.
    format
        png, svg, pdf; several make several files.
    width
        Inches, 2 to 40; words keep their size. Default as much as the content needs.
    font
        Family of the words, such as "Times New Roman"; default Matplotlib's.
    output_dir
        Folder for the files, made if it does not exist.
    """
    from ropescope.base.files import check_folder
    from ropescope.base.netcdf import check_source
    from ropescope.measurement.names import check_labels, labelled
    from ropescope.measurement.results import load

    if not results:
        raise InputError("figures got no result file; name at least one: ropescope figures RESULT.nc")
    named(results)
    check_labels(label, len(results))
    labels = dict(zip(results, label, strict=True)) if label else {}
    check_folder(output_dir)
    worth, chosen = worth_of(importance), parse_heads(heads)
    if any(None in place for place in chosen):
        raise InputError("figures got '*' in --heads; name each head as LAYER:HEAD")
    for path in results:
        check_source(path)
    formats = Formats(format, width, font)
    measured, others = _drawn_otherwise(results)
    if worth is not None and not measured:
        raise InputError("figures got --importance without a measurement; name the file of 'ropescope measure' too")
    for path in measured:
        result = labelled(load(path), labels[path]) if labels else load(path)
        for written in draw_result(result, path.stem, chosen, streams_of(stream), formats, output_dir, worth):
            say(written)
    for draw, paths in others.items():
        for written in draw(paths, formats, output_dir, [labels[path] for path in paths if labels]) if paths else ():
            say(written)


def _drawn_otherwise(paths: Sequence[Path]) -> tuple[list[Path], dict[Draw, list[Path]]]:
    """The measurements among files, and the others by what draws them."""
    from ropescope.base.netcdf import schema_of
    from ropescope.evaluation.frontier.dataset import FRONTIER
    from ropescope.evaluation.set_prediction import SET_VALIDATION
    from ropescope.evaluation.sweep.dataset import SWEEP

    kinds = {path: schema_of(path) for path in paths}
    drawing: dict[str, Draw] = {SWEEP.name: draw_sweeps, FRONTIER.name: draw_frontiers, SET_VALIDATION.name: draw_sets}
    others = {draw: [path for path in paths if kinds[path] == name] for name, draw in drawing.items()}
    return [path for path in paths if kinds[path] not in drawing], others
