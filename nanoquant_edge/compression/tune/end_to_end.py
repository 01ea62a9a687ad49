# SPDX-License-Identifier: Apache-2.0
"""Tuning all scales of the compressed model from end to end on fresh text: signs frozen, KL to the dense model.

Block reconstruction sees one block and its own error, and scale distillation the calibration windows alone. Here every
window of text is new and used once, and the dense model runs beside the compressed one, so that nothing of the size of
the text is stored (after the second stage of EfficientQAT, arXiv 2407.11062, with a divergence in place of labels).
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.precision import compute_in
from ..execution.vocabulary import Head, distillation_loss
from ..run import Run
from .compressed_model import (
    compressed_layers,
    fixed_masks,
    mask_placeholder,
    must_recompute,
    recomputed,
    recorded_masks,
)
from .layers import ScaledCore, SignFactors
from .optimizer import Cosine, Outcome, ParameterGroup, Tuner

__all__ = ["tune_end_to_end"]

#: Share of the steps in which the learning rate rises.
_WARM_UP = 0.02


def tune_end_to_end(
    model: Any, blocks: nn.ModuleList, factors: dict[str, SignFactors], *, windows: Tensor, run: Run
) -> Outcome:
    """Train all scales on windows that are used once each.

    Holds the dense model, a dense-sized core a layer, and the activations of one batch in the compressed model, with
    every block recomputed in the backward pass unless a GPU has room for all.

    Args:
        model: the dense model on the run's device; unchanged afterwards.
        blocks: its decoder blocks.
        factors: full module name -> hardened factors; their scales are updated.
        windows: int64 (windows, length), fresh text.
        run: learning rate and batch of its recipe; its seed fixes the order of windows.

    Returns:
        The mean divergence over all steps.
    """
    device, dtype, recipe = run.device, run.dtype, run.recipe
    model.requires_grad_(False)
    teacher = copy.deepcopy(model, {id(value): value for value in (*model.parameters(), *model.buffers())})
    blocks_name = next(name for name, module in model.named_modules() if module is blocks)
    cores = {name: ScaledCore(value, device, dtype) for name, value in factors.items()}
    head = Head.of(model, dtype)
    texts = windows.to(device)
    masks = recorded_masks(model, blocks, texts[:1])
    recompute = must_recompute(blocks, windows.shape[1] * recipe.end_to_end_batch, device)

    def states_of(network: Any, ids: Tensor) -> Tensor:
        with compute_in(dtype, device):
            output = network.base_model(input_ids=ids, attention_mask=placeholder, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states.flatten(0, 1).to(dtype)

    def step_loss(chosen: Tensor) -> Tensor:
        ids = texts[chosen]
        with torch.no_grad():
            wanted = states_of(teacher, ids)
        return distillation_loss(states_of(model, ids), wanted, head, backward=True)

    scales: list[Tensor] = [scale for core in cores.values() for scale in (core.scale_out, core.scale_in)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(fixed_masks(blocks, masks))
        stack.enter_context(fixed_masks(teacher.get_submodule(blocks_name), masks))
        with compute_in(dtype, device):
            placeholder = mask_placeholder(model, texts[:1])
        stack.enter_context(compressed_layers(model, cores))
        stack.enter_context(recomputed(model, blocks, recompute))
        group = ParameterGroup(scales, recipe.end_to_end_lr, relative=True)
        tuner = Tuner([group], recipe.end_to_end_batch, step_loss, decay=Cosine(0.0, _WARM_UP))
        with contextlib.closing(tuner):
            outcome = tuner.run(len(windows), 1, run.seed, run.progress)
    for name, core in cores.items():
        factors[name].scale_out = core.scale_out.detach().float().cpu().clone()
        factors[name].scale_in = core.scale_in.detach().float().cpu().clone()
    return outcome
