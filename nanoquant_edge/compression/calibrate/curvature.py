# SPDX-License-Identifier: Apache-2.0
"""Curvature of the loss around each layer: two dense factors instead of two diagonals (docs/METHOD.md, section 10).

With inputs x_t and output gradients d_t, the per-token Fisher of a weight is the mean of (d_t d_t^T) x (x_t x_t^T). The
Kronecker product L x R nearest to it in the sense of a matrix normal distribution satisfies

    L ~ sum_t (x_t^T R^-1 x_t) d_t d_t^T,      R ~ sum_t (d_t^T L^-1 d_t) x_t x_t^T,

so a token counts by how unusual its other half is. From the diagonal importances of the inputs follows a first L, from
that an R, and from that the L which is kept: three sums, each over a forward and a backward pass. Nothing else that the
rule could give is needed, and only two matrices of a layer exist at a time. A block's layers are fitted together, and
the blocks from the last to the first, so that the gradient is at hand for all passes over a block.

R is measured again on the compressed stream just before a block's layers are factorized, every token alike: weighing
them as the rule does loses the massive activations of first tokens, whose gradients are small (docs/notes/quality.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import NqEdgeError
from ...models.source import SourceModel
from ..execution.hooks import watched
from ..execution.parallel import free_host_memory, team
from ..execution.precision import tensor_cores
from ..factorize.metric import Metric, kept_directions, metric
from ..run import Run
from .importances import GRADIENT_UNIT, MOST_WINDOWS, Importance
from .streamed_gradients import gradient_pass_by_blocks

__all__ = ["CurvatureFit", "bytes_needed", "input_factors", "no_room", "shrunk", "with_curvature"]

#: Alternating passes (an odd number, so that the last one gives L) and shrinkage toward the identity (docs/METHOD.md,
#: section 10).
_PASSES, _SHRINK = 3, 0.2
#: Tokens that are added to a sum at one time; a few float32 matrices of tokens x channels exist beside it.
_TOKENS = 4096
#: Stripes in which the triangle of a sum is made, where it is large enough that a GPU is busy with one.
_STRIPES, _STRIPED_FROM = 4, 2048


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
    """z_t^T M^-1 z_t / channels for every token.

    Args:
        z: (tokens, channels).
        inverse: M^-1 by its diagonal, or whole as the lower triangular C of M^-1 = C^T C.
    """
    if inverse.ndim == 1:
        return (z.square() * inverse).mean(1)
    # What is above the diagonal need not be multiplied.
    parts = [(z[:, : part.stop] @ inverse[part, : part.stop].T).square().sum(1) for part in _stripes(len(inverse))]
    return torch.stack(parts).sum(0) / len(inverse)


def _add_outer(total: Tensor, weighted: Tensor, z: Tensor) -> None:
    """Add weighted^T z to what is on and below the diagonal of the sum, in blocks."""
    for part in _stripes(len(total)):
        total[part.start :, part].addmm_(weighted[:, part.start :].T, z[:, part])


def _stripes(size: int) -> list[slice]:
    """Parts of a large matrix's rows or columns, with which a triangle takes 5/8 of the products of the whole."""
    width = -(-size // _STRIPES) if size > _STRIPED_FROM else size
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


class CurvatureFit:
    """One layer's factors while they are fitted: a sum and an inverse, float32 on the device."""

    def __init__(self, name: str, layer: nn.Linear, importance: Importance, device: torch.device) -> None:
        self.name, self.sizes, self.device = name, (layer.out_features, layer.in_features), device
        self.inverse = _inverse_diagonal(importance.inputs).to(device)
        self.passes = 0
        self.total = self._empty()

    def _empty(self) -> Tensor:
        """The sum of the next pass: of the outputs in even ones."""
        size = self.sizes[self.passes % 2]
        return torch.zeros(size, size, device=self.device)

    def watch(self, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook: adds the windows once their gradient is there."""
        if output.requires_grad:
            x = arguments[0].detach().flatten(0, -2)
            output.register_hook(lambda gradient: self.add(x, gradient.flatten(0, -2)))

    @torch.no_grad()
    def add(self, x: Tensor, gradient: Tensor) -> None:
        """Some tokens: x (tokens, n) and gradient (tokens, m)."""
        for part, its_gradient in zip(x.split(_TOKENS), gradient.split(_TOKENS), strict=True):
            # In the units of the importances: squares of smaller gradients leave float32 (docs/METHOD.md, section 4).
            both = (its_gradient.float() * GRADIENT_UNIT, part.float())
            summed, weighing = both if self.passes % 2 == 0 else both[::-1]
            with tensor_cores():
                _add_outer(self.total, summed * _weigh(weighing, self.inverse)[:, None], summed)

    def close_pass(self, split: bool) -> None:
        """Join what all processes saw, and take the inverse that the next pass needs."""
        if split:
            team().add([self.total])
        factor = shrunk(_mirrored(self.total), self.name)
        del self.total
        self.passes += 1
        if self.passes == _PASSES:
            self.total = factor
            return
        root = torch.linalg.cholesky(factor)
        del factor
        self.inverse = torch.linalg.solve_triangular(root, torch.eye(len(root), device=self.device), upper=False)
        self.total = self._empty()

    def finish(self) -> Metric:
        """That of L, on the CPU."""
        return metric(self.total).to("cpu")


def _mirrored(total: Tensor) -> Tensor:
    """A sum of which only what is on and below the diagonal counts, made symmetric in place."""
    return total.tril_().add_(total.tril(-1).T)


def _inverse_diagonal(importance: Tensor) -> Tensor:
    return 1 / importance.clamp_min(1e-6 * float(importance.mean()))


def bytes_needed(linears: dict[str, nn.Linear], in_a_block: int) -> tuple[int, int]:
    """Bytes that a block's layers take on the device while they are fitted, and what all keep on the host.

    A layer of m x n has an inverse and a sum, 4 bytes x (m^2 + n^2), and one after the other four matrices of its wider
    side to find eigenvectors in. Of L it keeps q eigenvectors of m numbers.

    Args:
        linears: name -> layer, block by block.
        in_a_block: layers of a block.
    """
    sizes = [(layer.out_features, layer.in_features) for layer in linears.values()]
    blocks = [sizes[start : start + in_a_block] for start in range(0, len(sizes), in_a_block)]
    fitting = max(sum(4 * (m * m + n * n) for m, n in block) + 16 * max(max(block)) ** 2 for block in blocks)
    return fitting, sum(4 * m * (kept_directions(m) + 2) for m, _ in sizes)


def no_room(
    linears: dict[str, nn.Linear], in_a_block: int, device: torch.device, free_memory: int | None = None
) -> str:
    """Why a model's factors cannot be held; empty where they can.

    Args:
        linears: name -> layer, block by block.
        in_a_block: layers of a block.
        device: where they are fitted.
        free_memory: bytes of this host's memory that may be counted on; None asks the system.
    """
    fitting, kept_bytes = bytes_needed(linears, in_a_block)
    on_host = 2 * (free_host_memory() if free_memory is None else free_memory) // 3
    on_device = on_host - kept_bytes
    if device.type == "cuda":
        on_device = 2 * torch.cuda.mem_get_info(device)[0] // 3
    if kept_bytes > on_host:
        return f"curvature keeps {kept_bytes / 1e9:.1f} GB on the host, where {on_host / 1e9:.1f} GB may be taken"
    if fitting > on_device:
        return f"curvature needs {fitting / 1e9:.1f} GB on {device}, where {on_device / 1e9:.1f} GB may be taken"
    return ""


def with_curvature(
    source: SourceModel,
    linears: dict[str, nn.Linear],
    *,
    windows: Tensor,
    importances: dict[str, Importance],
    run: Run,
) -> dict[str, Importance]:
    """The importances with the layers' curvature, from a sweep over the blocks with three passes over each.

    Args:
        source: the dense model, on its device.
        linears: name -> layer.
        windows: int64 (windows, length); of more than 128 the first ones.
        importances: name -> diagonal importances, where the fit starts.
        run: its compute type is that of the passes; the factors are float32.

    Raises:
        NqEdgeError: NQ-NUMERIC where a loss or a factor is not finite.
    """
    device = source.model.get_output_embeddings().weight.device
    windows = windows[:MOST_WINDOWS]
    split = team().splits(len(windows))
    fits: dict[str, CurvatureFit] = {}
    curved: dict[str, Importance] = {}

    def fit_of(name: str) -> CurvatureFit:
        if name not in fits:
            fits[name] = CurvatureFit(name, linears[name], importances[name], device)
        return fits[name]

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:  # a pass without gradients only brings a stream to the next block
                fit_of(name).watch(module, arguments, output)

        return hook

    def after(_block: int, number: int) -> None:
        for name in list(fits):
            fits[name].close_pass(split)
            if number + 1 == _PASSES:
                curved[name] = replace(importances[name], curvature=fits.pop(name).finish())

    with watched(linears, watch):
        gradient_pass_by_blocks(source, windows, run, passes=_PASSES, after=after)
    return {name: curved[name] for name in linears}


@torch.no_grad()
def input_factors(
    linears: dict[str, nn.Linear], forward: Callable[[Tensor], Tensor], stream: Tensor, at_once: int = 1
) -> dict[str, Metric]:
    """Metrics of R of a block's layers on the compressed stream; layers with one input, as q, k and v, share one.

    Args:
        linears: name -> layer in the block that `forward` calls.
        forward: one forward pass over (windows, length, hidden).
        stream: (windows, length, hidden).
        at_once: windows that go through together.

    Returns:
        Name -> metric, on the layer's device.

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
                with tensor_cores():
                    totals[name].addmm_(x.T, x)
            owners[name] = last[1]

        return hook

    with watched(linears, watch, before=True):
        for part in stream.split(at_once):
            forward(part)
    # Each sum is let go as soon as it is used.
    metrics = {name: metric(shrunk(totals.pop(name), name)) for name in list(totals)}
    return {name: metrics[owners[name]] for name in linears}
