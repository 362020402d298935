"""The command sweep: perplexity as selected pairs are turned down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ropescope.base.arguments import check_batch_size
from ropescope.base.errors import InputError
from ropescope.cli.drawing import check_companions, report_sweep
from ropescope.cli.options import (
    OUTPUT_GROUP,
    PAPER_SELECTIONS,
    TENTHS,
    JudgeOptions,
    ModelName,
    ModelOptions,
    ResultPath,
    WorthPath,
    app,
    check_model,
    check_text,
    intervention_of,
    join,
    kept_in,
    leading,
    load_chosen,
    say_if_kept,
    selected,
    stamp,
    stem_of,
    windows_of,
    worth_of,
)

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.interventions.masks import PairMask


@app.command
def sweep(
    model: ModelName,
    result: ResultPath,
    *,
    select: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = PAPER_SELECTIONS,
    alphas: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = TENTHS,
    random_seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (0, 1, 2),
    control_alphas: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    importance: WorthPath = None,
    keep_best: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = (),
    derotate: Annotated[bool, Parameter(negative="")] = False,
    options: ModelOptions = ModelOptions(),
    text: JudgeOptions = JudgeOptions(),
    batch_size: int | Literal["auto"] = 1,
    label: Annotated[str | None, Parameter(group=OUTPUT_GROUP)] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Turn selected pairs down and see what perplexity says, against equal numbers of other pairs.

    Every finished cell is kept: the same command after a crash goes on where it was. Writes the sweep (.nc), the
    curves of the paper's figure 3 (.png) and the table (.md, .csv), and prints the table. Under `torchrun
    --nproc-per-node N -m ropescope` or `accelerate launch -m ropescope` the processes share the cells.

    Example: `ropescope sweep Qwen/Qwen3-8B qwen3.nc --select bands periodic --control-alphas 0 0.5`

    Parameters
    ----------
    result
        Result of `ropescope measure` for this model, on another text than the one judged on.
    select
        Selections, each an expression or one of the paper's by name; expressions may name what `--importance` holds.
    alphas
        Strengths, 0 to 1. 1, the model as it stands, is always added.
    random_seeds
        Seeds of the random controls.
    control_alphas
        Strengths of the controls, 1 aside; default all.
    keep_best
        Shares of the pairs of highest importance; each makes a selection of all the others. Needs `--importance`.
    derotate
        Take rotation away instead of weighting: alpha is then the share of the rotation that is kept.
    batch_size
        Windows in one forward pass; auto takes as many as the memory of the GPU holds.
    label
        What the figure calls the model; default the last part of its name.
    output
        Sweep file; default `MODEL-CORPUS-LENGTH-sweep.nc` in this folder.
    overwrite
        Sweep anew and replace the file that is there, whatever it holds. Without it, one that holds this very sweep
        is read, and any other is refused.
    """
    import ropescope as rs
    from ropescope.evaluation.sweep.arms import Controls, planned

    target = _target(model, options, text, batch_size, output)
    measured, worth, masks = _asked(result, importance, select, keep_best, derotate)
    controls = Controls(random_seeds, measured, control_alphas, worth)
    planned(masks, alphas, controls)
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    windows, kept = windows_of(tokenizer, text, "test"), kept_in(target, overwrite, options)
    how: dict[str, Any] = {"intervention": intervention_of(derotate), "batch_size": batch_size, **kept}
    data = rs.sweep(loaded, windows, masks, alphas=alphas, controls=controls, **how)
    if leading():
        say_if_kept(target, before)
        report_sweep(data, target, label or stem_of(model))


def _target(
    model: str, options: ModelOptions, text: JudgeOptions, batch_size: int | Literal["auto"], output: Path | None
) -> Path:
    """Where the sweep goes, once model, text, batches and files are what can be asked for."""

    check_model(options)
    check_text(text, "test")
    check_batch_size(batch_size)
    target = output or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}-sweep.nc")
    check_companions(target, (".png", ".md", ".csv"))
    return target


def _asked(
    result: Path, importance: Path | None, selections: Iterable[str], keep_best: Iterable[float], derotate: bool
) -> tuple[xr.DataTree, xr.DataTree | None, dict[str, PairMask]]:
    """A measurement, importance if given, and masks by name: of selections, and of all pairs but the best."""
    import ropescope as rs

    worth = worth_of(importance)
    measured, masks = selected(result, selections, worth)
    if keep_best and worth is None:
        raise InputError("got --keep-best without --importance; give the file that 'ropescope importance' wrote")
    if worth is not None:
        every, variable = rs.select(measured, "layer >= 0"), "rotation_fisher" if derotate else "fisher"
        masks |= {f"best {keep:g} kept": rs.all_but_best(every, worth, keep, variable) for keep in keep_best}
    return measured, worth, masks
