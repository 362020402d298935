"""The directions that are kept are those that cost least to be alone, and all of them lose nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ropescope.compression.directions import directions


def some_matrix(size: int, seed: int) -> Tensor:
    root = torch.randn(size, 2 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / size


def error(covariance: Tensor, metric: Tensor, down: Tensor, up: Tensor) -> float:
    left = torch.eye(len(metric), dtype=torch.float64) - (down @ up).T
    return float(torch.trace(metric @ left @ covariance @ left.T))


def test_all_directions_are_the_identity_also_in_single_precision() -> None:
    found = directions(some_matrix(24, 0), some_matrix(24, 1))
    eye = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(found.down @ found.up, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.down.float() @ found.up.float(), eye.float(), atol=1e-4, rtol=0)


def test_what_is_left_out_costs_what_its_directions_say() -> None:
    covariance, metric = some_matrix(24, 0), some_matrix(24, 1)
    found = directions(covariance, metric)
    cost = error(covariance, metric, found.down[:, :10], found.up[:10])
    assert abs(cost - float(found.cost[10:].sum())) < 1e-3 * cost


def test_no_other_directions_of_that_number_cost_less() -> None:
    covariance, metric = some_matrix(24, 0), some_matrix(24, 1)
    found = directions(covariance, metric)
    best = error(covariance, metric, found.down[:, :10], found.up[:10])
    for seed in range(20):
        moved = found.down[:, :10] + 0.05 * torch.randn(24, 10, generator=torch.Generator().manual_seed(seed)).double()
        assert error(covariance, metric, moved, torch.linalg.pinv(moved)) > best
    plain = torch.linalg.eigh(covariance).eigenvectors[:, -10:]
    assert error(covariance, metric, plain, plain.T) > best


def test_a_layer_that_nothing_feels_costs_nothing() -> None:
    found = directions(some_matrix(8, 0), torch.zeros(8, 8, dtype=torch.float64))
    assert float(found.cost.max()) < 1e-20 and bool(found.down.isfinite().all()) and bool(found.up.isfinite().all())
