# SPDX-License-Identifier: Apache-2.0
"""The training loop of TuneFP, TuneLatentSTE and scale distillation: AdamW, cosine, undone where it is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...system.progress import Progress
from ..execution.capture import WARM_UP, captured
from ..execution.parallel import team

__all__ = ["Cosine", "Outcome", "ParameterGroup", "Tuner"]

_BETAS = (0.9, 0.99)
_ADAM_EPS = 1e-6
#: The cosine ends at this fraction of the start (docs/METHOD.md, section 6).
_FINAL_FRACTION = 1e-4
#: A large tensor is handed to a GPU's optimizer in up to so many parts of at least so many values.
_MOST_PARTS, _LEAST_PART = 32, 4096


@dataclass
class ParameterGroup:
    """Tensors trained at one learning rate; with `relative`, the rate is a multiple of each tensor's rms."""

    tensors: Sequence[Tensor]
    lr: float
    relative: bool = False


@dataclass
class Outcome:
    """Mean loss of the first and the last good epoch; `undone` when a later one was not finite and was reverted."""

    first: float
    last: float
    undone: bool = False


@dataclass(frozen=True)
class Cosine:
    """A learning rate that rises in equal steps and falls along half a cosine.

    Attributes:
        final: fraction of the learning rate at which it ends.
        warm_up: share of the steps in which it rises.
    """

    final: float = _FINAL_FRACTION
    warm_up: float = 0.0

    def fractions(self, steps: int) -> list[float]:
        """The fraction of the learning rate that each of some steps has.

        Example:
            >>> [round(fraction, 2) for fraction in Cosine(final=0.0, warm_up=0.5).fractions(4)]
            [0.33, 0.57, 0.5, 0.15]
        """
        found = [self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]
        rising = round(self.warm_up * steps)
        found[:rising] = [fraction * (k + 1) / (rising + 1) for k, fraction in enumerate(found[:rising])]
        return found


