"""The pages of the gallery, from the files that its steps have kept and from nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import ropescope as rs
from ropescope.base.axes import STREAMS
from ropescope.base.selections import PAPER, SILENT
from ropescope.base.statistics import ESTIMATES
from ropescope.base.tables import Table
from ropescope.evaluation.claims.findings import FAILS, HOLDS, Claim, Finding
from ropescope.evaluation.frontier.changes import bytes_share, compared, percent
from ropescope.evaluation.frontier.in_words import findings as thin_findings
from ropescope.evaluation.sweep.changes import change
from ropescope.evaluation.sweep.in_words import findings as sweep_findings
from ropescope.evaluation.tasks.table import compared as scores
from ropescope.measurement.results import provenance
from ropescope.measurement.summary import counts

# What is given to the claims.
EVIDENCE = ("wikitext.nc", "c4.nc", "long.nc", "worth.nc", "sweep.nc", "tasks.nc", "look.nc")
_PICTURES = {
    "panel": ("figures/wikitext-query-panel.png", "Three query heads: both entropies, importance and the norms"),
    "overview": ("figures/wikitext-query-overview.png", "Both entropies over layers and pairs"),
    "importance": (
        "figures/wikitext-importance.png",
        "Importance of every pair over its SpectrumFE, and what the best pairs hold",
    ),
    "sweep": ("figures/sweep-curves.png", "Perplexity over alpha for bands, spectrum outliers and periodic pairs"),
    "thin": ("figures/thin-curves.png", "Change of perplexity over the share of key bytes"),
    "places": ("same-places/wikitext-compare-where-1.png", "Share of pairs that are bands, by layer and wavelength"),
}
# Tables of more rows, such as one for each layer, stay in the files.
_ROWS = 12
# From where on a change of perplexity reads better as a factor.
_MANY_TIMES = 5.0
# Of figure 3 and table 1.
_IN_THE_PAPER = {
    "bands": "rises in all four",
    "spectrum-outliers": "hardly changes",
    "periodic": "falls a little, most in Llama-4",
    "hellaswag": "Llama-4 0.00, Llama-3 0.00, Qwen3 -0.02, Gemma-2 +0.19",
}
_WRITTEN = (
    "<!-- Written by `make gallery` from what its commands kept; change docs/_build/gallery_pages.py instead. -->"
)


def write_pages(models: dict[str, Path], docs: Path) -> None:
    """A page and pictures of every model that was measured, and one of all; a part without its files is left out."""
    measured = {title: folder for title, folder in models.items() if (folder / "wikitext.nc").exists()}
    if not measured:
        return
    pages = docs / "models"
    pages.mkdir(parents=True, exist_ok=True)
    for title, folder in measured.items():
        judged = _judged(title, measured)
        claims = judged.markdown() if judged else ""
        _write(pages / f"{folder.name}.md", [f"# {title}", _WRITTEN, *_parts(folder, pages), claims])
    _write(pages / "index.md", _side_by_side(measured))


def _write(path: Path, parts: Iterable[str]) -> None:
    path.write_text("\n\n".join(filter(None, parts)).rstrip() + "\n", encoding="utf-8")
    print(f"page: {path}")


def _parts(folder: Path, pages: Path) -> Iterator[str]:
    def picture(name: str) -> str:
        file, words = _PICTURES[name]
        if not (folder / file).exists():
            return ""
        target = pages / f"{folder.name}-{name}.png"
        shutil.copyfile(folder / file, target)
        return f"![{words}]({target.name})"

    files = {path.stem: path for path in folder.glob("*.nc")}
    result = rs.load(files["wikitext"])
    if (folder / "inspect.txt").exists():
        turns = (folder / "inspect.txt").read_text(encoding="utf-8").partition(": ")[2].rstrip()
        yield f"## What turns, and how\n\n```\n{turns}\n```"
    yield f"## Entropies\n\n{_setting(result)}\n\n```\n{rs.summary_text(result)}\n```"
    yield picture("panel")
    yield picture("overview")
    if "worth" in files:
        yield rs.importance_foretold(result, rs.load(files["worth"])).markdown()
        yield picture("importance")
    for name, title in (("sweep", "Pairs turned down"), ("derotated", "Pairs without their rotation")):
        if name in files:
            data = rs.load(files[name])
            words = "\n".join(f"- {sentence}" for sentence in sweep_findings(data))
            yield f"## {title}\n\n{_setting(data)}\n\n{words}\n\n{rs.sweep_table(data, format='markdown')}"
            yield picture(name) if name == "sweep" else ""
    if "tasks" in files:
        yield f"## Tasks\n\n{rs.tasks_table(rs.load(files['tasks']), format='markdown')}"
    if "thin" in files:
        data = rs.load(files["thin"])
        words = "\n".join(f"- {sentence}" for sentence in thin_findings(data))
        yield f"## Thin keys\n\n{_setting(data)}\n\n{words}\n\n{rs.frontier_table(data, format='markdown')}"
        yield picture("thin")
    if "c4" in files and "long" in files:
        others = {"C4": rs.load(files["c4"]), "long WikiText": rs.load(files["long"])}
        found = rs.comparison({"WikiText": result, **others}, top=0)
        for section in (*found.compared, found.lived[0]):
            tables = tuple(table for table in section.tables if len(table.rows) <= _ROWS)
            yield replace(section, tables=tables).markdown()
        yield picture("places")


def _setting(data: xr.DataTree | xr.Dataset) -> str:
    windows: dict[str, Any] = dict(provenance(data)).get("windows", {})
    text = " ".join(Path(str(windows[part])).name for part in ("corpus", "split") if windows.get(part))
    return f"{windows.get('windows')} windows of {windows.get('length')} tokens of {text}, float32."


def _side_by_side(models: dict[str, Path]) -> Iterator[str]:
    yield "# Three trained models side by side"
    yield _WRITTEN
    yield (
        "Every number is of the page of its model, which says on what text it was measured. Brackets are 95 % intervals "
        "over windows; a dash is what was not run."
    )
    rows = {
        **{
            f"{_word(name)}, % of {stream} pairs": _share(name, stream)
            for name in (*PAPER, SILENT.name)
            for stream in STREAMS
        },
        **{f"{stream} importance in bands, %": _held(stream) for stream in STREAMS},
        **{
            f"top tenth of {stream} pairs by {words}, AUC": _area(score, stream)
            for score, words in (("-spectrum_fe", "low SpectrumFE"), ("norm_product", "norm product"))
            for stream in STREAMS
        },
        **{
            f"perplexity without the rotation of {_word(name)}": _changed(name, "derotated.nc")
            for name in ("bands", "spectrum-outliers")
        },
        **{
            f"perplexity with keys of {plan}": _thin(plan)
            for plan in ("latent 0.75", "latent 0.5", "latent 0.25", "norm-product 0.5")
        },
    }
    entries = [[label, *(_entry(of, folder) for folder in models.values())] for label, of in rows.items()]
    yield Table(["", *models], entries).markdown()
    yield "## Beside the paper's four"
    yield (
        "What figure 3 and table 1 of Oka and others say of Llama-4-Scout-17B-16E, Llama-3-8B, Qwen3-8B and Gemma-2-9B, "
        "and what came out here: changes of perplexity at alpha 0, and of HellaSwag's accuracy in points with outliers "
        "and periodic pairs at alpha 0.1."
    )
    beside = {
        **{f"perplexity without {_word(name)}": (_changed(name, "sweep.nc"), _IN_THE_PAPER[name]) for name in PAPER},
        "HellaSwag": (_asked, _IN_THE_PAPER["hellaswag"]),
    }
    entries = [
        [label, *(_entry(of, folder) for folder in models.values()), said] for label, (of, said) in beside.items()
    ]
    yield Table(["", *models, "in the paper"], entries, words=True).markdown()
    yield from _verdicts(models)


def _word(name: str) -> str:
    return {**PAPER, SILENT.name: SILENT}[name].plural


def _entry(of: Callable[[Path], str], folder: Path) -> str:
    try:
        return of(folder)
    except FileNotFoundError:
        return "-"


def _opened(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(path)
    return rs.load(path)


def _share(name: str, stream: str) -> Callable[[Path], str]:
    def of(folder: Path) -> str:
        found = counts(_opened(folder / "wikitext.nc"), stream)
        number = {"bands": found.bands, "spectrum-outliers": found.outliers, "periodic": found.periodic}.get(
            name, found.silent
        )
        return f"{100 * number / found.pairs:.3g}"

    return of


@cache
def _shares(folder: Path) -> xr.Dataset:
    return rs.importance_shares(_opened(folder / "wikitext.nc"), _opened(folder / "worth.nc"))


def _held(stream: str) -> Callable[[Path], str]:
    def of(folder: Path) -> str:
        found = _shares(folder)
        return _interval(100 * found["importance"].sel(stream=stream, selection="bands"))

    return of


def _area(score: str, stream: str) -> Callable[[Path], str]:
    def of(folder: Path) -> str:
        found = _shares(folder)
        return _interval(found["auc"].sel(stream=stream, score=score))

    return of


def _changed(name: str, file: str) -> Callable[[Path], str]:
    def of(folder: Path) -> str:
        data = _opened(folder / file)
        if name not in data["selection"] or not int(data["selected_pairs"].sel(selection=name).sum()):
            return "none"
        factor = np.exp(_ends(change(data)["nats_change"].sel(selection=name, alpha=0, arm="selection")))
        if factor[0] < _MANY_TIMES:
            return percent(factor - 1)
        return "{} times [{}, {}]".format(*(f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in factor))

    return of


def _thin(plan: str) -> Callable[[Path], str]:
    def of(folder: Path) -> str:
        data = _opened(folder / "thin.nc")
        if plan not in data["plan"]:
            return "-"
        share = float(bytes_share(data).sel(plan=plan))
        return f"{percent(_ends(compared(data).sel(plan=plan, other='stock')))} at {share:.1%}"

    return of


def _asked(folder: Path) -> str:
    rows = scores(_opened(folder / "tasks.nc"))
    found = next((row for row in rows if (row.task, row.metric) == ("hellaswag", "acc")), None)
    if found is None or found.difference is None:
        return "-"
    value, low, high = (100 * end for end in (found.difference.value, found.difference.low, found.difference.high))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}], {found.documents} documents"


def _ends(found: xr.DataArray) -> np.ndarray:
    return np.array([float(found.sel(estimate=end)) for end in ESTIMATES])


def _interval(found: xr.DataArray) -> str:
    value, low, high = _ends(found)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _verdicts(models: dict[str, Path]) -> Iterator[str]:
    """Claims with the verdict on every model, those first on which all agree."""
    found = {title: verdicts for title in models if (verdicts := _judged(title, models))}
    if not found:
        return
    yield "## What is claimed, model by model"
    yield (
        "The claims of Oka and others were made of the four models above; a verdict here speaks of the model in its "
        "column alone."
    )
    parted = _by_agreement([verdicts.findings for verdicts in found.values()])
    counted = ", ".join(f"{title[0].lower()}{title[1:]}: {len(rows)}" for title, rows in parted.items())
    yield f"Of {sum(map(len, parted.values()))} claims, {counted}."
    for title, rows in parted.items():
        if rows:
            yield f"### {title}"
            yield Table(["claim", "source", *found], rows, words=True).markdown()


def _by_agreement(findings: Sequence[Sequence[tuple[Claim, Finding]]]) -> dict[str, list[list[str]]]:
    """Rows of claims, source and verdicts, under what they come to over the models."""
    everywhere, wherever = "The same in every model", "The same wherever it can be said"
    parted: dict[str, list[list[str]]] = {everywhere: [], wherever: [], "Not the same": [], "Not to be said of any": []}
    for of_models in zip(*findings, strict=True):
        claim, verdicts = of_models[0][0], [found.verdict for _, found in of_models]
        said = {verdict for verdict in verdicts if verdict in (HOLDS, FAILS)}
        agreed = everywhere if len({*verdicts}) == 1 else wherever
        title = "Not to be said of any" if not said else agreed if len(said) == 1 else "Not the same"
        parted[title].append([claim.statement, claim.source.short, *verdicts])
    return parted


@cache
def _claims(title: str, folder: Path, other_title: str, other: Path) -> rs.Verdicts:
    evidence = {Path(name).stem: rs.load(folder / name) for name in EVIDENCE}
    beside = {} if other == folder else {other_title: rs.load(other / "wikitext.nc")}
    return replace(rs.claims(evidence | beside), model=title)


def _judged(title: str, models: dict[str, Path]) -> rs.Verdicts | None:
    """The claims by all that was asked of a model, and by the measurement of another."""
    folder = models[title]
    other = next((item for item in models.items() if item[0] != title), (title, folder))
    return _claims(title, folder, *other) if all((folder / name).exists() for name in EVIDENCE) else None
