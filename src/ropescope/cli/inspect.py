"""The command inspect: who rotates, how, how fast."""

from __future__ import annotations

from ropescope.cli.options import (
    ModelName,
    ModelOptions,
    app,
    check_model,
    join,
    leading,
    loading,
    opening,
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
