"""Downstream tasks through lm-evaluation-harness: does the model with pairs turned down still do its work?

The harness asks, scores and gives standard errors; here the model is weighted around it, the same documents are kept
side by side, and every finished task is kept at once, so a killed run goes on and ends with the same file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from ropescope.base.errors import InputError, ResultError, TaskError
from ropescope.base.facts import versions
from ropescope.base.files import check_target, written_whole
from ropescope.compression.plans import KeyPlan
from ropescope.compression.thinning import check_fits, thin_keys
from ropescope.evaluation.frontier.judging import named_plans
from ropescope.evaluation.sweep.arms import cell_name, check_masks, checked_alphas
from ropescope.evaluation.tasks.dataset import (
    PLAIN,
    TASKS,
    as_cell,
    from_cell,
    labelled,
)
from ropescope.evaluation.tasks.harness import Harness, TaskProtocol, json_default
from ropescope.evaluation.tasks.scores import Evaluated, Score
from ropescope.interventions.fitting import fitting_card
from ropescope.interventions.masks import PairMask
from ropescope.interventions.protocol import Intervention, intervention_name
from ropescope.interventions.weighting import weighted_rope
from ropescope.model.access import undisturbed
from ropescope.model.decoder import check_head
from ropescope.model.identity import model_provenance, tokenizer_identity
from ropescope.run.engine import Cell, Cells, Output, one_by_one
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Changed = PairMask | KeyPlan
DEFAULT_PROTOCOL = TaskProtocol()


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    mask: PairMask | KeyPlan | Mapping[str, PairMask | KeyPlan],
    alpha: float | Iterable[float] = 0.1,
    *,
    protocol: TaskProtocol = DEFAULT_PROTOCOL,
    intervention: Intervention = weighted_rope,
    path: str | Path | None = None,
    overwrite: bool = False,
    samples: str | Path | None = None,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Run tasks of lm-evaluation-harness on a model as it stands and changed, on the same documents.

    Parameters
    ----------
    model, tokenizer
        The model that the masks were selected on, or the plans made for.
    tasks
        Names of the harness's tasks, groups or tags, or paths of task files.
    mask
        The pairs to turn down, or a plan of thin keys to run on; several by name share the plain run.
    alpha
        Strength of the weighting, 0 to 1, or several of them; plans have none.
    protocol
        Few-shot examples, limit, batch size, seed, task folder and further arguments of the harness.
    intervention
        Called with model, mask and alpha, gives a context in which the tasks are run, as in :func:`ropescope.sweep`.
        Plans run in :func:`ropescope.thin_keys`.
    path
        NetCDF file for the dataset. Beside it a folder ``<path>.partial`` keeps every finished task until all are
        done: the same call after a crash, or after a task failed, goes on there.
    overwrite
        Run anew and replace whatever file is at `path`; tasks that a run before this one has finished and that did not
        come to a whole file are kept. Without it a file that holds this very run is read and returned, and any other is
        refused, as in :func:`ropescope.measure`; of one where tasks have failed, those are tried again.
    samples
        Folder for the harness's log of every document and answer, one JSON-lines file per task and arm; of what this
        call runs, not of what was kept.
    group
        Processes that share the work, each with the whole model: every one takes part of the tasks and arms, and all
        return the same. None is this process alone.
    progress
        Show how far it is: bars on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    xarray.Dataset
        `value` and `stderr` (arm, score) as the harness gives them, for every task, metric and filter; `outcome` (arm,
        item) for every document. Arms are "plain", "<selection> at <alpha>", and plans by name. The attribute
        `provenance` holds model, masks, protocol, versions and, under `failed`, what became of tasks that could not be
        run.

    Raises
    ------
    InputError
        Before anything runs: no task, no mask, one of another model, a strength outside 0 to 1, unknown settings.
    TaskError
        If the harness is not installed, a task is unknown, or every task fails. One that fails does not stop others.
    ResultError
        If the file or its journal cannot be written, or belong to another run; no finished task is lost.

    References
    ----------
    Frequency Entropy paper, section 4.3, table 1. Gao et al., The Language Model Evaluation Harness.

    Examples
    --------
    >>> data = evaluate_tasks(model, tokenizer, ["hellaswag"], mask, 0.1)  # doctest: +SKIP
    >>> print(tasks_table(data))  # doctest: +SKIP
    """
    masks = _named(mask)
    arms = _arms(masks, [alpha] if isinstance(alpha, int | float) else alpha)
    _check_fit(model, masks)
    workers = workers_of(model, group)
    harness = Harness(model, tokenizer, protocol)
    harness.check(tasks)
    facts = _configuration(model, tokenizer, protocol, intervention)
    definitions = {task: harness.definition(task) for task in tasks}
    asked = {"include_path": _text(protocol.include_path), "tasks": list(tasks), "definitions": definitions}
    provenance = {**facts, **asked, "selections": _selections(masks)}
    under = _Arms(model, masks, arms, intervention)

    def judge(task: str, arm: str) -> Evaluated:
        with under.in_force(arm):
            evaluated = harness.evaluate(task, progress and workers.leading)
        if samples is not None and workers.keeping:
            _write_samples(Path(samples), arm, evaluated)
        return evaluated

    def made(cells: Cells) -> xr.Dataset:
        found, failed = _comparable(_names(definitions, arms, masks), judge, cells)
        return _dataset(arms, found, {**provenance, "failed": failed})

    output = _output(path, overwrite, provenance, facts)
    return output.finished_or_made(Cells("tasks", "task", workers, progress), made)


