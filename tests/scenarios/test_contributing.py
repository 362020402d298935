"""What CONTRIBUTING shows is run as it stands there, and the files that it names are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import skew

import ropescope as rs
from architectures import GEMMA3, LLAMA, Architecture, tokens
from checkout import ROOT
from ropescope.base.pair_variables import PairVariable
from ropescope.base.rotary import pair_norms
from ropescope.model.attention import intercepted

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
FRAMES = {"frame_length": 16, "hop_length": 8}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    module = ModuleType("norm_skewness")
    exec(compile(BLOCKS[0], "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


def measured(example: Any, architecture: Architecture) -> tuple[xr.DataTree, xr.DataTree]:
    model, windows = architecture.shared(), tokens(3)
    return rs.measure(model, windows, **FRAMES), example.norm_skewness(model, windows)


def test_the_measurement_fits_in_a_small_file() -> None:
    assert len(BLOCKS[0].splitlines()) <= 60


@pytest.mark.parametrize("architecture", [LLAMA, GEMMA3], ids=str)
def test_the_measurement_is_what_it_says(example: Any, architecture: Architecture) -> None:
    _, found = measured(example, architecture)
    layer = architecture.expected()[-1]
    seen: dict[int, torch.Tensor] = {}
    model = architecture.shared()
    with torch.no_grad(), intercepted(model, lambda call: seen.update({call.layer: call.key})):
        model(tokens(3))
    pairing = rs.probe(model).layers[-1].pairing
    norms = pair_norms(seen[layer.layer], pairing).double().numpy()
    ours = found["key"].norm_skewness.sel(layer=layer.layer)
    np.testing.assert_allclose(ours[: norms.shape[1]], skew(norms, axis=2).mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_select_the_summary_a_figure_and_the_report_pick_it_up(example: Any, tmp_path: Path) -> None:
    result, found = measured(example, LLAMA)
    mask = rs.select(result, "norm_skewness > 0.2 and layer > 0", found)
    skewness = found["query"].norm_skewness
    assert mask.query.equals((skewness > 0.2) & (skewness.layer > 0)) and mask.query.any() and not mask.query.all()
    namespace = {**vars(example), "result": result, "model": LLAMA.shared(), "windows": tokens(3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "stdout", sys.stderr)
        exec(compile(BLOCKS[1], "CONTRIBUTING.md", "exec"), namespace)
    both = rs.load(tmp_path / "both.nc")
    assert both["query"].norm_skewness.equals(skewness.astype(both["query"].norm_skewness.dtype))
    assert "skewness of the norm: median" in rs.summary_text(both)
    drawn = rs.variable_map(both, "norm_skewness", "key").axes[0]
    np.testing.assert_allclose(drawn.images[0].get_array(), found["key"].norm_skewness.mean("kv_head"))
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Skewness of the norm: third standardised moment of the norm along the text" in page


def test_what_cannot_be_joined_is_refused(example: Any) -> None:
    result, found = measured(example, LLAMA)
    with pytest.raises(rs.InputError, match="the result holds no norm_skewness; give the file that does"):
        rs.select(result, "norm_skewness > 0")
    with pytest.raises(rs.InputError, match="cannot join query variables norm_skewness to this result"):
        rs.joined(rs.joined(result, found), found)
    with pytest.raises(rs.InputError, match="cannot join query variables norm_skewness to this result"):
        rs.joined(result, found.isel(pair=slice(1, None)))
    with pytest.raises(rs.InputError, match=r"got variable 'skew' for query; register it first"):
        rs.label_pairs({"skew": {"query": {}}})
    with pytest.raises(rs.InputError, match="choose an identifier that stands for nothing else yet"):
        rs.register(PairVariable("spectrum_fe", "something else"))
    with pytest.raises(rs.InputError, match="choose an identifier"):
        rs.register(PairVariable("layer", "a place"))
    with pytest.raises(rs.InputError, match="got variable 'norm_skew'"):
        rs.variable_map(result, "norm_skew")


def test_every_file_of_the_house_that_is_named_is_there() -> None:
    named = re.findall(
        r"`((?:base|run|model|measurement|interventions|analysis|evaluation|display|cli)/[\w/.]+)`", TEXT
    )
    assert len(named) >= 12
    assert [name for name in named if not (ROOT / "src/ropescope" / name).exists()] == []
