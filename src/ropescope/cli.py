"""The command. It parses, calls the library, and writes: nothing is computed here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from ropescope.axes import STREAMS
from ropescope.errors import InputError, ResultError, RopescopeError

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

Format = Literal["png", "svg", "pdf"]
Stream = Literal["query", "key", "both"]

app = App(
    name="ropescope",
    help="Which rotary position pairs of a language model carry anything, and what happens when they are turned down.",
    help_format="markdown",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)

MODEL_GROUP = Group("Model", sort_key=1)
TEXT_GROUP = Group("Text", sort_key=2)
MEASURE_GROUP = Group("Measurement", sort_key=3)
OUTPUT_GROUP = Group("Output", sort_key=4)

PAPER_SELECTIONS = ("bands", "spectrum-outliers", "periodic")
TENTHS = tuple(step / 10 for step in range(11))

ResultPath = Annotated[Path, Parameter(help="Result file of `ropescope measure`.")]
ModelName = Annotated[str, Parameter(help="Hub id, local folder, .gguf file, or `builtin` (SmolLM2-135M-Instruct).")]


@Parameter(name="*", group=MODEL_GROUP)
@dataclass(frozen=True)
class ModelOptions:
    """How to load the model."""

    device: str = "auto"
    "auto (GPU if there is one), cpu, cuda, cuda:1, mps, ..."
    dtype: str = "auto"
    "auto (the checkpoint's on a GPU, float32 on the CPU), float32, bfloat16 or float16."
    revision: str | None = None
    "Branch, tag or commit on the hub."
    attn_implementation: str | None = None
    "eager, sdpa, flash_attention_2, ...; default what transformers picks."
    trust_remote_code: Annotated[bool, Parameter(negative="")] = False
    "Run model code that comes with the checkpoint."


@Parameter(name="*", group=TEXT_GROUP)
@dataclass(frozen=True)
class TextOptions:
    """Which text, and how to cut it into windows."""

    corpus: str = "wikitext"
    "wikitext, c4, builtin (Python's language reference), any hub data set, or a .txt, .jsonl or .parquet file."
    config: str | None = None
    "Configuration of a hub data set."
    split: str | None = None
    "Split of a hub data set; default validation, so that test is left to judge on."
    column: str = "text"
    "Column that holds the text."
    length: int = 4096
    "Tokens in a window."
    count: int | None = 8
    "Number of windows."
    seed: int | None = None
    "Shuffle the documents with this seed; default the order of the corpus."
    separator: str | None = None
    "Between documents; default a blank line, and for WikiText nothing: its text is taken as published."
    bos: Literal["auto", "yes", "no"] = "auto"
    "Begin each window with the beginning-of-sequence token; auto does as the tokenizer does."


@Parameter(name="*", group=TEXT_GROUP)
@dataclass(frozen=True)
class JudgeOptions(TextOptions):
    """Which text to judge on, and how to cut it into windows."""

    split: str | None = None
    "Split of a hub data set; default test, since validation is what is measured on."
    length: int = 2048
    "Tokens in a window."
    count: int | None = 16
    "Number of windows."


@Parameter(name="*", group=MEASURE_GROUP)
@dataclass(frozen=True)
class MeasureOptions:
    """How to measure."""

    frame_length: int = 1024
    "Tokens in a frame of SpectrumFE."
    hop_length: int = 512
    "Tokens from one frame to the next."
    window: str = "hann"
    "Analysis window: hann, hamming, blackman or rectangular."
    batch_size: int = 1
    "Windows in one forward pass."
    norm_heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("*:0",)
    "LAYER:HEAD whose norms are kept for heatmaps; `*` is every one, `none` keeps none. Default head 0 of every layer."


@app.command
def inspect(model: ModelName, *, options: ModelOptions = ModelOptions()) -> None:
    """Print the rotary card of a model: who rotates, how, how fast.

    One line for every group of layers that rotate alike: query and key heads, head dimensions, pairing, number of
    pairs, shortest and longest wavelength in tokens, pairs of zero frequency, layers without rotation (NoPE).

    Example: `ropescope inspect builtin`
    """
    import ropescope as rs

    loaded, _ = _load(model, options)
    card = rs.probe(loaded)
    dtype = str(loaded.dtype).removeprefix("torch.")
    print(f"{model}: {type(loaded).__name__}, {len(card.layers)} attention layers, {dtype}")
    print(card)


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

    Runs the model over windows of text, for queries and keys, writes one NetCDF file and prints a summary.

    Example: `ropescope measure Qwen/Qwen3-8B --count 8 --output qwen3.nc`

    Parameters
    ----------
    output
        Result file; default `MODEL-CORPUS-LENGTH.nc` in this folder.
    overwrite
        Replace the result file if it exists.
    """
    import ropescope as rs
    from ropescope.files import check_target
    from ropescope.summary import summary_text

    norm_heads = _parse_heads(how.norm_heads)
    target = output or Path(f"{_stem(model)}-{_stem(text.corpus)}-{text.length}.nc")
    check_target(target, overwrite=overwrite)
    loaded, tokenizer = _load(model, options)
    windows = _windows(tokenizer, text)
    result = rs.measure(
        loaded,
        windows,
        frame_length=how.frame_length,
        hop_length=how.hop_length,
        window=how.window,
        batch_size=how.batch_size,
        norm_heads=norm_heads,
        progress=True,
    )
    rs.save(result, target, overwrite=overwrite)
    print(summary_text(result))
    print(f"\nresult: {target}\nfigures: ropescope figures {target}")


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
    import ropescope as rs
    from ropescope.results import schema_of

    if not results:
        raise InputError("figures got no result file; name at least one: ropescope figures RESULT.nc")
    chosen = _parse_heads(heads)
    if any(None in place for place in chosen):
        raise InputError("figures got '*' in --heads; name each head as LAYER:HEAD")
    sweeps = [path for path in results if schema_of(path) == "ropescope-sweep"]
    for path in results:
        if path not in sweeps:
            for written in _draw(rs.load(path), path.stem, chosen, _streams(stream), format, output_dir):
                print(written)
    if sweeps:
        for written in _draw_sweeps(sweeps, format, output_dir):
            print(written)


