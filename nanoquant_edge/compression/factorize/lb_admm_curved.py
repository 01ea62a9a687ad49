# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM under dense curvature factors: the data term is tr(L E R E^T) (docs/METHOD.md, section 10).

Each side solves L A G + (rho + ridge) A = L W~ R Bn^T + rho (Z - Dual) with G = Bn R Bn^T. In the eigenbasis of L,
which is found once a layer, every channel i has a system of its own, (l_i G + (rho + ridge) I) a_i = b_i. All of them
share one preconditioner, the system of the middle eigenvalue: the condition number of channel i is then at most
max(l_i / middle, middle / l_i), whatever G is, and a few steps of conjugate gradients from the last iterate do. Nothing
waits for the device and nothing moves, so an iteration can be one CUDA graph like the plain one.

Projections and penalty stay Euclidean. With L = I and R = I the preconditioner is exact and this is plain LB-ADMM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from .factor_state import CONDITION, NEWTON_STEPS, FactorState
from .factors import Factors, PreconditionedWeight
from .inverse import inverse
from .lb_admm import refuse_non_finite
from .problem import KeptProblems, Problem
from .settings import AdmmSettings

__all__ = ["Curvature", "CurvedFactorState", "Metric", "factorize_curved", "metric"]

#: Exponent of the eigenvalues of the unit-diagonal factors: perplexity 17.04, 16.72, 17.37 with 1, 1/2, 1/4 on a model
#: of 1.7B (docs/METHOD.md, section 10).
_POWER = 0.5
#: Against solves by eigenvectors in float64, the final error of real layers is the same to the spread over starts from
#: one step on (docs/notes/quality.md).
_CG_STEPS = 2
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Two dense factors of the loss around a layer, and the units that its latents take (docs/METHOD.md, section 5.4).

    Attributes:
        inputs: (n, n) factor R, positive definite.
        outputs: (m, m) factor L, positive definite.
        input_importance: mean importance of the inputs.
        output_importance: mean importance of the outputs.
    """

    inputs: Tensor
    outputs: Tensor
    input_importance: float = 1.0
    output_importance: float = 1.0

    def transposed(self) -> Curvature:
        """The curvature around the transposed weight."""
        return Curvature(self.outputs, self.inputs, self.output_importance, self.input_importance)


@dataclasses.dataclass
class Metric:
    """One side's metric as the solver takes it.

    Attributes:
        diagonal: (k,) of the factor; its square root preconditions the weight.
        values: (k,) eigenvalues of the unit-diagonal factor, raised to 1/2, of mean 1.
        vectors: (k, k), columns.
    """

    diagonal: Tensor
    values: Tensor
    vectors: Tensor


def metric(factor: Tensor, power: float = _POWER) -> Metric:
    """Unit-diagonal form of a positive definite factor (k, k), its eigenvalues raised to a power, the trace kept."""
    diagonal = factor.diagonal().clone()
    root = diagonal.rsqrt()
    unit = root[:, None] * factor * root
    try:
        values, vectors = torch.linalg.eigh(unit)
    except torch.linalg.LinAlgError:  # did not converge in float32
        values, vectors = (part.to(factor) for part in torch.linalg.eigh(unit.cpu().double()))
    values = values.clamp_min(0).pow(power)
    return Metric(diagonal, values / values.mean(), vectors)


class CurvedFactorState(FactorState):
    """A factor whose channels have a metric; `rotated` is the primal in the metric's eigenbasis.

    Args:
        rank: r.
        channels: k.
        other_channels: channels of the other factor.
        device: where the state lies.
        settings: of the iteration.
        cg_steps: steps of conjugate gradients in an iteration.
    """

    def __init__(
        self,
        rank: int,
        channels: int,
        *,
        other_channels: int,
        device: torch.device,
        settings: AdmmSettings,
        cg_steps: int = _CG_STEPS,
    ) -> None:
        super().__init__(rank, channels, device, settings)
        self.rotated = torch.empty(rank, channels, device=device)
        self.values, self.middle = torch.empty(channels, device=device), torch.empty(1, device=device)
        self.vectors = torch.empty(channels, channels, device=device)
        self.other_root = torch.empty(other_channels, other_channels, dtype=settings.dtype, device=device)
        self.cg_steps = cg_steps

    def load(self, this_side: Metric, other_side: Metric) -> None:
        """Take the metrics of a layer."""
        self.values.copy_(this_side.values)
        self.middle.copy_(this_side.values.log().mean().exp())
        self.vectors.copy_(this_side.vectors)
        self.other_root.copy_(other_side.vectors * other_side.values.sqrt())

    def start(self, generator: torch.Generator) -> None:
        """Gaussian start."""
        super().start(generator)
        torch.mm(self.primal, self.vectors, out=self.rotated)

    def solve(
        self, design: Tensor, target: Tensor, *, rho: Tensor, ridge: float, careful: bool
    ) -> tuple[Tensor, Tensor]:
        """As for a plain factor; the target comes weighted and in the eigenbasis of this side."""
        half = design @ self.other_root
        gram = (half @ half.T).float()
        damping = rho + ridge
        residual = (design @ target).float().addmm_((self.signed - self.dual).mul_(rho), self.vectors)
        precondition, failed = self._preconditioner(gram, damping, careful)

        def image(x: Tensor) -> Tensor:
            return torch.addcmul(damping * x, gram @ x, self.values)

        residual -= image(self.rotated)
        direction = precondition(residual)
        energy = (residual * direction).sum(0)
        for left in reversed(range(self.cg_steps)):
            along = image(direction)
            length = energy / (direction * along).sum(0).clamp_min(_TINY)
            self.rotated.addcmul_(direction, length)
            if left:
                residual.addcmul_(along, length, value=-1)
                better = precondition(residual)
                before, energy = energy, (residual * better).sum(0)
                direction = torch.addcmul(better, direction, energy / before.clamp_min(_TINY))
        return self.rotated @ self.vectors.T, failed

    def _preconditioner(
        self, gram: Tensor, damping: Tensor, careful: bool
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Applies the inverse of the middle channel's system; and a positive number where there is none."""
        matrix = (0.5 * self.middle) * (gram + gram.T)
        matrix.diagonal().add_(damping)
        if self.by_products and not careful:
            inverse_matrix = inverse(matrix, CONDITION, NEWTON_STEPS)
            return lambda x: inverse_matrix @ x, (~torch.isfinite(inverse_matrix.sum())).int()
        factor, info = torch.linalg.cholesky_ex(matrix)
        if careful and int(info):
            return lambda x: torch.linalg.solve(matrix, x), torch.zeros_like(info)
        return lambda x: torch.cholesky_solve(x, factor), info.abs()


