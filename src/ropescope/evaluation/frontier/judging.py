"""Judge plans of thin keys against the stock cache: bytes as they lie in memory, perplexity, time.

A cell is one plan: what its cache stores of a window, and the nats of all windows. Each finished cell is kept at once,
so a killed run goes on and ends with the same file. Processes share the plans; the leading one alone times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropescope.base.arguments import BatchSize
from ropescope.base.errors import InputError
from ropescope.base.facts import versions
from ropescope.compression.plans import KeyPlan
from ropescope.compression.thinning import check_fits, thin_keys
from ropescope.evaluation.frontier.dataset import FRONTIER, STOCK, labelled
from ropescope.evaluation.frontier.timing import Timing, check_timing, not_timed, timed, timing_facts
from ropescope.evaluation.perplexity import check_scoring, perplexity, protocol
from ropescope.model.access import input_device, undisturbed
from ropescope.model.identity import model_provenance
from ropescope.model.lm_head import headless
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import batches_of
from ropescope.run.engine import Cell, Cells, Output, one_by_one
from ropescope.run.workers import Workers, workers_of

if TYPE_CHECKING:
    import xarray as xr
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

_DIGEST = 32


def frontier(
    model: PreTrainedModel,
    windows: TokenIds,
    plans: Iterable[KeyPlan] | Mapping[str, KeyPlan],
    *,
    timing: Timing | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    stride: int | None = None,
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """What key caches of fewer bytes cost: for every plan its bytes as stored, perplexity through it, and its time.

    Parameters
    ----------
    model
        The model that the plans were made for.
    windows
        Token ids to judge on, shape (sequence, position); not the text that was calibrated on.
    plans
        By the name to show, or alone: they are then named after their way and share, as in "latent 0.5".
    timing
        At which length to time, with both caches in turn; baselines, which store what "drop" stores, are left out.
        None times nothing.
    path
        NetCDF file for the dataset. Beside it a folder ``<path>.partial`` keeps every finished plan until the file is
        complete: the same call after a crash goes on there.
    overwrite
        Judge anew and replace whatever file is at `path`. Without it a file that holds this very frontier is read and
        returned, and any other is refused, as in :func:`ropescope.measure`.
    stride, batch_size
        As in :func:`ropescope.perplexity`.
    group
        Processes that share the plans, each of which makes this call with a copy of the model; all of them get the
        whole dataset. The first writes it, and alone times. None is this process alone.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    xarray.Dataset
        Over `plan`, of which the first is "stock": `method`, `keep` (as asked), `key_bytes` (of the cache that has
        read the first window, as its tensors lie in memory), `perplexity`, and `nats` (plan, window); `tokens`
        (window); `prefill_seconds` and `decode_seconds` (plan, side, round), of the decoder without its head, sides
        "stock" and "thin"; `extra_bytes` (plan, side), peak memory of an accelerator beside the model, NaN on the CPU.

    Raises
    ------
    InputError
        Before anything runs: no plan, two of one name, a plan of another model, bad windows, numbers out of range.
    ModelError
        If the model is spread over processes.
    ResultError
        If the file or its journal cannot be written, belong to another run, or are in use; no finished plan is lost.

    Examples
    --------
    >>> plans = [rs.plan_keys(model, windows, keep=keep) for keep in (0.75, 0.5)]  # doctest: +SKIP
    >>> print(rs.frontier_table(rs.frontier(model, test_windows, plans)))  # doctest: +SKIP
    """
    given = named_plans(plans)
    if timing is not None:
        check_timing(timing)
    for plan in given.values():
        check_fits(plan, model)
    scored = check_scoring(model, windows, stride, batch_size)
    workers = workers_of(model, group)
    batches_of(batch_size, model.device.type, workers)
    # Planned in several processes, plans may differ by rounding: those of the leading one name the cells.
    names = dict(zip(given, workers.agreed([plan.digest()[:_DIGEST] for plan in given.values()]), strict=True))
    facts = _configuration(model, windows, stride, batch_size)
    provenance = {
        **facts,
        "windows": protocol(model, windows, stride, batch_size),
        "plans": {name: {**plan.provenance, "sha256": names[name]} for name, plan in given.items()},
        "timing": None if timing is None else timing_facts(timing),
    }
    run = _Run(model, windows, given, names, timing, stride, batch_size)
    kinds: dict[str, Any] = {"load": FRONTIER.load, "save": FRONTIER.save, "recorded": FRONTIER.provenance}
    output: Output[xr.Dataset] = Output(path=path, overwrite=overwrite, facts=provenance, cell_facts=facts, **kinds)
    cells = Cells("judge", "plan", workers, progress)
    return output.finished_or_made(cells, lambda kept: _dataset(given, run.rows(kept), scored, provenance))


def named_plans(plans: Iterable[KeyPlan] | Mapping[str, KeyPlan]) -> dict[str, KeyPlan]:
    """Plans by the name to show.

    Raises
    ------
    InputError
        If there is none, something else than a plan, or two of one name.
    """
    pairs = [*plans.items()] if isinstance(plans, Mapping) else [(None, plan) for plan in plans]
    if not pairs:
        raise InputError("got no plans; give at least one, as rs.plan_keys makes it")
    found: dict[str, KeyPlan] = {}
    for given, plan in pairs:
        if not isinstance(plan, KeyPlan):
            raise InputError(f"got a {type(plan).__name__} among the plans; give plans, as rs.plan_keys makes them")
        name = f"{plan.way} {_keep(plan):g}" if given is None else str(given)
        if name in found or name == STOCK:
            raise InputError(f"got two plans called {name!r}; give them by names of your own, as in {{'mine': plan}}")
        found[name] = plan
    return found


def _keep(plan: KeyPlan) -> float:
    return float(plan.provenance.get("parameters", {}).get("keep", np.nan))


def _configuration(
    model: PreTrainedModel, windows: TokenIds, stride: int | None, batch_size: BatchSize
) -> dict[str, Any]:
    """All that decides what a plan comes to."""
    return {
        "schema_version": FRONTIER.version,
        "model": {**model_provenance(model), "device": model.device.type},
        "windows": {"shape": list(windows.shape), "sha256": windows_protocol(windows[:])["sha256"]},
        "stride": stride,
        "batch_size": batch_size,
        "versions": versions("ropescope", "torch", "transformers", "numpy"),
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """What is judged: plans by the name to show, and the names of their cells."""

    model: PreTrainedModel
    windows: TokenIds
    plans: Mapping[str, KeyPlan]
    names: Mapping[str, str]
    timing: Timing | None
    stride: int | None
    batch_size: BatchSize

    def rows(self, cells: Cells) -> tuple[list[Cell], list[Cell]]:
        """What every plan comes to, the stock cache first, and the time it takes."""
        judged, timed = self._judged(cells), self._timed(cells)
        names, nothing = [STOCK, *self.names.values()], not_timed(1 if self.timing is None else self.timing.rounds)
        return [judged[name] for name in names], [timed.get(name, nothing) for name in names]

    def _judged(self, cells: Cells) -> dict[str, Cell]:
        wanted: dict[str, KeyPlan | None] = {
            STOCK: None,
            **{self.names[name]: plan for name, plan in self.plans.items()},
        }
        share = cells.shared(dict.fromkeys(wanted, 1))
        computed = one_by_one(lambda name: self._judge(wanted[name]), lambda name: _described(wanted[name]))
        return cells.everywhere(dict(share.found(computed)))

    def _judge(self, plan: KeyPlan | None) -> Cell:
        """Bytes and nats of a plan; None is the stock cache."""
        with nullcontext() if plan is None else thin_keys(self.model, plan):
            nats = perplexity(self.model, self.windows, stride=self.stride, batch_size=self.batch_size).window_nats
            with undisturbed(self.model):
                ids = self.windows[:1].to(input_device(self.model))
                cache = headless(self.model)(input_ids=ids, use_cache=True).past_key_values
        return {"nats": nats, "bytes": np.array(_key_bytes(cache))}

    def _timed(self, cells: Cells) -> dict[str, Cell]:
        """What the leading process alone finds, in all of them: two that compute at once would slow each other."""
        if self.timing is None:
            return {}
        timing, end = self.timing, f"-time-{self.timing.length}-{self.timing.tokens}-{self.timing.rounds}"
        own = {f"{self.names[name]}{end}": plan for name, plan in self.plans.items() if plan.way == plan.method}
        found: dict[str, Cell] = {}
        if cells.workers.leading:
            alone = replace(cells, what="time", workers=Workers())
            computed = one_by_one(
                lambda name: timed(self.model, own[name], self.windows, timing), lambda name: _described(own[name])
            )
            found = dict(alone.shared(dict.fromkeys(own, 1)).found(computed))
        return {name.removesuffix(end): cell for name, cell in cells.everywhere(found).items()}


def _key_bytes(cache: Any) -> int:
    if hasattr(cache, "key_bytes"):
        return int(cache.key_bytes())
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return sum(tensor.nbytes for tensor in keys if tensor is not None)


def _described(plan: KeyPlan | None) -> str:
    return STOCK if plan is None else f"{plan.way} {_keep(plan):g}"


def _dataset(
    plans: Mapping[str, KeyPlan], rows: tuple[list[Cell], list[Cell]], scored: int, provenance: Mapping[str, Any]
) -> xr.Dataset:
    judged, spent = rows
    nats = np.stack([cell["nats"] for cell in judged])
    tokens = np.full(nats.shape[1], scored)
    with np.errstate(over="ignore"):
        values = np.exp(nats.sum(-1) / tokens.sum())
    variables = {
        "method": np.array([STOCK, *(plan.way for plan in plans.values())]),
        "keep": np.array([1.0, *(_keep(plan) for plan in plans.values())]),
        "key_bytes": np.array([int(cell["bytes"]) for cell in judged]),
        "nats": nats,
        "perplexity": values,
        "tokens": tokens,
        **{f"{name}_seconds": np.stack([cell[name] for cell in spent]) for name in ("prefill", "decode")},
        "extra_bytes": np.stack([cell["extra"] for cell in spent]),
    }
    return labelled(variables, list(plans), len(tokens), provenance)
