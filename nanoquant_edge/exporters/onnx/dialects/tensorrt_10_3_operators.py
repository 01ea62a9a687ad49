# SPDX-License-Identifier: Apache-2.0
"""What TensorRT 10.3's ONNX parser takes, so that a graph for it can be checked where it is not installed.

Source: the operator support matrix of onnx-tensorrt (docs/operators.md). The list is that of the oldest parser that
documents opset 17 (TensorRT 8.5); parsers keep what they had, and 10.x documents opsets 9 to 20. Only operators of
language models are listed. TensorRT 10.0 added int64 and bfloat16 to the types.
"""

from __future__ import annotations

import onnx_ir as ir

from ....errors import NqEdgeError
from ....formats.graph import DOMAIN

__all__ = ["HIGHEST_OPSET", "OPERATORS", "check_operators"]

#: Highest opset used: ReduceMean takes its axes as an input from 18 on, which old parsers did not read.
HIGHEST_OPSET = 17
_NAMES = """
    Abs Add And Cast Ceil Clip Concat Constant ConstantOfShape Cos CumSum Div Equal Erf Exp Expand Flatten Floor
    Gather GatherElements GatherND Gemm Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max Min Mod Mul Neg
    Not Or Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape ScatterElements
    ScatterND Shape Sigmoid Sign Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Trilu Unsqueeze
    Where
"""
OPERATORS = frozenset(_NAMES.split())


def check_operators(model: ir.Model) -> None:
    """Refuse a graph that the parser would refuse.

    Raises:
        NqEdgeError: NQ-OPERATOR naming the operator or the opset.
    """
    opset = model.opset_imports.get("", 0)
    if opset > HIGHEST_OPSET:
        raise NqEdgeError("NQ-OPERATOR", f"opset {opset} is above {HIGHEST_OPSET}, the highest for TensorRT 10.3.")
    if model.functions:
        raise NqEdgeError("NQ-OPERATOR", "the graph has functions, which TensorRT would take instead of the plugin.")
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN and (node.domain or node.op_type not in OPERATORS):
            raise NqEdgeError(
                "NQ-OPERATOR", f"node {node.name!r}: TensorRT 10.3 has no operator {node.domain}::{node.op_type}."
            )
