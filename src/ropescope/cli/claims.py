"""The command claims: what has been said of rotary pairs, tested by what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ropescope.base.errors import InputError
from ropescope.cli.drawing import write_text
from ropescope.cli.options import (
    MODEL_GROUP,
    OUTPUT_GROUP,
    TEXT_GROUP,
    JudgeOptions,
    ModelOptions,
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
    from ropescope.evaluation.claims.findings import Claim
    from ropescope.evaluation.claims.judging import Verdicts


@Parameter(name="*", group=TEXT_GROUP)
@dataclass(frozen=True)
class LookOptions(JudgeOptions):
    """Which text to look at the model with, where one is given."""

    length: int = 1024
    "Tokens in a window; 64 or more."
    count: int | None = 8
    "Number of windows; fewer than 5 give no interval."


@app.command
def claims(
    *files: Annotated[
        Path,
        Parameter(
            help="Files of `ropescope measure`, `importance` with its validation, `sweep`, `tasks`, and earlier looks "
            "at the model. The first measurement is of the model that is judged; others may be of other texts, lengths "
            "or models."
        ),
    ],
    model: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    list_claims: Annotated[bool, Parameter(name="--list", negative="")] = False,
    format: Literal["text", "markdown", "json"] = "text",
    options: ModelOptions = ModelOptions(),
    text: LookOptions = LookOptions(),
    context: Annotated[int | None, Parameter(group=TEXT_GROUP)] = None,
    look: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Test what has been said of rotary pairs, each claim with source, interval, control and verdict.

    A claim holds where the whole 95 % interval lies beyond its control; that something does not matter holds where
    the whole interval lies inside a margin. What the files do not reach cannot be said, with the command that would
    settle it. With `--model` the model itself is looked at for the claims on what pairs do: where its heads attend to,
    and what it loses without some pairs. Every finished pass is kept: the same command after a crash goes on.

    Example: `ropescope claims qwen3.nc qwen3-c4.nc qwen3-worth.nc qwen3-sweep.nc --model Qwen/Qwen3-8B`

    Parameters
    ----------
    model
        Look at this model, which the first measurement is of: hub id, local folder, .gguf file, or `builtin`.
    only
        Claims to test, by their keys; default all.
    list_claims
        List the claims with their sources, and test nothing.
    format
        text, markdown or json.
    context
        Tokens that the model was trained on at once; default what its configuration says.
    look
        File for what is looked at; default `MODEL-CORPUS-LENGTH-look.nc` in this folder. Give it among the files
        another time, instead of `--model`.
    output
        File to write; default prints.
    overwrite
        Replace the files that are there.
    """
    from ropescope.base.files import check_target, named
    from ropescope.base.netcdf import check_source
    from ropescope.evaluation.claims.judging import chosen_claims

    chosen = chosen_claims(only)
    if list_claims:
        _list(chosen)
        return
    if not files:
        raise InputError("claims got no file; name at least one of 'ropescope measure', or ask for --list")
    if output is not None:
        check_target(output, overwrite=overwrite)
    for path in named(files).values():
        check_source(path)
    verdicts = (
        _judged(files, only) if model is None else _looked(files, only, model, options, text, context, look, overwrite)
    )
    if leading():
        _tell(verdicts, format, output)


def _list(chosen: tuple[Claim, ...]) -> None:
    for claim in chosen:
        say(f"{claim.key}: {claim.statement}\n  {claim.source.short}, {claim.place}; needs {claim.needs}")
    say("\n" + "\n".join(f"{source.short}: {source}" for source in dict.fromkeys(claim.source for claim in chosen)))


def _judged(files: tuple[Path, ...], only: tuple[str, ...]) -> Verdicts:
    import ropescope as rs

    return rs.claims(files, only=only)


def _looked(
    files: tuple[Path, ...],
    only: tuple[str, ...],
    model: str,
    options: ModelOptions,
    text: LookOptions,
    context: int | None,
    look: Path | None,
    overwrite: bool,
) -> Verdicts:
    """Verdicts with a look at the model, which is checked as far as it can be before it is loaded."""
    import ropescope as rs
    from ropescope.base.files import check_target, named
    from ropescope.evaluation.claims.evidence import gathered

    check_model(options)
    check_text(text, "test")
    contents = {name: rs.load(path) for name, path in named(files).items()}
    if gathered(contents).measured is None:
        raise InputError("got --model without a measurement of it; give the file of 'ropescope measure' first")
    target = check_target(look or Path(f"{stem_of(model)}-{stem_of(text.corpus)}-{text.length}-look.nc"))
    join()
    before = stamp(target)
    loaded, tokenizer = load_chosen(model, options)
    kept: dict[str, Any] = kept_in(target, overwrite, options)
    windows = windows_of(tokenizer, text, "test")
    verdicts = rs.claims(contents, only=only, model=loaded, windows=windows, context=context, **kept)
    if leading():
        say_if_kept(target, before)
    return verdicts


def _tell(verdicts: Verdicts, format: Literal["text", "markdown", "json"], output: Path | None) -> None:
    text = {"text": verdicts.text, "markdown": verdicts.markdown, "json": verdicts.json}[format]().rstrip("\n") + "\n"
    if output is None:
        say(text, end="")
    else:
        say(f"{verdicts.summary()}\n\nclaims: {write_text(output, text)}")
