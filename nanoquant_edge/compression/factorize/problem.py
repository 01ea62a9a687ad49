# SPDX-License-Identifier: Apache-2.0
"""The iterations of LB-ADMM for weights of one shape (docs/METHOD.md, section 5.2).

Memory: about 8 matrices of the factors' size and 3 of the weight's, float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..execution.capture import WARM_UP, captured
from ..execution.parallel import team
from .factor_state import FactorState
from .factors import Factors, PreconditionedWeight, balanced_factors
from .settings import AdmmSettings

__all__ = ["KeptProblems", "Problem"]


class Problem:
    """The state of one factorization, for all weights of one shape (m >= n) one after the other.

    Args:
        shape: (m, n).
        rank: inner dimension.
        settings: of the iteration.
        device: where the state lies.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, settings: AdmmSettings, device: torch.device) -> None:
        m, n = shape
        self.settings, self.device = settings, device
        self.left = FactorState(rank, m, device, settings)
        self.right = FactorState(rank, n, device, settings)
        self.targets = tuple(torch.empty(s, dtype=settings.dtype, device=device) for s in ((n, m), (m, n)))
        # A warm-up before a capture must stay inside the table.
        self.penalties = torch.tensor(settings.penalties(spare=WARM_UP), device=device)
        self.iteration = torch.zeros(1, dtype=torch.int64, device=device)
        self.failures = torch.zeros((), dtype=torch.int32, device=device)
        self.side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.sides_shared = settings.shares_sides(rank * (m + n), team().size)
        self.step: Callable[[], None] | None = None

    def factorize(self, weight: PreconditionedWeight, seed: int, keep_step: bool) -> Factors:
        """Run all iterations for a weight and export its factors.

        Args:
            weight: of this problem's shape, on its device.
            seed: of the Gaussian start.
            keep_step: use the captured step again for the next weight; it is captured where there is none yet.
        """
        # The start has entries of about 1; a target of another size takes many more steps to forget it. Up to the start
        # the iteration commutes with scaling both factors, so it runs on unit size and the size is put back at the end.
        size = (float(weight.target.square().mean().sqrt()) or 1.0) if self.settings.unit_size else 1.0
        self._aim(weight.target / size)
        self._restart(seed)
        step = self.step or functools.partial(self._advance, False)
        if keep_step and self.step is None and not self.sides_shared:
            step = self.step = captured(step, self.device, lambda: self._restart(seed))
        self._iterate(step)
        if int(self.failures):
            self._restart(seed)
            self._iterate(functools.partial(self._advance, True))
        return balanced_factors(weight, self.left, self.right, size)

    @property
    def size(self) -> int:
        """Bytes of the state that it holds between factorizations."""
        parts = [*vars(self.left).values(), *vars(self.right).values(), *self.targets]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    def close(self) -> None:
        """Give up the step, which holds this object, so that its memory is free at once."""
        self.step = None

    def _aim(self, target: Tensor) -> None:
        """What the two sides' designs are multiplied with."""
        self.targets[0].copy_(target.T)
        self.targets[1].copy_(target)

    def _restart(self, seed: int) -> None:
        generator = torch.Generator(self.device).manual_seed(seed)
        self.left.start(generator)
        self.right.start(generator)
        self.iteration.zero_()
        self.failures.zero_()

    def _iterate(self, step: Callable[[], None]) -> None:
        """All iterations, from a fresh start."""
        for _ in range(self.settings.steps):
            step()
        if self.sides_shared:
            self._exchange_sides()

    def _advance(self, careful: bool) -> None:
        """One iteration; both sides solve against the other's previous iterate (Jacobi), as in the official code."""
        rho = self.penalties[self.iteration]
        designs = [self._design(self.right, 1), self._design(self.left, 0)]
        ridge = self.settings.ridge

        def one_side(factor: FactorState, design: Tensor, target: Tensor) -> Tensor:
            primal, failed = factor.solve(design, target, rho=rho, ridge=ridge, careful=careful)
            factor.update(primal)
            return failed

        if self.sides_shared:
            rank = team().rank
            if rank < 2:
                self.failures += one_side((self.left, self.right)[rank], designs[rank], self.targets[rank])
            self.iteration += 1
            return
        if self.side_stream is not None and torch.cuda.is_current_stream_capturing():
            # The two sides don't wait for each other: two branches of the graph.
            main_stream = torch.cuda.current_stream()
            self.side_stream.wait_stream(main_stream)
            with torch.cuda.stream(self.side_stream):
                failed = one_side(self.right, designs[1], self.targets[1])
            self.failures += one_side(self.left, designs[0], self.targets[0])
            main_stream.wait_stream(self.side_stream)
        else:
            failed = one_side(self.right, designs[1], self.targets[1])
            self.failures += one_side(self.left, designs[0], self.targets[0])
        self.failures += failed
        self.iteration += 1

    def _design(self, factor: FactorState, owner: int) -> Tensor:
        """A factor's design matrix, from the process that has it where the sides are shared out."""
        kind = self.settings.dtype
        if not self.sides_shared:
            return factor.unit_rows(kind)
        design = factor.unit_rows(kind) if team().rank == owner else torch.empty_like(factor.signed, dtype=kind)
        team().take([design], owner)
        return design

    def _exchange_sides(self) -> None:
        """Give all processes both sides."""
        team().add([self.failures])
        for owner, factor in enumerate((self.left, self.right)):
            team().take([factor.primal, factor.signed, factor.dual], owner)


_AnyProblem = TypeVar("_AnyProblem", bound=Problem)


class KeptProblems:
    """Problems that are used again for every weight of the same shape, with their CUDA graphs; the latest used ones.

    Args:
        limit: bytes up to which they are kept. A model whose layers all have ranks of their own has a problem for each.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self._problems: dict[Any, Problem] = {}
        self._limit = limit

    def problem(
        self,
        kind: type[_AnyProblem],
        shape: tuple[int, ...],
        *,
        rank: int,
        settings: AdmmSettings,
        device: torch.device,
    ) -> _AnyProblem:
        """The problem of this kind, shape (m, n), rank, settings and device, made where there is none yet."""
        key = (kind, shape, rank, settings, device)
        problem = self._problems.pop(key, None) or kind(shape, rank, settings, device)
        sizes = sum(other.size for other in self._problems.values()) + problem.size
        while self._problems and sizes > self._limit:
            oldest = self._problems.pop(next(iter(self._problems)))
            sizes -= oldest.size
            oldest.close()
        self._problems[key] = problem
        assert isinstance(problem, kind)
        return problem

    def all(self) -> list[Problem]:
        """Every problem that is kept, the one that was not used for the longest time first."""
        return list(self._problems.values())

    def close(self) -> None:
        """Give back the memory of all problems now; a graph and what it reads hold each other."""
        for problem in self._problems.values():
            problem.close()
        self._problems.clear()
