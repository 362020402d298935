"""Evaluated tasks as the paper's table 1: each task plain and changed, with what the difference is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.strengths import strength_of
from ropescope.base.tables import Section, Table, csv_text
from ropescope.evaluation.tasks.dataset import ALPHA, ARM, FILTER, METRIC, PLAIN, SCORE, SELECTION, TASK, TASKS
from ropescope.evaluation.tasks.paired_tests import Difference, binary_difference, bootstrap_difference

FORMATS = ("text", "markdown", "csv", "json")
Format = Literal["text", "markdown", "csv", "json"]
SIGNIFICANCE = 0.05
# A score is f(sum of w y / sum of w) over its documents; which f, the harness's own numbers tell.
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "bits": lambda mean: -mean / math.log(2),
}


@dataclass(frozen=True)
class Row:
    """One score of one arm against the plain model.

    Parameters
    ----------
    task, metric, filter
        The harness's names.
    documents
        Documents asked.
    selection, alpha
        What was turned down, and how far; NaN for thin keys.
    plain, plain_stderr, changed, changed_stderr
        The harness's scores and standard errors, of the model as it stands and with pairs turned down or thin keys.
    better
        1 if higher is better, -1 if lower is, 0 if the task does not say.
    difference
        Changed minus plain on the same documents; None where the score is not made of numbers per document.
    """

    task: str
    metric: str
    filter: str
    documents: int
    selection: str
    alpha: float
    plain: float
    plain_stderr: float
    changed: float
    changed_stderr: float
    better: int
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """What the interval allows to say: better, worse, indistinguishable, or unclear where p disagrees with it."""
        found = self.difference
        if found is None or math.isnan(found.low):
            return "not tested"
        if found.low <= 0 <= found.high:
            return "indistinguishable"
        if found.p >= SIGNIFICANCE:
            return "unclear"
        names = {1: ("better", "worse"), -1: ("worse", "better"), 0: ("higher", "lower")}[self.better]
        return names[0] if found.value > 0 else names[1]


def compared(data: xr.Dataset, *, resamples: int = 10_000) -> list[Row]:
    """Every score of every changed arm against the plain model on the same documents.

    Accuracies (every document right or wrong) are compared by McNemar's exact test and Tango's interval, other means
    over documents by a paired bootstrap. Which statistic of its documents a score is, is tried against the harness's
    own number; where none gives it, there is no test.

    Parameters
    ----------
    data
        What :func:`ropescope.evaluate_tasks` gave.
    resamples
        Draws of the bootstrap.

    Raises
    ------
    ResultError
        If the dataset holds no evaluated tasks.
    """
    TASKS.check(data, "the dataset")
    arms = [str(arm) for arm in data[ARM].values if arm != PLAIN]
    return [_row(data.sel({ARM: [PLAIN, arm]}), place, resamples) for place in range(data.sizes[SCORE]) for arm in arms]


def tasks_table(data: xr.Dataset, *, format: Format = "text", rows: Sequence[Row] | None = None) -> str:
    """Write the paper's table 1: plain and changed task by task, the difference, and what it is worth.

    Parameters
    ----------
    data
        What :func:`ropescope.evaluate_tasks` gave.
    format
        "text" for a terminal or "markdown", without the members of groups; "csv" (all scores at full precision) or
        "json" (the same with the full provenance).
    rows
        What :func:`ropescope.evaluation.tasks.table.compared` gave for it, where it is at hand: most of the work.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If the format is another.
    ResultError
        If the dataset holds no evaluated tasks.

    Examples
    --------
    >>> print(tasks_table(rs.load("qwen3-tasks.nc")))  # doctest: +SKIP
    """
    if format not in FORMATS:
        raise InputError(f"got format {format!r}: {did_you_mean(format, FORMATS)}")
    rows = compared(data) if rows is None else rows
    if format == "json":
        content = {"provenance": TASKS.provenance(data), "scores": [_plain_row(row) for row in rows]}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if format == "csv":
        plain = [_plain_row(row) for row in rows]
        return csv_text(list(plain[0]), (["" if v is None else v for v in row.values()] for row in plain))
    table = _written_table(data, rows)
    return table.text() if format == "text" else table.markdown()


def tasks_section(data: xr.Dataset, name: str = "") -> Section:
    """The table with what it means and which tasks failed; `name` tells several runs apart."""
    facts = TASKS.provenance(data)
    version, limit = facts["protocol"]["lm_eval"], facts["protocol"]["limit"]
    asked = "every document" if limit is None else f"limit {limit:g}"
    about = f"Scores and standard errors of lm-evaluation-harness {version} ({asked}), the same documents for all."
    meaning = (
        "Differences are the changed model's minus the plain one's, with a 95 % interval: Tango's, with McNemar's "
        "exact p, where documents are right or wrong, else a paired bootstrap. Where the two cannot be told apart, "
        "the table says which difference the sample would have shown four times in five."
    )
    table = _written_table(data, compared(data))
    title = f"Downstream tasks: {name}" if name else "Downstream tasks"
    return Section(title, (about, meaning, *facts["failed"].values()), (table,))


def _written_table(data: xr.Dataset, rows: Sequence[Row]) -> Table:
    """Rows of groups and of tasks that are in no group."""
    inside = {name for members in data["members"].values for name in str(members).split()}
    strength = strength_of(TASKS.provenance(data)).name
    header = ["task", "metric", "documents", "selection", strength, "plain", "changed", "difference", "p", "verdict"]
    return Table(header, [_written(row) for row in rows if row.task not in inside])


def _row(pair: xr.Dataset, place: int, resamples: int) -> Row:
    score = pair.isel({SCORE: place})
    (plain, changed), (plain_error, changed_error) = score["value"].values, score["stderr"].values
    return Row(
        task=str(score[TASK].item()),
        metric=str(score[METRIC].item()),
        filter=str(score[FILTER].item()),
        documents=int(score["documents"]),
        selection=str(pair[SELECTION].values[1]),
        alpha=float(pair[ALPHA].values[1]),
        plain=float(plain),
        plain_stderr=float(plain_error),
        changed=float(changed),
        changed_stderr=float(changed_error),
        better=int(score["direction"]),
        difference=_difference(pair, place, resamples),
    )


def _difference(pair: xr.Dataset, place: int, resamples: int) -> Difference | None:
    """The paired test of one score, if its documents give the harness's number."""
    items, strata = _items(pair, place)
    if not len(items):
        return None
    first, second = pair["outcome"].values[:, items]
    scores = pair["value"].values[:, place]
    for weights in (pair["weight"].values[items], _equal_tasks(strata)):
        for statistic in STATISTICS.values():
            own = np.array([statistic(np.average(side, weights=weights)) for side in (first, second)])
            if np.allclose(own, scores, rtol=1e-9, atol=1e-12):
                if statistic is STATISTICS["mean"] and _binary(first, second) and np.ptp(weights) == 0:
                    return binary_difference(first, second)
                return bootstrap_difference(statistic, first, second, weights, strata, resamples=resamples)
    return None


