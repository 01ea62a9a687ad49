# SPDX-License-Identifier: Apache-2.0
"""The operator's body as a model-local function of standard operators, for runtimes without the kernel library.

Slow and large: every call unpacks both sign matrices of its layer to float32, 4 bytes a weight in each of a few
intermediates. A session that runs it should switch ONNX Runtime's ConstantFolding off: where all shapes are fixed,
folding unpacks every layer at load, and they stay so (32 times the packed size). A registered kernel wins over the
function. TensorRT's parser prefers the function to a plugin, so it is stripped before a TensorRT build.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...formats.graph import DOMAIN, LINEAR_ATTRIBUTES, LINEAR_INPUTS, LINEAR_OP

__all__ = ["linear_function"]

_WORD_BITS = 32


class _Body:
    """Nodes of a function body; values are untyped there."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        value = ir.Value(name=name)
        self.nodes.append(ir.node(op_type, list(inputs), attributes, outputs=[value], name=name))
        return value

    def constant(self, name: str, numbers: Any, dtype: Any) -> ir.Value:
        return self.op("Constant", [], name, value=ir.tensor(np.asarray(numbers, dtype), name=name))


def linear_function(opset: int) -> ir.Function:
    """The function com.nanoquant::NanoQuantLinear.

    Same seven inputs, attributes and result as the operator (docs/OPERATOR.md), for X of any rank from 1 up. Unused
    scale_mid and bias are ones and zeros that broadcast, so the two flags are not needed.

    Args:
        opset: version of the default domain that the model imports, 18 or later.
    """
    body = _Body()
    inputs = {name: ir.Value(name=name) for name in LINEAR_INPUTS}

    def wide(name: str) -> ir.Value:
        return body.op("Cast", [inputs[name]], f"{name}_float", to=int(ir.DataType.FLOAT))

    scaled = body.op("Mul", [wide("X"), wide("scale_in")], "scaled")
    v = _unpack(body, inputs["v_packed"], "v", scaled)
    inner = body.op("Mul", [body.op("MatMul", [scaled, v], "inner_sum"), wide("scale_mid")], "inner")
    u = _unpack(body, inputs["u_packed"], "u", inner)
    outer = body.op("Mul", [body.op("MatMul", [inner, u], "outer_sum"), wide("scale_out")], "outer")
    shifted = body.op("Add", [outer, wide("bias")], "shifted")
    result = body.op("CastLike", [shifted, inputs["X"]], "Y")
    graph = ir.Graph(
        list(inputs.values()), [result], nodes=body.nodes, opset_imports={"": opset}, name=f"{LINEAR_OP}_body"
    )
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in LINEAR_ATTRIBUTES]
    return ir.Function(DOMAIN, LINEAR_OP, graph=graph, attributes=attributes)


def _unpack(body: _Body, words: ir.Value, name: str, factor: ir.Value) -> ir.Value:
    """int32 words [rows, width] -> float32 signs [columns, rows], the right-hand factor of a product with `factor`.

    The number of columns is read from `factor` at run time, before anything is unpacked. That keeps ONNX Runtime from
    unpacking the weights of all layers before it starts on the first, and, where X has a symbolic dimension, from
    folding them into constants.
    """

    def const(suffix: str, numbers: Any, dtype: Any) -> ir.Value:
        return body.constant(f"{name}_{suffix}", numbers, dtype)

    begin, axis = const("begin", [0], np.int64), const("axis", [1], np.int64)
    shape = body.op("Shape", [factor], f"{name}_shape")
    columns = body.op("Gather", [shape, const("last", [-1], np.int64)], f"{name}_columns")
    padded = body.op("Add", [columns, const("padding", [_WORD_BITS - 1], np.int64)], f"{name}_padded")
    width = body.op("Div", [padded, const("word", [_WORD_BITS], np.int64)], f"{name}_width")
    words = body.op("Slice", [words, begin, width, axis], f"{name}_words")
    # Out-of-range integer casts keep the low bits (ONNX Cast), so the sign bit of a word survives as bit 31.
    unsigned = body.op("Cast", [words], f"{name}_unsigned", to=int(ir.DataType.UINT32))
    column = body.op("Unsqueeze", [unsigned, const("end", [-1], np.int64)], f"{name}_column")
    shifts = const("places", np.arange(_WORD_BITS), np.uint32)
    moved = body.op("BitShift", [column, shifts], f"{name}_moved", direction="RIGHT")
    bits = body.op("BitwiseAnd", [moved, const("one", 1, np.uint32)], f"{name}_bits")
    flat = body.op("Flatten", [bits], f"{name}_flat", axis=1)
    used = body.op("Slice", [flat, begin, columns, axis], f"{name}_used")
    # 0 -> +1, 1 -> -1: float(bit) * -2 + 1.
    real = body.op("Cast", [used], f"{name}_real", to=int(ir.DataType.FLOAT))
    doubled = body.op("Mul", [real, const("minus_two", -2.0, np.float32)], f"{name}_doubled")
    signs = body.op("Add", [doubled, const("plus_one", 1.0, np.float32)], f"{name}_signs")
    return body.op("Transpose", [signs], f"{name}_signs_t", perm=[1, 0])
