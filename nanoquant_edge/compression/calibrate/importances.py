# SPDX-License-Identifier: Apache-2.0
"""Channel importances: clipped second moments of inputs and output gradients (docs/METHOD.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.hooks import watched
from ..execution.parallel import Team, team
from ..factorize.metric import Metric
from ..run import Run
from .gradients import gradient_pass

__all__ = [
    "GRADIENT_UNIT",
    "MOST_WINDOWS",
    "Importance",
    "Moment",
    "collect_importances",
    "input_moments",
    "shrink",
]

#: Gradients are squared in these units, which also set the size of the latents and so what one step of the latent
#: optimizer means (docs/METHOD.md, section 5.4).
GRADIENT_UNIT = 1e6
#: Statistics of the dense model are collected on so many windows at most: those of the paper.
MOST_WINDOWS = 128
#: The official hook sees the inputs of each window twice, as activation checkpointing repeats the forward pass. That
#: too sets the size of the latents; docs/figures/fidelity.json has the official checkpoint's.
_INPUT_UNIT = 2.0
#: The official windows are 2048 tokens and the loss is a mean over them; other lengths are brought to that unit.
_REFERENCE_LENGTH = 2048


@dataclass
class Importance:
    """Second moments of one linear layer, float32 on the CPU.

    Attributes:
        inputs: (in_features,), twice the mean of x^2.
        outputs: (out_features,), 1e6 times the mean of the squared output gradient.
        curvature: the metric of the outputs' dense factor (`curvature`), where the recipe has it.
    """

    inputs: Tensor
    outputs: Tensor
    curvature: Metric | None = None


def shrink(importance: Tensor, gamma: float) -> Tensor:
    """Move second moments toward their mean: (1 - gamma) a + gamma mean(a). The mean is kept."""
    return (1 - gamma) * importance + gamma * importance.mean()


class Moment:
    """Running clipped second moment of one stream of token vectors, on the device of what is added."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.clip: Tensor | None = None

    def add(self, z: Tensor) -> None:
        """Add windows in order, (windows, tokens, channels). Nothing is read back, so a GPU is never waited for."""
        z = z.float()
        norms = z.norm(dim=2)
        count = max(1, int(0.001 * z.shape[1]))
        clips = norms.topk(count, dim=1).values[:, -1].cummax(0).values
        if self.clip is not None:
            clips = torch.maximum(clips, self.clip)
        shrinkage = (clips[:, None] / (norms + 1e-8)).clamp_max(1.0)
        moments = (z * shrinkage[:, :, None]).square().mean(1)
        # What was clipped at an old level is rescaled as if it had been clipped at the new one.
        total = (moments * _grown(clips, clips[-1])[:, None]).sum(0)
        if self.total is not None and self.clip is not None:
            total += self.total * _grown(self.clip, clips[-1])
        self.total, self.clip = total, clips[-1]

    def combine(self, processes: Team) -> None:
        """Join what several processes saw of the same stream, each rescaled to the largest clip of all."""
        if processes.size > 1 and self.total is not None and self.clip is not None:
            clip = processes.largest(self.clip)
            self.total = self.total * _grown(self.clip, clip)
            processes.add([self.total])
            self.clip = clip

    def shrunk(self, windows: int, channels: int, gamma: float, unit: float = _INPUT_UNIT) -> Tensor:
        """Mean over windows times `unit`, shrunk, float32 on the CPU; ones when only zeros, or nothing, was seen."""
        mean = torch.zeros(channels) if self.total is None else self.total.cpu() / windows
        # A layer that only ever saw zeros counts every channel equally (docs/METHOD.md, section 4).
        return shrink(mean * unit if bool((mean > 0).any()) else torch.ones_like(mean), gamma)


def _grown(old: Tensor, new: Tensor) -> Tensor:
    """By what a moment grows when its clip does."""
    return torch.where(old > 0, new / old, torch.ones_like(old)).square()


def input_moments(
    linears: dict[str, nn.Linear], forward: Callable[[Tensor], Tensor], stream: Tensor, at_once: int = 1
) -> dict[str, Moment]:
    """Clipped second moments of the inputs of a block's linears on a stream.

    Args:
        linears: name -> layer in the block that `forward` calls.
        forward: one forward pass over (windows, length, hidden).
        stream: (windows, length, hidden).
        at_once: windows that go through together.
    """
    moments = {name: Moment() for name in linears}
    length = stream.shape[1]

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, arguments: moments[name].add(_by_window(arguments[0].detach(), length))

    with torch.no_grad(), watched(linears, watch, before=True):
        for part in stream.split(at_once):
            forward(part)
    return moments


def _by_window(z: Tensor, length: int) -> Tensor:
    """(windows, length, channels) of what a layer was given, which some families flatten."""
    return z.reshape(-1, length, z.shape[-1])


def collect_importances(
    model: Any,
    linears: dict[str, nn.Linear],
    windows: Tensor,
    run: Run,
    *,
    passes: Callable[[Tensor, Run], None] | None = None,
) -> dict[str, Importance]:
    """One forward and backward pass of the dense model over the calibration windows.

    Args:
        model: transformers causal language model.
        linears: name -> layer, the layers to observe.
        windows: int64 (windows, length); of more than 128 the first ones.
        run: with its recipe's shrinkage, and the compute type of the two passes; the statistics are float32.
        passes: both passes over the windows; None is `gradient_pass` of the model.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    inputs = {name: Moment() for name in linears}
    outputs = {name: Moment() for name in linears}
    windows = windows[:MOST_WINDOWS]
    length = windows.shape[1]
    # The k-th gradient of a mean over T tokens shrinks as 1/T.
    unit = GRADIENT_UNIT * length / _REFERENCE_LENGTH

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:  # a pass without gradients only brings a stream to the next block
                inputs[name].add(_by_window(arguments[0].detach(), length))
                output.register_hook(lambda gradient: outputs[name].add(_by_window(gradient, length) * unit))

        return hook

    with watched(linears, watch):
        gradient_pass(model, windows, run) if passes is None else passes(windows, run)
    gamma, importances = run.recipe.gamma, {}
    for name, layer in linears.items():
        if team().splits(len(windows)):
            inputs[name].combine(team())
            outputs[name].combine(team())
        importances[name] = Importance(
            inputs[name].shrunk(len(windows), layer.in_features, gamma),
            outputs[name].shrunk(len(windows), layer.out_features, gamma, 1 / GRADIENT_UNIT),
        )
    return importances
