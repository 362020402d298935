"""The command importance: what every pair is worth to the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ropescope.base.arguments import check_at_least, check_batch_size
from ropescope.base.axes import STREAMS
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
    stamp,
    stem_of,
    windows_of,
)
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr


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

    def check(self) -> None:
        """Say what is out of range before a model is loaded."""
        check_batch_size(self.batch_size)
        check_at_least("draws", self.draws, 1)
        check_at_least("draw_seed", self.draw_seed, 0)
        check_at_least("validate", self.validate or None, 3)


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
        ending in `-key-validated.nc` and `-query-validated.nc`.
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
    for stream in reversed(STREAMS) if how.validate else ():
        path = target.with_name(f"{target.stem}-{stream}-validated.nc")
        kept = kept_in(path, overwrite, options)
        _tell_check(rs.validate_importance(loaded, windows, worth, how.validate, stream=stream, **kept))
    if leading():
        say(f"\nimportance: {target}\nselect by it: ropescope select RESULT 'fisher < 1e-6' --importance {target}")


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
