"""The command compare: where bands live in one result, and whether they live there in others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ropescope.base.arguments import check_at_least
from ropescope.base.errors import InputError
from ropescope.cli.drawing import Formats, drawing, make_folder, save_in_formats, write_text
from ropescope.cli.options import Format, Labels, Stream, app, parse_heads, streams_of
from ropescope.cli.printing import say

View = Literal["auto", "pairs", "distributions"]


@app.command
def compare(
    *results: Annotated[Path, Parameter(help="Files of `ropescope measure`; the others are compared with the first.")],
    view: View = "auto",
    heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    stream: Stream = "both",
    top: int = 10,
    where: Annotated[bool, Parameter(negative="")] = False,
    label: Labels = (),
    format: Annotated[tuple[Format, ...], Parameter(consume_multiple=True, negative="")] = ("png",),
    width: float | None = None,
    font: str | None = None,
    output_dir: Path = Path(),
) -> None:
    """Ask whether bands and periodic pairs sit in the same places in several results; of one, where they live.

    Results of one architecture (other corpus, length, dtype, fine-tuned or quantised weights) are compared pair by
    pair: overlap of the paper's selections against chance, rank correlations, the pairs that moved most, the same
    heads side by side (figure 6 of the paper). Results of different models are compared as distributions over depth
    and wavelength (figure 5). Of one result it says how much pair index, layer and head explain (section 5). Prints
    the findings and writes them, with where bands live in each result, as Markdown.

    Example: `ropescope compare qwen3-wikitext.nc qwen3-c4.nc --heads 6:0 1:0 --output-dir robustness`

    Parameters
    ----------
    view
        pairs, distributions, or auto: distributions where the models are different ones that pairs do not match.
    heads
        LAYER:HEAD to draw; default those that `figures` draws of the first result.
    stream
        Heads to draw: query, key or both. The findings are always of both.
    top
        How many of the pairs that moved most to list.
    where
        Print also where bands live in each of several results.
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

    if not results:
        raise InputError("compare got no result file; name at least one: ropescope compare RESULT.nc OTHER.nc")
    check_at_least("top", top, 0)
    check_folder(output_dir)
    chosen = [(layer, head) for layer, head in parse_heads(heads) if layer is not None and head is not None]
    if len(chosen) < len(heads):
        raise InputError("compare got '*' or 'none' in --heads; name each head as LAYER:HEAD")
    formats = Formats(format, width, font)
    import ropescope as rs

    found = rs.comparison(results, view=view, top=top, labels=label)
    make_folder(output_dir)
    stem = output_dir / f"{results[0].stem}-compare"
    findings = write_text(stem.with_name(f"{stem.name}.md"), found.markdown())
    say(found.text(where=where))
    say(f"\nfindings: {findings}")
    with drawing(f"the findings are in {findings}"):
        for name, figure in found.figures(chosen, streams_of(stream)).items():
            for written in save_in_formats(figure, stem.with_name(f"{stem.name}-{name}"), formats):
                say(f"figure: {written}")
