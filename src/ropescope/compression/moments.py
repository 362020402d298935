"""Mean and covariance of vectors that come in parts, from several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropescope.run.workers import Workers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, eq=False)
class Moments:
    """Weighted mean and covariance of vectors that come in parts, in float64.

    Parameters
    ----------
    count, weight
        Vectors so far, and the sum of their weights.
    mean, scatter
        Their mean, (number), and the sum of weighted products of their deviations, (number, number).
    """

    count: int
    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, size: int) -> Moments:
        """Of no vectors yet."""
        return cls(0, 0.0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64))

    def add(self, vectors: Tensor, weights: Tensor) -> None:
        """Take in more, (vector, number), and their weights, (vector).

        They are taken from the mean of the part first, so that a mean far out costs no digits.
        """
        total = float(weights.double().sum())
        if total > 0:
            mean = (weights.double() / total) @ vectors.double()
            self._join(len(vectors), total, mean.cpu(), products(vectors - mean.to(vectors.dtype), weights))

    def _join(self, count: int, weight: float, mean: Tensor, scatter: Tensor) -> None:
        share = weight / (self.weight + weight)
        apart = mean - self.mean
        self.scatter += scatter + torch.outer(apart, apart) * (self.weight * share)
        self.mean += apart * share
        self.count += count
        self.weight += weight

    def shared(self, workers: Workers) -> Moments:
        """Those of the vectors of all processes."""
        count, weight = workers.summed(np.array([self.count, self.weight], dtype=np.float64)).tolist()
        mean = torch.from_numpy(workers.summed((self.mean * (self.weight / (weight or 1.0))).numpy()))
        apart = self.mean - mean
        scatter = self.scatter + torch.outer(apart, apart) * self.weight
        return Moments(int(count), weight, mean, torch.from_numpy(workers.summed(scatter.numpy())))

    @property
    def covariance(self) -> Tensor:
        """Mean product of deviations, (number, number)."""
        return self.scatter / (self.weight or 1.0)

    @property
    def square(self) -> Tensor:
        """Mean product, the mean not taken away, (number, number)."""
        return self.covariance + torch.outer(self.mean, self.mean)


@dataclass(slots=True, eq=False)
class Products:
    """Mean product of vectors with themselves, sums of which come in parts, in float64.

    Parameters
    ----------
    total
        The sum so far, (number, number).
    count
        Of how many vectors.
    """

    total: Tensor
    count: int = 0

    @classmethod
    def none(cls, size: int) -> Products:
        """Of no vectors yet."""
        return cls(torch.zeros(size, size, dtype=torch.float64))

    def add(self, total: Tensor, count: int) -> None:
        """Take in more."""
        self.total += total
        self.count += count

    def shared(self, workers: Workers) -> Products:
        """Those of the vectors of all processes."""
        total = torch.from_numpy(workers.summed(self.total.numpy()))
        return Products(total, int(workers.summed(np.array([self.count]))[0]))

    @property
    def mean(self) -> Tensor:
        """The mean product, (number, number)."""
        return self.total / max(1, self.count)


def products(vectors: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of products of vectors (vector, number) with themselves, float64 on the CPU, (number, number)."""
    # Accelerators multiply float64 slowly or not at all.
    exact = torch.float64 if vectors.device.type == "cpu" else torch.float32
    scaled = vectors.to(exact) * weights.to(exact).sqrt()[:, None]
    return (scaled.T @ scaled).cpu().double()
