# SPDX-License-Identifier: Apache-2.0
"""One side of the curvature around a layer as LB-ADMM takes it (docs/METHOD.md, section 10).

A factor is brought to unit diagonal, and its eigenvalues are replaced by their square roots. Of a wide side only the
largest are kept one by one, the others by their mean: sums over tokens have few strong directions and a flat rest, and
a whole basis of 8960 channels would take seconds to find and 0.3 GB to hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Metric", "kept_directions", "metric"]

#: Exponent of the eigenvalues of the unit-diagonal factors: perplexity 17.04, 16.72, 17.37 with 1, 1/2, 1/4 on a model
#: of 1.7B (docs/METHOD.md, section 10).
_POWER = 0.5
#: All eigenvectors of a side with up to so many channels are kept, and this share of a wider one's, but no fewer than
#: so many: it loses a sixth of what curvature gains there (docs/notes/quality.md).
_WHOLE_UP_TO, _SHARE, _AT_LEAST = 2048, 0.125, 1024
#: Subspace iterations for them, and directions more than are kept; both only smooth where the cut falls.
_ITERATIONS, _SPARE = 4, 16
_TINY = 1e-30


@dataclass
class Metric:
    """A unit-diagonal factor to the power 1/2, of trace k, and the diagonal that it was freed of.

    Attributes:
        diagonal: (k,) of the factor; its square root preconditions the weight.
        values: (q,) largest eigenvalues.
        vectors: (k, q) their eigenvectors, columns.
        rest: (1,) eigenvalue of everything orthogonal to them; 0 where nothing is.
    """

    diagonal: Tensor
    values: Tensor
    vectors: Tensor
    rest: Tensor

    @property
    def middle(self) -> Tensor:
        """(1,) the eigenvalue that the others are nearest to: the rest, or the geometric mean where there is none."""
        if len(self.values) < len(self.diagonal):
            return self.rest
        return self.values.clamp_min(_TINY).log().mean().exp().reshape(1)

    def applied(self, x: Tensor) -> Tensor:
        """The metric times x, (k, j)."""
        inside = self.vectors.T @ x
        return torch.addmm(self.rest * x, self.vectors, inside.mul_((self.values - self.rest)[:, None]))

    def to(self, device: torch.device | str) -> Metric:
        """The metric on another device."""
        return Metric(*(part.to(device) for part in (self.diagonal, self.values, self.vectors, self.rest)))


def kept_directions(channels: int) -> int:
    """How many eigenvectors of a side with so many channels are kept.

    Example:
        >>> kept_directions(576), kept_directions(8960)
        (576, 1120)
    """
    return channels if channels <= _WHOLE_UP_TO else max(_AT_LEAST, round(channels * _SHARE))


def metric(factor: Tensor, power: float = _POWER, kept: int | None = None) -> Metric:
    """The metric of a positive definite factor (k, k).

    Args:
        factor: float32, symmetric.
        power: of the eigenvalues.
        kept: eigenvectors that are kept; None takes `kept_directions`.
    """
    channels = len(factor)
    kept = kept_directions(channels) if kept is None else kept
    diagonal = factor.diagonal().clone()
    root = diagonal.rsqrt()
    unit = root[:, None] * factor * root
    if 2 * (kept + _SPARE) >= channels:
        values, vectors = _eigenvectors(unit)
        others, values, vectors = values[:-kept], values[-kept:], vectors[:, -kept:]
        rest = others.clamp_min(0).pow(power).sum() / max(1, channels - kept)
    else:
        values, vectors = _leading_eigenvectors(unit, kept)
        # Mean and spread of the others are known without them; the mean of a power then to second order.
        count = channels - kept
        mean = ((unit.trace() - values.sum()) / count).clamp_min(0)
        squares = ((unit.square().sum() - values.square().sum()) / count).clamp_min(0)
        spread = (squares / mean.square().clamp_min(_TINY) - 1).clamp(0, 1)
        rest = mean.pow(power) * (1 + 0.5 * power * (power - 1) * spread)
    values = values.clamp_min(0).pow(power)
    size = (values.sum() + (channels - kept) * rest) / channels
    return Metric(diagonal, values / size, vectors.contiguous(), (rest / size).reshape(1))


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues, ascending, and their vectors; in float64 where float32 did not converge."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = (part.to(matrix) for part in torch.linalg.eigh(matrix.cpu().double()))
    return values, vectors


def _leading_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, ascending, and their vectors, by subspace iteration from a fixed start."""
    generator = torch.Generator(matrix.device).manual_seed(0)
    basis = torch.randn(len(matrix), count + _SPARE, generator=generator, device=matrix.device)
    for _ in range(_ITERATIONS):
        basis = _orthonormal(matrix @ basis)
    image = matrix @ basis
    values, inside = _eigenvectors(basis.T @ image)
    return values[-count:], basis @ inside[:, -count:]


def _orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns of x (k, j): Cholesky's twice, which is products, or Householder's."""
    found = x
    for _ in range(2):
        factor, info = torch.linalg.cholesky_ex(found.T @ found)
        if int(info):
            return torch.linalg.qr(x).Q
        found = torch.linalg.solve_triangular(factor, found.T, upper=False).T
    return found
