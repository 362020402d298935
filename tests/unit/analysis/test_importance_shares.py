"""What selections hold of importance is a plain sum, and the area under the curve is SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from architectures import LLAMA, tokens
from ropescope.analysis.importance_shares import _auc, importance_shares
from ropescope.base.errors import InputError
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_are_sums_over_the_pairs_of_a_selection() -> None:
    result = measure(LLAMA.shared(), tokens(2, 96), frame_length=32, hop_length=16)
    result["key"].spectrum_fe.values[:, 1, 0] = 0.1
    worth = importance(LLAMA.shared(), tokens(5, 24))
    found = importance_shares(result, worth)
    chosen = (result["key"].spectrum_fe.mean("sequence") < 0.2).values
    fisher = worth["key"].fisher.values.astype(np.float64)
    bands = found.sel(stream="key", selection="bands")
    assert float(bands.pairs) == chosen.mean() and 0 < chosen.sum() < chosen.size
    value, low, high = bands.importance.values
    assert value == pytest.approx(fisher[:, chosen].sum() / fisher.sum()) and low < value < high
    assert (found.auc.sel(estimate="value") > 0).all() and (found.auc <= 1).all()
    with pytest.raises(InputError, match="cannot join"):
        importance_shares(result, importance(LLAMA.build(seed=1), tokens(1, 24)))


def test_the_area_under_the_curve_counts_equal_scores_half() -> None:
    random = np.random.default_rng(0)
    fisher, score = random.random(200), random.integers(0, 9, 200).astype(float)
    top = fisher >= np.sort(fisher)[-20]
    expected = mannwhitneyu(score[top], score[~top]).statistic / (20 * 180)
    assert _auc(fisher, score) == pytest.approx(expected)
    assert _auc(fisher, fisher) == 1 and _auc(fisher, np.zeros(200)) == 0.5
