"""Paired differences equal independent computations, and their intervals hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import bootstrap, norm

from ropescope.evaluation.tasks.paired_tests import binary_difference, bootstrap_difference


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [both, lost, gained, neither])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [both, lost, gained, neither])
    return first, second


def score_statistic(lost: int, gained: int, total: int, difference: float) -> float:
    """Tango's statistic, with the nuisance parameter from a numerical maximum of the likelihood."""

    def unlikely(only_first: float) -> float:
        cells = (gained, only_first + difference), (lost, only_first)
        rest = total - lost - gained, 1 - 2 * only_first - difference
        return -sum(count * math.log(share) for count, share in (*cells, rest) if count)

    low, high = max(0.0, -difference) + 1e-13, (1 - difference) / 2 - 1e-13
    only_first = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    variance = total * (2 * only_first + difference * (1 - difference))
    return (gained - lost - total * difference) / math.sqrt(variance)


@pytest.mark.parametrize("counts", [(60, 12, 5, 23), (600, 0, 0, 0), (47, 0, 3, 0), (20, 20, 20, 20), (1, 1, 12, 0)])
def test_the_interval_is_where_the_score_test_begins_to_reject(counts: tuple[int, int, int, int]) -> None:
    _, lost, gained, _ = counts
    found = binary_difference(*outcomes(*counts))
    assert found.value == (gained - lost) / sum(counts)
    for end, sign in ((found.low, 1), (found.high, -1)):
        assert score_statistic(lost, gained, sum(counts), end) == pytest.approx(sign * norm.ppf(0.975), abs=1e-5)


def test_without_a_change_the_interval_still_has_a_width() -> None:
    found = binary_difference(*outcomes(300, 0, 0, 300))
    limit = norm.ppf(0.975) ** 2
    assert found.high == pytest.approx(limit / (600 + limit), rel=1e-6)
    assert found.low == pytest.approx(-found.high, rel=1e-6)
    assert found.p == 1
    assert found.detectable == pytest.approx(found.high * (norm.ppf(0.975) + norm.ppf(0.8)) / norm.ppf(0.975))


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (9, 1), (5, 5), (30, 12)])
def test_p_is_the_two_sided_binomial_tail(lost: int, gained: int) -> None:
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    assert binary_difference(*outcomes(3, lost, gained, 4)).p == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("counts", [(0, 7, 0, 0), (0, 0, 7, 0)])
def test_models_that_never_agree(counts: tuple[int, int, int, int]) -> None:
    found = binary_difference(*outcomes(*counts))
    assert found.value in (found.low, found.high) and abs(found.value) == 1


def test_one_document_gives_no_interval() -> None:
    assert math.isnan(binary_difference(np.ones(1), np.zeros(1)).low)
    one = np.ones(1)
    assert math.isnan(bootstrap_difference(lambda mean: mean, one, 0 * one, one, 0 * one).low)


def test_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        kinds = random.choice(4, size=80, p=[0.4, 0.15, 0.05, 0.4])
        found = binary_difference(np.isin(kinds, (0, 1)) * 1.0, np.isin(kinds, (0, 2)) * 1.0)
        held += found.low <= -0.10 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_bootstrap_agrees_with_scipy() -> None:
    random = np.random.default_rng(1)
    first = random.normal(0.4, 0.2, 150)
    second = first + random.normal(0.02, 0.1, 150)
    found = bootstrap_difference(lambda mean: mean, first, second, np.ones(150), np.zeros(150))
    own = bootstrap((second - first,), np.mean, method="percentile", n_resamples=10_000, random_state=2)
    assert found.value == pytest.approx((second - first).mean())
    assert found.low == pytest.approx(own.confidence_interval.low, abs=5e-4)
    assert found.high == pytest.approx(own.confidence_interval.high, abs=5e-4)
    assert found.p == pytest.approx(2 * norm.sf(abs(found.value) / own.standard_error), abs=0.02)


@pytest.mark.parametrize("count", [2, 4, 9])
def test_a_few_documents_show_no_more_than_their_signs_can(count: int) -> None:
    first = np.linspace(0.2, 0.8, 20)
    second = first - 0.01 * (np.arange(20) < count)
    found = bootstrap_difference(
        lambda mean: mean, first[: count + 1], second[: count + 1], np.ones(count + 1), np.zeros(count + 1)
    )
    flips = np.array(np.meshgrid(*[[-1, 1]] * count)).reshape(count, -1).sum(0)
    assert found.p >= (abs(flips) >= count).mean()
    unlike = bootstrap_difference(lambda mean: mean, first, first - 0.01, np.ones(20), np.zeros(20))
    assert unlike.p < 1e-3


def test_weights_and_statistics_are_those_of_a_perplexity() -> None:
    nats, words = np.array([-3.0, -8.0]), np.array([2.0, 3.0])
    found = bootstrap_difference(lambda mean: np.exp(-mean), nats / words, nats * 1.1 / words, words, np.zeros(2))
    assert found.value == pytest.approx(math.exp(1.1 * 11 / 5) - math.exp(11 / 5))


def test_documents_are_drawn_within_their_task() -> None:
    sides = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    found = bootstrap_difference(lambda mean: mean, *sides, np.ones(4), np.array([0, 0, 1, 1]))
    assert (found.low, found.high) == (0.5, 0.5)
