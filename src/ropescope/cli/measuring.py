"""Commands that look at a model: inspect, measure, figures, select."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ropescope.base.arguments import check_analysis_window, check_batch_size, check_frames
from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.base.files import named
from ropescope.cli.drawing import draw_result, draw_sweeps
from ropescope.cli.options import (
    OUTPUT_GROUP,
    Format,
    MeasureOptions,
    ModelName,
    ModelOptions,
    ResultPath,
    Stream,
    TextOptions,
    app,
    check_model,
    check_text,
    join,
    leading,
    load_chosen,
    loading,
    opening,
    parse_heads,
    say_if_kept,
    sharing,
    stamp,
    stem_of,
    streams_of,
    windows_of,
)
from ropescope.cli.printing import say


@app.command
def inspect(model: ModelName, *, options: ModelOptions = ModelOptions()) -> None:
    """Print the rotary card of a model: who rotates, how, how fast.

    One line for every group of layers that rotate alike: query and key heads, head dimensions, pairing, number of
    pairs, shortest and longest wavelength in tokens, pairs of zero frequency, layers without rotation (NoPE). Then the
    pairs that are silent: exactly zero, whatever the input. The model needs no tokenizer.

    Example: `ropescope inspect builtin`
    """
    import ropescope as rs

    check_model(options)
    if options.tensor_parallel:
        join()
    from ropescope.model.loading import load_bare_model

    given = loading(options)
    with opening(model):
        loaded = load_bare_model(model, **given)
    card = rs.probe(loaded)
    dtype = str(loaded.dtype).removeprefix("torch.")
    if leading():
        say(f"{model}: {type(loaded).__name__}, {len(card.layers)} attention layers, {dtype}")
        say(card)


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
    from ropescope.base.files import check_target

    norm_heads = parse_heads(how.norm_heads)
    check_model(options)
    check_text(text)
    check_frames(text.length, how.frame_length, how.hop_length)
    check_analysis_window(how.window)
    check_batch_size(how.batch_size)
    target = output or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}.nc")
    check_target(target)
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
        path=target,
        overwrite=overwrite,
        group=sharing(options),
        progress=True,
    )
    if leading():
        from ropescope.measurement.summary import summary_text

        say_if_kept(target, before)
        say(summary_text(result))
        say(f"\nresult: {target}\nfigures: ropescope figures {target}")


def _check_in_the_way(target: Path, how: MeasureOptions, text: TextOptions, overwrite: bool) -> None:
    """Refuse a file that holds no measurement, or one that differs in what is known before a model is loaded."""
    from ropescope.base.facts import finished
    from ropescope.measurement.results import recorded_facts

    frames = {"frame_length": how.frame_length, "hop_length": how.hop_length, "window": how.window}
    wanted: dict[str, dict[str, object]] = {
        "parameters": {"length": text.length, "batch_size": how.batch_size, **frames},
        "windows": {} if text.count is None else {"windows": text.count},
    }

    def read(path: Path) -> dict[str, object]:
        found = recorded_facts(path)
        return {group: {name: found[group][name] for name in names} for group, names in wanted.items()}

    finished(target, wanted, read, overwrite)


@app.command
def figures(
    *results: Annotated[Path, Parameter(help="Files of `ropescope measure` and `ropescope sweep`.")],
    heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    stream: Stream = "both",
    format: Annotated[tuple[Format, ...], Parameter(consume_multiple=True, negative="")] = ("png",),
    output_dir: Path = Path(),
) -> None:
    """Draw results: the panel of chosen heads, the overview of all layers, the curves of sweeps.

    The panel shows, for each head, SpectrumFE and SequenceFE over the pairs and the norms over the positions (figures
    1, 2 and 4 of the paper). The overview maps layer by pair. All sweeps go into one figure, a line for each (figure
    3), named after its file.

    Example: `ropescope figures qwen3.nc --heads 6:0 1:0 --stream key --format png pdf`

    Parameters
    ----------
    heads
        LAYER:HEAD to draw; default the strongest band, the most periodic head, and a NoPE head or the highest outlier.
    stream
        query, key or both.
    format
        png, svg, pdf; several make several files.
    output_dir
        Folder for the files, made if it does not exist.
    """
    from ropescope.base.files import check_folder
    from ropescope.base.netcdf import schema_of
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.measurement.results import load

    if not results:
        raise InputError("figures got no result file; name at least one: ropescope figures RESULT.nc")
    named(results)
    check_folder(output_dir)
    chosen = parse_heads(heads)
    if any(None in place for place in chosen):
        raise InputError("figures got '*' in --heads; name each head as LAYER:HEAD")
    sweeps = [path for path in results if schema_of(path) == SWEEP.name]
    for path in results:
        if path not in sweeps:
            for written in draw_result(load(path), path.stem, chosen, streams_of(stream), format, output_dir):
                say(written)
    if sweeps:
        for written in draw_sweeps(sweeps, format, output_dir):
            say(written)


@app.command
def select(
    result: ResultPath,
    selection: Annotated[str, Parameter(help="Expression, or a selection by name.")],
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Select pairs of a result by an expression, and say how many there are in each layer.

    Expressions compare spectrum_fe, sequence_fe, mean_norm, dc_share, dominant_period, peak_share, layer, head, pair,
    frequency and rotated with numbers, joined by and, or, not and parentheses. By name: bands, spectrum-outliers,
    periodic, table1 of the paper, and silent, the pairs that are exactly zero.

    Example: `ropescope select qwen3.nc "spectrum_fe < 0.2 and layer >= 4" --output bands.safetensors`

    Parameters
    ----------
    output
        Mask file (safetensors) to write; default none.
    overwrite
        Replace the mask file if it exists.
    """
    import ropescope as rs
    from ropescope.base.files import check_target
    from ropescope.measurement.results import load

    if output is not None:
        check_target(output, overwrite=overwrite)
    mask = rs.select(load(result), selection)
    written = None if output is None else mask.save(output, overwrite=overwrite)
    say(mask)
    for layer, counts in zip(
        mask.layers, zip(*(mask.counts()[name].values for name in STREAMS), strict=True), strict=True
    ):
        say(f"  layer {layer:>3}  query {counts[0]:>5}  key {counts[1]:>5}")
    if written is not None:
        say(f"mask: {written}")
