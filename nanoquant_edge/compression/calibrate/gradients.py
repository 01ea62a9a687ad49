# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes of the dense model over the calibration windows, for hooks to watch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NqEdgeError
from ..execution.parallel import team
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, cross_entropy
from ..run import Run

__all__ = ["affordable_windows", "gradient_pass", "refuse_bad_losses"]

#: Losses between two looks at them; each look waits for the GPU.
_LOOK_EVERY = 16
#: Windows that go through a model together at most, and the bytes of a GPU that their activations take at most.
_MOST_AT_ONCE, _MOST_BYTES = 8, 12 << 30


def refuse_bad_losses(losses: list[Tensor], at_once: int = 1) -> None:
    """Raises NQ-NUMERIC, naming the first of `at_once` windows, when a loss of the dense model is not finite."""
    for index, loss in enumerate(torch.stack(losses).tolist()):
        if not math.isfinite(loss):
            seen = f"window {index * at_once}" + (f" or the {at_once - 1} after it" if at_once > 1 else "")
            raise NqEdgeError("NQ-NUMERIC", f"the dense model's loss on {seen} is {loss}.")


def affordable_windows(model: Any, length: int, device: torch.device) -> int:
    """Windows whose activations take a quarter of a GPU's free memory and 12 GiB, eight at most; one on a CPU."""
    if device.type != "cuda":
        return 1
    # What autograd keeps is about a float32 value for each input and output of a linear.
    layers = (module for module in model.base_model.modules() if isinstance(module, nn.Linear))
    window = 4 * length * sum(layer.in_features + layer.out_features for layer in layers)
    return max(1, min(_MOST_AT_ONCE, min(torch.cuda.mem_get_info(device)[0] // 4, _MOST_BYTES) // window))


def gradient_pass(model: Any, windows: Tensor, run: Run, at_once: int | None = None) -> None:
    """A forward and a backward pass of the dense model over this process's share of the windows, for hooks to watch.

    Each window's loss is its own mean, whatever goes through beside it. Holds the activations of the windows that go
    through together and their gradients; the weights stay frozen.

    Args:
        model: transformers causal language model.
        windows: int64 (windows, length).
        run: its compute type is that of both passes.
        at_once: windows that go through together; None asks a GPU's free memory. A small model's pass is a matter of
            launches, which take as long for eight windows as for one.

    Raises:
        NqEdgeError: NQ-NUMERIC when the loss of a window is not finite.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = Head.of(model, run.dtype)
    device = head.weight.device
    at_once = at_once or affordable_windows(model, windows.shape[1], device)
    losses: list[Tensor] = []
    seen = 0
    try:
        model.requires_grad_(False)
        share = team().share(windows)
        for ids in share.to(device).split(at_once):
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            with compute_in(run.dtype, device):
                hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            losses.append(cross_entropy(hidden[:, :-1].to(run.dtype), head, ids[:, 1:], backward=True))
            seen += len(ids)
            if len(losses) % _LOOK_EVERY == 0 or seen == len(share):
                refuse_bad_losses(losses, at_once)
            run.progress(seen / len(share))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
