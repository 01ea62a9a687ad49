# SPDX-License-Identifier: Apache-2.0
"""Curvature of the loss around each layer: two dense factors instead of two diagonals (docs/METHOD.md, section 10).

With inputs x_t and output gradients d_t, the per-token Fisher of a weight is the mean of (d_t d_t^T) x (x_t x_t^T). The
Kronecker product L x R nearest to it in the sense of a matrix normal distribution satisfies

    L ~ sum_t (x_t^T R^-1 x_t) d_t d_t^T,      R ~ sum_t (d_t^T L^-1 d_t) x_t x_t^T,

so a token counts by how unusual its other half is. Both factors are updated from the previous pass at once (Jacobi),
which takes one forward and backward pass each; they start from the diagonal importances. L is kept. R is measured again
on the compressed stream just before a block's layers are factorized, every token alike: weighing them as the rule does
loses the massive activations of first tokens, whose gradients are small (docs/notes/quality.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NqEdgeError
from ..execution.hooks import watched
from ..execution.parallel import free_host_memory, team
from ..run import Run
from .gradients import gradient_pass
from .importances import GRADIENT_UNIT, Importance

__all__ = ["CurvatureFit", "bytes_needed", "input_factors", "no_room", "shrunk", "with_curvature"]

#: Alternating passes and shrinkage toward the identity (docs/METHOD.md, section 10).
_PASSES, _SHRINK = 3, 0.2


def shrunk(total: Tensor, layer: str) -> Tensor:
    """A sum of outer products as a factor: mean diagonal 1, a fifth of it the identity; the identity from zeros.

    Raises:
        NqEdgeError: NQ-NUMERIC, naming the layer, when an entry is not finite.
    """
    mean = float(total.diagonal().mean())
    if not bool(torch.isfinite(total).all()):
        raise NqEdgeError("NQ-NUMERIC", f"the curvature of {layer} holds NaN or infinity.")
    identity = torch.eye(total.shape[0], device=total.device)
    # A layer that never saw a gradient counts every channel equally (docs/METHOD.md, section 4).
    return identity if mean <= 0 else identity.mul_(_SHRINK).add_(0.5 * (total + total.T), alpha=(1 - _SHRINK) / mean)


def _weigh(z: Tensor, inverse: Tensor) -> Tensor:
    """z_t^T M^-1 z_t / channels for every token, M^-1 given whole or by its diagonal."""
    return ((z * inverse) if inverse.ndim == 1 else z @ inverse).mul(z).mean(1)


class CurvatureFit:
    """Both factors of one layer while they are fitted: two sums and two inverses, float32 on the device."""

    def __init__(self, name: str, layer: nn.Linear, importance: Importance, device: torch.device) -> None:
        self.name = name
        self.outputs = torch.zeros(layer.out_features, layer.out_features, device=device)
        self.inputs = torch.zeros(layer.in_features, layer.in_features, device=device)
        self.inverses = [_inverse_diagonal(value).to(device) for value in (importance.outputs, importance.inputs)]

    def watch(self, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook: adds the window once its gradient is there."""
        if output.requires_grad:
            x = arguments[0].detach().flatten(0, -2)
            # In the units of the importances: squares of smaller gradients leave float32 (docs/METHOD.md, section 4).
            output.register_hook(lambda gradient: self.add(x.float(), gradient.flatten(0, -2).float() * GRADIENT_UNIT))

    @torch.no_grad()
    def add(self, x: Tensor, gradient: Tensor) -> None:
        """One window: x (tokens, n) and gradient (tokens, m)."""
        by_gradient, by_input = _weigh(gradient, self.inverses[0]), _weigh(x, self.inverses[1])
        self.outputs.addmm_((gradient * by_input[:, None]).T, gradient)
        self.inputs.addmm_((x * by_gradient[:, None]).T, x)

    def close_pass(self, last: bool, split: bool) -> None:
        """Join what all processes saw, and take the inverses that the next pass needs."""
        if split:
            team().add([self.outputs, self.inputs])
        if last:
            return
        for side, total in enumerate((self.outputs, self.inputs)):
            factor = torch.linalg.cholesky(shrunk(total, self.name))
            self.inverses[side] = torch.cholesky_inverse(factor)
            total.zero_()

    def finish(self) -> Tensor:
        """L on the CPU."""
        return shrunk(self.outputs, self.name).cpu()


def _inverse_diagonal(importance: Tensor) -> Tensor:
    return 1 / importance.clamp_min(1e-6 * float(importance.mean()))


def bytes_needed(linears: dict[str, nn.Linear]) -> tuple[list[int], int]:
    """Bytes that each layer takes on the device while it is fitted, and what all keep on the host until their block.

    A layer of m x n holds sums and inverses, 4 bytes x 2 (m^2 + n^2), then L, 4 m^2.
    """
    sizes = [(layer.out_features, layer.in_features) for layer in linears.values()]
    return [8 * (m * m + n * n) for m, n in sizes], sum(4 * m * m for m, _ in sizes)


