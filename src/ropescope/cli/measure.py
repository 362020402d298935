"""The command measure: Frequency Entropy of a model on a text, into one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ropescope.base.arguments import AUTO, check_analysis_window, check_batch_size, check_frames
from ropescope.base.axes import STREAMS
from ropescope.cli.options import (
    OUTPUT_GROUP,
    MeasureOptions,
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
    parse_heads,
    say_if_kept,
    stamp,
    stem_of,
    windows_of,
)
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr

    from ropescope.measurement.measure import NormHeads

# Outliers, periodic pairs and silent places that are named after the summary.
_NAMED = 3


@app.command
def measure(
    model: ModelName,
    *,
    options: ModelOptions = ModelOptions(),
    text: TextOptions = TextOptions(),
    how: MeasureOptions = MeasureOptions(),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Measure SpectrumFE and SequenceFE of every layer, head and pair.

    Runs the model over windows of text, for queries and keys, writes one NetCDF file and prints a summary. Every
    finished batch is kept: the same command after a crash goes on where it was, and once the file is complete it only
    prints the summary again. Under `torchrun --nproc-per-node N -m
    ropescope` or `accelerate launch -m ropescope` the processes share the windows.

    Example: `ropescope measure Qwen/Qwen3-8B --count 8 --output qwen3.nc`

    Parameters
    ----------
    output
        Result file; default `MODEL-CORPUS-LENGTH.nc` in this folder.
    overwrite
        Measure anew and replace the file that is there, whatever it holds. Without it, one that holds another
        measurement is refused.
    """
    import ropescope as rs

    norm_heads: NormHeads = "auto" if how.norm_heads == (AUTO,) else parse_heads(how.norm_heads)
    check_model(options)
    check_text(text)
    check_frames(text.length, how.frame_length, how.hop_length)
    check_analysis_window(how.window)
    check_batch_size(how.batch_size)
    target = output or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}.nc")
    _check_in_the_way(target, how, text, overwrite)
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    windows = windows_of(tokenizer, text)
    result = rs.measure(
        loaded,
        windows,
        frame_length=how.frame_length,
        hop_length=how.hop_length,
        window=how.window,
        batch_size=how.batch_size,
        norm_heads=norm_heads,
        **kept_in(target, overwrite, options),
    )
    if leading():
        say_if_kept(target, before)
        _tell(result, target)


def _tell(result: xr.DataTree, target: Path) -> None:
    """The summary, and by their places the few pairs that stand out."""
    from ropescope.measurement.ranking import ranked
    from ropescope.measurement.summary import summary_text

    say(summary_text(result))
    for table in (table for stream in STREAMS for table in ranked(result, stream, _NAMED)):
        say(f"\n{table.text()}")
    say(f"\nresult: {target}\nfigures: ropescope figures {target}\nmore pairs: ropescope show {target}")


def _check_in_the_way(target: Path, how: MeasureOptions, text: TextOptions, overwrite: bool) -> None:
    """Refuse a place that cannot be written, and a file that is no measurement or seen to be of another run."""
    from ropescope.base.facts import finished
    from ropescope.base.files import check_target
    from ropescope.measurement.results import load, recorded_facts

    check_target(target)
    frames = {"frame_length": how.frame_length, "hop_length": how.hop_length, "window": how.window}
    wanted: dict[str, dict[str, object]] = {
        "parameters": {"length": text.length, "batch_size": how.batch_size, **frames},
        "windows": {} if text.count is None else {"windows": text.count},
    }

    def read(path: Path) -> dict[str, object]:
        found = recorded_facts(load(path))
        return {group: {name: found[group][name] for name in names} for group, names in wanted.items()}

    finished(target, wanted, read, overwrite)
