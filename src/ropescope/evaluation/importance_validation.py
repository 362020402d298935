"""Does importance say what losing a pair costs? A random sample of single pairs is taken away for true."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ropescope.base.arguments import check_at_least
from ropescope.base.axes import KEY, LAYER, PAIR, SEQUENCE, STREAMS
from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.facts import listed, other_model, versions
from ropescope.base.schema import Schema
from ropescope.base.statistics import ESTIMATE, ESTIMATES, bootstrapped, rank_correlation
from ropescope.evaluation.ablation import KINDS, ROTATION, SCALE, Ablation
from ropescope.measurement.results import provenance
from ropescope.model.identity import model_provenance
from ropescope.model.lm_head import check_next_tokens
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.engine import Cell, Cells, Output
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

STREAM, KIND, SAMPLE = "stream", "kind", "sample"
_WORTH = {SCALE: ("fisher", "gradient"), ROTATION: ("rotation_fisher", "rotation_gradient")}
# Turned off, a pair's scale falls by 1; its derotation rises by 1.
_STEP = {SCALE: -1.0, ROTATION: 1.0}
# Below this rank correlation a score is not to be used.
LEAST = 0.7
# Nats a token, a hundredth more perplexity: a loss above it need not follow its second order at the model as it stands.
SMALL = 0.01
# By more than this factor in the sum of small losses, a score is of use for the order alone.
FACTOR = 2.0
_LOST = {SCALE: "losing a pair", ROTATION: "losing a pair's rotation"}
VARIABLES = {
    "kl": ("KL divergence from the unchanged model", "nat/token", (KIND, SAMPLE, SEQUENCE)),
    "nll": ("change of the negative log-likelihood", "nat/token", (KIND, SAMPLE, SEQUENCE)),
    "predicted_kl": ("half the Fisher information", "nat/token", (KIND, SAMPLE)),
    "predicted_nll": ("first-order change of the negative log-likelihood", "nat/token", (KIND, SAMPLE)),
    "kl_correlation": ("rank correlation of KL with its prediction", "1", (KIND, ESTIMATE)),
    "nll_correlation": ("rank correlation of the change with its prediction", "1", (KIND, ESTIMATE)),
    "kl_ratio": ("sum of predicted over sum of true KL", "1", (KIND, ESTIMATE)),
    "small_kl_ratio": (
        f"sum of predicted over sum of true KL of pairs predicted to cost at most {SMALL:g} nat/token",
        "1",
        (KIND, ESTIMATE),
    ),
}
PLACES = {LAYER: "model layer", "head": "query head or key head", PAIR: "rotary pair"}
VALIDATION = Schema(
    "ropescope-validation",
    1,
    {name: dims for name, (_, _, dims) in VARIABLES.items()} | {name: (SAMPLE,) for name in PLACES},
    what="a validation of importance",
    command="ropescope importance --validate",
    again="validate again",
)


def validate_importance(
    model: PreTrainedModel,
    windows: TokenIds,
    worth: xr.DataTree,
    count: int = 150,
    *,
    stream: str = KEY,
    rotation: bool = True,
    seed: int = 0,
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Take single pairs away for true, and say how well importance foretold what that costs.

    The pairs that are not silent are ordered by their importance and cut into `count` parts of equal size, and one
    pair of each is drawn: a random sample that holds as many important pairs as the model does. Each is turned to
    :math:`\alpha = 0`, and then, on its own, derotated whole (:math:`s = 1`). Predicted are half the Fisher
    information for the KL divergence from the unchanged model, and the gradient for the change of the loss.

    Parameters
    ----------
    model, windows
        The model that `worth` is of, and token ids to judge on, (sequence, position), at least 2 positions.
    worth
        What :func:`ropescope.importance` gave.
    count
        Pairs, at least 3; all that are not silent if there are fewer.
    stream
        "query" or "key".
    rotation
        Whether to derotate too, which costs as much again.
    seed
        Of the sample.
    path, overwrite
        NetCDF file for the dataset, resumed and kept as :func:`ropescope.sweep` does.
    group
        Processes that share the work, each of which makes this call with a copy of the model.
    progress
        Show how far it is.

    Returns
    -------
    xarray.Dataset
        `kl` and `nll` (kind, sample, sequence), what the pair's loss costs, nats per token; `predicted_kl` and
        `predicted_nll` (kind, sample); `kl_correlation`, `nll_correlation` (Spearman), `kl_ratio` (sum of predicted
        over sum of true) and `small_kl_ratio` (the same without the pairs predicted to cost more than 0.01 nats, whose
        losses need not follow their second order) over (kind, estimate), with 95 % bootstrap intervals over pairs;
        where a sampled pair is: `layer`, `head` and `pair` (sample). Kinds are "scale" and "rotation", the latter NaN
        where it was left out or the pair does not turn.

    Raises
    ------
    InputError
        If `worth` is of another model, the windows do not fit, or count, stream or seed are out of range.
    NonFiniteError
        If a pair's loss leaves no finite probability.
    ResultError
        If the file or its journal cannot be written, belong to another run, or are in use; no finished cell is lost.

    Examples
    --------
    >>> check = validate_importance(model, windows, worth)  # doctest: +SKIP
    >>> check.kl_correlation.sel(kind="scale", estimate="value").item()  # doctest: +SKIP
    0.9
    """
    _check(model, windows, count, stream, seed)
    workers = workers_of(model, group)
    known, facts_of_model = provenance(worth), model_provenance(model)
    if differing := other_model(known.get("model", {}), facts_of_model):
        raise InputError(f"the importance is of another model (other {listed(differing)}); run it on this one")
    sample = sampled(worth, stream, count, seed)
    facts = {
        "ropescope": version("ropescope"),
        "model": facts_of_model,
        "windows": windows_protocol(windows),
        "importance": known,
        "parameters": {"count": count, STREAM: stream, "rotation": rotation, "seed": seed},
        "places": [list(place) for place in sample],
        "versions": versions("torch", "transformers", "numpy", "xarray"),
    }
    run = Ablation(model, windows, probe(model), worth, stream, sample, KINDS if rotation else (SCALE,))

    def made(cells: Cells) -> xr.Dataset:
        return _dataset(run, cells.everywhere(dict(cells.shared(run.steps()).found(run.computed))), facts)

    output = _output(path, overwrite, facts, model.device.type)
    return output.finished_or_made(Cells("validate", "pair", workers, progress), made)


