"""The command tasks: downstream tasks, plain and changed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from ropescope.base.errors import InputError
from ropescope.base.files import check_folder
from ropescope.cli.drawing import check_companions, write_text
from ropescope.cli.options import (
    OUTPUT_GROUP,
    ModelName,
    ModelOptions,
    app,
    check_model,
    intervention_of,
    join,
    kept_in,
    leading,
    load_chosen,
    say_if_kept,
    selected,
    stamp,
    stem_of,
)
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.compression.plans import KeyPlan
    from ropescope.evaluation.tasks.harness import TaskProtocol
    from ropescope.interventions.masks import PairMask

HARNESS_GROUP = Group("Harness", sort_key=3)
_FORMATS: dict[str, Literal["markdown", "csv", "json"]] = {".md": "markdown", ".csv": "csv", ".json": "json"}
PAPER_TASKS = ("hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu")


@Parameter(name="*", group=HARNESS_GROUP)
@dataclass(frozen=True)
class HarnessOptions:
    """How the harness asks."""

    num_fewshot: int | None = None
    "Examples before each question; default each task's own number."
    limit: float | None = None
    "Documents of each task: a number, or a share below 1; default all."
    batch_size: int | Literal["auto"] = 1
    "Requests in one forward pass, or auto."
    seed: int | None = None
    "Seed of everything random; default the harness's."
    chat_template: Annotated[bool, Parameter(negative="")] = False
    "Ask through the tokenizer's chat template."
    include_path: Path | None = None
    "Folder with task files of your own; they take precedence."


@app.command
def tasks(
    model: ModelName,
    result: Path | None = None,
    *,
    select: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
    plan: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
    alpha: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = (0.1,),
    derotate: Annotated[bool, Parameter(negative="")] = False,
    options: ModelOptions = ModelOptions(),
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", group=HARNESS_GROUP)] = PAPER_TASKS,
    how: HarnessOptions = HarnessOptions(),
    samples: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Run downstream tasks with the model as it stands and changed, on the same documents.

    Changed is a model with selected pairs turned down, or on thin keys of a plan that `ropescope compress` wrote.

    Tasks, prompts, scores and standard errors are those of lm-evaluation-harness (`pip install 'ropescope[tasks]'`).
    Each score of the changed model is compared with the plain one document by document. Every finished task is kept:
    the same command after a crash, or after a task failed, goes on where it was. Writes the scores (.nc) and the
    table (.md, .csv, .json), and prints the table. Several selections, strengths and plans share the plain run; under
    `torchrun --nproc-per-node N -m ropescope` the processes share the tasks and strengths.

    Example: `ropescope tasks Qwen/Qwen3-8B qwen3.nc --select table1 --alpha 0.1 --tasks hellaswag,mmlu --limit 500`

    Parameters
    ----------
    result
        Result file of `ropescope measure` for this model, that pairs are selected on; not needed for plans alone.
    select
        Selections, each an expression or one of the paper's by name; default table1 where there is a result.
    plan
        Plans of thin keys for this model, .safetensors.
    alpha
        Strengths of the weighting, 0 to 1.
    derotate
        Take rotation away instead of weighting: alpha is then the share of the rotation that is kept.
    tasks
        Names of tasks, groups or tags, with commas or spaces between; `lm_eval ls tasks` lists all.
    samples
        Folder for the harness's log of every document and answer.
    output
        File of scores; default `MODEL-tasks.nc` in this folder.
    overwrite
        Run anew and replace the file that is there, whatever it holds. Without it, one that holds this very run is
        read, and any other is refused.
    """
    import ropescope as rs

    names, protocol = _asked(tasks, alpha, how)
    check_model(options)
    target = _target(model, output, samples)
    changed = _changed(result, select, plan)
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    data = rs.evaluate_tasks(
        loaded,
        tokenizer,
        names,
        changed,
        alpha,
        protocol=protocol,
        intervention=intervention_of(derotate),
        samples=samples,
        **kept_in(target, overwrite, options),
    )
    if leading():
        say_if_kept(target, before)
        _report(data, target)


def _target(model: str, output: Path | None, samples: Path | None) -> Path:
    """Where the scores go, once all that is written can be."""
    if samples is not None:
        check_folder(samples)
    target = output or Path(f"{stem_of(model)}-tasks.nc")
    check_companions(target, _FORMATS)
    return target


def _changed(
    result: Path | None, selections: tuple[str, ...], plans: tuple[Path, ...]
) -> dict[str, PairMask | KeyPlan]:
    """Masks and plans by the name of the arm."""
    if result is None and (selections or not plans):
        raise InputError(
            "got no RESULT to select pairs on; give the file that 'ropescope measure' wrote for this model, or --plan "
            "without --select"
        )
    masks = {} if result is None else selected(result, selections or ("table1",))[1]
    return {**masks, **(_plans(plans) if plans else {})}


def _plans(paths: Iterable[Path]) -> dict[str, KeyPlan]:
    from ropescope.compression.plans import KeyPlan
    from ropescope.evaluation.frontier.judging import named_plans

    return named_plans(KeyPlan.load(path) for path in paths)


def _asked(tasks: Iterable[str], alphas: Iterable[float], how: HarnessOptions) -> tuple[list[str], TaskProtocol]:
    """Names of tasks and how they are asked, checked before a model is loaded."""
    from ropescope.evaluation.sweep.arms import checked_alphas
    from ropescope.evaluation.tasks.harness import TaskProtocol, check_installed, check_protocol

    check_installed()
    checked_alphas(alphas, "alpha")
    names = [name for text in tasks for name in text.split(",") if name]
    settings = {"apply_chat_template": True} if how.chat_template else {}
    protocol = TaskProtocol(how.num_fewshot, how.limit, how.batch_size, how.seed, how.include_path, settings)
    check_protocol(protocol, names)
    return names, protocol


def _report(data: xr.Dataset, target: Path) -> None:
    """Print the table, and write it in every format beside the scores; exit with 1 if a task failed."""
    from ropescope.evaluation.tasks.dataset import TASKS
    from ropescope.evaluation.tasks.table import compared, tasks_table

    rows = compared(data)
    for extension, format in _FORMATS.items():
        text = tasks_table(data, format=format, rows=rows)
        write_text(target.with_suffix(extension), text.rstrip("\n") + "\n")
    say(tasks_table(data, rows=rows))
    say(f"\nscores: {target}\ntables: the same name with .md, .csv and .json")
    failed = TASKS.provenance(data)["failed"]
    for reason in failed.values():
        print(f"ropescope: {reason}", file=sys.stderr)
    if failed:
        print("ropescope: the other tasks are kept; the same command tries the failed ones again", file=sys.stderr)
        sys.exit(1)
