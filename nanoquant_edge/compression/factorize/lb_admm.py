# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM: the importance-weighted factorization of a weight into two sign matrices (docs/METHOD.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NqEdgeError
from .factor_state import EPSILON
from .factors import Factors, PreconditionedWeight
from .problem import KeptProblems, Problem
from .settings import AdmmSettings

__all__ = ["factorize", "refuse_non_finite"]


@torch.no_grad()
def factorize(
    weight: Tensor,
    rank: int,
    *,
    inputs: Tensor,
    outputs: Tensor,
    settings: AdmmSettings | None = None,
    seed: int = 0,
    problems: KeptProblems | None = None,
) -> Factors:
    """Factorize a weight matrix into signs and two scale vectors.

    Args:
        weight: (m, n), any floating type.
        rank: inner dimension r >= 1; may exceed min(m, n).
        inputs: (n,) importances: second moments of the inputs, non-negative.
        outputs: (m,) importances: second moments of the output gradients, non-negative.
        settings: of the iteration; None takes the official ones.
        seed: of the Gaussian start.
        problems: problems of earlier calls, to be used again for weights of the same shape, with their CUDA graphs.

    Raises:
        NqEdgeError: NQ-NUMERIC when the weight or an importance is not finite.

    Example:
        >>> weight = torch.randn(48, 32)
        >>> factors = factorize(weight, 16, inputs=torch.ones(32), outputs=torch.ones(48))
        >>> factors.dense().shape, 0 < factors.error < 1
        (torch.Size([48, 32]), True)
    """
    settings = settings or AdmmSettings()
    refuse_non_finite([("weight", weight), ("importances", inputs), ("importances", outputs)])
    if weight.shape[0] < weight.shape[1]:
        return factorize(
            weight.T, rank, inputs=outputs, outputs=inputs, settings=settings, seed=seed, problems=problems
        ).transposed()
    preconditioned = PreconditionedWeight(weight, _root(inputs), _root(outputs))
    m, n = weight.shape
    problem = (problems or KeptProblems()).problem(Problem, (m, n), rank=rank, settings=settings, device=weight.device)
    return problem.factorize(preconditioned, seed, keep_step=problems is not None)


def refuse_non_finite(values: list[tuple[str, Tensor]]) -> None:
    """Raises NQ-NUMERIC, with the name, for the first of a layer's tensors that holds NaN or infinity."""
    for name, value in values:
        if not bool(torch.isfinite(value).all()):
            raise NqEdgeError("NQ-NUMERIC", f"the {name} of a layer to factorize: NaN or infinity found.")


def _root(importance: Tensor) -> Tensor:
    """Square root of the importances; all ones where no gradient was seen (docs/METHOD.md, section 4)."""
    value = importance.detach().float()
    if not bool((value > 0).any()):
        return torch.ones_like(value)
    return value.clamp_min(0).sqrt().clamp_min(EPSILON)