@app.command
def select(
    result: ResultPath,
    selection: Annotated[str, Parameter(help="Expression, or one of the paper's selections by name.")],
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Select pairs of a result by an expression, and say how many there are in each layer.

    Expressions compare spectrum_fe, sequence_fe, mean_norm, dc_share, dominant_period, peak_share, layer, head, pair,
    frequency and rotated with numbers, joined by and, or, not and parentheses. By name: bands, spectrum-outliers,
    periodic, table1.

    Example: `ropescope select qwen3.nc "spectrum_fe < 0.2 and layer >= 4" --output bands.safetensors`

    Parameters
    ----------
    output
        Mask file (safetensors) to write; default none.
    overwrite
        Replace the mask file if it exists.
    """
    import ropescope as rs

    mask = rs.select(rs.load(result), selection)
    print(mask)
    for layer, counts in zip(
        mask.layers, zip(*(mask.counts()[name].values for name in STREAMS), strict=True), strict=True
    ):
        print(f"  layer {layer:>3}  query {counts[0]:>5}  key {counts[1]:>5}")
    if output is not None:
        print(f"mask: {mask.save(output, overwrite=overwrite)}")


@app.command
def sweep(
    model: ModelName,
    result: ResultPath,
    *,
    select: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = PAPER_SELECTIONS,
    alphas: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = TENTHS,
    random_seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (0, 1, 2),
    control_alphas: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    derotate: Annotated[bool, Parameter(negative="")] = False,
    options: ModelOptions = ModelOptions(),
    text: JudgeOptions = JudgeOptions(),
    batch_size: int = 1,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Turn selected pairs down and see what perplexity says, against equal numbers of other pairs.

    Every finished cell is kept: the same command after a crash goes on where it was. Writes the sweep (.nc), the
    curves of the paper's figure 3 (.png) and the table (.md, .csv), and prints the table.

    Example: `ropescope sweep Qwen/Qwen3-8B qwen3.nc --select bands periodic --control-alphas 0 0.5`

    Parameters
    ----------
    result
        Result of `ropescope measure` for this model, on another text than the one judged on.
    select
        Selections, each an expression or one of the paper's by name.
    alphas
        Strengths, 0 to 1. 1, the model as it stands, is always added.
    random_seeds
        Seeds of the random controls.
    control_alphas
        Strengths of the controls, 1 aside; default all.
    derotate
        Take rotation away instead of weighting: alpha is then the share of the rotation that is kept.
    batch_size
        Windows in one forward pass.
    output
        Sweep file; default `MODEL-CORPUS-LENGTH-sweep.nc` in this folder.
    overwrite
        Replace the sweep file if it holds another sweep.
    """
    import ropescope as rs
    from ropescope.evaluation.plan import Controls
    from ropescope.evaluation.sweep import rotation_kept
    from ropescope.files import check_target
    from ropescope.interventions import weighted_rope

    target = check_target(output or Path(f"{_stem(model)}-{_stem(text.corpus)}-{text.length}-sweep.nc"))
    measured = rs.load(result)
    masks = {name: rs.select(measured, name) for name in select}
    loaded, tokenizer = _load(model, options)
    data = rs.sweep(
        loaded,
        _windows(tokenizer, text, "test"),
        masks,
        alphas=alphas,
        controls=Controls(random_seeds, measured, control_alphas),
        intervention=rotation_kept if derotate else weighted_rope,
        path=target,
        overwrite=overwrite,
        batch_size=batch_size,
        progress=True,
    )
    _report_sweep(data, target, model)


@app.command
def bake(
    model: ModelName,
    result: ResultPath,
    *,
    alpha: float,
    output: Annotated[Path, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)],
    select: str = "table1",
    options: ModelOptions = ModelOptions(),
) -> None:
    """Fold a weighting into the projections and save an ordinary checkpoint.

    The folder opens in plain transformers or any server. Models with QK-norm or fused projections cannot be baked.

    Example: `ropescope bake meta-llama/Meta-Llama-3-8B llama3.nc --select table1 --alpha 0.1 --output llama3-baked`

    Parameters
    ----------
    alpha
        Weight of the selected pairs, 0 to 1.
    output
        Folder for the checkpoint; must not exist, or be empty.
    select
        Expression, or one of the paper's selections by name.
    """
    import ropescope as rs
    from ropescope.models import quiet

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ResultError(f"cannot write {output}: it exists and is not an empty folder; choose another --output")
    mask = rs.select(rs.load(result), select)
    loaded, tokenizer = _load(model, options)
    rs.bake(loaded, mask, alpha)
    _make_folder(output)
    with quiet():
        loaded.save_pretrained(output)
        tokenizer.save_pretrained(output)
    print(f"{mask}, alpha {alpha}\ncheckpoint: {output}")


