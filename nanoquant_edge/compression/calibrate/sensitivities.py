# SPDX-License-Identifier: Apache-2.0
"""How much error a layer's bits save: LB-ADMM at three ranks, then a power law (docs/METHOD.md, section 11).

The squared importance-weighted error || D_out (W - W^) D_in ||_F^2, with importances that are no multiples of their
layer's mean, is the diagonal-Fisher estimate of the loss that a factorization adds, up to one factor for the whole
model. So errors of different layers can be weighed against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..execution.parallel import team
from ..factorize.lb_admm import factorize
from ..factorize.problem import KeptProblems
from ..factorize.settings import AdmmSettings
from ..run import Run
from .importances import Importance

__all__ = ["POINTS", "PowerLaw", "fit_power_law", "measured_errors", "rank_shares", "ranks_to_measure"]

_WORD = 32
#: Ranks at which each layer is measured, as multiples of its even rank; a layer's share stays between the outer two,
#: since the law says nothing beyond them.
POINTS = (0.5, 1.0, 1.5)
#: Exponents of SmolLM2-135M's layers lie between 0.80 and 1.02; noise must not lead far from there.
_EXPONENTS = (0.25, 4.0)
#: Enough to weigh layers against each other: E is 13 to 27 % above that after 400 steps on real layers.
_STEPS, _SVID_STEPS = 32, 2
#: Layers up to this size are bound by launches: their steps are kept as CUDA graphs.
_KEEP_UP_TO = 1 << 24
_TINY = 1e-30


@dataclass(frozen=True)
class PowerLaw:
    """E(r) = scale r^-exponent, with a positive exponent; a scale of 0 is a layer that costs nothing."""

    scale: float
    exponent: float

    def __call__(self, rank: float) -> float:
        """The error at a rank."""
        return self.scale * rank**-self.exponent

    def rank_at(self, price: float, size: int) -> float:
        """Rank at which one more unit of rank, of `size` bits, saves `price` of error a bit."""
        return (self.scale * self.exponent / (price * size)) ** (1 / (self.exponent + 1))


def ranks_to_measure(even: int) -> tuple[int, ...]:
    """Three different ranks around an even one, in words of 32 unless it is smaller than one itself."""
    low, _, high = (_WORD * max(1, round(point * even / _WORD)) for point in POINTS)
    ranks = sorted({min(low, even), even, max(high, even + _WORD)})
    return tuple(ranks if len(ranks) == len(POINTS) else [*ranks, ranks[-1] + _WORD])


def fit_power_law(ranks: tuple[int, ...], errors: list[float]) -> PowerLaw:
    """Least squares in logarithms, the exponent kept within what layers show."""
    if min(errors) <= 0:
        return PowerLaw(0.0, 1.0)
    x, y = [math.log(rank) for rank in ranks], [math.log(error) for error in errors]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    exponent = min(max(-slope, _EXPONENTS[0]), _EXPONENTS[1])
    return PowerLaw(math.exp(height + exponent * middle), exponent)


@torch.no_grad()
def measured_errors(
    linears: Mapping[str, nn.Linear],
    importances: Mapping[str, Importance],
    even: Mapping[str, int],
    run: Run,
    *,
    divergence: Callable[[str, Tensor], float] | None = None,
) -> Tensor:
    """Squared weighted errors of all layers at three ranks each; the processes of a team share the layers.

    With `divergence` a layer's errors are scaled so that at the even rank they are what the factorized weight costs the
    model: the errors then only say how that changes with the rank.

    Args:
        linears: name -> dense layer, in processing order.
        importances: name -> importances, all in the same unit.
        even: name -> rank at equal rates.
        run: where to compute, in which type, and the seed of the Gaussian starts. A weight that lies elsewhere is on
            the device only while its layer is measured.
        divergence: from a layer's name and its factorized weight, what the model loses.

    Returns:
        float64 (layers, 3) on the CPU, the same in all processes.

    Raises:
        NqEdgeError: NQ-NUMERIC when a weight or an importance is not finite.
    """
    settings = AdmmSettings(steps=_STEPS, svid_steps=_SVID_STEPS, dtype=run.dtype, unit_size=True)
    errors = torch.zeros(len(linears), len(POINTS), dtype=torch.float64)
    share = list(enumerate(linears))[team().rank :: team().size]
    problems = KeptProblems()
    for done, (row, name) in enumerate(share):
        weight = linears[name].weight.to(run.device)
        inputs, outputs = (part.to(run.device) for part in (importances[name].inputs, importances[name].outputs))
        size = float((weight.float().square() @ inputs.float()).double() @ outputs.double())
        reused = problems if weight.numel() <= _KEEP_UP_TO else None
        for column, rank in enumerate(ranks_to_measure(even[name])):
            factors = factorize(
                weight, rank, inputs=inputs, outputs=outputs, settings=settings, seed=run.seed, problems=reused
            )
            errors[row, column] = factors.error**2 * size
            if divergence is not None and rank == even[name]:
                scale = divergence(name, factors.dense()) / max(float(errors[row, column]), _TINY)
        if divergence is not None:
            errors[row] *= max(scale, 0.0)
        run.progress((done + 1) / len(share))
    problems.close()
    shared = errors.to(run.device)  # a GPU's messages are a GPU's tensors
    team().add([shared])
    return shared.cpu()


def rank_shares(
    errors: Tensor, even: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, float], float]:
    """Multiples of the even ranks at which one more bit saves the same error in all layers, at the even ranks' bits.

    Args:
        errors: (layers, 3), from `measured_errors`.
        even: name -> rank at equal rates, in the order of the rows.
        shapes: name -> (out_features, in_features).

    Returns:
        Name -> multiple of the even rank, between the outer points that were measured, and the part of the even
        ranks' error that the power laws say is saved.
    """
    laws = {
        name: fit_power_law(ranks_to_measure(rank), row)
        for (name, rank), row in zip(even.items(), errors.tolist(), strict=True)
    }
    size = {name: sum(shapes[name]) for name in even}
    budget = sum(even[name] * size[name] for name in even)

    def spent(price: float) -> dict[str, float]:
        return {
            name: min(max(law.rank_at(price, size[name]), POINTS[0] * even[name]), POINTS[-1] * even[name])
            for name, law in laws.items()
        }

    prices = [law(even[name]) * law.exponent / (even[name] * size[name]) for name, law in laws.items() if law.scale]
    if not prices:
        return dict.fromkeys(even, 1.0), 0.0
    # Beyond these every layer stands at one of its bounds. The price is found by halving its logarithm.
    reach = POINTS[-1] / POINTS[0]
    low, high = (math.log(price) + turn * 8 * math.log(reach) for price, turn in ((min(prices), -1), (max(prices), 1)))
    for _ in range(100):
        middle = (low + high) / 2
        over = sum(rank * size[name] for name, rank in spent(math.exp(middle)).items()) > budget
        low, high = (middle, high) if over else (low, middle)
    ranks = spent(math.exp(high))
    before = sum(law(even[name]) for name, law in laws.items())
    after = sum(law(ranks[name]) for name, law in laws.items())
    return {name: rank / even[name] for name, rank in ranks.items()}, 1 - after / before
