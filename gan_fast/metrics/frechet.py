"""Fréchet distance between two Gaussians fitted to features, from moments gathered batch by batch in float64.

    d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2

The last trace is the sum of the square roots of the eigenvalues of a symmetric positive semi-definite matrix, so two
symmetric eigenvalue problems are all that is needed: no square root of a nearly singular, unsymmetric product, which is
what makes other programs give NaN. Formula: Dowson and Landau, Journal of Multivariate Analysis 12, 1982.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance"]


class Moments:
    """Count, mean and covariance of feature vectors that arrive in batches.

    Kept as count, mean and the sum of centred outer products, merged as Chan, Golub and LeVeque do (1979): unlike sums
    of squares it loses no digits when the mean is large beside the spread.

    Args:
        dim: length of a feature vector.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim}, expected at least 1")
        self.dim = dim
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> Moments:
        """Take in features (N, dim) of any floating-point type and device; returns self.

        Raises:
            ValueError: wrong shape, or values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected (N, {self.dim})")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold NaN or infinite values")
        rows = features.detach().to("cpu", torch.float64)
        if len(rows):
            mean = rows.mean(0)
            centred = rows - mean
            self._merge(len(rows), mean, centred.T @ centred)
        return self

    def merge(self, other: Moments) -> Moments:
        """Take in everything that `other` has seen; returns self."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {other.dim} and {self.dim} dimensions cannot be merged")
        if other.count:
            self._merge(other.count, other.mean, other._scatter)
        return self

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64 (dim, dim).

        Raises:
            ValueError: fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self._scatter / (self.count - 1)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, count: int) -> Moments:
        """Moments known from elsewhere: mean (dim), unbiased covariance (dim, dim) of `count` vectors."""
        made = cls(len(mean))
        made.count = count
        made.mean = mean.to("cpu", torch.float64)
        made._scatter = covariance.to("cpu", torch.float64) * (count - 1)
        return made


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance (the "d" of FID) between the Gaussians that the moments describe.

    Raises:
        ValueError: different dimensions, or so few samples that a covariance is singular by construction: the result
            would depend on the number of samples more than on what they look like.
    """
    if first.dim != second.dim:
        raise ValueError(f"features of {first.dim} and {second.dim} dimensions cannot be compared")
    for which, moments in (("first", first), ("second", second)):
        if moments.count <= moments.dim:
            raise ValueError(
                f"the {which} set has {moments.count} samples for {moments.dim} feature dimensions: its covariance is "
                f"singular; give at least {moments.dim + 1}, better ten times as many"
            )
    a, b = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ b @ root
    # Rounding leaves tiny negative eigenvalues and a trace of asymmetry.
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0)
    shift = first.mean - second.mean
    distance = shift @ shift + torch.trace(a) + torch.trace(b) - 2 * eigenvalues.sqrt().sum()
    return max(0.0, float(distance))
