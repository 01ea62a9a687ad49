# SPDX-License-Identifier: Apache-2.0
"""The decoder graph as ONNX Runtime GenAI calls it: no choice of positions, logits of the last token only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...formats.graph import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_INDICES

__all__ = ["last_token_logits"]

_INTEGER = ir.DataType.INT64


def last_token_logits(model: ir.Model) -> None:
    """Compute `logits_indices` inside the graph: the last valid column of each row of `input_ids`.

    A prompt may be padded on the right, so the column is min(valid tokens, columns) - 1; in a later step more tokens
    are valid than there are columns. GenAI takes logits [batch, 1, vocabulary] for pruned ones.

    Args:
        model: a graph of `build_model`; changed in place.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    chosen = inputs[LOGITS_INDICES]
    nodes: list[ir.Node] = []

    def constant(name: str, numbers: list[int]) -> ir.Value:
        return _constant(graph, f"last_token.{name}", numbers)

    def add(op_type: str, values: list[ir.Value], name: str, shape: list[int | str], **attributes: int) -> ir.Value:
        output = ir.Value(name=f"last_token.{name}", type=ir.TensorType(_INTEGER), shape=ir.Shape(shape))
        nodes.append(ir.node(op_type, values, attributes, outputs=[output], name=f"last_token.{name}.node"))
        return output

    axis = constant("axis", [1])
    valid = add("ReduceSum", [inputs[ATTENTION_MASK], axis], "valid", ["batch", 1], keepdims=1)
    shape = add("Shape", [inputs[INPUT_IDS]], "shape", [2])
    columns = add("Gather", [shape, axis], "columns", [1])
    shorter = add("Min", [valid, columns], "shorter", ["batch", 1])
    last = add("Sub", [shorter, axis], "index", ["batch", 1])
    for user, index in list(chosen.uses()):
        user.replace_input_with(index, last)
    graph.inputs.remove(chosen)
    for node in reversed(nodes):
        graph.insert_before(graph[0], node)
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    tensor = ir.tensor(np.asarray(numbers, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(_INTEGER), shape=ir.Shape([len(numbers)]), const_value=tensor)
    graph.initializers[name] = value
    return value
