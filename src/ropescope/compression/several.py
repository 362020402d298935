"""Several plans from one calibration, for :func:`ropescope.frontier` to judge: shares, methods, baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.arguments import BatchSize
from ropescope.base.errors import ResultError, first_line
from ropescope.base.facts import finished
from ropescope.base.files import check_folder
from ropescope.base.key_plans import METHODS, SHARES, Method, Metric, check_plans
from ropescope.compression.planning import calibration_facts, check_model, plan_facts, planner_of
from ropescope.compression.plans import KeyPlan
from ropescope.compression.scores import Order, needs_measurement, order_by
from ropescope.measurement.measure import measure
from ropescope.model.access import check_windows
from ropescope.model.probing import probe
from ropescope.run.workers import Workers, workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

_FRAME = 1024
_MEASURED = "measured.nc"


def frontier_plans(
    model: PreTrainedModel,
    windows: TokenIds,
    keep: Iterable[float] = SHARES,
    method: Iterable[Method] = METHODS,
    *,
    baselines: Iterable[str] = (),
    result: xr.DataTree | None = None,
    metric: Metric = "fisher",
    sinks: int = 4,
    multiple: int = 1,
    folder: str | Path | None = None,
    overwrite: bool = False,
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> list[KeyPlan]:
    """Plan key caches of several sizes in several ways from one calibration, baselines in the same frame.

    Parameters
    ----------
    model, windows
        As :func:`ropescope.plan_keys` takes them.
    keep, method
        Shares of the stock bytes, and ways; every way is planned for every share.
    baselines
        Orders that others keep pairs by, each a plan of method "drop" of the same bytes: "norm-product" (ThinK's
        score, Xu et al., ICLR 2025, from the calibration text), "norm" (of keys), "spectrum-fe" (lowest SpectrumFE of
        keys first), "random". All layers and heads keep the same share.
    result
        A measurement of the model that baselines rest on; None measures the calibration windows where it is needed.
    metric, sinks, multiple
        As :func:`ropescope.plan_keys` takes them.
    folder
        Every plan is kept there as soon as it is made, as ``METHOD-KEEP.safetensors``, and read from there by the same
        call; it is made if it does not exist. None keeps nothing.
    overwrite
        Plan anew, and replace files of that name.
    batch_size, group, progress
        As :func:`ropescope.plan_keys` takes them.

    Returns
    -------
    list of KeyPlan
        Ways in the order given, baselines after them, each from the largest share to the smallest.

    Raises
    ------
    InputError, ModelError
        As :func:`ropescope.plan_keys`, and if a baseline is unknown or the result is of another model.
    ResultError
        If a file cannot be written, or holds another plan.

    Examples
    --------
    >>> plans = rs.frontier_plans(model, windows, baselines=["norm-product"], folder="plans")  # doctest: +SKIP
    >>> print(rs.frontier_table(rs.frontier(model, test_windows, plans)))  # doctest: +SKIP
    """
    shares, ways, others = sorted(set(keep), reverse=True), [*dict.fromkeys(method)], [*dict.fromkeys(baselines)]
    check_plans(shares, ways, others, metric, sinks, multiple)
    check_windows(model, windows, batch_size)
    check_model(model)
    workers = workers_of(model, group)
    home = None if folder is None else _made(Path(folder), workers)
    shared: dict[str, Any] = {"batch_size": batch_size, "group": group, "progress": progress}
    if result is None and needs_measurement(others):
        result = _measured(model, windows, home, overwrite, shared)
    facts = calibration_facts(model, windows, workers, metric=metric, sinks=sinks, batch_size=batch_size)
    card = probe(model, positions=windows.shape[1])
    asked = _asked(shares, ways, {name: order_by(name, card, result, facts["model"]) for name in others})
    wanted = {name: plan_facts(facts, *each[:2], multiple=multiple, order=each[2]) for name, each in asked.items()}
    made = {} if home is None else _kept(home, wanted, overwrite, workers)
    if len(made) < len(asked):
        planner = planner_of(model, windows, metric=metric, sinks=sinks, **shared)
        for name in [name for name in asked if name not in made]:
            share, way, order = asked[name]
            plan = planner.plan(share, way, order=order, multiple=multiple)
            made[name] = plan if home is None else _saved(plan, home, name, workers)
    return [made[name] for name in asked]


def _measured(
    model: PreTrainedModel, windows: TokenIds, folder: Path | None, overwrite: bool, shared: Mapping[str, Any]
) -> xr.DataTree:
    """What baselines rest on, where nobody gave it."""
    frame = min(_FRAME, windows.shape[1])
    kept: dict[str, Any] = {"path": None if folder is None else folder / _MEASURED, "overwrite": overwrite}
    return measure(model, windows, frame_length=frame, hop_length=max(1, frame // 2), **kept, **shared)


Asked = tuple[float, Method, Order | None]


def _asked(shares: Iterable[float], ways: Iterable[Method], orders: Mapping[str, Order]) -> dict[str, Asked]:
    """What to plan, by the name of its file."""
    own: dict[str, Asked] = {f"{way}-{share:g}": (share, way, None) for way in ways for share in shares}
    return own | {f"{name}-{share:g}": (share, "drop", order) for name, order in orders.items() for share in shares}


def _made(folder: Path, workers: Workers) -> Path:
    def make() -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ResultError(f"cannot make the folder {folder}: {first_line(error)}; choose another") from error

    home = check_folder(folder)
    workers.told(make)
    return home


def _kept(
    folder: Path, wanted: Mapping[str, Mapping[str, Any]], overwrite: bool, workers: Workers
) -> dict[str, KeyPlan]:
    """The plans that are there already."""
    there = workers.told(
        lambda: [
            name
            for name, facts in wanted.items()
            if finished(_file(folder, name), facts, lambda path: KeyPlan.load(path).provenance, overwrite)
        ]
    )
    return {name: KeyPlan.load(_file(folder, name)) for name in there}


def _saved(plan: KeyPlan, folder: Path, name: str, workers: Workers) -> KeyPlan:
    """The plan of the leading process, in all of them."""
    workers.told(lambda: str(plan.save(_file(folder, name))))
    return KeyPlan.load(_file(folder, name))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
