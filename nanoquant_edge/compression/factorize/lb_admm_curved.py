# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM under dense curvature factors: the data term is tr(L E R E^T) (docs/METHOD.md, section 10).

Each side solves L A G + (rho + ridge) A = L W~ R Bn^T + rho (Z - Dual) with G = Bn R Bn^T. L has some large eigenvalues
and one that stands for the rest. Along each of the former's eigenvectors the side has a system of its own,
(l_i G + (rho + ridge) I) a_i = b_i; everything orthogonal to them has the same one, with the rest in place of l_i. Its
inverse solves that part, and is the preconditioner of the others: the condition number of system i is then at most
l_i / rest, whatever G is, and a few steps of conjugate gradients from the last iterate do. Nothing waits for the device
and nothing moves, so an iteration can be one CUDA graph like the plain one.

Projections and penalty stay Euclidean. With L = I and R = I this is plain LB-ADMM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..execution.precision import tensor_cores
from .factor_state import CONDITION, FactorState
from .factors import Factors, PreconditionedWeight
from .inverse import inverse
from .lb_admm import refuse_non_finite
from .metric import Metric
from .problem import KeptProblems, Problem
from .settings import AdmmSettings

__all__ = ["Curvature", "CurvedFactorState", "factorize_curved"]

#: Against solves by eigenvectors in float64, the final error of real layers is the same to the spread over starts from
#: one step on (docs/notes/quality.md).
_CG_STEPS = 2
#: Two fewer than where Newton's iteration is the solution: what it leaves, the next step of the descent takes.
_NEWTON_STEPS = 4
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Metrics of both sides of a layer, and the units that its latents take (docs/METHOD.md, section 5.4).

    Attributes:
        inputs: of the n inputs, from the factor R.
        outputs: of the m outputs, from the factor L.
        input_importance: mean importance of the inputs.
        output_importance: mean importance of the outputs.
    """

    inputs: Metric
    outputs: Metric
    input_importance: float = 1.0
    output_importance: float = 1.0

    def transposed(self) -> Curvature:
        """The curvature around the transposed weight."""
        return Curvature(self.outputs, self.inputs, self.output_importance, self.input_importance)


class CurvedFactorState(FactorState):
    """A factor whose channels have a metric; `along` is the primal along the metric's eigenvectors.

    Args:
        rank: r.
        kept: eigenvectors that this side's metric has, and the other side's.
        channels: k.
        other_channels: channels of the other factor.
        device: where the state lies.
        settings: of the iteration.
        cg_steps: steps of conjugate gradients in an iteration.
    """

    def __init__(
        self,
        rank: int,
        kept: tuple[int, int],
        *,
        channels: int,
        other_channels: int,
        device: torch.device,
        settings: AdmmSettings,
        cg_steps: int = _CG_STEPS,
    ) -> None:
        super().__init__(rank, channels, device, settings)
        mine, others = kept
        self.along = torch.empty(rank, mine, device=device)
        self.values = torch.empty(mine, device=device)
        self.vectors = torch.empty(channels, mine, device=device)
        self.middle, self.other_rest = torch.empty(1, device=device), torch.empty(1, device=device)
        self.other_root = torch.empty(other_channels, others, dtype=settings.dtype, device=device)
        self.cg_steps = cg_steps

    def load(self, this_side: Metric, other_side: Metric) -> None:
        """Take the metrics of a layer."""
        self.values.copy_(this_side.values)
        self.vectors.copy_(this_side.vectors)
        self.middle.copy_(this_side.middle)
        self.other_rest.copy_(other_side.rest)
        excess = (other_side.values - other_side.rest).clamp_min(0)
        self.other_root.copy_(other_side.vectors * excess.sqrt())

    def start(self, generator: torch.Generator) -> None:
        """Gaussian start."""
        super().start(generator)
        torch.mm(self.primal, self.vectors, out=self.along)

    def solve(
        self, design: Tensor, target: Tensor, *, rho: Tensor, ridge: float, careful: bool
    ) -> tuple[Tensor, Tensor]:
        """As for a plain factor; the target comes weighted by both metrics."""
        excess = design @ self.other_root
        gram = (excess @ excess.T).float()
        if self.other_root.shape[0] > self.other_root.shape[1]:
            gram.addcmul_((design @ design.T).float(), self.other_rest)
        damping = rho + ridge
        right_side = (design @ target).float().add_((self.signed - self.dual).mul_(rho))
        # What is orthogonal to the eigenvectors has this system.
        middle = (0.5 * self.middle) * (gram + gram.T)
        middle.diagonal().add_(damping)
        precondition, failed = self._preconditioner(middle, careful)

        def image(x: Tensor, values: Tensor) -> Tensor:
            return torch.addcmul(damping * x, gram @ x, values)

        with tensor_cores():
            right_side_along = right_side @ self.vectors
            if self.vectors.shape[0] == self.vectors.shape[1]:
                self._descend(right_side_along, lambda x: image(x, self.values), precondition)
                return self.along @ self.vectors.T, failed
            everywhere = precondition(right_side.addmm_(middle, self.primal, alpha=-1)).add_(self.primal)
            # The same step along the eigenvectors, where another solution takes its place.
            along = precondition(torch.addmm(right_side_along, middle, self.along, alpha=-1)).add_(self.along)
            self._descend(right_side_along, lambda x: image(x, self.values), precondition)
            return everywhere.addmm_(self.along - along, self.vectors.T), failed

    def _descend(
        self, right_side: Tensor, image: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor]
    ) -> None:
        """Conjugate gradients along the eigenvectors, each with steps of its own."""
        residual = right_side - image(self.along)
        direction = precondition(residual)
        energy = (residual * direction).sum(0)
        for left in reversed(range(self.cg_steps)):
            forward = image(direction)
            length = energy / (direction * forward).sum(0).clamp_min(_TINY)
            self.along.addcmul_(direction, length)
            if left:
                residual.addcmul_(forward, length, value=-1)
                better = precondition(residual)
                before, energy = energy, (residual * better).sum(0)
                direction = torch.addcmul(better, direction, energy / before.clamp_min(_TINY))

    def _preconditioner(self, matrix: Tensor, careful: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Applies the inverse of a system; and a positive number where there is none."""
        if self.by_products and not careful:
            inverse_matrix = inverse(matrix, CONDITION, _NEWTON_STEPS)
            return lambda x: inverse_matrix @ x, (~torch.isfinite(inverse_matrix.sum())).int()
        factor, info = torch.linalg.cholesky_ex(matrix)
        if careful and int(info):
            return lambda x: torch.linalg.solve(matrix, x), torch.zeros_like(info)
        return lambda x: torch.cholesky_solve(x, factor), info.abs()