class Tuner:
    """A tuning stage that can be run again on new values of the same tensors: its step reads only tables and counters.

    Learning rates and sample order lie in tables on the device, and counters walk through them, so that one step is
    the same sequence of kernels every time and can be captured once (`captured`).

    Args:
        groups: what is trained.
        batch: samples an optimizer step; the last batch of an epoch may be smaller.
        step_loss: takes sample indices, runs forward and backward for the mean loss over them, returns it detached.
            Unless `capture` is off it must touch only tensors that keep their addresses.
        weight_decay: AdamW's.
        decay: how the learning rate rises and falls.
        capture: make CUDA graphs on a CUDA device.
        parts_of: the parts in which the optimizer is given a tensor; they share its memory.

    Example:
        >>> x = torch.zeros(1)
        >>> def step_loss(chosen):
        ...     loss = (x - 3).square().sum()
        ...     loss.backward()
        ...     return loss.detach()
        >>> Tuner([ParameterGroup([x], lr=0.1)], 1, step_loss).run(samples=1, epochs=200, seed=0).last < 0.1
        True
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        batch: int,
        step_loss: Callable[[Tensor], Tensor],
        *,
        weight_decay: float = 0.0,
        decay: Cosine | None = None,
        capture: bool = True,
        parts_of: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:
        self.tensors = [tensor for group in groups for tensor in group.tensors]
        self.batch, self.step_loss, self.decay = batch, step_loss, decay or Cosine()
        # An optimizer launch of a group takes all its tensors; those with rates of their own need their own groups.
        self._groups: list[ParameterGroup] = []
        for group in groups:
            alone = [ParameterGroup([tensor], group.lr, True) for tensor in group.tensors]
            self._groups += alone if group.relative else [group]
        self.device = self.tensors[0].device
        self._good = [tensor.detach().clone() for tensor in self.tensors]
        # One learning rate a group, each a view of this vector, which the step fills.
        self._current = torch.zeros(len(self._groups), device=self.device)
        self._bases = torch.zeros_like(self._current)
        self._parts = [(parts_of or _in_parts)(tensor) for tensor in self.tensors]
        parts = {id(tensor): parts for tensor, parts in zip(self.tensors, self._parts, strict=True)}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [part for tensor in group.tensors for part in parts[id(tensor)]], "lr": rate}
                for group, rate in zip(self._groups, self._current, strict=True)
            ],
            betas=_BETAS,
            eps=_ADAM_EPS,
            weight_decay=weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self._capture = capture
        self._plan: tuple[int, int] | None = None
        self._steps: dict[int, Callable[[], None]] = {}

    def run(self, samples: int, epochs: int, seed: int, progress: Progress | None = None) -> Outcome:
        """Tune for some epochs, each a new permutation of the samples.

        Losses, tensors and optimizer moments are looked at after each epoch. When one is not finite, the tensors go
        back to the last epoch after which all were, and the stage ends (docs/METHOD.md, section 6).
        """
        if epochs == 0:
            return Outcome(math.nan, math.nan)
        progress = progress or Progress()
        for tensor in self.tensors:
            tensor.requires_grad_(True)
        self._begin(samples, epochs, seed)
        sizes = [len(part) for part in torch.arange(samples).split(self.batch)]
        means: list[float] = []
        undone = False
        try:
            for size in sorted(set(sizes)):
                if size not in self._steps:
                    self._steps[size] = self._prepared(size)
            for epoch in range(epochs):
                for number, size in enumerate(sizes):
                    self._steps[size]()
                    progress((epoch * len(sizes) + number + 1) / (epochs * len(sizes)))
                mean = float(self._losses[epoch * len(sizes) : (epoch + 1) * len(sizes)].sum())
                if not (math.isfinite(mean) and self._finite()):
                    undone = True
                    self._restore()
                    break
                means.append(mean)
                self._keep()
            team().take_first([tensor.detach() for tensor in self.tensors])
        finally:
            for tensor in self.tensors:
                tensor.requires_grad_(False)
                tensor.grad = None
        return Outcome(means[0] if means else math.nan, means[-1] if means else math.nan, undone)

    def close(self) -> None:
        """Give up the steps, which hold this object; its memory is free at once instead of at some later collection."""
        self._steps.clear()

    def _begin(self, samples: int, epochs: int, seed: int) -> None:
        """Fill the tables and forget the last run."""
        per_epoch = math.ceil(samples / self.batch)
        steps = epochs * per_epoch
        if self._plan != (samples, epochs):
            self._plan, self._steps = (samples, epochs), {}
            # The tables end a few steps late, so that a warm-up before a capture stays inside them.
            self._order = torch.zeros((epochs * samples + WARM_UP * self.batch), dtype=torch.int64, device=self.device)
            self._fractions = torch.zeros(steps + WARM_UP, device=self.device)
            self._losses = torch.zeros(steps + WARM_UP, device=self.device)
            self._position = torch.zeros(1, dtype=torch.int64, device=self.device)
            self._step = torch.zeros(1, dtype=torch.int64, device=self.device)
        generator = torch.Generator().manual_seed(seed)
        self._order[: epochs * samples] = torch.cat(
            [torch.randperm(samples, generator=generator) for _ in range(epochs)]
        ).to(self.device)
        self._fractions[:steps] = torch.tensor(self.decay.fractions(steps), device=self.device)
        self._samples = samples
        self._rewind()
        self._keep()
        rates = [
            group.lr * (group.tensors[0].detach().float().square().mean().sqrt() if group.relative else 1)
            for group in self._groups
        ]
        self._bases.copy_(torch.stack([torch.as_tensor(rate, device=self.device) for rate in rates]))

    def _rewind(self) -> None:
        """Counters to the start, moments to zero; what is allocated stays where it is."""
        torch._foreach_zero_([self._losses, self._position, self._step, *self._moments()])

    def _prepared(self, size: int) -> Callable[[], None]:
        """The step for batches of one size."""
        offsets = torch.arange(size, device=self.device)

        def step() -> None:
            chosen = self._order[self._position + offsets]
            torch.mul(self._fractions[self._step], self._bases, out=self._current)
            for tensor in self.tensors:
                tensor.grad = None
            processes = team()
            share = processes.share(chosen)
            loss = self.step_loss(share)
            if processes.splits(size):
                # The mean over the batch from the means over its parts.
                gradients = [tensor.grad for tensor in self.tensors if tensor.grad is not None]
                loss = loss * (len(share) / size)
                torch._foreach_mul_(gradients, len(share) / size)
                processes.add([*gradients, loss.reshape(1)])
            self._losses[self._step] = (loss * (size / self._samples)).to(self._losses.dtype)
            for tensor, parts in zip(self.tensors, self._parts, strict=True):
                _share_gradient(tensor, parts)
            self.optimizer.step()
            self._position += size
            self._step += 1

        def restore() -> None:
            self._restore()
            self._rewind()

        return captured(step, self.device, restore) if self._capture and team().size == 1 else step

    @torch.no_grad()
    def _keep(self) -> None:
        torch._foreach_copy_(self._good, [tensor.detach() for tensor in self.tensors])

    @torch.no_grad()
    def _restore(self) -> None:
        torch._foreach_copy_([tensor.detach() for tensor in self.tensors], self._good)

    def _moments(self) -> list[Tensor]:
        """All of the optimizer's state."""
        return [value for state in self.optimizer.state.values() for value in state.values()]

    @torch.no_grad()
    def _finite(self) -> bool:
        largest = torch._foreach_norm([*(tensor.detach() for tensor in self.tensors), *self._moments()], math.inf)
        return bool(torch.isfinite(torch.stack(list(largest))).all())


def _in_parts(tensor: Tensor) -> list[Tensor]:
    """What the optimizer is given for a tensor: itself, or on a GPU a large one in parts that share its memory.

    The optimizer's kernel gives every 65536 values of a tensor to one multiprocessor: latents of a small model keep
    three of 132 busy.
    """
    if tensor.device.type != "cuda" or tensor.numel() < 2 * _LEAST_PART or not tensor.is_contiguous():
        return [tensor]
    size = max(_LEAST_PART, -(-tensor.numel() // _MOST_PARTS))
    return list(tensor.detach().view(-1).split(size))


def _share_gradient(tensor: Tensor, parts: list[Tensor]) -> None:
    """Give the parts of a tensor their parts of its gradient."""
    if parts[0] is tensor:
        return
    gradients = [None] * len(parts) if tensor.grad is None else tensor.grad.reshape(-1).split(parts[0].numel())
    for part, gradient in zip(parts, gradients, strict=True):
        part.grad = gradient
