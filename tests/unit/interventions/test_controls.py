"""Controls hold as many pairs as what they match, and orders leave the best pairs out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from architectures import LLAMA, tokens
from ropescope.base.errors import InputError
from ropescope.interventions.controls import all_but_best, lowest_importance
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def worth() -> xr.DataTree:
    return importance(LLAMA.shared(), tokens(2, 24))


@pytest.fixture(scope="module")
def mask() -> PairMask:
    return select(measure(LLAMA.shared(), tokens(1, 32), frame_length=16, hop_length=8), "pair >= 5")


def test_the_control_of_lowest_importance_matches_every_head(mask: PairMask, worth: xr.DataTree) -> None:
    control = lowest_importance(mask, worth)
    for stream, chosen in control.streams().items():
        np.testing.assert_array_equal(chosen.sum("pair"), mask.streams()[stream].sum("pair"))
        fisher = worth[stream].fisher.mean("sequence").values
        assert (np.where(chosen, fisher, -1).max(-1) < np.where(chosen, np.inf, fisher).min(-1)).all()
    assert str(control).startswith("pairs of lowest importance, matched to: pair >= 5")


@pytest.mark.parametrize("variable", ["fisher", "rotation_fisher"])
def test_the_best_share_of_the_whole_model_is_kept(mask: PairMask, worth: xr.DataTree, variable: str) -> None:
    left = all_but_best(mask, worth, 0.25, variable)
    for stream, chosen in left.streams().items():
        values = worth[stream][variable].mean("sequence").values
        assert chosen.sum() == 0.75 * values.size
        assert values[chosen.values].max() <= values[~chosen.values].min()
    assert not all_but_best(mask, worth, 1.0).key.any() and all_but_best(mask, worth, 0.0).key.all()


def test_orders_of_another_model_or_out_of_range_are_refused(mask: PairMask, worth: xr.DataTree) -> None:
    with pytest.raises(InputError, match="keep got 2; it is a number from 0 to 1"):
        all_but_best(mask, worth, 2)
    with pytest.raises(InputError, match="got variable 'gradient'"):
        all_but_best(mask, worth, 0.5, "gradient")
    with pytest.raises(InputError, match="give a result of the model that the mask is for"):
        lowest_importance(mask, worth.isel(layer=slice(3)))