def _output(path: str | Path | None, overwrite: bool, facts: dict[str, Any], device: str) -> Output[xr.Dataset]:
    return Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts={**facts, "device": device},
        load=VALIDATION.load,
        save=VALIDATION.save,
        recorded=VALIDATION.provenance,
    )


def sampled(worth: xr.DataTree, stream: str, count: int, seed: int) -> list[tuple[int, int, int]]:
    """Places (row of the layer, head, pair), one of each of `count` parts of the order by importance."""
    fisher = worth[stream].to_dataset()["fisher"].mean(SEQUENCE).values
    places = np.argwhere(np.nan_to_num(fisher) > 0)
    ordered = places[np.argsort(fisher[tuple(places.T)], kind="stable")]
    random = np.random.default_rng(seed)
    drawn = [part[random.integers(len(part))] for part in np.array_split(ordered, min(count, len(ordered)))]
    return [(int(row), int(head), int(pair)) for row, head, pair in drawn]


def _check(model: PreTrainedModel, windows: TokenIds, count: int, stream: str, seed: int) -> None:
    check_next_tokens(model, windows)
    check_at_least("count", count, 3)
    check_at_least("seed", seed, 0)
    if stream not in STREAMS:
        raise InputError(f"got stream {stream!r}: {did_you_mean(stream, STREAMS)}")


def _dataset(run: Ablation, cells: Mapping[str, Cell], facts: Mapping[str, Any]) -> xr.Dataset:
    found = np.full((len(KINDS), len(run.sample), len(run.windows), 2), np.nan)
    for name, (window, row) in run.cells().items():
        found[:, run.rows()[row], window] = cells[name]["found"]
    fisher, gradient = (np.stack([_of_sample(run, _WORTH[kind][n]) for kind in KINDS]) for n in (0, 1))
    steps = np.array([[_STEP[kind]] for kind in KINDS])
    variables = {
        "kl": found[..., 0],
        "nll": found[..., 1],
        "predicted_kl": fisher / 2,
        "predicted_nll": gradient * steps,
    }
    variables |= _agreement(variables)
    arrays = {name: (dims, variables[name], _meaning(name)) for name, (_, _, dims) in VARIABLES.items()}
    layers = [rotation.layer for rotation in run.card.layers]
    places = np.array([(layers[row], head, pair) for row, head, pair in run.sample])
    where = {
        name: (SAMPLE, column, {"long_name": text, "units": "1"})
        for (name, text), column in zip(PLACES.items(), places.T, strict=True)
    }
    labels = {KIND: list(KINDS), ESTIMATE: list(ESTIMATES)}
    return xr.Dataset(arrays | where, labels, VALIDATION.attributes(facts))


