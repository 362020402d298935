"""Several results against each other, or one by itself: what there is to say in words, and what there is to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xarray as xr

from ropescope.base.arguments import check_at_least
from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.files import named
from ropescope.base.tables import Section, preformatted
from ropescope.measurement.names import called, check_labels
from ropescope.measurement.results import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

View = Literal["auto", "pairs", "distributions"]
VIEWS = ("auto", "pairs", "distributions")


@dataclass(frozen=True)
class Comparison:
    """What :func:`ropescope.comparison` finds.

    Parameters
    ----------
    results
        What was compared, by name.
    pairwise
        Whether pairs were matched with each other; else distributions were compared, or there is one result.
    compared
        Findings about the others against the first; empty for one result.
    lived
        Where bands live in each result.

    Examples
    --------
    >>> found = rs.comparison({"wikitext": one, "c4": other})  # doctest: +SKIP
    >>> print(found)  # doctest: +SKIP
    >>> found.figures([(6, 0)])["query-heads"].savefig("heads.png")  # doctest: +SKIP
    """

    results: Mapping[str, xr.DataTree] = field(repr=False)
    pairwise: bool
    compared: tuple[Section, ...] = field(repr=False)
    lived: tuple[Section, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, where: bool = False) -> str:
        """Write the findings for a terminal.

        Parameters
        ----------
        where
            Whether to say also where bands live in each of several results.

        Returns
        -------
        str

        Examples
        --------
        >>> print(found.text(where=True))  # doctest: +SKIP
        """
        shown = (*self.compared, *(self.lived if where or not self.compared else ()))
        return "\n\n".join(section.text() for section in shown)

    def markdown(self) -> str:
        """Write all findings, where bands live in each result included, as Markdown.

        Returns
        -------
        str

        Examples
        --------
        >>> Path("compared.md").write_text(found.markdown())  # doctest: +SKIP
        """
        return "\n\n".join(section.markdown() for section in (*self.compared, *self.lived)) + "\n"

    def figures(self, heads: Sequence[tuple[int, int]] = (), streams: Sequence[str] = STREAMS) -> dict[str, Figure]:
        """Draw the heads side by side, or the distributions, and where bands live in each result.

        Parameters
        ----------
        heads
            (layer, head) to draw; none chooses those that :func:`ropescope.default_heads` finds in the first result.
        streams
            "query", "key" or both, for the heads.

        Returns
        -------
        dict of matplotlib.figure.Figure
            By what they show: `query-heads` and `key-heads`, or `spread`; `where`, or `where-1`, `where-2`, ...

        Raises
        ------
        InputError
            A stream or head that the results do not hold.
        MissingExtraError
            The packages that draw are not installed.

        Examples
        --------
        >>> for name, figure in found.figures([(6, 0)]).items():  # doctest: +SKIP
        ...     figure.savefig(f"{name}.png")
        """
        return dict(self._drawn(heads, streams))

    def _drawn(self, heads: Sequence[tuple[int, int]], streams: Sequence[str]) -> Iterator[tuple[str, Figure]]:
        from ropescope.display.figures.side_by_side import side_by_side
        from ropescope.display.figures.spread import bands_over_wavelength, spread_curves
        from ropescope.measurement.heads import default_heads

        first, *others = self.results.values()
        if self.pairwise:
            for stream in streams:
                yield f"{stream}-heads", side_by_side(self.results, heads or default_heads(first, stream), stream)
        elif others:
            yield "spread", spread_curves(self.results)
        for number, (name, result) in enumerate(self.results.items(), start=1):
            yield f"where-{number}" if others else "where", bands_over_wavelength(result, name)

    def _repr_html_(self) -> str:
        return preformatted(self)


def comparison(
    results: Mapping[str, xr.DataTree] | Sequence[str | Path],
    *,
    view: View = "auto",
    top: int = 10,
    labels: Sequence[str] = (),
) -> Comparison:
    """Ask whether bands and periodic pairs sit in the same places in several results; of one, where they live.

    Results of one architecture (another corpus, length or dtype, fine-tuned or quantised weights) are compared pair by
    pair, those of different models as distributions over depth and wavelength. The numbers alone are those of
    :func:`ropescope.compare`.

    Parameters
    ----------
    results
        Measurements by the name to show, or files of them, at least one. The first is the one that every other is
        compared with. Files are called by their models, by their texts and lengths too where that tells them apart.
    view
        "pairs", "distributions", or "auto": distributions where the models are different ones that pairs do not match.
    top
        How many of the pairs that moved most to list, 0 or more.
    labels
        What to call the files, one for each.

    Returns
    -------
    Comparison
        Findings as text and Markdown; figures when they are asked for.

    Raises
    ------
    InputError
        There is no result, the same file stands twice, `view` or `top` is none of those, or labels do not fit.
    ResultError
        A file cannot be read, results do not match pair by pair, or the frames of SpectrumFE differ.

    References
    ----------
    Frequency Entropy paper, section 5 and appendices A.3 and A.4 (figures 5 and 6).

    Examples
    --------
    >>> found = comparison(["qwen3-wikitext.nc", "qwen3-c4.nc"])  # doctest: +SKIP
    >>> Path("compared.md").write_text(found.markdown())  # doctest: +SKIP
    >>> figures = found.figures([(6, 0), (1, 0)])  # doctest: +SKIP
    """
    if view not in VIEWS:
        raise InputError(f"view got {view!r}: {did_you_mean(str(view), VIEWS)}")
    check_at_least("top", top, 0)
    if not results:
        raise InputError("comparison got no result; give at least one, as ropescope.measure returns it")
    check_labels(labels, len(results))
    loaded = results if isinstance(results, Mapping) else _loaded(results)
    loaded = called(loaded, labels) if labels or not isinstance(results, Mapping) else loaded
    # These load torch, for which nobody waits to hear of a wrong file.
    from ropescope.analysis.comparability import pair_by_pair
    from ropescope.analysis.places_in_words import where_bands_live

    pairwise = len(loaded) > 1 and (pair_by_pair(loaded) if view == "auto" else view == "pairs")
    lived = tuple(where_bands_live(result, name) for name, result in loaded.items())
    return Comparison(loaded, pairwise, against_first(loaded, pairwise, top), lived)


def against_first(results: Mapping[str, xr.DataTree], pairwise: bool, top: int = 10) -> tuple[Section, ...]:
    """Findings about every other result against the first; of one result there are none."""
    from ropescope.analysis.comparison_in_words import same_places, spread_compared

    if len(results) < 2:
        return ()
    return same_places(results, top=top) if pairwise else (spread_compared(results),)


def _loaded(paths: Sequence[str | Path]) -> dict[str, xr.DataTree]:
    return {name: load(path) for name, path in named([Path(path) for path in paths]).items()}