def _allowance(kept_bytes: int, device: torch.device, free_memory: int) -> tuple[int, int]:
    """Bytes that may be taken on the device and on the host: two thirds of what is free, less what a CPU keeps."""
    host = 2 * free_memory // 3
    return (2 * torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else host - kept_bytes), host


def no_room(linears: dict[str, nn.Linear], device: torch.device, free_memory: int | None = None) -> str:
    """Why a model's factors cannot be held, even one layer after the other; empty where they can.

    Args:
        linears: name -> layer.
        device: where they are fitted.
        free_memory: bytes of this host's memory that may be counted on; None asks the system.
    """
    fitting, kept_bytes = bytes_needed(linears)
    on_device, on_host = _allowance(kept_bytes, device, free_host_memory() if free_memory is None else free_memory)
    if kept_bytes > on_host:
        return f"curvature keeps {kept_bytes / 1e9:.1f} GB on the host, where {on_host / 1e9:.1f} GB may be taken"
    if max(fitting) > on_device:
        return f"curvature needs {max(fitting) / 1e9:.1f} GB on {device}, where {on_device / 1e9:.1f} GB may be taken"
    return ""


def _groups(linears: dict[str, nn.Linear], device: torch.device, free_memory: int) -> list[dict[str, nn.Linear]]:
    """Layers that are fitted together: as many as there is room for, in order."""
    fitting, kept_bytes = bytes_needed(linears)
    room = torch.tensor([_allowance(kept_bytes, device, free_memory)[0]], device=device)
    team().take_first([room])  # all processes make the same groups
    groups: list[dict[str, nn.Linear]] = [{}]
    taken = 0
    for (name, layer), size in zip(linears.items(), fitting, strict=True):
        if groups[-1] and taken + size > int(room):
            groups, taken = [*groups, {}], 0
        groups[-1][name], taken = layer, taken + size
    return groups


def with_curvature(
    model: Any,
    linears: dict[str, nn.Linear],
    *,
    windows: Tensor,
    importances: dict[str, Importance],
    run: Run,
    free_memory: int | None = None,
) -> dict[str, Importance]:
    """The importances with the layers' curvature, from three passes of the dense model for each group of layers.

    A layer's fit does not depend on others', so groups change nothing but the time.

    Args:
        model: transformers causal language model.
        linears: name -> layer.
        windows: int64 (windows, length).
        importances: name -> diagonal importances, where the fit starts.
        run: its compute type is that of the passes; the factors are float32.
        free_memory: bytes of this host's memory that may be counted on; None asks the system.

    Raises:
        NqEdgeError: NQ-NUMERIC where a loss or a factor is not finite.
    """
    device = model.get_output_embeddings().weight.device
    groups = _groups(linears, device, free_host_memory() if free_memory is None else free_memory)
    curved: dict[str, Importance] = {}
    for number, group in enumerate(groups):
        part = run.part(number / len(groups), (number + 1) / len(groups))
        for name, factor in _fitted(model, group, windows, importances, part).items():
            curved[name] = replace(importances[name], curvature=factor)
    return curved


def _fitted(
    model: Any, linears: dict[str, nn.Linear], windows: Tensor, importances: dict[str, Importance], run: Run
) -> dict[str, Tensor]:
    """L of one group of layers, on the CPU."""
    device = model.get_output_embeddings().weight.device
    fits = {name: CurvatureFit(name, layer, importances[name], device) for name, layer in linears.items()}
    split = team().splits(len(windows))
    with watched(linears, lambda name: fits[name].watch):
        for index in range(_PASSES):
            gradient_pass(model, windows, run.part(index / _PASSES, (index + 1) / _PASSES))
            for fit in fits.values():
                fit.close_pass(last=index + 1 == _PASSES, split=split)
    # Each layer's sums are let go as soon as they are used.
    return {name: fits.pop(name).finish() for name in linears}


@torch.no_grad()
def input_factors(
    linears: dict[str, nn.Linear], forward: Callable[[Tensor], Tensor], stream: Tensor, at_once: int = 1
) -> dict[str, Tensor]:
    """R of a block's layers on the compressed stream; layers with one input, such as q, k and v, share one.

    Args:
        linears: name -> layer in the block that `forward` calls.
        forward: one forward pass over (windows, length, hidden).
        stream: (windows, length, hidden).
        at_once: windows that go through together.

    Returns:
        Name -> (n, n), shrunk, of mean diagonal 1, on the layer's device.

    Raises:
        NqEdgeError: NQ-NUMERIC where a factor is not finite.
    """
    totals: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    last: tuple[Tensor | None, str] = (None, "")

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            nonlocal last
            if arguments[0] is not last[0]:
                last = arguments[0], name
                x = arguments[0].flatten(0, -2).float()
                if name not in totals:
                    totals[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
                totals[name].addmm_(x.T, x)
            owners[name] = last[1]

        return hook

    with watched(linears, watch, before=True):
        for part in stream.split(at_once):
            forward(part)
    factors = {name: shrunk(total, name) for name, total in totals.items()}
    return {name: factors[owners[name]] for name in linears}
