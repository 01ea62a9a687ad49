# SPDX-License-Identifier: Apache-2.0
"""Tuning all scales of the compressed model from end to end on fresh text, and some signs: KL to the dense model.

Block reconstruction sees one block and its own error, and scale distillation the calibration windows alone. Here every
window of text is new and used once, and the dense model runs beside the compressed one, so that nothing of the size of
the text is stored (after the second stage of EfficientQAT, arXiv 2407.11062, with a divergence in place of labels).

Signs may flip where the recipe says so (`FactorLinear`). Some windows are then held back; block by block the signs from
before come back where that lowers the divergence on them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
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
from .factor_linear import FactorLinear
from .layers import ScaledCore, SignFactors
from .optimizer import Cosine, Outcome, ParameterGroup, Tuner

__all__ = ["Tuned", "tune_end_to_end"]

#: Share of the steps in which the learning rate rises.
_WARM_UP = 0.02
#: Windows that are held back to judge flips on: at most, and of the text.
_HELD_BACK, _HELD_SHARE = 16, 1 / 16


@dataclass
class Tuned(Outcome):
    """Mean divergence over all steps, and what became of the signs.

    Attributes:
        flips: share of all signs that flipped.
        taken_back: blocks whose flips were taken back.
    """

    flips: float = 0.0
    taken_back: int = 0


def tune_end_to_end(
    model: Any, blocks: nn.ModuleList, factors: dict[str, SignFactors], *, windows: Tensor, run: Run
) -> Tuned:
    """Train all scales on windows that are used once each; signs too where the recipe has a learning rate for them.

    Holds the dense model, a dense-sized core a layer (with flips or middle scales both factors, with flips in float32
    with their gradients and moments), and the activations of one batch in the compressed model, with
    every block recomputed in the backward pass unless a GPU has room for all.

    Args:
        model: the dense model on the run's device; unchanged afterwards.
        blocks: its decoder blocks.
        factors: full module name -> hardened factors, which are updated.
        windows: int64 (windows, length), fresh text.
        run: learning rates and batch of its recipe; its seed fixes the order of windows.
    """
    device, dtype, recipe = run.device, run.dtype, run.recipe
    flipping = recipe.end_to_end_sign_lr > 0
    held_back = min(_HELD_BACK, int(len(windows) * _HELD_SHARE)) if flipping else 0
    model.requires_grad_(False)
    teacher = copy.deepcopy(model, {id(value): value for value in (*model.parameters(), *model.buffers())})
    blocks_name = next(name for name, module in model.named_modules() if module is blocks)
    cores = _layers(factors, run)
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

    def divergence_held_back() -> float:
        parts = torch.arange(len(windows) - held_back, len(windows), device=device).split(recipe.end_to_end_batch)
        with torch.no_grad():
            found = [
                distillation_loss(states_of(model, texts[part]), states_of(teacher, texts[part]), head, backward=False)
                * len(part)
                for part in parts
            ]
        return float(torch.stack(found).sum()) / held_back

    with contextlib.ExitStack() as stack:
        stack.enter_context(fixed_masks(blocks, masks))
        stack.enter_context(fixed_masks(teacher.get_submodule(blocks_name), masks))
        with compute_in(dtype, device):
            placeholder = mask_placeholder(model, texts[:1])
        stack.enter_context(compressed_layers(model, cores))
        stack.enter_context(recomputed(model, blocks, recompute))
        tuner = Tuner(_groups(cores, run), recipe.end_to_end_batch, step_loss, decay=Cosine(0.0, _WARM_UP))
        with contextlib.closing(tuner):
            outcome = Tuned(**vars(tuner.run(len(windows) - held_back, 1, run.seed, run.progress)))
        if held_back:
            outcome.taken_back = _take_back(cores, factors, blocks_name, divergence_held_back)
    signs = flips = 0
    for name, core in cores.items():
        if isinstance(core, FactorLinear):
            flips += core.flipped(factors[name])
            signs += sum(latent.numel() for latent in core.latents)
            factors[name] = core.harden()
        else:
            factors[name].scale_out = core.scale_out.detach().float().cpu().clone()
            factors[name].scale_in = core.scale_in.detach().float().cpu().clone()
    outcome.flips = flips / max(1, signs)
    return outcome


def _layers(factors: dict[str, SignFactors], run: Run) -> dict[str, Any]:
    """The compressed layers in the form that what is trained of them needs."""
    recipe = run.recipe
    if recipe.end_to_end_sign_lr or recipe.end_to_end_mid:
        return {name: FactorLinear(value, run.device, recipe.end_to_end_mid) for name, value in factors.items()}
    return {name: ScaledCore(value, run.device, run.dtype) for name, value in factors.items()}


def _groups(cores: dict[str, Any], run: Run) -> list[ParameterGroup]:
    """What is trained, at which rate."""
    recipe = run.recipe
    named = ("scale_out", "scale_in", "scale_mid")
    scales: list[Tensor] = [
        scale for core in cores.values() for scale in (getattr(core, name, None) for name in named) if scale is not None
    ]
    groups = [ParameterGroup(scales, recipe.end_to_end_lr, relative=True)]
    if recipe.end_to_end_sign_lr:
        latents = [latent for core in cores.values() for latent in core.latents]
        groups.append(ParameterGroup(latents, recipe.end_to_end_sign_lr))
    return groups


def _take_back(
    cores: dict[str, FactorLinear], before: dict[str, SignFactors], blocks: str, divergence: Callable[[], float]
) -> int:
    """Give each block its signs from before where that lowers the divergence on held-back text; how many it was."""
    by_block: dict[str, list[str]] = {}
    for name in cores:
        by_block.setdefault(name.removeprefix(f"{blocks}.").partition(".")[0], []).append(name)
    least, count = divergence(), 0
    for names in by_block.values():
        after = {name: [latent.clone() for latent in cores[name].latents] for name in names}
        for name in names:
            cores[name].take_signs(before[name])
        found = divergence()
        if found < least:
            least, count = found, count + 1
            continue
        for name, kept in after.items():
            torch._foreach_copy_([latent.detach() for latent in cores[name].latents], kept)
    return count
