# SPDX-License-Identifier: Apache-2.0
"""The training loop that TuneFP, TuneLatentSTE and scale distillation share: AdamW, cosine, finite or undone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Outcome", "ParameterGroup", "compute_in", "preferred_dtype", "train"]

_BETAS = (0.9, 0.99)
_ADAM_EPS = 1e-6
#: The cosine ends at this fraction of the start (method section 8.1).
_FINAL_FRACTION = 1e-4


@dataclass
class ParameterGroup:
    """Tensors trained at one learning rate; with `relative`, the rate is a multiple of each tensor's rms."""

    tensors: Sequence[Tensor]
    lr: float
    relative: bool = False


@dataclass
class Outcome:
    """Mean loss of the first and the last epoch; `undone` when a loss was not finite and all changes were reverted."""

    first: float
    last: float
    undone: bool = False


def preferred_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32. Parameters and losses stay float32."""
    if device.type == "cuda":
        return torch.bfloat16
    # Private names, so asked for gently: without them float32 is right, only slower.
    native = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if any(ask is not None and ask() for ask in native) else torch.float32


@contextlib.contextmanager
def compute_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run matrix products in `dtype` inside; a no-op for float32."""
    if dtype == torch.float32:
        yield
    else:
        with torch.autocast(device.type, dtype=dtype):
            yield


def train(
    groups: list[ParameterGroup],
    samples: int,
    batch: int,
    epochs: int,
    seed: int,
    step_loss: Callable[[Tensor], Tensor],
    weight_decay: float = 0.0,
    final_fraction: float = _FINAL_FRACTION,
) -> Outcome:
    """Minimize the mean over samples of a loss.

    Args:
        groups: what is trained.
        samples: number of samples; a new permutation of them is drawn each epoch.
        batch: samples an optimizer step; the last batch of an epoch may be smaller.
        epochs: passes over the samples; 0 does nothing.
        seed: of the permutations.
        step_loss: takes sample indices, runs forward and backward for the mean loss over them, returns it detached.
        weight_decay: AdamW's.
        final_fraction: the cosine ends at this fraction of the learning rate.

    Returns:
        Losses. If any loss was not finite, every tensor has its old value again (method section 13.5).
    """
    tensors = [tensor for group in groups for tensor in group.tensors]
    if epochs == 0 or not tensors:
        return Outcome(math.nan, math.nan)
    for tensor in tensors:
        tensor.requires_grad_(True)
    before = [tensor.detach().clone() for tensor in tensors]
    entries = []
    for group in groups:
        for tensor in group.tensors:
            scale = float(tensor.detach().square().mean().sqrt()) if group.relative else 1.0
            entries.append({"params": [tensor], "lr": group.lr * scale, "initial_lr": group.lr * scale})
    optimizer = torch.optim.AdamW(
        entries, lr=1e-3, betas=_BETAS, eps=_ADAM_EPS, weight_decay=weight_decay, fused=tensors[0].device.type == "cuda"
    )
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(samples / batch)
    means = []
    done = 0
    for _ in range(epochs):
        losses = []
        for chosen in torch.randperm(samples, generator=generator).split(batch):
            rate = final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done / steps))
            for entry in optimizer.param_groups:
                entry["lr"] = entry["initial_lr"] * rate
            optimizer.zero_grad(set_to_none=True)
            losses.append(step_loss(chosen) * (len(chosen) / samples))
            optimizer.step()
            done += 1
        means.append(torch.stack(losses).sum())
    values = [float(mean) for mean in means]
    finite = all(map(math.isfinite, values)) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    if not finite:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
    for tensor in tensors:
        tensor.requires_grad_(False)
        tensor.grad = None
    return Outcome(values[0], values[-1], undone=not finite)