class _CurvedProblem(Problem):
    """The state of one factorization under two metrics."""

    left: CurvedFactorState
    right: CurvedFactorState

    def __init__(self, shape: tuple[int, ...], rank: int, settings: AdmmSettings, device: torch.device) -> None:
        m, n, outputs, inputs = shape
        super().__init__((m, n), rank, settings, device)
        self.left = CurvedFactorState(
            rank, (outputs, inputs), channels=m, other_channels=n, device=device, settings=settings
        )
        self.right = CurvedFactorState(
            rank, (inputs, outputs), channels=n, other_channels=m, device=device, settings=settings
        )

    def load(self, outputs: Metric, inputs: Metric) -> None:
        """Take the metrics of a layer, before `factorize`."""
        self._metrics = outputs, inputs
        self.left.load(outputs, inputs)
        self.right.load(inputs, outputs)

    def _aim(self, target: Tensor) -> None:
        """L W~ R."""
        super()._aim(_weighted(target, *self._metrics))


def _weighted(e: Tensor, outputs: Metric, inputs: Metric) -> Tensor:
    """L E R."""
    return inputs.applied(outputs.applied(e).T).T


def _curved_norm(e: Tensor, outputs: Metric, inputs: Metric) -> Tensor:
    """sqrt(tr(L E R E^T))."""
    return (_weighted(e, outputs, inputs) * e).sum().clamp_min(0).sqrt()


@torch.no_grad()
def factorize_curved(
    weight: Tensor,
    rank: int,
    *,
    curvature: Curvature,
    settings: AdmmSettings | None = None,
    seed: int = 0,
    problems: KeptProblems | None = None,
) -> Factors:
    """Factorize a weight matrix into signs and two scale vectors under dense curvature factors.

    Args:
        weight: (m, n), any floating type.
        rank: inner dimension r >= 1; may exceed min(m, n).
        curvature: of the loss around this weight.
        settings: of the iteration; None takes the official ones.
        seed: of the Gaussian start.
        problems: problems of earlier calls, as for `factorize`.

    Returns:
        Factors whose `error` is relative in the norm of the two metrics.

    Raises:
        NqEdgeError: NQ-NUMERIC when the weight or a factor is not finite.
    """
    settings = settings or AdmmSettings()
    inputs, outputs = curvature.inputs, curvature.outputs
    parts = [part for side in (inputs, outputs) for part in (side.diagonal, side.values, side.vectors)]
    refuse_non_finite([("weight", weight), *(("curvature", part) for part in parts)])
    m, n = weight.shape
    if m < n:
        return factorize_curved(
            weight.T, rank, curvature=curvature.transposed(), settings=settings, seed=seed, problems=problems
        ).transposed()
    input_roots = (inputs.diagonal * (curvature.input_importance / inputs.diagonal.mean())).sqrt()
    output_roots = (outputs.diagonal * (curvature.output_importance / outputs.diagonal.mean())).sqrt()
    preconditioned = PreconditionedWeight(weight, input_roots, output_roots)
    shape = (m, n, len(outputs.values), len(inputs.values))
    problem = (problems or KeptProblems()).problem(
        _CurvedProblem, shape, rank=rank, settings=settings, device=weight.device
    )
    problem.load(outputs, inputs)
    factors = problem.factorize(preconditioned, seed, keep_step=problems is not None)
    missed, target = preconditioned.residual(factors), preconditioned.target
    factors.error = float(
        _curved_norm(missed, outputs, inputs) / _curved_norm(target, outputs, inputs).clamp_min(_TINY)
    )
    return factors