def _meaning(name: str) -> dict[str, str]:
    return {"long_name": VARIABLES[name][0], "units": VARIABLES[name][1]}


def _of_sample(run: Ablation, name: str) -> np.ndarray:
    mean = run.worth[run.stream].to_dataset()[name].astype(np.float64).mean(SEQUENCE).values
    return np.array([mean[place] for place in run.sample])


def _agreement(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Over the pairs of each kind that were taken away, mean over windows."""
    found: dict[str, list[np.ndarray]] = {name: [] for name, (*_, dims) in VARIABLES.items() if ESTIMATE in dims}
    for kind in range(len(KINDS)):
        kl, nll = (variables[name][kind].mean(-1) for name in ("kl", "nll"))
        known = ~np.isnan(kl)
        predicted_kl, predicted_nll = (variables[f"predicted_{name}"][kind] for name in ("kl", "nll"))
        small = known & (predicted_kl <= SMALL)
        pairs = {
            "kl_correlation": (rank_correlation, predicted_kl[known], kl[known]),
            "nll_correlation": (rank_correlation, predicted_nll[known], nll[known]),
            "kl_ratio": (_ratio, predicted_kl[known], kl[known]),
            "small_kl_ratio": (_ratio, predicted_kl[small], kl[small]),
        }
        for name, given in pairs.items():
            found[name].append(bootstrapped(*given))
    return {name: np.stack(rows) for name, rows in found.items()}


def _ratio(predicted: np.ndarray, true: np.ndarray) -> Any:
    total = true.sum(-1)
    return predicted.sum(-1) / np.where(total > 0, total, np.nan)


def in_words(data: xr.Dataset) -> list[str]:
    """A sentence for each kind of loss: how well it was foretold, and whether the score may be used for it."""
    stream = VALIDATION.provenance(data)["parameters"][STREAM]
    return [_sentence(data.sel({KIND: kind}), kind, stream) for kind in KINDS if data["kl"].sel({KIND: kind}).count()]


def _sentence(data: xr.Dataset, kind: str, stream: str) -> str:
    what = {SCALE: "taken away", ROTATION: "without their rotation"}[kind]
    taken = data["kl"].notnull().any(SEQUENCE)
    correlation, ratio, small_ratio = (_interval(data[n]) for n in ("kl_correlation", "kl_ratio", "small_kl_ratio"))
    found = (
        f"{int(taken.sum())} single {stream} pairs {what}: rank correlation of predicted with true KL divergence "
        f"{correlation}, sum of predicted over sum of true {ratio}."
    )
    small = taken & (data["predicted_kl"] <= SMALL)
    if small.sum() < taken.sum():
        found = (
            f"{found[:-1]}, and {small_ratio} over the {int(small.sum())} predicted to cost at most {SMALL:g} nats a "
            "token."
        )
    if float(data["kl_correlation"].sel({ESTIMATE: "value"})) < LEAST:
        return f"{found} Under {LEAST:g}: do not use this score to say what {_LOST[kind]} costs."
    off = float(data["small_kl_ratio"].sel({ESTIMATE: "value"}))
    if off > FACTOR or off < 1 / FACTOR:
        return f"{found} More than a factor {FACTOR:g} off: it gives the order alone of what {_LOST[kind]} costs."
    return found


def _interval(values: xr.DataArray) -> str:
    value, low, high = (float(values.sel({ESTIMATE: estimate})) for estimate in ESTIMATES)
    if np.isnan(low):
        return f"{value:.2f} (too few pairs for an interval)"
    return f"{value:.2f} (95 % interval {low:.2f} to {high:.2f})"
