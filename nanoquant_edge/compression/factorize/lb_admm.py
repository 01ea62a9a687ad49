# SPDX-License-Identifier: Apache-2.0
"""LB-ADMM: the importance-weighted factorization of a weight into two sign matrices (docs/METHOD.md, section 5).

Memory: about 8 matrices of the factors' size and 3 of the weight's, float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import NqEdgeError
from ..execution.capture import WARM_UP, captured
from ..execution.parallel import team
from .inverse import solve_by_products

__all__ = [
    "CONDITION",
    "NEWTON_STEPS",
    "AdmmSettings",
    "FactorState",
    "Factors",
    "Problem",
    "factorize",
    "factorized",
    "rank_one_magnitudes",
    "refuse_non_finite",
    "sign",
]

_EPS = 1e-12
#: The Grams' condition numbers on real layers are below 50 from the first iteration on, below 10 from the middle; the
#: bound on the largest eigenvalue that the solver takes is a few times too large, more so at a high rank.
CONDITION, NEWTON_STEPS, _HIGH_RANK, _CONDITION_THERE, _NEWTON_STEPS_THERE = 100.0, 6, 1024, 200.0, 7
#: Entries of both factors from which two processes take a side each; below, messages and single launches cost more
#: than a side. By arithmetic (docs/notes/gpu.md): a 4096 x 4096 layer at 1 bit has twice as many.
_WORTH_SHARING = 1 << 23


@dataclass(frozen=True)
class AdmmSettings:
    """How LB-ADMM runs (docs/METHOD.md, section 5.2).

    Attributes:
        steps: iterations K.
        schedule: penalty rho = (k/K) or (k/K)^3: "linear" or "cubic".
        ridge: lambda, absolute on a Gram with unit diagonal.
        svid_steps: power iterations of each projection.
        dtype: type in which Grams and right-hand sides are multiplied; solves are always float32. bfloat16 costs
            nothing measurable (docs/METHOD.md, section 5.5) and is several times faster where there are matrix units.
        unit_size: bring the target to unit size first. The N(0, 1) start otherwise swamps real targets.
        solver: of the ridge regressions: "cholesky", "products", or "auto", which takes products on a GPU.
        together: all processes of the team factorize this layer at the same time, so that a large one's two sides can
            be two processes' work. Each side is computed as by one process alone, to the bit.
    """

    steps: int = 400
    schedule: str = "linear"
    ridge: float = 0.03
    svid_steps: int = 5
    dtype: torch.dtype = torch.float32
    unit_size: bool = True
    solver: str = "auto"
    together: bool = False


@dataclass
class Factors:
    """Latent sign matrices and scales of one layer, float32.

    Attributes:
        u_latent: (m, r); its signs are U.
        v_latent: (r, n); its signs are V.
        scale_out: (m,).
        scale_in: (n,).
        error: ||W~ - W^~||_F / ||W~||_F of the importance-weighted weight, with the two scales as exported.
    """

    u_latent: Tensor
    v_latent: Tensor
    scale_out: Tensor
    scale_in: Tensor
    error: float

    def dense(self) -> Tensor:
        """diag(scale_out) sign(U) sign(V) diag(scale_in), (m, n)."""
        core = sign(self.u_latent) @ sign(self.v_latent)
        return self.scale_out[:, None] * core * self.scale_in[None, :]

    def turned(self) -> Factors:
        """The factors of the transposed weight."""
        u, v = self.v_latent.T.contiguous(), self.u_latent.T.contiguous()
        return Factors(u, v, self.scale_in, self.scale_out, self.error)


def sign(x: Tensor) -> Tensor:
    """Signs as -1 and +1 in x's type; zero counts as +1."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def rank_one_magnitudes(x: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Leading singular pair of |x| by power iteration, with the singular value folded into the left vector.

    Args:
        x: (a, b).
        start: (b,) random start vector.
        steps: power iterations.

    Returns:
        left (a,) and right (b,), non-negative, so that |x| is close to their outer product.
    """
    magnitude = x.abs()
    # |x| has no negative entry, so by Perron-Frobenius neither has its leading pair; a positive start only helps.
    right = start.abs()
    right = right / right.norm().clamp_min(_EPS)
    left = magnitude @ right
    for _ in range(steps):
        right = magnitude.T @ left
        right = right / right.norm().clamp_min(_EPS)
        left = magnitude @ right
    return left, right


class FactorState:
    """One factor and its ADMM state, stored with the rank as rows: (r, k) for a k-channel side.

    Both factors are kept this way round so that every product and solve reads rows; the method writes A as (m, r).
    All state keeps its address.
    """

    def __init__(self, rank: int, channels: int, device: torch.device, settings: AdmmSettings) -> None:
        self.by_products = settings.solver == "products" or (settings.solver == "auto" and device.type == "cuda")
        self.primal, self.signed, self.dual = (torch.empty(rank, channels, device=device) for _ in range(3))
        self.right = torch.empty(channels, device=device)
        self.svid_steps = settings.svid_steps

    def start(self, generator: torch.Generator) -> None:
        """Gaussian start."""
        self.primal.copy_(torch.randn(self.primal.shape, generator=generator))
        # The leading pair moves little between iterations, so each power iteration starts where the last one ended.
        self.right.copy_(torch.randn(self.right.shape, generator=generator))
        self._project(self.primal)
        torch.sub(self.primal, self.signed, out=self.dual)

    def _project(self, x: Tensor) -> None:
        """SVID: keep all signs, force the magnitudes to rank one."""
        left, right = rank_one_magnitudes(x, self.right, self.svid_steps)
        self.right.copy_(right)
        torch.mul(left[:, None], right[None, :], out=self.signed).copysign_(x)

    def unit_rows(self) -> Tensor:
        """The projection with each rank component scaled to unit norm, the other factor's design matrix."""
        return self.signed / self.signed.norm(dim=1, keepdim=True).clamp_min(_EPS)

    def solve(self, design: Tensor, target: Tensor, rho: Tensor, ridge: float, careful: bool) -> tuple[Tensor, Tensor]:
        """Ridge regression of the target on the design, pulled toward the projection with weight rho.

        Args:
            design: (r, j) unit rows of the other factor, in the compute type.
            target: (j, k) in the compute type.
            rho: (1,).
            careful: by Cholesky, and look whether the Gram could be factorized, which waits for a GPU.

        Returns:
            The solution, and a positive number where it is none.
        """
        right_side = (design @ target).float().add_((self.signed - self.dual).mul_(rho))
        gram = (design @ design.T).float()
        if self.by_products and not careful:
            gram.diagonal().add_(rho + ridge)
            high = len(gram) > _HIGH_RANK
            limits = (_CONDITION_THERE, _NEWTON_STEPS_THERE) if high else (CONDITION, NEWTON_STEPS)
            found = solve_by_products(gram, right_side, *limits)
            return found, (~torch.isfinite(found.sum())).int()
        matrix = 0.5 * (gram + gram.T)
        matrix.diagonal().add_(rho + ridge)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if careful and int(info):  # rounding made the Gram indefinite
            return torch.linalg.solve(matrix, right_side), torch.zeros_like(info)
        return torch.cholesky_solve(right_side, factor), info.abs()

    def update(self, primal: Tensor) -> None:
        """Projection and dual step for a new primal value."""
        self.primal.copy_(primal)
        self.dual += primal
        self._project(self.dual)
        self.dual -= self.signed


