# SPDX-License-Identifier: Apache-2.0
"""The graph of an engine in the target's dialect, and the plan beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ...devices import Fit, ModelSizes, Target, fit_capacity
from ...errors import NqEdgeError
from ...formats.engine import Profile
from ...formats.graph import DOMAIN, LAYOUT_TILES_16X256, MODEL_FILE, block_output
from ...formats.kv_layout import KvLayout
from ...system.progress import Progress
from ..onnx.build import build_model
from ..onnx.dialects.tensorrt_10_3_operators import check_operators
from ..onnx.export import write_model
from ..options import GraphOptions
from ..source import Source
from .options import USUAL_CAPACITY, EngineOptions
from .plan import BuildPlan

__all__ = ["PlannedGraph", "plan_graph"]

#: Addresses that TensorRT gets are multiples of this.
_ALIGNMENT = 256


@dataclass(frozen=True)
class PlannedGraph:
    """A graph that is ready to be written, its plan, and how it fits its targets.

    Attributes:
        model: the graph, its weights on disk still.
        options: its form.
        plan: for the compiler.
        fits: memory needed and available, one a target.
    """

    model: ir.Model
    options: GraphOptions
    plan: BuildPlan
    fits: list[Fit]

    @property
    def code(self) -> int:
        """Bytes of the engine besides its weights, estimated."""
        return ModelSizes.code_of(self.plan.kv.layers)

    def write(self, folder: Path, progress: Progress) -> None:
        """Write model.onnx, its weights and the plan; weights are streamed.

        Args:
            folder: where to.
            progress: told how many of the weights are written.

        Raises:
            NqEdgeError: NQ-NUMERIC when a weight is not finite in the graph's type.
        """
        progress(0.0, "writing the graph")
        write_model(self.model, folder / self.plan.graph, progress)
        self.plan.write(folder)


def plan_graph(source: Source, targets: list[Target], *, dialect: str, options: EngineOptions) -> PlannedGraph:
    """Choose the capacity, build the graph in memory (weights stay on disk), and plan its compilation.

    Args:
        source: the model.
        targets: devices of one flavour.
        dialect: "onnx24" or "trt103".
        options: what the user chose.

    Raises:
        NqEdgeError: NQ-FIT or NQ-OPTION as `fit_capacity`; NQ-OPTION when a target has no bfloat16; NQ-OPERATOR when
            the graph and the source disagree about the number of compressed layers.
    """
    config = source.config
    without = next((target for target in targets if not target.bfloat16), None)
    if options.dtype == "bfloat16" and without is not None:
        raise NqEdgeError(
            "NQ-OPTION", f"{without.name} has no bfloat16.", "Use --dtype float16, or a target from sm_80 on."
        )
    form = GraphOptions(dialect, options.dtype, layout=LAYOUT_TILES_16X256, grouped=options.grouped)

    def sized(capacity: int) -> GraphOptions:
        return replace(form, capacity=capacity, max_length=capacity)

    limit = config.max_positions
    # Position tables grow with the capacity, so a first graph never has more than the usual number unasked.
    first = min(options.capacity or USUAL_CAPACITY, limit)
    graph = sized(first)
    model = build_model(config, source.weights, graph)
    sizes = ModelSizes.of(
        config,
        weights=_bytes(model),
        batch=options.batch,
        prefill=min(options.prefill, first),
        positions=min(options.positions, options.prefill, first),
        item=2,
        max_positions=limit,
        in_place=graph.in_place,
    )
    fits = fit_capacity(targets, sizes, wanted=options.capacity, usual=USUAL_CAPACITY)
    capacity = fits[0].capacity
    row = sizes.cache(capacity) // (2 * sizes.layers * sizes.batch)
    if options.batch > 1 and row % _ALIGNMENT:
        raise NqEdgeError(
            "NQ-OPTION",
            f"a sequence's cache of {capacity} slots has {row} bytes a layer; for several sequences TensorRT wants a "
            f"multiple of {_ALIGNMENT}.",
            "Use --batch 1, or a --capacity that is a multiple of 64.",
        )
    if capacity != first:
        graph = sized(capacity)
        model = build_model(config, source.weights, graph)
    debug = _mark_outputs(model, config.num_layers, options.debug_outputs)
    if dialect == "trt103":
        check_operators(model)
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    linears = sum(len(node.outputs) for node in nodes)
    if linears != source.layers:
        raise NqEdgeError("NQ-OPERATOR", f"the graph has {linears} of {source.layers} compressed layers.")
    prefill = min(options.prefill, capacity)
    whole = (capacity, capacity, capacity)
    batch = (1, options.batch, options.batch)
    plan = BuildPlan(
        graph=MODEL_FILE,
        targets=tuple(target.name for target in targets),
        flavour=targets[0].flavour,
        capabilities=tuple(dict.fromkeys(target.compute_capability for target in targets)),
        dialect=dialect,
        precision=options.dtype,
        kv=KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, options.dtype, capacity, graph.in_place),
        # The mask is as wide as the cache at every step, so that a decode step always has the same shapes. Prompts
        # pass one sequence at a time.
        profiles={
            "decode": Profile(0, batch, (1, 1, 1), (1, 1, 1), whole),
            "prefill": Profile(
                1, (1, 1, 1), (1, prefill, prefill), (1, 1, max(1, min(options.positions, prefill))), whole
            ),
        },
        plugin_layers=len(nodes),
        compressed_linears=linears,
        weights=_bytes(model),
        refit=options.refit,
        version_compatible=options.version_compatible,
        embed_plugin=options.embed_plugin,
        optimization_level=options.optimization_level,
        workspace_mb=options.workspace_mb,
        debug_outputs=debug,
    )
    return PlannedGraph(model, graph, plan, fits)


def _bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def _mark_outputs(model: ir.Model, blocks: int, which: str) -> tuple[str, ...]:
    """Make inner values graph outputs; returns their names in order of computation."""
    if not which:
        return ()
    wanted = {block_output(block) for block in range(blocks)}
    marked = []
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in wanted or (which == "layers" and node.domain == DOMAIN):
                model.graph.outputs.append(value)
                marked.append(str(value.name))
    return tuple(marked)
