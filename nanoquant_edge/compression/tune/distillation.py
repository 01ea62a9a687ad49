# SPDX-License-Identifier: Apache-2.0
"""Scale-only reconstruction of the whole model: KL to the dense model, signs frozen (docs/METHOD.md, section 9).

The dense model is not run: block reconstruction ends with the states that its head is given, and the logits are
recomputed from them, so that nothing of the size of the vocabulary is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.block_call import recorded_arguments
from ..execution.precision import compute_in
from ..execution.vocabulary import Head, distillation_loss
from ..run import Run
from .layers import ScaledCore, SignFactors, replace_module
from .optimizer import Outcome, ParameterGroup, Tuner

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
    masks = [keywords.get("attention_mask") for keywords in recorded_arguments(model, blocks, texts[:1])]
    teacher_on_device = teacher.device.type == device.type
    recompute = packed or _must_recompute(blocks, windows.shape[1] * recipe.kd_batch, device)

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
    with _fixed_masks(blocks, masks), _compressed_layers(model, cores):
        with compute_in(dtype, device):
            placeholder = _mask_placeholder(model, texts[:1])
        with _recomputed(model, blocks, recompute):
            tuner = Tuner(
                [ParameterGroup(scales, recipe.kd_lr, recipe.relative_lr)],
                recipe.kd_batch,
                step_loss,
                weight_decay=_WEIGHT_DECAY if not recipe.relative_lr else 0.0,
                final_fraction=0.0,
                capture=teacher_on_device,
            )
            with contextlib.closing(tuner):
                outcome = tuner.run(len(windows), recipe.kd_epochs, run.seed, run.progress)
    for name, core in cores.items():
        factors[name].scale_out = core.scale_out.detach().float().cpu().clone()
        factors[name].scale_in = core.scale_in.detach().float().cpu().clone()
    return outcome


@contextlib.contextmanager
def _compressed_layers(model: Any, cores: dict[str, ScaledCore]) -> Iterator[None]:
    """The compressed layers in place of the dense ones, which come back in the end."""
    dense = {name: model.get_submodule(name) for name in cores}
    try:
        for name, core in cores.items():
            replace_module(model, name, core)
        yield
    finally:
        for name, layer in dense.items():
            replace_module(model, name, layer)


@contextlib.contextmanager
def _fixed_masks(blocks: nn.ModuleList, masks: list[Any]) -> Iterator[None]:
    """Every block is called with its mask, whatever the model hands it."""

    def with_mask(mask: Any) -> Callable[..., Any]:
        return lambda _module, arguments, keywords: (arguments, {**keywords, "attention_mask": mask})

    handles = [
        block.register_forward_pre_hook(with_mask(mask), with_kwargs=True)
        for block, mask in zip(blocks, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _must_recompute(blocks: nn.ModuleList, tokens: int, device: torch.device) -> bool:
    """Whether the activations of all blocks would take more than a quarter of a GPU's free memory; always on a CPU."""
    if device.type != "cuda":
        return True
    # A block keeps about eight float32 values for each input and output of its linears.
    widths = sum(m.in_features + m.out_features for m in blocks[0].modules() if isinstance(m, nn.Linear))
    needed = 8 * 4 * widths * tokens * len(blocks)
    return needed > torch.cuda.mem_get_info(device)[0] // 4


@contextlib.contextmanager
def _recomputed(model: Any, blocks: nn.ModuleList, wanted: bool) -> Iterator[None]:
    """Blocks that are recomputed in the backward pass where that is wanted; the model in evaluation mode afterwards."""
    try:
        _set_checkpointing(model, wanted)
        # Checkpointing looks at the blocks' own training flag; their children stay in evaluation mode (no dropout).
        for block in blocks:
            block.training = wanted
        yield
    finally:
        _set_checkpointing(model, False)
        model.eval()


def _set_checkpointing(model: Any, wanted: bool) -> None:
    """Switch activation checkpointing, under the name it has in this version of transformers.

    Nothing in the blocks is random, and asking a GPU for its generator's state would end the capture of a graph.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if wanted:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False, "preserve_rng_state": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
