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
    What is printed of a GGUF file is kept beside its copy, so that the next time is quick.

    Example: `ropescope inspect builtin`
    """
    from ropescope.model.kept_cards import card_file, keep_card, kept_card

    check_model(options)
    if options.tensor_parallel:
        join()
    file = None if options.tensor_parallel else card_file(model, vars(options))
    words = kept_card(file) if file else None
    if words is None:
        words = _words(model, options)
        if file:
            keep_card(file, words)
    if file or leading():
        say(f"{model}: {words}")


def _words(model: str, options: ModelOptions) -> str:
    import ropescope as rs
    from ropescope.model.loading import load_bare_model

    given = loading(options)
    with opening(model):
        loaded = load_bare_model(model, **given)
    card = rs.probe(loaded)
    dtype = str(loaded.dtype).removeprefix("torch.")
    return f"{type(loaded).__name__}, {len(card.layers)} attention layers, {dtype}\n{card}"
