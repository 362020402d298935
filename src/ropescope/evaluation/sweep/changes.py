"""What a sweep says: changes with paired-bootstrap intervals, and a table of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import xarray as xr

from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.statistics import ESTIMATE, ESTIMATES, TAILS, resampled_sums
from ropescope.base.tables import Table, csv_text
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, RANDOM, SELECTION, SWEEP

CONTROL = "control"
ALL_RANDOM = "random"
FORMATS = ("text", "markdown", "csv")

Format = Literal["text", "markdown", "csv"]


def change(data: xr.Dataset, *, resamples: int = 10_000, seed: int = 0) -> xr.Dataset:
    r"""Changes of perplexity against the baseline and against the controls, with 95 % intervals.

    The intervals are paired percentile bootstraps: windows are drawn with replacement, the same ones for both sides,
    and perplexities are those of the draw. They speak of other windows of this text, not of other texts or models;
    with fewer than about ten windows they come out too narrow, with one they are NaN.

    Parameters
    ----------
    data
        What :func:`sweep` gave.
    resamples
        Draws, at least 1.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    xarray.Dataset
        `nats_change` (nats per token, which is the change of log perplexity) and `perplexity_change` over (selection,
        arm, alpha, estimate), against the baseline; `nats_against` and `perplexity_against` over (selection, control,
        alpha, estimate), selection minus control. `estimate` is "value", "low", "high". The arm and control "random"
        is the mean over seeds of each window's nats. NaN where an alpha was not asked for.

    Raises
    ------
    InputError
        If resamples is below 1.
    ResultError
        If the dataset is no sweep.
    """
    SWEEP.check(data, "the dataset")
    if resamples < 1:
        raise InputError(f"resamples got {resamples}; it is at least 1")
    nats = _with_random(data["nats"])
    arms = [str(arm) for arm in nats[ARM].values]
    draws = _means_of_draws(nats.values, data["tokens"].values, resamples, seed)
    baseline = draws[:, :, :1, [int(np.flatnonzero(nats[ALPHA].values == 1)[0])]]
    controls = [control for control in (ALL_RANDOM, *LOWEST) if control in arms]
    own = draws[:, :, [arms.index(SELECTION)]]
    others = draws[:, :, [arms.index(control) for control in controls]]
    dims = {"change": (SELECTION, ARM, ALPHA, ESTIMATE), "against": (SELECTION, CONTROL, ALPHA, ESTIMATE)}
    return xr.Dataset(
        {
            "nats_change": (dims["change"], _estimates(draws - baseline), _meaning("nats per token", "nat")),
            "perplexity_change": (
                dims["change"],
                _estimates(_exp(draws) - _exp(baseline)),
                _meaning("perplexity", "1"),
            ),
            "nats_against": (dims["against"], _estimates(own - others), _meaning("nats per token", "nat")),
            "perplexity_against": (dims["against"], _estimates(_exp(own) - _exp(others)), _meaning("perplexity", "1")),
        },
        coords={
            SELECTION: data[SELECTION].values,
            ARM: arms,
            ALPHA: data[ALPHA].values,
            CONTROL: np.array(controls, dtype=np.str_),
            ESTIMATE: list(ESTIMATES),
        },
        attrs={"interval": "95 % paired bootstrap over windows", "resamples": resamples, "seed": seed},
    )


def sweep_table(data: xr.Dataset, *, format: Format = "text", resamples: int = 10_000) -> str:
    """Write a row for every selection and alpha: perplexity, its change, and that against the controls.

    Parameters
    ----------
    data
        What :func:`ropescope.sweep` gave.
    format
        "text" for a terminal, "markdown", or "csv" (plain numbers at full precision, intervals in own columns).
    resamples
        Draws of the bootstrap over windows, at least 1.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If the format is another.
    ResultError
        If the dataset is no sweep.

    Examples
    --------
    >>> print(sweep_table(rs.load("qwen3-sweep.nc"), format="markdown"))  # doctest: +SKIP
    """
    if format not in FORMATS:
        raise InputError(f"got format {format!r}: {did_you_mean(format, FORMATS)}")
    changes = change(data, resamples=resamples)
    if format == "csv":
        return _csv(data, changes)
    table = _table(data, changes)
    return table.markdown() if format == "markdown" else table.text()


def effect_table(data: xr.Dataset, *, resamples: int = 10_000) -> Table:
    """The rows of :func:`sweep_table` as a table."""
    return _table(data, change(data, resamples=resamples))


def _table(data: xr.Dataset, changes: xr.Dataset) -> Table:
    names = [f"against {control}" for control in changes[CONTROL].values]
    header = ["selection", "pairs", "alpha", "perplexity", "change", *names]
    return Table(header, [_written(data, row) for row in _rows(data, changes)])


def _with_random(nats: xr.DataArray) -> xr.DataArray:
    """Add the mean of the random arms as an arm of its own."""
    seeds = [arm for arm in nats[ARM].values if str(arm).startswith(RANDOM)]
    if not seeds:
        return nats
    mean = nats.sel({ARM: seeds}).mean(ARM, skipna=False).expand_dims({ARM: [ALL_RANDOM]})
    return xr.concat([nats, mean], ARM).transpose(*nats.dims)


def _means_of_draws(nats: np.ndarray, tokens: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Nats per token of the windows as they are, then of every draw, (1 + draw, ...)."""
    rows = np.column_stack((nats.reshape(-1, len(tokens)).T, tokens))
    drawn = resampled_sums(rows, resamples=resamples, seed=seed)
    if len(tokens) == 1:
        drawn[:] = np.nan
    sums = np.concatenate((rows.sum(0, keepdims=True), drawn))
    means: np.ndarray = (sums[:, :-1] / sums[:, -1:]).reshape(-1, *nats.shape[:-1])
    return means