def _items(pair: xr.Dataset, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the documents of a score are, and which task each is of; for a group, those of its members."""
    score = pair.isel({SCORE: place})
    members = str(score["members"].item()).split()
    same = (pair[METRIC] == score[METRIC]) & (pair[FILTER] == score[FILTER]) & pair[TASK].isin(members)
    rows = np.flatnonzero(same.values) if members else np.array([place])
    complete = len(rows) == max(len(members), 1)
    items = np.flatnonzero(np.isin(pair["item_score"].values, rows)) if complete else np.array([], dtype=int)
    return items, pair["item_score"].values[items]


def _equal_tasks(strata: np.ndarray) -> np.ndarray:
    """Weights under which every task counts alike, whatever its size."""
    _, which, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1 / sizes[which]
    return weights


def _binary(*sides: np.ndarray) -> bool:
    return all(bool(np.isin(side, (0.0, 1.0)).all()) for side in sides)


def _plain_row(row: Row) -> dict[str, Any]:
    """One row in plain values, None where there is no number."""
    found = row.difference
    parts: dict[str, float | None] = {"difference": None, "low": None, "high": None, "p": None, "detectable": None}
    if found is not None:
        parts = {name: _or_none(getattr(found, name)) for name in ("low", "high", "p", "detectable")}
        parts = {"difference": found.value, **parts}
    names = ("plain", "plain_stderr", "changed", "changed_stderr")
    return {
        **{name: getattr(row, name) for name in ("task", "metric", "filter", "documents", "selection")},
        **{name: _or_none(getattr(row, name)) for name in ("alpha", *names)},
        **parts,
        "verdict": row.verdict,
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _written(row: Row) -> list[str]:
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    what = [row.task, metric, str(row.documents), row.selection, "-" if math.isnan(row.alpha) else f"{row.alpha:g}"]
    scores = [_score(row.plain, row.plain_stderr), _score(row.changed, row.changed_stderr)]
    return [*what, *scores, *_difference_cells(row)]


def _score(value: float, stderr: float) -> str:
    return f"{value:.4f}" if math.isnan(stderr) else f"{value:.4f} ± {stderr:.4f}"


def _difference_cells(row: Row) -> Iterator[str]:
    found = row.difference
    if found is None or math.isnan(found.low):
        yield from (f"{row.changed - row.plain:+.4f}", "-", row.verdict)
        return
    yield f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    yield f"{found.p:.2g}" if found.p >= 1e-4 else "<1e-4"
    hint = f" (could have shown {found.detectable:.4f})" if row.verdict == "indistinguishable" else ""
    yield f"{row.verdict}{hint}"
