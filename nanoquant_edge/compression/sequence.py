# SPDX-License-Identifier: Apache-2.0
"""All blocks in order, the dense and the compressed stream side by side (docs/METHOD.md, section 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..models.loading import SourceModel
from ..system.memory import return_freed_memory
from .calibrate.importances import Importance
from .execution.block_call import BlockCall, final_states, first_inputs, recorded_arguments
from .kept_results import FinishedBlock, keep_block, kept_block
from .run import Run
from .tune.layers import SignFactors
from .tune.reconstruction import BlockResult, reconstruct_block
from .tune.workbench import Workbench

__all__ = ["Reconstructed", "reconstruct_blocks"]

#: Tokens of a block's stream that are computed at one time: on a CPU; at most, and by the widest layer, on a GPU.
_CPU_TOKENS, _GPU_TOKENS, _GPU_VALUES = 4096, 32768, 1 << 26


@dataclass
class Reconstructed:
    """What came out of all blocks.

    Attributes:
        factors: full name -> factors.
        errors: each block's mean weighted error.
        undone: reverted tuning stages.
        states: (windows, length, hidden), what the dense model's head is given, in the compute type.
    """

    factors: dict[str, SignFactors] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    states: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, prefix: str, block: FinishedBlock) -> None:
        """Add the next block, whose layers are called prefix + name."""
        self.factors.update({prefix + name: value for name, value in block.factors.items()})
        self.errors.append(block.error)
        self.undone += [f"{stage} of {prefix}{name}" for stage, name in block.undone]


def _finished(result: BlockResult) -> FinishedBlock:
    undone = []
    for name, outcomes in result.losses.items():
        stages = zip(("TuneFP", "TuneLatentSTE"), outcomes, strict=True)
        undone += [(stage, name) for stage, outcome in stages if outcome.undone]
    undone += [("curvature", name) for name in result.plain]
    undone += [("joint tuning", "all layers")] if result.together.undone else []
    error = round(sum(result.errors.values()) / len(result.errors), 4)
    return FinishedBlock(result.factors, error, undone)


def _windows_at_once(block: nn.Module, length: int, device: torch.device) -> int:
    """Windows of `length` tokens that go through a block together where nothing is trained."""
    widest = max(layer.out_features for layer in block.modules() if isinstance(layer, nn.Linear))
    tokens = min(_GPU_TOKENS, _GPU_VALUES // widest) if device.type == "cuda" else _CPU_TOKENS
    return max(1, tokens // length)


def reconstruct_blocks(
    source: SourceModel,
    windows: Tensor,
    *,
    importances: dict[str, Importance],
    ranks: dict[str, int],
    run: Run,
    reconstruct: Callable[[Workbench, dict[str, int], dict[str, Importance], Run], BlockResult] = reconstruct_block,
) -> Reconstructed:
    """Compress all blocks of a model, except those that the run's state holds already.

    Args:
        source: the dense model, on the run's device; unchanged afterwards.
        windows: int64 (windows, length).
        importances: full layer name -> importances.
        ranks: full layer name -> rank.
        run: its state keeps finished blocks, and its clock the time of each step.
        reconstruct: compresses the block on a workbench.
    """
    model, family, device = source.model, source.family, run.device
    blocks = model.get_submodule(family.blocks)
    arguments = recorded_arguments(model, blocks, windows[:1].to(device))
    at_once = _windows_at_once(blocks[0], windows.shape[1], device)
    dense_stream = torch.cat([first_inputs(model, blocks, ids.to(device)).float() for ids in windows.split(at_once)])
    compressed_stream = dense_stream.clone()
    done = Reconstructed()
    workbenches: list[Workbench] = []
    for index in range(len(blocks)):
        prefix = f"{family.blocks}.{index}."
        call = BlockCall(arguments[index], device, run.dtype)
        block_importances = {name: importances[prefix + name] for name in family.linears}
        block_ranks = {name: ranks[prefix + name] for name in family.linears}
        part = run.part(index / len(blocks), (index + 1) / len(blocks), f"block {index + 1} of {len(blocks)}: ")
        with source.opened(f"{family.blocks}.{index}") as dense:
            targets = call.over(dense, dense_stream, at_once)
            del dense_stream
            workbench = next((old for old in workbenches if old.serves(dense, call)), None)
            if workbench is None:
                workbench = Workbench(dense, family.linears, call, run.recipe, at_once=at_once)
                workbenches = [*workbenches, workbench] if workbench.keep else []
            loss_weights = block_importances[family.last_linear].outputs
            workbench.load(dense, inputs=compressed_stream, targets=targets, loss_weights=loss_weights)
            del dense  # streamed weights are gone from here on
        finished = kept_block(run.state, index, {name: workbench.open[name] for name in block_ranks}, block_ranks)
        if finished is not None:
            part.progress(0.0, "from the interrupted run")
            for name, factors in finished.factors.items():
                workbench.freeze(name, factors)
        else:
            result = reconstruct(workbench, block_ranks, block_importances, part)
            finished = _finished(result)
            keep_block(run.state, index, finished)
            run.clock.add_steps(result.seconds)
            del result
        done.add(prefix, finished)
        compressed_stream = call.over(workbench.block, compressed_stream, at_once)
        dense_stream = targets
        del workbench, targets
        if source.streamed:  # else the C library's heap grows by a block every block or two, most of it free
            return_freed_memory()
    for workbench in workbenches:
        workbench.close()
    done.states = final_states(
        model.get_submodule(family.final_norm), dense_stream, device=device, dtype=run.dtype, at_once=at_once
    )
    return done
