"""The command claims: what has been said of rotary pairs, tested by what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ropescope.base.errors import InputError
from ropescope.cli.drawing import write_text
from ropescope.cli.options import OUTPUT_GROUP, app
from ropescope.cli.printing import say


@app.command
def claims(
    *files: Annotated[
        Path,
        Parameter(
            help="Files of `ropescope measure`, `importance` with its validation, `sweep` and `tasks`. The first "
            "measurement is of the model that is judged; others may be of other texts, lengths or models."
        ),
    ],
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    list_claims: Annotated[bool, Parameter(name="--list", negative="")] = False,
    format: Literal["text", "markdown", "json"] = "text",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT_GROUP)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT_GROUP)] = False,
) -> None:
    """Test what has been said of rotary pairs, each claim with source, interval, control and verdict.

    A claim holds where the whole 95 % interval lies beyond its control; that something does not matter holds where
    the whole interval lies inside a margin. What the files do not reach cannot be said, with the command that would
    settle it.

    Example: `ropescope claims qwen3.nc qwen3-c4.nc qwen3-worth.nc qwen3-sweep.nc --format markdown --output claims.md`

    Parameters
    ----------
    only
        Claims to test, by their keys; default all.
    list_claims
        List the claims with their sources, and test nothing.
    format
        text, markdown or json.
    output
        File to write; default prints.
    overwrite
        Replace the file if it exists.
    """
    from ropescope.base.files import check_target, named
    from ropescope.base.netcdf import check_source
    from ropescope.evaluation.claims.judging import chosen_claims

    chosen = chosen_claims(only)
    if list_claims:
        say("\n".join(f"{claim.key}: {claim.statement} ({claim.citation}; needs {claim.needs})" for claim in chosen))
        return
    if not files:
        raise InputError("claims got no file; name at least one of 'ropescope measure', or ask for --list")
    if output is not None:
        check_target(output, overwrite=overwrite)
    for path in named(files).values():
        check_source(path)
    import ropescope as rs

    verdicts = rs.claims(files, only=only)
    text = {"text": verdicts.text, "markdown": verdicts.markdown, "json": verdicts.json}[format]().rstrip("\n")
    if output is None:
        say(text)
        return
    say(f"{verdicts.summary()}\n\nclaims: {write_text(output, text + chr(10))}")
