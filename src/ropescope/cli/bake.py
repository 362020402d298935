"""The command bake: a weighting folded into an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ropescope.base.arguments import check_share
from ropescope.base.errors import InputError, ResultError
from ropescope.cli.drawing import make_folder, write_text
from ropescope.cli.options import (
    OUTPUT_GROUP,
    ModelName,
    ModelOptions,
    ResultPath,
    app,
    check_model,
    load_chosen,
)
from ropescope.cli.printing import say


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

    The folder opens in plain transformers or any server; its `ropescope.json` says which pairs were turned down, by how
    much, and in which model. Models with QK-norm or fused projections cannot be baked.

    Example: `ropescope bake meta-llama/Meta-Llama-3-8B llama3.nc --select table1 --alpha 0.1 --output llama3-baked`

    Parameters
    ----------
    alpha
        Weight of the selected pairs, 0 to 1.
    output
        Folder for the checkpoint; must not exist, or be empty.
    select
        Expression, or a selection by name, as in `ropescope select`.
    """
    import ropescope as rs
    from ropescope.base.files import check_folder
    from ropescope.measurement.results import load

    check_share("alpha", alpha)
    if options.tensor_parallel:
        raise InputError("bake got --tensor-parallel, but writes the whole model; leave it out, or use --device-map")
    check_model(options)
    check_folder(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ResultError(f"cannot write {output}: it exists and is not an empty folder; choose another --output")
    mask = rs.select(load(result), select)
    loaded, tokenizer = load_chosen(model, options)
    from ropescope.model.loading import quiet

    rs.bake(loaded, mask, alpha)
    make_folder(output)
    with quiet():
        loaded.save_pretrained(output)
        tokenizer.save_pretrained(output)
    _record(output, mask.provenance, alpha)
    say(f"{mask}, alpha {alpha}\ncheckpoint: {output}")


def _record(folder: Path, selected: Mapping[str, Any], alpha: float) -> None:
    """Write down what the checkpoint was made of."""
    import json
    from importlib.metadata import version

    facts = {
        "selection": selected["selection"],
        "alpha": alpha,
        "model": selected["measured"]["model"],
        "measured": selected["measured"],
        "ropescope": version("ropescope"),
    }
    write_text(folder / "ropescope.json", json.dumps(facts, indent=2) + "\n")
