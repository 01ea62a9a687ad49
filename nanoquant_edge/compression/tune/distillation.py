# SPDX-License-Identifier: Apache-2.0
"""Scale-only reconstruction of the whole model: KL to the dense model, signs frozen (docs/METHOD.md, section 9).

The dense model is not run: block reconstruction ends with the states that its head is given, and the logits are
recomputed from them, so that nothing of the size of the vocabulary is stored.
"""

from __future__ import annotations

import contextlib
from typing import Any

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

__all__ = ["distill_scales"]

#: The official code leaves AdamW's default on in this stage; negligible at its learning rate.
_WEIGHT_DECAY = 0.01


def distill_scales(
    model: Any,
    blocks: nn.ModuleList,
    factors: dict[str, SignFactors],
    *,
    windows: Tensor,
    teacher: Tensor,
    run: Run,
    packed: bool = False,
) -> Outcome:
    """Train all scale vectors so that the compressed model's logits approach the dense model's.

    The compressed layers take the dense ones' places for as long as this lasts; embeddings, norms and head are shared.
    Holds the model, one dense-sized core a layer, the teacher's states, and the activations of one batch, with every
    block recomputed in the backward pass unless a GPU has room for all.

    Args:
        model: the dense model on the run's device; unchanged afterwards. The layers to compress need no weights.
        blocks: its decoder blocks.
        factors: full module name -> hardened factors; their scales are updated.
        windows: int64 (windows, length).
        teacher: (windows, length, hidden), what the dense model's head is given, in the compute type. Where it lies on
            another device than the run's each step fetches its windows from there, which a CUDA graph could not do:
            the steps are then launched one by one.
        run: epochs, learning rate and batch of its recipe; its seed fixes the order of samples.
        packed: hold a bit a sign and make the cores of one block at a time, in the forward pass and once more in the
            backward pass.
    """
    recipe, device, dtype = run.recipe, run.device, run.dtype
    if recipe.kd_epochs == 0:
        return Outcome(float("nan"), float("nan"))
    model.requires_grad_(False)
    cores = {name: ScaledCore(value, device, dtype, packed) for name, value in factors.items()}
    head = Head.of(model, dtype)
    texts = windows.to(device)
    masks = recorded_masks(model, blocks, texts[:1])
    teacher_on_device = teacher.device.type == device.type
    recompute = packed or must_recompute(blocks, windows.shape[1] * recipe.kd_batch, device)

    def states_of(ids: Tensor) -> Tensor:
        with compute_in(dtype, device):
            states: Tensor = model.base_model(
                input_ids=ids, attention_mask=placeholder, use_cache=False
            ).last_hidden_state
        return states.flatten(0, 1)

    def step_loss(chosen: Tensor) -> Tensor:
        ids = texts[chosen]
        wanted = teacher[chosen] if teacher_on_device else teacher[chosen.to(teacher.device)].to(device)
        return distillation_loss(states_of(ids).to(dtype), wanted.flatten(0, 1), head, backward=True)

    scales: list[Tensor] = [scale for core in cores.values() for scale in (core.scale_out, core.scale_in)]
    with fixed_masks(blocks, masks), compressed_layers(model, cores):
        with compute_in(dtype, device):
            placeholder = mask_placeholder(model, texts[:1])
        with recomputed(model, blocks, recompute):
            tuner = Tuner(
                [ParameterGroup(scales, recipe.kd_lr, recipe.relative_lr)],
                recipe.kd_batch,
                step_loss,
                weight_decay=_WEIGHT_DECAY if not recipe.relative_lr else 0.0,
                decay=Cosine(0.0),
                capture=teacher_on_device,
            )
            with contextlib.closing(tuner):
                outcome = tuner.run(len(windows), recipe.kd_epochs, run.seed, run.progress)
    for name, core in cores.items():
        factors[name].scale_out = core.scale_out.detach().float().cpu().clone()
        factors[name].scale_in = core.scale_in.detach().float().cpu().clone()
    return outcome
