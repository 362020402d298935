"""Which directions of keys matter most, from the covariance of keys and the metric of what an error in them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Of the mean cost of a direction: one that cost nothing in the calibration text may cost something elsewhere.
_RIDGE = 1e-4
# Where nothing costs anything.
_LEAST = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Directions of one layer's keys, the most costly to leave out first.

    Parameters
    ----------
    cost
        Expected cost of leaving each out, falling, float64 (direction).
    down, up
        Coordinates and back: ``down @ up`` is the identity with all directions; float64, (number, direction) and
        (direction, number).
    """

    cost: Tensor
    down: Tensor
    up: Tensor


def directions(covariance: Tensor, metric: Tensor) -> Directions:
    r"""The directions that a projection keeps to cost least, :math:`E[(k-\hat k)^\top M (k-\hat k)]`.

    With :math:`M = LL^\top` they are the eigenvectors V of :math:`L^\top C L`: coordinates are
    :math:`V^\top L^\top k`, and the rebuilt key is :math:`L^{-\top} V z`.

    Parameters
    ----------
    covariance, metric
        C and M, symmetric, float64 (number, number).

    Examples
    --------
    >>> found = directions(torch.diag(torch.tensor([1.0, 4.0])).double(), torch.eye(2).double())
    >>> [round(float(cost), 3) for cost in found.cost]
    [4.0, 1.0]
    """
    size = len(metric)
    ridge = _RIDGE * metric.diagonal().mean().clamp_min(_LEAST)
    root = torch.linalg.cholesky(metric + ridge * torch.eye(size, dtype=torch.float64, device=metric.device))
    cost, vectors = torch.linalg.eigh(root.T @ covariance @ root)
    vectors = vectors.flip(1)
    up = torch.linalg.solve_triangular(root.T, vectors, upper=True).T
    # Coordinates of the size of keys: half precision holds them as well as it holds keys.
    length = up.norm(dim=1, keepdim=True)
    return Directions(cost.flip(0).clamp_min(0.0), root @ vectors * length.T, up / length)