@app.command
def demo(*, output_dir: Path = Path("ropescope-demo")) -> None:
    """Measure the built-in model on the built-in text, draw it, turn pairs down, and say what matters.

    Example: `ropescope demo`

    Parameters
    ----------
    output_dir
        Folder for the result and the figures, made if it does not exist.
    """
    import ropescope as rs
    from ropescope.summary import summary_text

    _make_folder(output_dir)
    target = output_dir / "builtin.nc"
    print("SmolLM2-135M-Instruct on the language reference of Python, 2 windows of 4096 tokens\n")
    loaded, tokenizer = rs.load_model("builtin")
    print(rs.probe(loaded), end="\n\n")
    windows = rs.token_windows(tokenizer, "builtin", length=4096, count=2)
    result = rs.measure(loaded, windows, norm_heads=[(None, None)], progress=True)
    rs.save(result, target)
    print(summary_text(result))
    print(f"\nresult: {target}")
    for written in _draw(result, "builtin", [], STREAMS, ("png",), output_dir):
        print(f"figure: {written}")
    print(_WHAT_TO_LOOK_AT)
    _demo_sweep(loaded, tokenizer, result, output_dir)


def _demo_sweep(model: Any, tokenizer: Any, result: xr.DataTree, folder: Path) -> None:
    """Turn the paper's selections down on the half of the text that was not measured."""
    import ropescope as rs
    from ropescope.curves import sweep_curves
    from ropescope.evaluation.findings import findings
    from ropescope.evaluation.plan import Controls
    from ropescope.evaluation.records import save_sweep

    print("\nWhat matters? Perplexity on other text, 4 windows of 1024 tokens, as the pairs are turned down\n")
    data = rs.sweep(
        model,
        rs.token_windows(tokenizer, "builtin", split="test", length=1024, count=4),
        {name: rs.select(result, name) for name in PAPER_SELECTIONS},
        alphas=(0.0, 0.5),
        controls=Controls(seeds=(0,)),
        progress=True,
    )
    save_sweep(data, (folder / "builtin-sweep.nc").resolve())
    print(f"figure: {_save_figure(sweep_curves({'builtin': data}), folder / 'builtin-curves.png')}\n")
    print("\n".join(findings(data)))


