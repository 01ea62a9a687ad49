# SPDX-License-Identifier: Apache-2.0
"""Scale-only reconstruction of the whole model: KL to the dense model, signs frozen (docs/METHOD.md, section 9).

The dense model is not run: block reconstruction ends with the states that its head is given, and the logits are
recomputed from them, so that nothing of the size of the vocabulary is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.block_call import recorded_arguments
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, distillation_loss
from ..options import Recipe
from .layers import ScaledCore, SignFactors, replace_module
from .optimizer import Outcome, ParameterGroup, train

__all__ = ["distill_scales"]

#: The official code leaves AdamW's default on in this stage; negligible at its learning rate.
_WEIGHT_DECAY = 0.01


def distill_scales(
    model: Any,
    blocks: nn.ModuleList,
    factors: dict[str, SignFactors],
    windows: Tensor,
    teacher: Tensor,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[float], None] = lambda _fraction: None,
    packed: bool = False,
) -> Outcome:
    """Train all scale vectors so that the compressed model's logits approach the dense model's.

    The compressed layers take the dense ones' places for as long as this lasts; embeddings, norms and head are shared.
    Holds the model, one dense-sized core a layer, the teacher's states, and the activations of one batch, with every
    block recomputed in the backward pass unless a GPU has room for all.

    Args:
        model: the dense model on `device`; unchanged afterwards. The layers to compress need no weights.
        blocks: its decoder blocks.
        factors: full module name -> hardened factors; their scales are updated.
        windows: int64 (windows, length).
        teacher: (windows, length, hidden), what the dense model's head is given, in the compute type. On another
            device than `device` each step fetches its windows from there, which a CUDA graph could not do: the steps
            are then launched one by one.
        recipe: epochs, learning rate and batch.
        seed: of the sample order.
        device: where to run.
        dtype: compute type.
        report: called with the fraction done.
        packed: hold a bit a sign and make the cores of one block at a time, in the forward pass and once more in the
            backward pass.
    """
    if recipe.kd_epochs == 0:
        return Outcome(float("nan"), float("nan"))
    model.requires_grad_(False)
    dense = {name: model.get_submodule(name) for name in factors}
    cores = {name: ScaledCore(value, device, dtype, packed) for name, value in factors.items()}
    head = Head.of(model, dtype)
    steps = recipe.kd_epochs * -(-len(windows) // recipe.kd_batch)
    texts = windows.to(device)
    masks = recorded_arguments(model, blocks, texts[:1])
    beside = teacher.device.type == device.type
    recompute = packed or _must_recompute(blocks, windows.shape[1] * recipe.kd_batch, device)

    def swap(layers: dict[str, Any]) -> None:
        for name, layer in layers.items():
            replace_module(model, name, layer)

    def hidden_of(ids: Tensor) -> Tensor:
        with compute_in(dtype, device):
            states: Tensor = model.base_model(
                input_ids=ids, attention_mask=placeholder, use_cache=False
            ).last_hidden_state
        return states.flatten(0, 1)

    def step_loss(chosen: Tensor) -> Tensor:
        ids = texts[chosen]
        wanted = teacher[chosen] if beside else teacher[chosen.to(teacher.device)].to(device)
        return distillation_loss(hidden_of(ids).to(dtype), wanted.flatten(0, 1), head, backward=True)

    handles = [
        block.register_forward_pre_hook(_with_mask(keywords.get("attention_mask")), with_kwargs=True)
        for block, keywords in zip(blocks, masks, strict=True)
    ]
    scales: list[Tensor] = [scale for core in cores.values() for scale in (core.scale_out, core.scale_in)]
    try:
        swap(cores)
        with compute_in(dtype, device):
            placeholder = _mask_placeholder(model, texts[:1])
        _recompute_blocks(model, recompute)
        # Checkpointing looks at the blocks' own training flag; their children stay in evaluation mode (no dropout).
        for block in blocks:
            block.training = recompute
        outcome = train(
            [ParameterGroup(scales, recipe.kd_lr, recipe.relative_lr)],
            len(windows),
            recipe.kd_batch,
            recipe.kd_epochs,
            seed,
            step_loss,
            weight_decay=_WEIGHT_DECAY if not recipe.relative_lr else 0.0,
            final_fraction=0.0,
            after_step=lambda done: report(done / steps),
            capture=beside,
        )
    finally:
        for handle in handles:
            handle.remove()
        swap(dense)
        _recompute_blocks(model, False)
        model.eval()
    for name, core in cores.items():
        factors[name].scale_out = core.scale_out.detach().float().cpu().clone()
        factors[name].scale_in = core.scale_in.detach().float().cpu().clone()
    return outcome


@torch.no_grad()
def _mask_placeholder(model: Any, ids: Tensor) -> Tensor | None:
    """What keeps transformers from making masks, where the blocks are given theirs by hooks; None if it does not work.

    To see whether a mask is needed transformers looks at values, which cannot be done inside a CUDA graph. A mask of
    four dimensions is passed on as it is.
    """
    empty = torch.ones(1, 1, 1, 1, device=ids.device)
    try:
        found, wanted = (
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for mask in (empty, None)
        )
    except (RuntimeError, ValueError, IndexError, TypeError):  # a family that reads positions from its mask (OPT)
        return None
    return empty if torch.equal(found, wanted) else None


def _with_mask(mask: Any) -> Callable[..., Any]:
    """Call a block with this mask, whatever the model hands it."""
    return lambda _module, arguments, keywords: (arguments, {**keywords, "attention_mask": mask})


def _must_recompute(blocks: nn.ModuleList, tokens: int, device: torch.device) -> bool:
    """Whether the activations of all blocks would take more than a quarter of a GPU's free memory; always on a CPU."""
    if device.type != "cuda":
        return True
    # A block keeps about eight float32 values for each input and output of its linears.
    widths = sum(m.in_features + m.out_features for m in blocks[0].modules() if isinstance(m, nn.Linear))
    needed = 8 * 4 * widths * tokens * len(blocks)
    return needed > torch.cuda.mem_get_info(device)[0] // 4


def _recompute_blocks(model: Any, wanted: bool) -> None:
    """Switch activation checkpointing, under the name it has in this version of transformers.

    Nothing in the blocks is random, and asking a GPU for its generator's state would end the capture of a graph.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if wanted:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False, "preserve_rng_state": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
