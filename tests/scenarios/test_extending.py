"""What the page on extending shows is run as it stands there, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ropescope as rs
from architectures import ARCHITECTURES, LLAMA, Architecture, tokens
from checkout import ROOT
from ropescope.base.rotary import pair_norms
from ropescope.model.attention import intercepted
from tiny import byte_level_tokenizer

INTERVENTION, SWEEP, FIGURE, CORPUS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8"), flags=re.DOTALL
)
FRAMES = {"frame_length": 16, "hop_length": 8}


def run(code: str, **given: Any) -> dict[str, Any]:
    namespace = {"rs": rs, "torch": torch, "__name__": "extending", **given}
    exec(compile(code, "extend.md", "exec"), namespace)
    return namespace


def all_pairs(result: Any) -> rs.PairMask:
    return rs.select(result, "spectrum_fe < 2")


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.style is not None][:6], ids=str)
def test_the_intervention_levels_norms_and_leaves_the_model_as_it_was(architecture: Architecture) -> None:
    levelled = run(INTERVENTION)["levelled"]
    model, windows = architecture.shared(), tokens(2)
    mask = all_pairs(rs.measure(model, windows, **FRAMES))
    seen: dict[int, Any] = {}
    with torch.no_grad():
        before = model(windows).logits
        # Within the intervention, so that it sees what attention is given.
        with intercepted(model, lambda call: seen.update({call.layer: call.query})), levelled(model, mask, 0.0):
            changed = model(windows).logits
        with levelled(model, mask, 1.0):
            torch.testing.assert_close(model(windows).logits, before)
        assert torch.equal(model(windows).logits, before)
    assert not torch.allclose(changed, before, atol=1e-3)
    for rotation in rs.probe(model).layers[:1]:
        norms = pair_norms(seen[rotation.layer], rotation.pairing)
        assert float((norms.std(-2) / norms.mean(-2)).max()) < 1e-3


def test_a_sweep_takes_it_and_records_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    levelled = run(INTERVENTION)["levelled"]
    model, windows = LLAMA.shared(), tokens(2)
    mask = all_pairs(rs.measure(model, windows, **FRAMES))
    made = run(SWEEP, levelled=levelled, model=model, windows=windows, mask=mask)["levelling"]
    assert "extending.levelled" in made.attrs["provenance"]
    assert "bands" in capsys.readouterr().out


def test_the_figure_shows_the_share_of_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = rs.measure(LLAMA.shared(), tokens(2), **FRAMES)
    figure = run(FIGURE, result=result)["bands_over_layers"](result)
    query, key = figure.axes[0].lines
    expected = (result["query"].spectrum_fe.mean("sequence") < 0.2).mean(("head", "pair"))
    np.testing.assert_allclose(query.get_ydata(), expected)
    assert len(key.get_ydata()) == len(expected)
    assert (tmp_path / "bands-over-layers.png").stat().st_size > 5000


def test_the_windows_are_those_of_the_texts() -> None:
    tokenizer = byte_level_tokenizer()
    windows = run(CORPUS)["windows_of"](tokenizer, ["one two three", "four five six"], 5, 3)
    assert windows.shape == (3, 5)
    assert tokenizer.decode(windows.flatten()) == "one two threefour five six"[:15]