def _named(given: Changed | Mapping[str, Changed]) -> dict[str, Changed]:
    if isinstance(given, KeyPlan):
        return {**named_plans([given])}
    return {str(given.provenance["selection"]): given} if isinstance(given, PairMask) else dict(given)


def _check_fit(model: PreTrainedModel, masks: Mapping[str, Changed]) -> None:
    for mask in masks.values():
        if isinstance(mask, KeyPlan):
            check_fits(mask, model)
        else:
            fitting_card(model, mask)
    check_head(model)


@dataclass(frozen=True, slots=True)
class _Arms:
    """The model as it stands, with pairs turned down, and on thin keys, by the name of the arm."""

    model: PreTrainedModel
    masks: Mapping[str, Changed]
    arms: Mapping[str, tuple[str, float]]
    intervention: Intervention

    @contextmanager
    def in_force(self, arm: str) -> Iterator[None]:
        selection, strength = self.arms[arm]
        with undisturbed(self.model), self._changed(self.masks.get(selection), strength):
            yield

    def _changed(self, mask: Changed | None, strength: float) -> AbstractContextManager[None]:
        if isinstance(mask, KeyPlan):
            return thin_keys(self.model, mask)
        return nullcontext() if mask is None else self.intervention(self.model, mask, strength)


def _output(
    path: str | Path | None, overwrite: bool, facts: Mapping[str, Any], cell_facts: Mapping[str, Any]
) -> Output[xr.Dataset]:
    return Output(
        path=path,
        overwrite=overwrite,
        facts=facts,
        cell_facts=cell_facts,
        load=TASKS.load,
        save=TASKS.save,
        recorded=_recorded,
        complete=lambda data: not _failed(data),
    )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _arms(masks: Mapping[str, Changed], alphas: Iterable[float]) -> dict[str, tuple[str, float]]:
    """Selection and alpha of every arm, the plain one first; a plan has no alpha."""
    if not masks:
        raise InputError("got no masks; give one, or several by name as in {'bands': mask}")
    weighted = {name: mask for name, mask in masks.items() if not isinstance(mask, KeyPlan)}
    check_masks(weighted)
    if PLAIN in masks:
        raise InputError(f"got a selection called {PLAIN!r}, which the model as it stands is; name it otherwise")
    strengths = dict.fromkeys(checked_alphas(alphas, "alpha"))
    arms = {f"{name} at {alpha:g}": (name, alpha) for name in weighted for alpha in strengths}
    return {PLAIN: (PLAIN, 1.0)} | arms | {name: (name, math.nan) for name in masks if name not in weighted}


def _configuration(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: TaskProtocol, intervention: Intervention
) -> dict[str, Any]:
    """All that decides the scores of a task under a mask at a strength."""
    return {
        "schema_version": TASKS.version,
        "model": {**model_provenance(model), "device": model.device.type},
        "tokenizer": tokenizer_identity(tokenizer),
        "protocol": protocol.facts(),
        "intervention": intervention_name(intervention),
        "versions": versions("ropescope", "torch", "transformers", "lm_eval", "datasets"),
    }


def _selections(masks: Mapping[str, Changed]) -> dict[str, Any]:
    return {name: {**mask.provenance, "sha256": mask.digest(), **_size(mask)} for name, mask in masks.items()}