def _estimates(draws: np.ndarray) -> np.ndarray:
    """Value and interval on the last axis, from the value and its draws on the first."""
    low, high = np.quantile(draws[1:], TAILS, axis=0)
    return np.stack((draws[0], low, high), axis=-1)


def _exp(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        exponential: np.ndarray = np.exp(values)
    return exponential


def _meaning(what: str, units: str) -> dict[str, str]:
    return {"long_name": f"difference in {what}", "units": units}


def _rows(data: xr.Dataset, changes: xr.Dataset) -> Iterator[dict[str, xr.DataArray]]:
    """Every (selection, alpha), strongest weighting last."""
    for selection in data[SELECTION].values:
        for alpha in data[ALPHA].values[::-1]:
            place = {SELECTION: selection, ALPHA: alpha}
            yield {
                "pairs": data["selected_pairs"].sel({SELECTION: selection}),
                "perplexity": data["perplexity"].sel({**place, ARM: SELECTION}),
                "change": changes["perplexity_change"].sel({**place, ARM: SELECTION}),
                "against": changes["perplexity_against"].sel(place),
            }


def _written(data: xr.Dataset, row: dict[str, xr.DataArray]) -> list[str]:
    selection, alpha = str(row["perplexity"][SELECTION].values), float(row["perplexity"][ALPHA])
    count = int(row["pairs"].sum())
    values = [row["change"].values, *row["against"].values]
    differences = ["-" if alpha == 1 or not count or np.isnan(value[0]) else _interval(value) for value in values]
    return [selection, str(count or "none"), f"{alpha:g}", _number(float(row["perplexity"])), *differences]


def _interval(value: np.ndarray) -> str:
    middle, low, high = (_number(float(number), sign="+") for number in value)
    return middle if np.isnan(value[1]) else f"{middle} [{low}, {high}]"


def _number(value: float, sign: str = "") -> str:
    if abs(value) >= 1e5:
        return f"{value:{sign}.3g}"
    return f"{value:{sign}.{2 if abs(value) >= 10 else 3}f}"


def _csv(data: xr.Dataset, changes: xr.Dataset) -> str:
    columns = ["change", *(f"against_{str(control).replace('-', '_')}" for control in changes[CONTROL].values)]
    streams = [f"{stream}_pairs" for stream in data["stream"].values]
    header = ["selection", *streams, "alpha", "perplexity"]
    header += [f"{column}{suffix}" for column in columns for suffix in ("", "_low", "_high")]
    return csv_text(header, (_csv_row(row) for row in _rows(data, changes)))


def _csv_row(row: dict[str, xr.DataArray]) -> list[object]:
    numbers = [row["perplexity"][ALPHA], row["perplexity"], *row["change"], *row["against"].values.flat]
    counts = [int(count) for count in row["pairs"]]
    return [row["perplexity"][SELECTION].item(), *counts, *("" if np.isnan(n) else float(n) for n in numbers)]
