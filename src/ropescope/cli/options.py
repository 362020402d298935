"""The application, what its commands share of options, and how options become library values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from ropescope.base.arguments import check_cut, check_dtype, check_place
from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.base.selections import PAPER
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from ropescope.interventions.masks import PairMask
    from ropescope.interventions.protocol import Intervention

Format = Literal["png", "svg", "pdf"]
Stream = Literal["query", "key", "both"]

# What is open until the command ends.
RUN = ExitStack()

app = App(
    name="ropescope",
    help="Which rotary position pairs of a language model carry anything, and what happens when they are turned down.",
    help_format="markdown",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)

app.register_install_completion_command()

MODEL_GROUP = Group("Model", sort_key=1)
TEXT_GROUP = Group("Text", sort_key=2)
MEASURE_GROUP = Group("Measurement", sort_key=3)
OUTPUT_GROUP = Group("Output", sort_key=4)

PAPER_SELECTIONS = tuple(PAPER)
TENTHS = tuple(step / 10 for step in range(11))

Labels = Annotated[tuple[str, ...], Parameter(name="--label", consume_multiple=True, negative="")]
ResultPath = Annotated[Path, Parameter(help="Result file of `ropescope measure`.")]
WorthPath = Annotated[
    Path | None,
    Parameter(help="File of `ropescope importance` for this model."),
]
ModelName = Annotated[
    str,
    Parameter(
        help="Hub id, local folder, .gguf file, or `builtin` (SmolLM2-135M-Instruct). A GGUF file is converted once; "
        "the copy stays in `~/.cache/ropescope` (or where `ROPESCOPE_CACHE` says) until you delete that folder."
    ),
]


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
    device_map: str | None = None
    "auto spreads the layers over all GPUs, the CPU and the disk (needs accelerate); default all on one device."
    tensor_parallel: Annotated[bool, Parameter(negative="")] = False
    "Spread every layer over the processes that torchrun started; default each process has the whole model."
    trust_remote_code: Annotated[bool, Parameter(negative="")] = False
    "Run model code that comes with the checkpoint."


@Parameter(name="*", group=TEXT_GROUP)
@dataclass(frozen=True)
class TextOptions:
    """Which text, and how to cut it into windows."""

    corpus: str = "wikitext"
    "wikitext, c4, builtin (Python's language), any hub data set, or a file: .txt .md .jsonl .json .csv .tsv .parquet."
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
    batch_size: int | Literal["auto"] = 1
    "Windows in one forward pass; auto takes as many as the memory of the GPU holds."
    norm_heads: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("auto",)
    "LAYER:HEAD whose norms are kept for heatmaps; `*`: every one, `none`: none, auto: those that figures draw."


def check_model(options: ModelOptions) -> None:
    """Say what is wrong with how a model is asked for before it, or torch, is loaded."""
    from ropescope.run.launch import launch_of

    launch = launch_of(os.environ) if options.tensor_parallel else None
    check_dtype(options.dtype)
    check_place(options.device, options.device_map, options.tensor_parallel, 1 if launch is None else launch.size)


def check_text(text: TextOptions, default_split: str | None = None) -> None:
    """Say what is wrong with a text and its windows before a model is loaded."""
    from ropescope.model.corpora import Request, check_request, local_file

    check_cut(text.length, text.count)
    split = text.split or (None if local_file(text.corpus) else default_split)
    check_request(Request(text.corpus, split, text.config, text.column, text.separator, None, text.seed))


def join() -> None:
    """Join the processes that torchrun started until the command ends; what can be checked alone comes before."""
    from ropescope.run.launch import launched

    RUN.enter_context(launched())


def load_chosen(model: str, options: ModelOptions) -> tuple[Any, Any]:
    import ropescope as rs

    given = loading(options)
    with opening(model):
        return rs.load_model(model, **given)


def opening(model: str) -> AbstractContextManager[Any]:
    """Say off a terminal, while the block runs, for how long a model has been loading."""
    from ropescope.run.progress import progress

    return progress(f"loading {model}", shown=leading())


def loading(options: ModelOptions) -> dict[str, Any]:
    """Arguments of `load_model`."""
    from ropescope.run.processes import all_launched, local_device

    workers = all_launched()
    if options.device_map is not None and workers.size > 1:
        raise InputError(
            f"got --device-map {options.device_map} in {workers.size} processes, each of which would spread its model "
            "over the same devices; start one process, or give --tensor-parallel instead"
        )
    spread = options.device_map is not None or options.tensor_parallel
    placed = options.device == "auto" and not spread
    return vars(options) | ({"device": local_device(workers)} if placed else {})


def sharing(options: ModelOptions) -> ProcessGroup | None:
    """The processes that torchrun started, where each has the whole model."""
    from ropescope.run.processes import all_launched

    return None if options.tensor_parallel else all_launched().group


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that has been put in its place; None where there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def say_if_kept(path: Path, before: tuple[int, int] | None) -> None:
    """Say so where the output is the very file that was there before."""
    if before is not None and stamp(path) == before:
        say(f"{path} is already there and holds this very run; --overwrite makes it anew\n")


def leading() -> bool:
    """Whether this is the process that prints and writes."""
    from ropescope.run.processes import all_launched

    return all_launched().leading


def windows_of(tokenizer: Any, text: TextOptions, default_split: str | None = None) -> Tensor:
    import ropescope as rs
    from ropescope.model.corpora import local_file

    default = None if local_file(text.corpus) else default_split
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


def kept_in(target: Path, overwrite: bool, options: ModelOptions) -> dict[str, Any]:
    """What every long run takes: where it is kept, who shares it, and that it says how far it is."""
    return {"path": target, "overwrite": overwrite, "group": sharing(options), "progress": True}


def intervention_of(derotate: bool) -> Intervention:
    """What turns pairs down."""
    from ropescope.interventions.derotation import rotation_kept
    from ropescope.interventions.weighting import weighted_rope

    return rotation_kept if derotate else weighted_rope


def worth_of(path: Path | None) -> xr.DataTree | None:
    """The importance that a file holds, if one is given."""
    from ropescope.measurement.results import IMPORTANCE, load

    return None if path is None else load(path, IMPORTANCE)


def selected(
    result: Path, selections: Iterable[str], importance: xr.DataTree | None = None
) -> tuple[xr.DataTree, dict[str, PairMask]]:
    """A measurement, and the masks of selections on it by what a person calls them."""
    import ropescope as rs
    from ropescope.measurement.results import load

    measured = load(result)
    return measured, {name: rs.select(measured, name, importance=importance) for name in selections}


def streams_of(stream: Stream) -> tuple[str, ...]:
    return STREAMS if stream == "both" else (stream,)


def parse_heads(texts: Iterable[str]) -> list[tuple[int | None, int | None]]:
    texts = list(texts)
    if texts == ["none"]:
        return []
    for text in texts:
        if re.fullmatch(r"(\d+|\*):(\d+|\*)", text) is None:
            raise InputError(
                f"got head {text!r}; a head reads LAYER:HEAD, such as 6:0, or *:0 for head 0 of every layer"
            )
    return [tuple(None if part == "*" else int(part) for part in text.split(":")) for text in texts]  # type: ignore[misc]


def stem_of(name: str) -> str:
    """The last part of a hub id or path, without its suffix."""
    from ropescope.model.text_files import bare_name

    return bare_name(name).removesuffix(".gguf")