class Problem:
    """The state of one factorization, for all weights of one shape (out >= in) one after the other."""

    def __init__(self, shape: tuple[int, int], rank: int, settings: AdmmSettings, device: torch.device) -> None:
        m, n = shape
        self.settings, self.device = settings, device
        self.left = FactorState(rank, m, device, settings)
        self.right = FactorState(rank, n, device, settings)
        self.targets = tuple(torch.empty(s, dtype=settings.dtype, device=device) for s in ((n, m), (m, n)))
        steps = range(settings.steps)
        power = 1 if settings.schedule == "linear" else 3
        # A warm-up before a capture must stay inside the table.
        penalties = [(k / settings.steps) ** power for k in steps] + [1.0] * WARM_UP
        self.penalties = torch.tensor(penalties, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.failures = torch.zeros((), dtype=torch.int32, device=device)
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.apart = settings.together and team().size > 1 and rank * (m + n) >= _WORTH_SHARING
        self._step: Callable[[], None] | None = None

    def _advance(self, careful: bool) -> None:
        """One iteration; both sides solve against the other's previous iterate (Jacobi), as in the official code."""
        rho = self.penalties[self.place]
        designs = [self._design(self.right, 1), self._design(self.left, 0)]
        ridge = self.settings.ridge

        def one_side(factor: FactorState, design: Tensor, target: Tensor) -> Tensor:
            primal, failed = factor.solve(design, target, rho, ridge, careful)
            factor.update(primal)
            return failed

        if self.apart:
            rank = team().rank
            if rank < 2:
                self.failures += one_side((self.left, self.right)[rank], designs[rank], self.targets[rank])
            self.place += 1
            return
        if self.side is not None and torch.cuda.is_current_stream_capturing():
            # The two sides don't wait for each other: two branches of the graph.
            main = torch.cuda.current_stream()
            self.side.wait_stream(main)
            with torch.cuda.stream(self.side):
                failed = one_side(self.right, designs[1], self.targets[1])
            self.failures += one_side(self.left, designs[0], self.targets[0])
            main.wait_stream(self.side)
        else:
            failed = one_side(self.right, designs[1], self.targets[1])
            self.failures += one_side(self.left, designs[0], self.targets[0])
        self.failures += failed
        self.place += 1

    def _design(self, factor: FactorState, owner: int) -> Tensor:
        """A factor's design matrix, from the process that has it where the sides are apart."""
        kind = self.settings.dtype
        if not self.apart:
            return factor.unit_rows().to(kind)
        design = factor.unit_rows().to(kind) if team().rank == owner else torch.empty_like(factor.signed, dtype=kind)
        team().take([design], owner)
        return design

    def _meet(self) -> None:
        """Bring both sides together again in all processes."""
        team().add([self.failures])
        for owner, factor in enumerate((self.left, self.right)):
            team().take([factor.primal, factor.signed, factor.dual], owner)

    def _restart(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.left.start(generator)
        self.right.start(generator)
        self.place.zero_()
        self.failures.zero_()

    def close(self) -> None:
        """Give up the step, which holds this object, so that its memory is free at once."""
        self._step = None

    def _aim(self, target: Tensor) -> None:
        """What the two sides' designs are multiplied with."""
        self.targets[0].copy_(target.T)
        self.targets[1].copy_(target)

    def run(self, target: Tensor, seed: int, keep: bool) -> None:
        """All iterations for a target (m, n) of about unit size."""
        self._aim(target)
        self._restart(seed)
        step = self._step or functools.partial(self._advance, False)
        if keep and self._step is None and not self.apart:
            step = self._step = captured(step, self.device, lambda: self._restart(seed))
        self._run(step)
        if int(self.failures):
            self._restart(seed)
            self._run(functools.partial(self._advance, True))

    def _run(self, step: Callable[[], None]) -> None:
        """All iterations, from a fresh start."""
        for _ in range(self.settings.steps):
            step()
        if self.apart:
            self._meet()


_AnyProblem = TypeVar("_AnyProblem", bound=Problem)


@torch.no_grad()
def factorize(
    weight: Tensor,
    in_importance: Tensor,
    out_importance: Tensor,
    rank: int,
    settings: AdmmSettings | None = None,
    seed: int = 0,
    kept: dict[Any, Problem] | None = None,
) -> Factors:
    """Factorize a weight matrix into signs and two scale vectors.

    Args:
        weight: (m, n), any floating type.
        in_importance: (n,) second moments of the inputs, non-negative.
        out_importance: (m,) second moments of the output gradients, non-negative.
        rank: inner dimension r >= 1; may exceed min(m, n).
        settings: of the iteration; None takes the official ones.
        seed: of the Gaussian start.
        kept: state of earlier calls, to be used again for weights of the same shape, with its CUDA graph.

    Raises:
        NqEdgeError: NQ-NUMERIC when the weight or an importance is not finite.
    """
    settings = settings or AdmmSettings()
    refuse_non_finite([("weight", weight), ("importances", in_importance), ("importances", out_importance)])
    if weight.shape[0] < weight.shape[1]:
        return factorize(weight.T, out_importance, in_importance, rank, settings, seed, kept).turned()
    d_in, d_out = _root(in_importance), _root(out_importance)
    target = d_out[:, None] * weight.detach().float() * d_in[None, :]
    return factorized(target, d_in, d_out, rank, settings, seed, kept, Problem)


def refuse_non_finite(values: list[tuple[str, Tensor]]) -> None:
    """Raises NQ-NUMERIC, with the name, for the first of a layer's tensors that holds NaN or infinity."""
    for name, value in values:
        if not bool(torch.isfinite(value).all()):
            raise NqEdgeError("NQ-NUMERIC", f"the {name} of a layer to factorize: NaN or infinity found.")


def factorized(
    target: Tensor,
    d_in: Tensor,
    d_out: Tensor,
    rank: int,
    settings: AdmmSettings,
    seed: int,
    kept: dict[Any, Problem] | None,
    kind: type[_AnyProblem],
    load: Callable[[_AnyProblem], None] = lambda _problem: None,
) -> Factors:
    """Run LB-ADMM on a preconditioned weight, out >= in, and export its factors.

    Args:
        target: (m, n) diag(d_out) W diag(d_in).
        d_in, d_out: (n,), (m,), positive.
        rank: inner dimension.
        settings: of the iteration.
        seed: of the Gaussian start.
        kept: as for `factorize`.
        kind: of problem to run.
        load: puts into the problem what it needs beside the target.
    """
    # The start has entries of about 1; a target of another size takes many more steps to forget it. Up to the start
    # the iteration commutes with scaling both factors, so it runs on unit size and the size is put back at the end.
    size = (float(target.square().mean().sqrt()) or 1.0) if settings.unit_size else 1.0
    m, n = target.shape
    key = (kind, m, n, rank, settings, target.device)
    problem = (kept or {}).get(key) or kind((m, n), rank, settings, target.device)
    assert isinstance(problem, kind)
    if kept is not None:
        kept[key] = problem
    load(problem)
    problem.run(target / size, seed, keep=kept is not None)
    return _export(target, d_in, d_out, problem.left, problem.right, size)


def _root(importance: Tensor) -> Tensor:
    """Square root of the importances; all ones where no gradient was seen (docs/METHOD.md, section 4)."""
    value = importance.detach().float()
    if not bool((value > 0).any()):
        return torch.ones_like(value)
    return value.clamp_min(0).sqrt().clamp_min(_EPS)


def _export(target: Tensor, d_in: Tensor, d_out: Tensor, left: FactorState, right: FactorState, size: float) -> Factors:
    """Magnitude balancing (paper Eq. 7) and the two scale vectors (docs/METHOD.md, section 5.3)."""
    a_hat = size * left.signed.T / d_out[:, None]
    b_hat = size * right.signed / d_in[None, :]
    eta = (b_hat.norm() / a_hat.norm().clamp_min(_EPS)).sqrt()
    scale_out = (eta * left.unit_rows().T / d_out[:, None]).abs().mean(1)
    scale_in = (b_hat / eta).abs().mean(0)
    u_latent = (size * eta) * (left.primal + left.dual).T / d_out[:, None]
    v_latent = (size / eta) * (right.primal + right.dual) / d_in[None, :]
    if not bool(target.any()):  # the signs of an all-zero layer mean nothing; its scales say so
        scale_out = torch.zeros_like(scale_out)
    factors = Factors(u_latent.contiguous(), v_latent, scale_out, scale_in, 0.0)
    residual = target - d_out[:, None] * factors.dense() * d_in[None, :]
    factors.error = float(residual.norm() / target.norm().clamp_min(_EPS))
    return factors
