# SPDX-License-Identifier: Apache-2.0
"""All blocks in order, the dense and the compressed stream side by side (docs/METHOD.md, section 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.loading import SourceModel
from ..system.memory import return_freed_memory
from .calibrate.importances import Importance
from .execution.block_call import BlockCall, final_states, first_inputs, recorded_arguments
from .options import Recipe
from .resume import FinishedBlock, RunState
from .tune.layers import SignFactors
from .tune.workbench import BlockResult, Workbench, reconstruct_block

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
        seconds: time by stage.
        states: (windows, length, hidden), what the dense model's head is given, in the compute type.
    """

    factors: dict[str, SignFactors] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
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
    error = round(sum(result.errors.values()) / len(result.errors), 4)
    return FinishedBlock(result.factors, error, undone)


def reconstruct_blocks(
    source: SourceModel,
    windows: Tensor,
    importances: dict[str, Importance],
    ranks: dict[str, int],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    state: RunState,
    report: Callable[[float, str], None],
) -> Reconstructed:
    """Compress all blocks of a model, except those that the state holds already.

    Args:
        source: the dense model, on `device`; unchanged afterwards.
        windows: int64 (windows, length).
        importances: full layer name -> importances.
        ranks: full layer name -> rank.
        recipe: schedules and learning rates.
        seed: reset before every stage.
        device: where to run.
        dtype: compute type.
        state: where finished blocks are kept, and read from.
        report: called with the fraction done and what is being done.
    """
    model, family = source.model, source.family
    blocks = model.get_submodule(family.blocks)
    arguments = recorded_arguments(model, blocks, windows[:1].to(device))
    widest = max(layer.out_features for layer in blocks[0].modules() if isinstance(layer, torch.nn.Linear))
    tokens = min(_GPU_TOKENS, _GPU_VALUES // widest) if device.type == "cuda" else _CPU_TOKENS
    batch = max(1, tokens // windows.shape[1])
    dense_stream = torch.cat([first_inputs(model, blocks, part.to(device)).float() for part in windows.split(batch)])
    compressed_stream = dense_stream.clone()
    done = Reconstructed()
    benches: list[Workbench] = []
    for index in range(len(blocks)):
        prefix = f"{family.blocks}.{index}."
        call = BlockCall(arguments[index], device, dtype)
        weights = importances[prefix + family.last_linear].outputs

        def inside(part: float, text: str, block: int = index) -> None:
            report((block + part) / len(blocks), f"block {block + 1} of {len(blocks)}: {text}")

        with source.opened(f"{family.blocks}.{index}") as dense:
            targets = call.over(dense, dense_stream, batch)
            del dense_stream
            bench = next((old for old in benches if old.serves(dense, call)), None)
            if bench is None:
                bench = Workbench(dense, family.linears, call, recipe, at_once=batch)
                benches = [*benches, bench] if bench.keep else []
            bench.load(dense, compressed_stream, targets, weights)
            del dense  # streamed weights end here
        here = {name: ranks[prefix + name] for name in family.linears}
        finished = state.block(index, {name: bench.open[name] for name in here}, here)
        if finished is not None:
            inside(0.0, "from the interrupted run")
            for name, factors in finished.factors.items():
                bench.freeze(name, factors)
        else:
            result = reconstruct_block(
                None,
                family.linears,
                here,
                {name: importances[prefix + name] for name in family.linears},
                weights,
                compressed_stream,
                targets,
                call,
                recipe,
                seed,
                inside,
                bench,
            )
            finished = _finished(result)
            state.keep_block(index, finished)
            for stage, seconds in result.seconds.items():
                done.seconds[stage] = round(done.seconds.get(stage, 0.0) + seconds, 2)
            del result
        done.add(prefix, finished)
        compressed_stream = call.over(bench.block, compressed_stream, batch)
        dense_stream = targets
        del bench, targets
        if source.streamed:  # else the C library's heap grows by a block every block or two, most of it free
            return_freed_memory()
    for bench in benches:
        bench.close()
    done.states = final_states(model.get_submodule(family.final_norm), dense_stream, device, dtype, batch)
    return done
