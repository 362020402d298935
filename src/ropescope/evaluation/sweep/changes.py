"""What a sweep says: changes with paired intervals over windows, and a table of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from ropescope.base.statistics import ESTIMATE, ESTIMATES, nats_difference
from ropescope.base.strengths import strength_of
from ropescope.base.tables import Format, Table, csv_text, in_format
from ropescope.evaluation.sweep.dataset import ALPHA, ARM, LOWEST, RANDOM, SELECTION, SWEEP

CONTROL = "control"
ALL_RANDOM = "random"


def change(data: xr.Dataset) -> xr.Dataset:
    r"""Changes of perplexity against the baseline and against the controls, with 95 % intervals.

    The intervals are jackknife intervals of the log ratio of two perplexities over windows, the same windows on both
    sides; where windows have equally many tokens, that is Student's t interval of the mean difference. They speak of
    other windows of this text, not of other texts or models.

    Parameters
    ----------
    data
        What :func:`sweep` gave.

    Returns
    -------
    xarray.Dataset
        `nats_change` (nats per token, which is the change of log perplexity) and `perplexity_change` over (selection,
        arm, alpha, estimate), against the baseline; `nats_against` and `perplexity_against` over (selection, control,
        alpha, estimate), selection minus control. `estimate` is "value", "low", "high", the latter two NaN with fewer
        than five windows. The arm and control "random" is the mean over seeds of each window's nats. NaN where an
        alpha was not asked for.

    Raises
    ------
    ResultError
        If the dataset is no sweep.
    """
    SWEEP.check(data, "the dataset")
    nats, tokens = _with_random(data["nats"]), data["tokens"].values
    arms = [str(arm) for arm in nats[ARM].values]
    controls = [control for control in (ALL_RANDOM, *LOWEST) if control in arms]
    baseline = nats.values[:, :, [int(np.flatnonzero(nats[ALPHA].values == 1)[0])]]
    own = nats.values[:, [arms.index(SELECTION)]]
    others = nats.values[:, [arms.index(control) for control in controls]]
    changes, against = (SELECTION, ARM, ALPHA, ESTIMATE), (SELECTION, CONTROL, ALPHA, ESTIMATE)
    variables = {
        **_differences(nats.values, baseline, tokens, "change", changes),
        **_differences(own, others, tokens, "against", against),
    }
    coordinates = {
        SELECTION: data[SELECTION].values,
        ARM: arms,
        ALPHA: data[ALPHA].values,
        CONTROL: np.array(controls, dtype=np.str_),
        ESTIMATE: list(ESTIMATES),
    }
    return xr.Dataset(variables, coordinates, {"interval": "95 % paired jackknife over windows"})


def sweep_table(data: xr.Dataset, *, format: Format = "text") -> str:
    """Write a row for every selection and alpha: perplexity, its change, and that against the controls.

    Parameters
    ----------
    data
        What :func:`ropescope.sweep` gave.
    format
        "text" for a terminal, "markdown", or "csv" (plain numbers at full precision, intervals in own columns).

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
    return in_format(format, lambda: effect_table(data), lambda: _csv(data, change(data)))


def effect_table(data: xr.Dataset) -> Table:
    """The rows of :func:`sweep_table` as a table."""
    return _table(data, change(data))


def _table(data: xr.Dataset, changes: xr.Dataset) -> Table:
    names = [f"against {control}" for control in changes[CONTROL].values]
    strength = strength_of(SWEEP.provenance(data)).name
    header = ["selection", "pairs", strength, "perplexity", "change", *names]
    return Table(header, [_written(data, row) for row in _rows(data, changes)])


def mean_perplexity(arms: xr.DataArray) -> xr.DataArray:
    """Perplexity of the mean loss over arms, as the table's, which is the geometric mean of theirs."""
    nats: xr.DataArray = np.log(arms)  # type: ignore[assignment]
    mean: xr.DataArray = np.exp(nats.mean(ARM))  # type: ignore[assignment]
    return mean


def _with_random(nats: xr.DataArray) -> xr.DataArray:
    """Add the mean of the random arms as an arm of its own."""
    seeds = [arm for arm in nats[ARM].values if str(arm).startswith(RANDOM)]
    if not seeds:
        return nats
    mean = nats.sel({ARM: seeds}).mean(ARM, skipna=False).expand_dims({ARM: [ALL_RANDOM]})
    return xr.concat([nats, mean], ARM).transpose(*nats.dims)


def _differences(
    first: np.ndarray, second: np.ndarray, tokens: np.ndarray, name: str, dims: tuple[str, ...]
) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]:
    """First minus second, of nats (..., window): in nats per token, and in perplexity."""
    nats = nats_difference(first, second, tokens)
    with np.errstate(over="ignore", invalid="ignore"):
        perplexity = np.exp(second.sum(-1) / tokens.sum())[..., None] * np.expm1(nats)
    return {
        f"nats_{name}": (dims, nats, _meaning("nats per token", "nat")),
        f"perplexity_{name}": (dims, perplexity, _meaning("perplexity", "1")),
    }


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