class _CurvedProblem(Problem):
    """The state of one factorization under two metrics."""

    left: CurvedFactorState
    right: CurvedFactorState

    def __init__(self, shape: tuple[int, int], rank: int, settings: AdmmSettings, device: torch.device) -> None:
        super().__init__(shape, rank, settings, device)
        m, n = shape
        self.left = CurvedFactorState(rank, m, other_channels=n, device=device, settings=settings)
        self.right = CurvedFactorState(rank, n, other_channels=m, device=device, settings=settings)

    def load(self, outputs: Metric, inputs: Metric) -> None:
        """Take the metrics of a layer, before `factorize`."""
        self.left.load(outputs, inputs)
        self.right.load(inputs, outputs)

    def _aim(self, target: Tensor) -> None:
        """R W~^T L and L W~ R, each with its last factor left in the eigenbasis."""
        l_values, l_vectors = self.left.values, self.left.vectors
        r_values, r_vectors = self.right.values, self.right.vectors
        core = (l_vectors.T @ target @ r_vectors) * l_values[:, None] * r_values
        self.targets[0].copy_(r_vectors @ core.T)
        self.targets[1].copy_(l_vectors @ core)


def _curved_norm(e: Tensor, outputs: Metric, inputs: Metric) -> Tensor:
    """sqrt(tr(L E R E^T))."""
    rotated = outputs.vectors.T @ e @ inputs.vectors
    return (rotated * outputs.values.sqrt()[:, None] * inputs.values.sqrt()).norm()


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
    refuse_non_finite([("weight", weight), ("curvature", curvature.inputs), ("curvature", curvature.outputs)])
    m, n = weight.shape
    if m < n:
        return factorize_curved(
            weight.T, rank, curvature=curvature.transposed(), settings=settings, seed=seed, problems=problems
        ).transposed()
    inputs, outputs = metric(curvature.inputs), metric(curvature.outputs)
    input_roots = (inputs.diagonal * (curvature.input_importance / inputs.diagonal.mean())).sqrt()
    output_roots = (outputs.diagonal * (curvature.output_importance / outputs.diagonal.mean())).sqrt()
    preconditioned = PreconditionedWeight(weight, input_roots, output_roots)
    problem = (problems or KeptProblems()).problem(
        _CurvedProblem, (m, n), rank=rank, settings=settings, device=weight.device
    )
    problem.load(outputs, inputs)
    factors = problem.factorize(preconditioned, seed, keep_step=problems is not None)
    missed, target = preconditioned.residual(factors), preconditioned.target
    factors.error = float(
        _curved_norm(missed, outputs, inputs) / _curved_norm(target, outputs, inputs).clamp_min(_TINY)
    )
    return factors
