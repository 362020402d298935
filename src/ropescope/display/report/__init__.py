"""Results -> one HTML file that opens offline and lets a person explore; nothing here touches a file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from ropescope.base.errors import InputError
from ropescope.base.extras import require
from ropescope.base.selections import PAPER
from ropescope.base.tables import Section

if TYPE_CHECKING:
    import xarray as xr
    from jinja2 import Template

require("report", "writing the page")

STYLES = ("page", "explorer", "sections")
SCRIPTS = ("decode", "measurement", "state", "charts", "overview", "head", "details", "sweeps", "print", "main")


def render(
    results: Mapping[str, xr.DataTree],
    *,
    verdicts: Sequence[str] = (),
    sweeps: Mapping[str, xr.Dataset] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """Write results as one web page to explore, which needs no network.

    The page holds the means over sequences of every pair, their range for both entropies, the mean spectra and the
    kept norms. Entropies are exact to 8e-6, and every comparison with a threshold is that of the full values.

    Parameters
    ----------
    results
        Measurements by the name to show; at least one, the first is shown first.
    verdicts
        What claims say of each model in a paragraph, above all else.
    sweeps
        What :func:`ropescope.sweep` gave, by the name to show.
    sections
        Further findings, in order.

    Returns
    -------
    str
        HTML, with everything inside.

    Raises
    ------
    InputError
        There is no result.

    Examples
    --------
    >>> Path("report.html").write_text(render({"SmolLM2": rs.load("smollm2.nc")}), encoding="utf-8")  # doctest: +SKIP
    """
    from ropescope.display.report.cards import CITATION, card
    from ropescope.display.report.content import page_content, result_content, sweep_content

    if not results:
        raise InputError("report got no measurement; give at least one file written by 'ropescope measure'")
    contents = [result_content(result, name, number) for number, (name, result) in enumerate(results.items())]
    swept = {name: sweep_content(data) for name, data in (sweeps or {}).items()}
    turned_down = [(_sweep_section(name, data), swept[name]) for name, data in (sweeps or {}).items()]
    scripts = [_chart_library(), _explorer_script()]
    return _template().render(
        cards=[card(result, name) for name, result in results.items()],
        names=list(results),
        facts=page_content([facts for facts, _ in contents], list(swept.values())),
        packed=[part for _, parts in contents for part in parts],
        sweeps=turned_down,
        sections=sections,
        contents=_contents([section for section, _ in turned_down], sections),
        verdicts=verdicts,
        selections=list(PAPER.values()),
        citation=CITATION,
        style="\n".join(_text(f"styles/{name}.css") for name in STYLES),
        scripts=scripts,
        script_sources=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ropescope")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")


def _chart_library() -> str:
    """BokehJS, a function body that defines `Bokeh`; it must not end the element that holds it."""
    from bokeh.resources import Resources

    bundle = Resources(mode="inline", components=["bokeh", "bokeh-api"], log_level="error").js_raw
    return _inside_script("\n".join(bundle))


def _explorer_script() -> str:
    parts = "\n".join(_text(f"scripts/{name}.js") for name in SCRIPTS)
    return _inside_script(f'"use strict";\n(() => {{\n{parts}}})();\n')


def _inside_script(code: str) -> str:
    """Script that HTML does not end early: inside strings, where alone these may stand, the backslash means nothing."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", code.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _sweep_section(name: str, data: xr.Dataset) -> Section:
    from ropescope.base.strengths import strength_of
    from ropescope.evaluation.sweep.changes import effect_table
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.evaluation.sweep.in_words import findings

    table = replace(effect_table(data), title="Perplexity of every selection and strength, with 95 % intervals")
    title = strength_of(SWEEP.provenance(data)).title
    return Section(f"{title}: {name}", tuple(findings(data)), (table,))


def _contents(sweeps: Sequence[Section], sections: Sequence[Section]) -> list[tuple[str, str]]:
    """Id and title of every part of the page."""
    parts = {"sweep": sweeps, "section": sections}
    listed = [(f"{kind}-{place}", each.title) for kind, of in parts.items() for place, each in enumerate(of)]
    return [("explorer", "Explorer"), *listed, ("origin", "Model, provenance, how to cite")]


def _text(name: str) -> str:
    return (files("ropescope") / "templates" / name).read_text(encoding="utf-8")
