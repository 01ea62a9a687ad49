# SPDX-License-Identifier: Apache-2.0
"""The graph of an engine in the target's dialect, and the plan beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...devices import Fit, ModelSizes, Target, fit_capacity
from ...errors import NqEdgeError
from ...formats.engine import Profile
from ...formats.graph import DOMAIN, MODEL_FILE, block_output
from ...formats.kv_layout import KvLayout
from ..onnx.build import build_model
from ..onnx.dialects.base import dialect_named
from ..onnx.dialects.tensorrt_10_3_operators import check_operators
from ..onnx.export import write_model
from ..onnx.operator import LAYOUT_TILES_16X256
from .options import USUAL_CAPACITY, EngineOptions
from .plan import BuildPlan
from .source import Source

__all__ = ["PlannedGraph", "plan_graph"]

#: Addresses that TensorRT gets are multiples of this.
_ALIGNMENT = 256


class PlannedGraph:
    """A graph that is ready to be written, its plan, and how it fits its targets.

    Attributes:
        plan: for the compiler.
        fits: memory needed and available, one a target.
    """

    def __init__(self, model: ir.Model, plan: BuildPlan, fits: list[Fit]) -> None:
        self._model = model
        self.plan, self.fits = plan, fits

    @property
    def code(self) -> int:
        """Bytes of the engine besides its weights, estimated."""
        return ModelSizes.code_of(self.plan.kv.layers)

    def write(self, folder: Path) -> None:
        """Write model.onnx, its weights and the plan; weights are streamed.

        Raises:
            NqEdgeError: NQ-NUMERIC when a weight is not finite in the graph's type.
        """
        write_model(self._model, folder / self.plan.graph)
        self.plan.write(folder)


def plan_graph(source: Source, targets: list[Target], dialect: str, options: EngineOptions) -> PlannedGraph:
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
    old = next((target for target in targets if not target.bfloat16), None)
    if options.dtype == "bfloat16" and old is not None:
        raise NqEdgeError(
            "NQ-OPTION", f"{old.name} has no bfloat16.", "Use --dtype float16, or a target from sm_80 on."
        )
    in_place = dialect_named(dialect).in_place

    def build(capacity: int) -> ir.Model:
        return build_model(
            config,
            source.weights,
            dialect,
            options.dtype,
            max_length=capacity,
            capacity=capacity,
            layout=LAYOUT_TILES_16X256,
            grouped=options.grouped,
        )

    limit = config.max_positions
    # Position tables grow with the capacity, so a first graph never has more than the usual number unasked.
    first = min(options.capacity or USUAL_CAPACITY, limit)
    model = build(first)
    sizes = ModelSizes.of(
        config,
        weights=_bytes(model),
        batch=options.batch,
        prefill=min(options.prefill, first),
        positions=min(options.positions, options.prefill, first),
        item=2,
        max_positions=limit,
        in_place=in_place,
    )
    fits = fit_capacity(targets, sizes, options.capacity, USUAL_CAPACITY)
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
        model = build(capacity)
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
        kv=KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, options.dtype, capacity, in_place),
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
    return PlannedGraph(model, plan, fits)


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
