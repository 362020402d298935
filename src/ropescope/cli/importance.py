"""The command importance: what every pair is worth to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ropescope.base.arguments import check_at_least, check_batch_size
from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.cli.options import (
    MEASURE_GROUP,
    OUTPUT_GROUP,
    ModelName,
    ModelOptions,
    TextOptions,
    app,
    check_model,
    check_text,
    join,
    kept_in,
    leading,
    load_chosen,
    say_if_kept,
    selected,
    stamp,
    stem_of,
    windows_of,
)
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from ropescope.interventions.masks import PairMask


@Parameter(name="*", group=MEASURE_GROUP)
@dataclass(frozen=True)
class WorthOptions:
    """How to weigh pairs."""

    draws: int = 2
    "Draws of all next tokens of a window from the model itself; each costs a backward pass."
    draw_seed: int = 0
    "Seed of the draws."
    checkpointing: Annotated[bool, Parameter(negative="")] = False
    "Keep only what enters each layer, and run the layer again in every backward pass: less memory, more time."
    batch_size: int | Literal["auto"] = 1
    "Windows in one pass; auto takes as many as the memory of the GPU holds."
    validate: int = 0
    "Take so many single pairs of keys, and of queries, away for true, and say how well that was foretold; 0 does not."
    validate_sets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    "Selections on `--result` to turn down whole, at several strengths: how far does importance foretell that?"
    result: Path | None = None
    "Result of `ropescope measure` for this model."

    def check(self) -> None:
        """Say what is out of range before a model is loaded."""
        check_batch_size(self.batch_size)
        check_at_least("draws", self.draws, 1)
        check_at_least("draw_seed", self.draw_seed, 0)
        check_at_least("validate", self.validate or None, 3)
        if self.validate_sets and self.result is None:
            raise InputError("got --validate-sets without --result; give the file that 'ropescope measure' wrote")

    def sets(self) -> dict[str, PairMask]:
        """The masks to turn down, by what a person calls them."""
        return {} if self.result is None else selected(self.result, self.validate_sets)[1]


@app.command
def importance(
    model: ModelName,
    *,
    options: ModelOptions = ModelOptions(),
    text: TextOptions = TextOptions(),
    how: WorthOptions = WorthOptions(),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Say what every pair, and its rotation, is worth to the model, from a few backward passes.

    Writes one NetCDF file and prints how unevenly the pairs share what the loss feels. Every finished batch is kept:
    the same command after a crash goes on where it was. `ropescope select` and `ropescope sweep` take the file with
    `--importance`. Under `torchrun --nproc-per-node N -m ropescope` the processes share the windows.

    Example: `ropescope importance Qwen/Qwen3-8B --count 8 --validate 150 --output qwen3-worth.nc`

    Parameters
    ----------
    output
        Result file; default `MODEL-CORPUS-LENGTH-importance.nc` in this folder. A validation lies beside it, its name
        ending in `-key-validated.nc`, `-query-validated.nc` and, of sets, in `-sets-validated.nc`.
    overwrite
        Run anew and replace the file that is there, whatever it holds.
    """
    import ropescope as rs
    from ropescope.base.files import check_target

    check_model(options)
    check_text(text)
    how.check()
    target = output or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}-importance.nc")
    check_target(target)
    masks = how.sets()
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    windows = windows_of(tokenizer, text)
    worth = rs.importance(
        loaded,
        windows,
        how.draws,
        seed=how.draw_seed,
        checkpointing=how.checkpointing,
        batch_size=how.batch_size,
        **kept_in(target, overwrite, options),
    )
    if leading():
        say_if_kept(target, before)
    _tell(worth)
    _validate(loaded, windows, worth, how, masks, lambda end: kept_in(_beside(target, end), overwrite, options))
    if leading():
        say(f"\nimportance: {target}\nselect by it: ropescope select RESULT 'fisher < 1e-6' --importance {target}")
        say(f"does Frequency Entropy foretell it? ropescope show RESULT --importance {target}")


def _beside(target: Path, end: str) -> Path:
    return target.with_name(f"{target.stem}-{end}-validated.nc")


def _validate(
    model: Any,
    windows: Tensor,
    worth: xr.DataTree,
    how: WorthOptions,
    masks: dict[str, PairMask],
    kept: Callable[[str], dict[str, Any]],
) -> None:
    """Take single pairs away, and turn sets down, where that is asked for; `kept` says in which file each lies."""
    import ropescope as rs

    for stream in reversed(STREAMS) if how.validate else ():
        _tell_check(rs.validate_importance(model, windows, worth, how.validate, stream=stream, **kept(stream)))
    if masks:
        _tell_sets(rs.validate_sets(model, windows, worth, masks, **kept("sets")))


def _tell(worth: xr.DataTree) -> None:
    """How unevenly the pairs share what the loss feels, from the process that prints."""
    from ropescope.measurement.worth_in_words import importance_text

    if leading():
        say(importance_text(worth))


def _tell_check(check: xr.Dataset) -> None:
    """How well importance foretold what pairs cost, from the process that prints."""
    from ropescope.evaluation.importance_validation import in_words

    if leading():
        say("\n" + "\n".join(in_words(check)))


def _tell_sets(check: xr.Dataset) -> None:
    """Up to where importance, added up, foretold what sets cost, from the process that prints."""
    from ropescope.evaluation.set_prediction import sets_in_words, sets_table

    if leading():
        say("\n" + "\n".join([sets_table(check).text(), "", *sets_in_words(check)]))
