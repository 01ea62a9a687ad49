# SPDX-License-Identifier: Apache-2.0
"""Our own check of this package's nodes: `onnx.checker` lets any node of an unknown domain pass.

Usable on a stranger's file: sizes are compared with the file before anything is read, and external data must lie in
the model's own folder.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.graph import ATTENTION_OP, DOMAIN, LAYOUT_ROWS_LSB_FIRST, OPERATOR_VERSION, OPERATORS
from ...system.files import path_inside
from .attention import check_attention_node
from .linear import check_linear_node
from .table import TABLE_OPS, check_table_node

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["check_file", "check_model"]


def _fail(node: ir.Node, problem: str) -> NqEdgeError:
    return NqEdgeError("NQ-OPERATOR", f"node {node.name!r}: {problem}.")


def check_file(path: str | Path) -> int:
    """Check a model file: ONNX's own rules, then ours for every node of this package's operators.

    Args:
        path: model.onnx, its external data beside it.

    Returns:
        Number of compressed layers; a group counts each of its own.

    Raises:
        NqEdgeError: NQ-OPERATOR naming the node and the rule; NQ-PATH when external data leaves the folder.
    """
    import onnx

    path = Path(path)
    try:
        proto = onnx.load(str(path), load_external_data=False)
        for tensor in proto.graph.initializer:
            _check_external(path.parent, tensor)
        onnx.checker.check_model(str(path))
        return check_model(ir.load(path))
    except NqEdgeError:
        raise
    except Exception as error:  # protobuf, onnx and onnx-ir each raise types of their own
        raise NqEdgeError("NQ-OPERATOR", f"{path} is not a valid ONNX model ({str(error)[:300]}).") from error


def _check_external(folder: Path, tensor: TensorProto) -> None:
    """An initializer's external data lies in the model's folder, inside its file, and has the size of its shape."""
    entry = {item.key: item.value for item in tensor.external_data}
    if not entry:
        return
    file = path_inside(folder, entry.get("location", ""))
    needed = ir.DataType(tensor.data_type).itemsize * math.prod(tensor.dims)
    start, length = int(entry.get("offset", 0)), int(entry.get("length", needed))
    inside = file.is_file() and start >= 0 and start + needed <= file.stat().st_size
    if not inside or any(dim < 0 for dim in tensor.dims) or length != needed:
        raise NqEdgeError("NQ-OPERATOR", f"initializer {tensor.name!r} does not fit its place in {file.name}.")


def check_model(model: ir.Model) -> int:
    """Check every node of this package's operators.

    Returns:
        Number of compressed layers; a group counts each of its own.

    Raises:
        NqEdgeError: NQ-OPERATOR naming the node and the rule that it breaks.
    """
    for function in model.functions.values():
        body = next((node for node in function.all_nodes() if node.domain == DOMAIN), None)
        if body is not None:
            raise _fail(body, f"it is hidden inside the function {function.name}")
    count = 0
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        fail = functools.partial(_fail, node)
        if node.op_type not in OPERATORS:
            raise fail(f"{DOMAIN}::{node.op_type} is not an operator of version {OPERATOR_VERSION}")
        if model.opset_imports.get(DOMAIN) != OPERATOR_VERSION:
            raise fail(f"the model imports {DOMAIN} {model.opset_imports.get(DOMAIN)}, not {OPERATOR_VERSION}")
        if node.op_type in TABLE_OPS:
            check_table_node(node, fail)
        elif node.op_type == ATTENTION_OP:
            check_attention_node(node, fail)
        else:
            layers = check_linear_node(node, fail)
            if layers[0].layout != LAYOUT_ROWS_LSB_FIRST and node.op_identifier() in model.functions:
                raise fail("the file carries a portable body, which reads layout 0 only")
            count += len(layers)
    return count
