"""The ways to thin keys that have a name, and what may be asked of a plan; checked without loading torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ropescope.base.arguments import check_at_least
from ropescope.base.errors import InputError, did_you_mean

Method = Literal["latent", "drop"]
METHODS: tuple[Method, ...] = ("latent", "drop")
Metric = Literal["both", "fisher", "query"]
METRICS: tuple[Metric, ...] = ("both", "fisher", "query")
NORM_PRODUCT, NORM, ENTROPY, RANDOM = "norm-product", "norm", "spectrum-fe", "random"
# Orders that others keep pairs in, and which pairs those are.
BASELINES = {
    NORM_PRODUCT: "pairs of highest product of query and key norm (ThinK)",
    NORM: "pairs of highest key norm",
    ENTROPY: "pairs of lowest SpectrumFE",
    RANDOM: "random pairs",
}
SHARES = (0.75, 0.5, 0.25)


def check_plan(keep: float, method: str, sinks: int = 0, multiple: int = 1) -> None:
    """Raise InputError unless :func:`ropescope.plan_keys` takes these."""
    if not 0 < keep <= 1:
        raise InputError(f"keep got {keep}; it is a share of the stock bytes above 0, to 1")
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, METHODS)}")
    check_at_least("sinks", sinks, 0)
    check_at_least("multiple", multiple, 1)


def check_calibration(metric: str, sinks: int) -> None:
    """Raise InputError unless a model can be calibrated so."""
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; {did_you_mean(metric, METRICS)}")
    check_at_least("sinks", sinks, 0)


def check_plans(
    keep: Sequence[float], method: Sequence[str], baselines: Sequence[str], metric: str, sinks: int, multiple: int = 1
) -> None:
    """Raise InputError unless :func:`ropescope.frontier_plans` takes these."""
    if not keep or not [*method, *baselines]:
        raise InputError("got nothing to plan; give at least one share to keep and one method or baseline")
    for share in keep:
        check_plan(share, METHODS[0], sinks, multiple)
    for way in method:
        check_plan(1.0, way)
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"unknown baseline {name!r}; {did_you_mean(name, BASELINES)}")
    check_calibration(metric, sinks)
