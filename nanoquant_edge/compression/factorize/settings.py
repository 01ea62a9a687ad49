# SPDX-License-Identifier: Apache-2.0
"""How LB-ADMM runs (docs/METHOD.md, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["LEAST_SHARED_ENTRIES", "AdmmSettings"]

#: Entries of both factors from which two processes take a side each; below, messages and single launches cost more
#: than a side. By arithmetic (docs/notes/gpu.md): a 4096 x 4096 layer at 1 bit has twice as many.
LEAST_SHARED_ENTRIES = 1 << 23


@dataclass(frozen=True)
class AdmmSettings:
    """Settings of LB-ADMM.

    Attributes:
        steps: iterations K; the penalty of iteration k is k/K.
        ridge: lambda, absolute on a Gram matrix with unit diagonal.
        svid_steps: power iterations of each projection.
        dtype: type in which Gram matrices and right-hand sides are multiplied; solves are always float32. bfloat16
            costs nothing measurable (docs/METHOD.md, section 5.5) and is several times faster with matrix units.
        unit_size: bring the target to unit size first. The N(0, 1) start otherwise swamps real targets.
        solver: of the ridge regressions: "cholesky", "products", or "auto", which takes products on a GPU.
        share_sides: all processes of the team factorize this layer at the same time, so that a large one's two sides
            can be two processes' work. Each side is computed as by one process alone, to the bit.
    """

    steps: int = 400
    ridge: float = 0.03
    svid_steps: int = 5
    dtype: torch.dtype = torch.float32
    unit_size: bool = True
    solver: str = "auto"
    share_sides: bool = False

    def penalties(self, spare: int) -> list[float]:
        """The penalty rho of every iteration, and 1 for `spare` iterations after the last."""
        return [k / self.steps for k in range(self.steps)] + [1.0] * spare

    def uses_products(self, device: torch.device) -> bool:
        """Whether ridge regressions are solved by matrix products on this device."""
        return self.solver == "products" or (self.solver == "auto" and device.type == "cuda")

    def shares_sides(self, entries: int, processes: int) -> bool:
        """Whether two of so many processes take a side each of a layer whose factors have so many entries."""
        return self.share_sides and processes > 1 and entries >= LEAST_SHARED_ENTRIES