def _size(mask: Changed) -> dict[str, Any]:
    if isinstance(mask, KeyPlan):
        return {"plan": str(mask)}
    return {"pairs": {stream: int(array.sum()) for stream, array in mask.streams().items()}}


def _recorded(data: xr.Dataset) -> dict[str, Any]:
    found = TASKS.provenance(data)
    found.pop("failed")
    return found


def _failed(data: xr.Dataset) -> dict[str, str]:
    """Why tasks are missing, by task."""
    failed: dict[str, str] = TASKS.provenance(data)["failed"]
    return failed


def _names(
    definitions: Mapping[str, str], arms: Mapping[str, tuple[str, float]], masks: Mapping[str, Changed]
) -> dict[tuple[str, str], str]:
    """The name of the cell of every (task, arm), equal where it must be equal."""
    names = {arm: _cell_name(masks.get(name), alpha) for arm, (name, alpha) in arms.items()}
    return {(task, arm): f"{digest[:32]}-{name}" for task, digest in definitions.items() for arm, name in names.items()}


def _cell_name(mask: Changed | None, alpha: float) -> str:
    if isinstance(mask, KeyPlan):
        return f"thin-{mask.digest()[:32]}"
    return "baseline" if mask is None else cell_name(mask, alpha)


def _evaluated(
    names: Mapping[tuple[str, str], str], judge: Callable[[str, str], Evaluated], cells: Cells
) -> tuple[dict[tuple[str, str], Evaluated], dict[str, str]]:
    """What every arm did in every task, and why the tasks that are missing failed."""
    places: dict[str, tuple[str, str]] = {}
    for place, name in names.items():
        places.setdefault(name, place)
    failed: dict[str, str] = {}

    def computed(name: str) -> Cell | None:
        try:
            return as_cell(judge(*places[name]))
        except TaskError as error:
            failed.setdefault(places[name][0], str(error))
            return None

    share = cells.shared(dict.fromkeys(places, 1))
    found = cells.everywhere(dict(share.found(one_by_one(computed, lambda name: ", ".join(places[name])))))
    for theirs in cells.workers.gathered(failed):
        failed |= theirs
    return {place: from_cell(found[name]) for place, name in names.items() if place[0] not in failed}, failed


def _comparable(
    names: Mapping[tuple[str, str], str], judge: Callable[[str, str], Evaluated], cells: Cells
) -> tuple[dict[tuple[str, str], Evaluated], dict[str, str]]:
    """What every arm did in the tasks that asked all of them the same, and why the other tasks failed."""
    found, failed = _evaluated(names, judge, cells)
    failed |= _unlike(found)
    found = {place: evaluated for place, evaluated in found.items() if place[0] not in failed}
    if not found:
        raise TaskError("; ".join(failed.values()))
    return found, failed


def _unlike(found: Mapping[tuple[str, str], Evaluated]) -> dict[str, str]:
    """Why tasks that did not ask every arm the same cannot be compared."""
    return {
        task: f"task {task} asked {arm!r} for other documents or with other prompts than {PLAIN!r}; give a seed that "
        "its sampling obeys"
        for (task, arm), evaluated in found.items()
        if evaluated.documents != found[task, PLAIN].documents
    }


def _dataset(
    arms: Mapping[str, tuple[str, float]], found: Mapping[tuple[str, str], Evaluated], provenance: Mapping[str, Any]
) -> xr.Dataset:
    tasks = dict.fromkeys(task for task, _ in found)
    scores = {arm: list(_distinct(found[task, arm] for task in tasks)) for arm in arms}
    return labelled(arms, scores, provenance)


def _distinct(evaluated: Iterable[Evaluated]) -> Iterator[Score]:
    """Every score once: a task may be asked for by name and as a member of a group."""
    seen = set()
    for each in evaluated:
        for score in each.scores:
            place = (score.task, score.metric, score.filter)
            if place not in seen:
                seen.add(place)
                yield score


def _write_samples(folder: Path, arm: str, evaluated: Evaluated) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder}: {error.strerror}; choose another for samples") from error
    for task, rows in evaluated.samples.items():
        name = f"samples_{task}_{arm}".replace("/", "-").replace(" ", "-")
        with written_whole(check_target(folder / f"{name}.jsonl")) as partial, partial.open("w") as file:
            for row in rows:
                file.write(json.dumps(row, default=json_default, ensure_ascii=False) + "\n")
