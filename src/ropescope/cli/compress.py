"""The command compress: key caches of fewer bytes, planned on one text and judged on another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from ropescope.base.arguments import check_at_least, check_batch_size
from ropescope.base.errors import InputError
from ropescope.base.key_plans import BASELINES, METHODS, SHARES, Method, Metric, check_plans
from ropescope.cli.drawing import check_companions, report_frontier
from ropescope.cli.options import (
    OUTPUT_GROUP,
    TEXT_GROUP,
    JudgeOptions,
    ModelName,
    ModelOptions,
    app,
    check_model,
    check_text,
    join,
    leading,
    load_chosen,
    say_if_kept,
    sharing,
    stamp,
    stem_of,
    windows_of,
)
from ropescope.cli.printing import say

if TYPE_CHECKING:
    from ropescope.evaluation.frontier.timing import Timing

CALIBRATION_GROUP = Group("Calibration", sort_key=3)


@Parameter(name="*", group=TEXT_GROUP)
@dataclass(frozen=True)
class ThinOptions(JudgeOptions):
    """Which text to judge on, and how to cut it and the text to calibrate on into windows."""

    length: int = 1024
    "Tokens in a window."


@Parameter(name="*", group=CALIBRATION_GROUP)
@dataclass(frozen=True)
class PlanOptions:
    """What keys are calibrated on, and how."""

    calibration_corpus: str | None = None
    "Text to calibrate on, as `--corpus`; default that corpus."
    calibration_split: str | None = None
    "Its split; default validation."
    calibration_count: int = 8
    "Windows to calibrate on, of as many tokens as those judged on."
    metric: Metric = "fisher"
    "What an error costs: fisher (what the model's predictions feel of it), query (the logits it makes), or both."
    sinks: int = 4
    "First tokens of a text whose keys stay whole."
    multiple: int = 1
    "Ranks, or pairs of a head, are multiples of this."
    result: Path | None = None
    "Result of `ropescope measure` that baselines rest on; default the calibration windows are measured."
    batch_size: int | Literal["auto"] = 1
    "Windows in one forward pass; auto takes as many as the memory of the GPU holds."

    def text(self, judged: JudgeOptions) -> JudgeOptions:
        """The text to calibrate on; its other options are those of the text that is judged on."""
        corpus = self.calibration_corpus or judged.corpus
        return replace(judged, corpus=corpus, split=self.calibration_split, count=self.calibration_count)

    def planning(self) -> dict[str, Any]:
        """Arguments of `frontier_plans`."""
        from ropescope.measurement.results import load

        given = {"metric": self.metric, "sinks": self.sinks, "multiple": self.multiple}
        return {**given, "result": None if self.result is None else load(self.result)}


@app.command
def compress(
    model: ModelName,
    *,
    keep: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = SHARES,
    method: Annotated[tuple[Method, ...], Parameter(consume_multiple=True, negative="")] = METHODS,
    baselines: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = tuple(BASELINES),
    time_at: int | None = None,
    options: ModelOptions = ModelOptions(),
    text: ThinOptions = ThinOptions(),
    how: PlanOptions = PlanOptions(),
    label: Annotated[str | None, Parameter(group=OUTPUT_GROUP)] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Plan key caches of fewer bytes, and say what they cost: bytes as stored, perplexity, time.

    Calibrates once (a forward and a backward pass a window), plans every method for every share, and judges each plan
    on another text, beside the orders in which others keep pairs. Plans are files of their own in a folder beside the
    output, `METHOD-KEEP.safetensors`, for `ropescope.KeyPlan.load`. Every finished plan and judgement is kept: the same
    command after a crash goes on where it was. Writes the frontier (.nc), a figure (.png) and the table (.md, .csv),
    and prints the table. Under `torchrun --nproc-per-node N -m ropescope` the processes share windows and plans.

    Example: `ropescope compress Qwen/Qwen3-8B --keep 0.75 0.5 0.25 --method latent drop --time-at 8192`

    Parameters
    ----------
    keep
        Shares of the stock cache's key bytes, above 0 to 1, for a text as long as a window.
    method
        latent (keys before rotation on a few directions) and drop (some pairs are not stored).
    baselines
        Orders that others keep pairs in: norm-product (ThinK), norm, spectrum-fe, random; `none` leaves them out.
    time_at
        Tokens of a text to time prefill and decoding at, against the stock cache; default nothing is timed.
    label
        What the figure calls the model; default the last part of its name.
    output
        Frontier file; default `MODEL-CORPUS-LENGTH-frontier.nc` in this folder. The plans lie in the folder of that
        name that ends in `-plans`.
    overwrite
        Plan and judge anew and replace the files that are there, whatever they hold.
    """
    import ropescope as rs

    others = () if baselines == ("none",) else baselines
    check_plans(keep, method, others, how.metric, how.sinks, how.multiple)
    target = _target(model, options, text, how, time_at, output)
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    shared: dict[str, Any] = {
        "overwrite": overwrite,
        "group": sharing(options),
        "progress": True,
        "batch_size": how.batch_size,
    }
    calibration = windows_of(tokenizer, how.text(text), "validation")
    kinds: dict[str, Any] = {"baselines": others, "folder": _plans_beside(target), **how.planning()}
    plans = rs.frontier_plans(loaded, calibration, keep, method, **kinds, **shared)
    windows = windows_of(tokenizer, text, "test")
    data = rs.frontier(loaded, windows, plans, timing=_timing(time_at), path=target, **shared)
    if leading():
        say_if_kept(target, before)
        report_frontier(data, target, label or stem_of(model))
        say(f"plans: {_plans_beside(target)}")


def _target(
    model: str, options: ModelOptions, text: JudgeOptions, how: PlanOptions, time_at: int | None, output: Path | None
) -> Path:
    """Where the frontier goes, once model, texts, numbers and files are what can be asked for."""
    from ropescope.base.files import check_folder

    check_model(options)
    check_text(text, "test")
    _check_texts(text, how.text(text))
    check_batch_size(how.batch_size)
    check_at_least("time_at", time_at, 2)
    target = output or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}-frontier.nc")
    check_companions(target, (".png", ".md", ".csv"))
    check_folder(_plans_beside(target))
    return target


def _check_texts(judged: JudgeOptions, calibrated: JudgeOptions) -> None:
    """Refuse one text for both: a plan would be judged on what it was fitted to."""
    from ropescope.model.corpora import local_file

    check_text(calibrated, "validation")
    splits = [text.split or default for text, default in ((judged, "test"), (calibrated, "validation"))]
    if judged.corpus == calibrated.corpus and (local_file(judged.corpus) or splits[0] == splits[1]):
        raise InputError(
            f"got {judged.corpus!r} to calibrate and to judge on; give another text as --calibration-corpus, or "
            "another split as --calibration-split"
        )


def _plans_beside(target: Path) -> Path:
    return target.with_name(f"{target.stem}-plans")


def _timing(length: int | None) -> Timing | None:
    from ropescope.evaluation.frontier.timing import Timing

    return None if length is None else Timing(length)
