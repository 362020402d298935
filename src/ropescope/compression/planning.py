"""From a model and a text to a plan of its key cache: :func:`plan_keys`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ropescope.base.arguments import BatchSize
from ropescope.base.errors import ModelError
from ropescope.base.key_plans import Method, Metric, check_calibration, check_plan
from ropescope.compression.budget import Budget
from ropescope.compression.calibration import Calibration, calibrated
from ropescope.compression.choosing import drop_layers, fisher_of_keys, latent_layers
from ropescope.compression.plans import KeyPlan, LayerPlan
from ropescope.compression.scores import Order
from ropescope.compression.thinning import check_whole
from ropescope.measurement.results import provenance
from ropescope.model.access import check_windows
from ropescope.model.decoder import check_head
from ropescope.model.identity import model_provenance
from ropescope.model.probing import probe
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import batches_of
from ropescope.run.workers import Workers, workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds
    from ropescope.model.card import RotaryCard


def plan_keys(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    keep: float,
    method: Method = "latent",
    metric: Metric = "fisher",
    importance: xr.DataTree | None = None,
    sinks: int = 4,
    multiple: int = 1,
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> KeyPlan:
    r"""Plan a key cache of fewer bytes from what the keys of a text are like, and what an error in them costs.

    "latent" projects keys before rotation, all heads of a layer together, on the directions that make an error
    :math:`k - \hat k` cost least, :math:`E[(k-\hat k)^\top M (k-\hat k)]`; "drop" leaves out the pairs that cost least
    by the same metric M. What every layer keeps is decided by these costs together, against the bytes it takes there.

    Parameters
    ----------
    model
        Any transformers causal language model whose attention goes through the attention interface.
    windows
        Token ids to calibrate on, shape (sequence, position), as :func:`ropescope.token_windows` gives them.
    keep
        Bytes of the thin keys over those of the stock cache, for a text as long as a window, above 0 to 1; sinks and
        positions are in it. Of longer texts the share is smaller, since the sinks are then a smaller part.
    method
        "latent" or "drop"; see :class:`ropescope.KeyPlan`.
    metric
        What an error costs. "fisher": what the model's predictions feel of it, :math:`M = E[gg^\top]` with g the
        gradient of the log-likelihood of next tokens drawn from the model, keys counting as they are felt; one
        backward pass a window. "query": the logits it makes, M the mean of :math:`qq^\top` of queries turned to
        log-uniform distances; needs no gradient. "both": their sum in every layer, where an error alike in all
        dimensions costs by the second 0.3 of what it costs by the first.
    importance
        What :func:`ropescope.importance` gave for this model: "drop" then goes by its Fisher values of keys, and
        "latent" weighs layers by their sums. None goes by the metric alone, and the provenance says so.
    sinks
        First tokens of a text whose keys stay whole in a latent cache, at least 0, and that are not calibrated on.
    multiple
        Ranks, or pairs of a head, are multiples of this, at least 1.
    batch_size
        Windows in one forward pass, at least 1; "auto" takes as many as the memory of the accelerator holds.
    group
        Processes that share the windows, each of which makes this call with a copy of the model; all of them get the
        whole plan, equal but for the rounding of sums. None is this process alone.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    KeyPlan
        With :meth:`KeyPlan.save`; its provenance says from which model, text and parameters it is.

    Raises
    ------
    InputError
        If `keep` is out of range or too little for the sinks, or the text too short for the ranks.
    ModelError
        If the model makes keys from a latent of its own (MLA), is spread over processes, its cache keeps other things
        than keys and values, or no gradient comes through it.

    Examples
    --------
    >>> plan = plan_keys(model, windows, keep=0.5)  # doctest: +SKIP
    >>> print(plan)  # doctest: +SKIP
    latent: 2868 of 5760 numbers of a token's keys in 30 layers (49.8%; 10% to 68% of a layer), 4 sinks whole
    """
    check_plan(keep, method, sinks, multiple)
    planner = planner_of(
        model, windows, metric=metric, sinks=sinks, batch_size=batch_size, group=group, progress=progress
    )
    return planner.plan(keep, method, importance=importance, multiple=multiple)


def planner_of(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    metric: Metric = "fisher",
    sinks: int = 4,
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> Planner:
    """Calibrate a model on a text, once for any number of plans; it takes and raises what :func:`plan_keys` does."""
    from ropescope.compression.cache import stores_of

    check_calibration(metric, sinks)
    check_windows(model, windows, batch_size)
    check_head(model)
    check_model(model)
    workers = workers_of(model, group)
    card = probe(model, positions=windows.shape[1])
    stores = stores_of(model.config)
    batches = batches_of(batch_size, model.device.type, workers)
    calibration = calibrated(model, windows, card, batches, workers, metric=metric, sinks=sinks, progress=progress)
    _check_stores(stores, calibration)
    facts = calibration_facts(model, windows, workers, metric=metric, sinks=sinks, batch_size=batch_size)
    return Planner(card, stores, calibration, windows.shape[1], model.dtype.itemsize, facts)


@dataclass(frozen=True, slots=True, eq=False)
class Planner:
    """What plans for one model and text have in common.

    Parameters
    ----------
    card
        How the model turns.
    stores
        What its cache keeps of every layer.
    calibration
        What its keys are like, and what an error in them costs.
    length
        Tokens of a text that plans keep their share of bytes for.
    itemsize
        Bytes of a stored number.
    facts
        Provenance of every plan.
    """

    card: RotaryCard
    stores: tuple[str, ...]
    calibration: Calibration
    length: int
    itemsize: int
    facts: Mapping[str, Any]

    def plan(
        self,
        keep: float,
        method: Method = "latent",
        *,
        importance: xr.DataTree | None = None,
        order: Order | None = None,
        multiple: int = 1,
    ) -> KeyPlan:
        """A plan, as :func:`plan_keys` makes it; "drop" may go by another order of pairs."""
        worth = None if importance is None else fisher_of_keys(importance, self.calibration)
        sinks = self.facts["parameters"]["sinks"]
        budget = Budget(keep, self.length, sinks, self.itemsize, self.stores)
        facts = plan_facts(self.facts, keep, method, multiple=multiple, importance=importance, order=order)
        if method == "latent":
            layers: tuple[LayerPlan, ...] = tuple(latent_layers(self.calibration, worth, budget, multiple))
        else:
            layers = tuple(drop_layers(self.calibration, self.card, worth, budget, multiple, order))
        return KeyPlan(method, layers, self.calibration.shared, self.stores, sinks, facts)


def check_model(model: PreTrainedModel) -> None:
    """Raise ModelError unless keys of this model can be planned."""
    check_whole(model)
    if getattr(model.config.get_text_config(), "kv_lora_rank", None):
        raise ModelError(
            f"{type(model).__name__} makes its keys from a latent of its own (MLA), which is what a cache of it should "
            "store; thin keys are for models that cache whole keys"
        )


def _check_stores(stores: Sequence[str], calibration: Calibration) -> None:
    """A plan names layers as attention calls come; the cache, as modules do."""
    kept = {layer for layer, store in enumerate(stores) if re.match("full|sliding", store)}
    if kept != set(calibration.layers):
        raise ModelError(
            f"the cache of this model keeps keys for layers {sorted(kept)}, but its attention makes them in layers "
            f"{sorted(calibration.layers)}; which belongs to which cannot be told"
        )


def calibration_facts(
    model: PreTrainedModel,
    windows: TokenIds,
    workers: Workers,
    *,
    metric: Metric,
    sinks: int,
    batch_size: BatchSize,
) -> dict[str, Any]:
    """What all plans of a calibration say of themselves, known before it."""
    return {
        "ropescope": version("ropescope"),
        "model": model_provenance(model),
        "windows": windows_protocol(windows),
        "parameters": {"metric": metric, "sinks": sinks, "batch_size": batch_size},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "created": workers.agreed(datetime.now(UTC).isoformat(timespec="seconds")),
    }


def plan_facts(
    facts: Mapping[str, Any],
    keep: float,
    method: str,
    *,
    multiple: int = 1,
    importance: xr.DataTree | None = None,
    order: Order | None = None,
) -> dict[str, Any]:
    """Provenance of one plan of a calibration."""
    chosen = {"keep": keep, "method": method, "multiple": multiple, "order": None if order is None else order.name}
    return {
        **facts,
        "parameters": {**chosen, **facts["parameters"]},
        "importance": None if importance is None else provenance(importance),
        "order": None if order is None else order.origin,
    }