_WHAT_TO_LOOK_AT = """
What to look at
  overview   Each row is a layer, each column a rotary pair, slow pairs to the right. Dark in SpectrumFE: a frequency
             band, a pair whose norm is high and steady. Dark in SequenceFE: a pair that beats with a period.
  panel      Three heads worth a look. Where SpectrumFE dips to the dotted floor, the heatmap below shows a bright
             steady row: that pair is a band. Where SequenceFE falls below the white-noise line, the row has a rhythm.
  next       ropescope measure YOUR-MODEL --count 8, then ropescope figures on the file it names
             (in a checkout the command is .venv/bin/ropescope)."""


def _load(model: str, options: ModelOptions) -> tuple[Any, Any]:
    import ropescope as rs

    return rs.load_model(
        model,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )


def _windows(tokenizer: Any, text: TextOptions, default_split: str | None = None) -> Tensor:
    import ropescope as rs

    default = None if Path(text.corpus).is_file() else default_split
    return rs.token_windows(
        tokenizer,
        text.corpus,
        split=text.split or default,
        length=text.length,
        count=text.count,
        seed=text.seed,
        config=text.config,
        column=text.column,
        separator=text.separator,
        bos="auto" if text.bos == "auto" else text.bos == "yes",
    )


def _report_sweep(data: xr.Dataset, target: Path, model: str) -> None:
    """Print the table, and write it and the curves beside the sweep."""
    from ropescope.curves import sweep_curves
    from ropescope.evaluation.effects import sweep_table
    from ropescope.evaluation.findings import findings
    from ropescope.files import check_target, written_whole

    print(sweep_table(data), end="\n\n")
    print("\n".join(findings(data)))
    _save_figure(sweep_curves({model: data}), target.with_suffix(".png"))
    with written_whole(check_target(target.with_suffix(".md"))) as partial:
        partial.write_text(sweep_table(data, format="markdown"))
    with written_whole(check_target(target.with_suffix(".csv"))) as partial:
        partial.write_text(sweep_table(data, format="csv"))
    print(f"\nsweep: {target}\ncurves and tables: the same name with .png, .md and .csv")


def _draw(
    result: xr.DataTree,
    stem: str,
    heads: list[tuple[int | None, int | None]],
    streams: Iterable[str],
    formats: Iterable[str],
    folder: Path,
) -> Iterable[Path]:
    from ropescope.figures import default_heads, overview, panel

    _make_folder(folder)
    for stream in streams:
        shown = [(int(layer or 0), int(head or 0)) for layer, head in heads] or default_heads(result, stream)
        drawn = {"panel": panel(result, shown, stream), "overview": overview(result, stream)}
        for name, figure in drawn.items():
            for extension in formats:
                yield _save_figure(figure, folder / f"{stem}-{stream}-{name}.{extension}")


def _draw_sweeps(paths: list[Path], formats: Iterable[str], folder: Path) -> Iterable[Path]:
    from ropescope.curves import sweep_curves
    from ropescope.evaluation.records import load_sweep

    figure = sweep_curves({path.stem: load_sweep(path) for path in paths})
    _make_folder(folder)
    for extension in formats:
        yield _save_figure(figure, folder / f"{paths[0].stem}-curves.{extension}")


def _save_figure(figure: Any, path: Path) -> Path:
    from ropescope.files import check_target, written_whole

    with written_whole(check_target(path)) as partial:
        figure.savefig(partial, dpi=150)
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder}: {error.strerror}; choose another --output-dir") from error


def _streams(stream: Stream) -> tuple[str, ...]:
    return STREAMS if stream == "both" else (stream,)


def _parse_heads(texts: Iterable[str]) -> list[tuple[int | None, int | None]]:
    texts = list(texts)
    if texts == ["none"]:
        return []
    for text in texts:
        if re.fullmatch(r"(\d+|\*):(\d+|\*)", text) is None:
            raise InputError(
                f"got head {text!r}; a head reads LAYER:HEAD, such as 6:0, or *:0 for head 0 of every layer"
            )
    return [tuple(None if part == "*" else int(part) for part in text.split(":")) for text in texts]  # type: ignore[misc]


def _stem(name: str) -> str:
    """The last part of a hub id or path, without its suffix."""
    last = Path(name.rstrip("/")).name
    return last.removesuffix(".gguf").removesuffix(".txt").removesuffix(".jsonl").removesuffix(".parquet")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; bad input exits with 2 after one line, an interrupt with 130."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (RopescopeError, CycloptsError) as error:
        line = " ".join(str(error).split())
        print(f"ropescope: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ropescope: interrupted; nothing was left half-written", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
