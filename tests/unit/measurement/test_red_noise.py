"""Red noise beside every count of periodic pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ropescope.base.entropy import sequence_fe
from ropescope.display.report.cards import card
from ropescope.measurement.red_noise import _entropy, _power, _red, expected_rhythms, rhythm_of_red_noise
from ropescope.measurement.results import mean_over_sequences, stream_data
from ropescope.measurement.summary import counts, summary_text
from synthetic import synthetic_result


def test_entropy_of_noise_is_sequence_fe():
    noise = _red(np.random.default_rng(0).standard_normal((3, 512)), 0.9)
    np.testing.assert_allclose(_entropy(_power(noise)), sequence_fe(torch.from_numpy(noise)).numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def periodic():
    """Four query pairs and no key pair under the threshold."""
    result = synthetic_result()
    for stream, low in (("query", 4), ("key", 0)):
        data = result[stream]["sequence_fe"]
        values = np.where(np.isnan(data.values), np.nan, 0.9)
        known = np.argwhere(~np.isnan(values[0]))[:low]
        values[(slice(None), *known.T)] = 0.5
        result[stream]["sequence_fe"] = data.copy(data=values)
    return result


def test_what_red_noise_would_make_beat_stands_beside_the_count(periodic):
    data = stream_data(periodic, "query")
    share = rhythm_of_red_noise(4096, data.sizes["sequence"], 0.5)
    assert counts(periodic, "query").periodic == 4
    assert expected_rhythms(periodic, "query") == pytest.approx(4 * share)
    query, key = summary_text(periodic).split("\n\n")
    line = next(line for line in query.splitlines() if "red noise" in line)
    assert line.split()[-2] == f"{4 * share:.1f}"
    assert "red noise" not in key and expected_rhythms(periodic, "key") is None
    assert float(mean_over_sequences(data).sequence_fe.min()) == pytest.approx(0.5)


def test_the_card_of_the_page_says_it_too(periodic):
    row = dict(card(periodic, "tiny").model)["periodic pairs"]
    assert row.startswith("4 query (") and "of as much red noise" in row and row.endswith("0 key")
