"""The command demo: the whole way once, on what every machine has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.axes import QUERY, STREAMS
from ropescope.cli.drawing import Formats, draw_result, make_folder, save_figure
from ropescope.cli.options import PAPER_SELECTIONS, app
from ropescope.cli.printing import say

if TYPE_CHECKING:
    import xarray as xr


@app.command
def demo(*, output_dir: Path = Path("ropescope-demo")) -> None:
    """Measure the built-in model on the built-in text, draw it, turn pairs down, say what matters, write a report.

    Example: `ropescope demo`

    Parameters
    ----------
    output_dir
        Folder for the result and the figures, made if it does not exist.
    """
    import ropescope as rs
    from ropescope.measurement.summary import summary_text
    from ropescope.run.progress import progress

    make_folder(output_dir)
    target = output_dir / "builtin.nc"
    say("SmolLM2-135M-Instruct on the language reference of Python, 2 windows of 4096 tokens\n")
    with progress("loading builtin"):
        loaded, tokenizer = rs.load_model("builtin")
    say(rs.probe(loaded), end="\n\n")
    windows = rs.token_windows(tokenizer, "builtin", length=4096, count=2)
    result = rs.measure(loaded, windows, norm_heads=[(None, None)], progress=True)
    rs.save(result, target)
    say(summary_text(result))
    say(f"\nresult: {target}")
    for written in draw_result(result, "builtin", [], STREAMS, Formats(("png",)), output_dir):
        say(f"figure: {written}")
    say(_WHAT_TO_LOOK_AT)
    worth = _demo_importance(loaded, tokenizer, result, output_dir)
    swept = _demo_sweep(loaded, tokenizer, result, output_dir)
    page = rs.report([target, worth, swept], output_dir / "builtin.html", overwrite=True)
    say(f"\nAll of it to explore, in a browser and offline: {output_dir / page.name}")


def _demo_importance(model: Any, tokenizer: Any, result: xr.DataTree, folder: Path) -> Path:
    """Ask what the loss feels of every pair, on a few short windows; give the file of it."""
    import ropescope as rs
    from ropescope.analysis.importance_in_words import bands_sentence

    say("\nWhat does the loss feel? Importance of every pair, 5 windows of 256 tokens, one draw\n")
    windows = rs.token_windows(tokenizer, "builtin", length=256, count=5)
    worth = rs.importance(model, windows, draws=1, progress=True)
    say(bands_sentence(rs.importance_shares(result, worth), QUERY))
    return rs.save(worth, (folder / "builtin-importance.nc").resolve())


def _demo_sweep(model: Any, tokenizer: Any, result: xr.DataTree, folder: Path) -> Path:
    """Turn the paper's selections down on the half of the text that was not measured; give the sweep's file."""
    import ropescope as rs
    from ropescope.display.figures.curves import sweep_curves
    from ropescope.evaluation.sweep.arms import Controls
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.evaluation.sweep.in_words import findings

    say("\nWhat matters? Perplexity on other text, 6 windows of 384 tokens, as the pairs are turned down\n")
    data = rs.sweep(
        model,
        rs.token_windows(tokenizer, "builtin", split="test", length=384, count=6),
        {name: rs.select(result, name) for name in PAPER_SELECTIONS},
        alphas=(0.0, 0.5),
        controls=Controls(seeds=(0, 1, 2), alphas=(0.0,)),
        progress=True,
    )
    path = (folder / "builtin-sweep.nc").resolve()
    SWEEP.save(data, path)
    say(f"figure: {save_figure(sweep_curves({'builtin': data}), folder / 'builtin-curves.png')}\n")
    say("\n".join(findings(data)))
    return path


_WHAT_TO_LOOK_AT = """
What to look at
  overview   Each row is a layer, each column a rotary pair, slow pairs to the right. Dark in SpectrumFE: a frequency
             band, a pair whose norm is steady. Dark in SequenceFE: a pair whose norm varies by few periods.
  panel      Three heads worth a look. Where SpectrumFE dips to the dotted floor, the heatmap below shows a
             steady row: that pair is a band. Where SequenceFE falls far below the white-noise line, the row beats, or
             drifts with the text.
  next       ropescope measure YOUR-MODEL --count 8, then ropescope figures on the file it names
             (in a checkout the command is .venv/bin/ropescope)."""
