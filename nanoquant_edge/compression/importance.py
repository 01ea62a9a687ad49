# SPDX-License-Identifier: Apache-2.0
"""Channel importances: second moments of inputs and output gradients, outlier tokens clipped (method section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NqEdgeError
from .optimize import compute_in
from .parallel import team
from .vocabulary import cross_entropy

__all__ = [
    "GRADIENT_UNIT",
    "Importance",
    "Moment",
    "collect_importances",
    "gradient_pass",
    "input_moments",
    "refuse_bad_losses",
    "shrink",
]

#: Gradients are squared in these units, which also set the size of the latents and so what one step of the latent
#: optimizer means (method section 13.1).
GRADIENT_UNIT = 1e6
#: The official windows are 2048 tokens and the loss is a mean over them; other lengths are brought to that unit.
_REFERENCE_LENGTH = 2048
#: Windows between two looks at the losses; each look waits for the GPU.
_LOOK_EVERY = 16


@dataclass
class Importance:
    """Second moments of one linear layer, float32 on the CPU.

    Attributes:
        inputs: (in_features,), mean of x^2.
        outputs: (out_features,), 1e6 times the mean of the squared output gradient.
        curvature: (out_features, out_features), the dense factor of the outputs (`curvature`), where the recipe has it.
    """

    inputs: Tensor
    outputs: Tensor
    curvature: Tensor | None = None


def shrink(importance: Tensor, gamma: float) -> Tensor:
    """Move second moments toward their mean: (1 - gamma) a + gamma mean(a). The mean is kept."""
    return (1 - gamma) * importance + gamma * importance.mean()


class Moment:
    """Running clipped second moment of one stream of token vectors, on the device of what is added."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.clip: Tensor | None = None

    def add(self, z: Tensor) -> None:
        """Add one window, (tokens, channels). Nothing is read back, so a GPU is never waited for."""
        z = z.float()
        norms = z.norm(dim=1)
        count = max(1, int(0.001 * z.shape[0]))
        level = norms.topk(count).values[-1]
        clip = level if self.clip is None else torch.maximum(self.clip, level)
        moment = (z * (clip / (norms + 1e-8)).clamp_max(1.0)[:, None]).square().mean(0)
        if self.total is None or self.clip is None:
            self.total = moment
        else:
            # What was clipped at the old level is rescaled as if it had been clipped at the new one.
            grown = torch.where(self.clip > 0, clip / self.clip, torch.ones_like(clip))
            self.total = self.total * grown.square() + moment
        self.clip = clip

    def combine(self) -> None:
        """Join what several processes saw of the same stream, each rescaled to the largest clip of all."""
        if team().size > 1 and self.total is not None and self.clip is not None:
            clip = team().largest(self.clip)
            self.total = self.total * torch.where(self.clip > 0, clip / self.clip, torch.ones_like(clip)).square()
            team().add([self.total])
            self.clip = clip

    def mean(self, windows: int, channels: int) -> Tensor:
        """Mean over windows, float32 on the CPU; zeros when nothing was seen."""
        return torch.zeros(channels) if self.total is None else self.total.cpu() / windows

    def shrunk(self, windows: int, gamma: float) -> Tensor:
        """Mean over windows, shrunk; ones when only zeros were seen."""
        return shrink(_or_ones(self.mean(windows, 1)), gamma)


def _or_ones(moment: Tensor) -> Tensor:
    """A layer that only ever saw zeros counts every channel equally (method section 13.5)."""
    return moment if bool((moment > 0).any()) else torch.ones_like(moment)


def refuse_bad_losses(losses: list[Tensor]) -> None:
    """Raises NQ-NUMERIC, naming the window, when a loss of the dense model is not finite."""
    for index, loss in enumerate(torch.stack(losses).tolist()):
        if not math.isfinite(loss):
            raise NqEdgeError("NQ-NUMERIC", f"the dense model's loss on window {index} is {loss}.")


def input_moments(
    block: nn.Module, linears: dict[str, nn.Linear], run: Callable[[Tensor], Tensor], stream: Tensor
) -> dict[str, Moment]:
    """Clipped second moments of the inputs of a block's linears on a stream, one window at a time.

    Args:
        block: the block, which `run` calls.
        linears: name -> layer in the block.
        run: one forward pass over (1, length, hidden).
        stream: (windows, length, hidden).
    """
    moments = {name: Moment() for name in linears}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, arguments: moments[name].add(arguments[0].detach().flatten(0, -2))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in linears.items()]
    try:
        with torch.no_grad():
            for window in stream.split(1):
                run(window)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def gradient_pass(
    model: Any,
    windows: Tensor,
    report: Callable[[float], None] = lambda _fraction: None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A forward and a backward pass of the dense model over this process's share of the windows, for hooks to watch.

    Holds the activations of one window and its gradients; the weights stay frozen.

    Args:
        model: transformers causal language model.
        windows: int64 (windows, length).
        report: called with the fraction done.
        dtype: compute type of both passes.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = model.get_output_embeddings().weight.to(dtype)
    cap = getattr(model.config, "final_logit_softcapping", None)
    device = head.device
    losses: list[Tensor] = []
    try:
        model.requires_grad_(False)
        part = team().share(windows)
        for index, window in enumerate(part):
            ids = window[None].to(device)
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            with compute_in(dtype, device):
                hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            losses.append(cross_entropy(hidden[0, :-1].to(dtype), head, ids[0, 1:], backward=True, cap=cap))
            if (index + 1) % _LOOK_EVERY == 0 or index + 1 == len(part):
                refuse_bad_losses(losses)
            report((index + 1) / len(part))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def collect_importances(
    model: Any,
    linears: dict[str, nn.Linear],
    windows: Tensor,
    gamma: float,
    report: Callable[[float], None] = lambda _fraction: None,
    dtype: torch.dtype = torch.float32,
    run: Callable[..., None] | None = None,
) -> dict[str, Importance]:
    """One forward and backward pass of the dense model over the calibration windows.

    Args:
        model: transformers causal language model.
        linears: name -> layer, the layers to observe.
        windows: int64 (windows, length).
        gamma: shrinkage.
        report: called with the fraction done.
        dtype: compute type of the two passes; the statistics are float32.
        run: both passes, called with windows, report and dtype; None is `gradient_pass` of the model.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    inputs = {name: Moment() for name in linears}
    outputs = {name: Moment() for name in linears}
    length = windows.shape[1]
    # The k-th gradient of a mean over T tokens shrinks as 1/T.
    unit = GRADIENT_UNIT * length / _REFERENCE_LENGTH

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:  # a pass without gradients only brings a stream to the next block
                inputs[name].add(arguments[0].detach().flatten(0, -2))
                output.register_hook(lambda gradient: outputs[name].add(gradient.flatten(0, -2) * unit))

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in linears.items()]
    try:
        gradient_pass(model, windows, report, dtype) if run is None else run(windows, report, dtype)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, layer in linears.items():
        if team().splits(len(windows)):
            inputs[name].combine()
            outputs[name].combine()
        gradient = outputs[name].mean(len(windows), layer.out_features) / GRADIENT_UNIT
        moment = inputs[name].mean(len(windows), layer.in_features)
        found[name] = Importance(shrink(_or_ones(moment), gamma), shrink(_or_ones(gradient), gamma))
    return found
