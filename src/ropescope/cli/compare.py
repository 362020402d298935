"""The command compare: where bands live in one result, and whether they live there in others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ropescope.base.arguments import check_at_least
from ropescope.base.errors import InputError
from ropescope.cli.drawing import drawing, make_folder, save_figure, write_text
from ropescope.cli.options import Format, Stream, app, load_results, parse_heads, streams_of
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.base.tables import Section

View = Literal["auto", "pairs", "distributions"]


@app.command
def compare(
    *results: Annotated[Path, Parameter(help="Files of `ropescope measure`; the others are compared with the first.")],
    view: View = "auto",
    heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    stream: Stream = "both",
    top: int = 10,
    where: Annotated[bool, Parameter(negative="")] = False,
    format: Annotated[tuple[Format, ...], Parameter(consume_multiple=True, negative="")] = ("png",),
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
    format
        png, svg, pdf; several make several files.
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
    loaded = load_results(results)
    from ropescope.analysis.comparability import pair_by_pair

    by_pair = len(loaded) > 1 and (pair_by_pair(loaded) if view == "auto" else view == "pairs")
    compared, lived = _sections(loaded, by_pair, top)
    make_folder(output_dir)
    stem = results[0].stem
    markdown = "\n\n".join(section.markdown() for section in (*compared, *lived)) + "\n"
    findings = write_text(output_dir / f"{stem}-compare.md", markdown)
    say("\n\n".join(section.text() for section in (*compared, *(lived if where or not compared else ()))))
    say(f"\nfindings: {findings}")
    with drawing(f"the findings are in {findings}"):
        for name, figure in _figures(loaded, by_pair, chosen, streams_of(stream)):
            for extension in format:
                say(f"figure: {save_figure(figure, output_dir / f'{stem}-compare-{name}.{extension}')}")


def _sections(
    results: Mapping[str, xr.DataTree], by_pair: bool, top: int
) -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    from ropescope.analysis.comparison_in_words import same_places, spread_compared
    from ropescope.analysis.places_in_words import where_bands_live

    compared: tuple[Section, ...] = ()
    if len(results) > 1:
        compared = same_places(results, top=top) if by_pair else (spread_compared(results),)
    return compared, tuple(where_bands_live(result, name) for name, result in results.items())


def _figures(
    results: Mapping[str, xr.DataTree], by_pair: bool, heads: list[tuple[int, int]], streams: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    from ropescope.analysis.heads import default_heads
    from ropescope.display.figures.side_by_side import side_by_side
    from ropescope.display.figures.spread import bands_over_wavelength, spread_curves

    first = next(iter(results.values()))
    if by_pair:
        for stream in streams:
            shown = heads or default_heads(first, stream)
            yield f"{stream}-heads", side_by_side(results, shown, stream)
    elif len(results) > 1:
        yield "spread", spread_curves(results)
    for number, (name, result) in enumerate(results.items(), start=1):
        yield f"where-{number}" if len(results) > 1 else "where", bands_over_wavelength(result, name)
