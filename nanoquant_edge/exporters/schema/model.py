# SPDX-License-Identifier: Apache-2.0
"""Our own check of this package's nodes: `onnx.checker` lets any node of an unknown domain pass.

Usable on a stranger's file: sizes are compared with the file before anything is read, and external data must lie in
the model's own folder.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.graph import (
    ATTENTION_OP,
    DATA_FILE,
    DOMAIN,
    HALF_CACHE_OP,
    LAYOUT_ROWS_LSB_FIRST,
    OPERATOR_VERSION,
    OPERATORS,
)
from ...formats.graph_check import check_graph
from ...formats.onnx_file import MAX_MODEL_BYTES, rename_data
from ...system.files import path_inside
from .attention import check_attention_node
from .linear import check_linear_node
from .table import TABLE_OPS, check_table_node

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

__all__ = ["check_file", "check_model", "load_model"]


def _fail(node: ir.Node, problem: str) -> NqEdgeError:
    return NqEdgeError("NQ-OPERATOR", f"node {node.name!r}: {problem}.")


def check_file(path: str | Path) -> int:
    """Check a model file: what it may hold at all, ONNX's own rules, then ours for every node of our operators.

    Args:
        path: model.onnx, its external data beside it.

    Returns:
        Number of compressed layers; a group counts each of its own.

    Raises:
        NqEdgeError: NQ-OPERATOR naming the node and the rule; NQ-PATH when external data leaves the folder, NQ-BUNDLE
            when it lies in another file than `model.onnx.data` or the file is no model.
    """
    with _refusing(path):
        return check_model(load_model(path))


@contextlib.contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Turns what protobuf, onnx and onnx-ir raise, each of types of their own, into this package's error."""
    try:
        yield
    except NqEdgeError:
        raise
    except Exception as error:
        raise NqEdgeError("NQ-OPERATOR", f"{path} is not a valid ONNX model ({str(error)[:300]}).") from error


def load_model(path: str | Path) -> ir.Model:
    """Read a model file from a stranger; its weights are mapped from the file beside it when they are asked for.

    Raises:
        NqEdgeError: as `check_file`, but for the rules of our operators.
    """
    import onnx

    path = Path(path)
    with _refusing(path):
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise NqEdgeError("NQ-OPERATOR", f"{path} is too large for a graph without its weights.")
        content = path.read_bytes()
        check_graph(content)
        data = path_inside(path.parent, DATA_FILE)
        proto = onnx.load_from_string(rename_data(content, {DATA_FILE: data.name}))
        for tensor in proto.graph.initializer:
            _check_external(data, tensor)
        onnx.checker.check_model(_weights_as_inputs(proto))
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, data.parent)
        return model


def _check_external(data: Path, tensor: TensorProto) -> None:
    """An initializer's external data lies inside its file, and has the size of its shape."""
    entry = {item.key: item.value for item in tensor.external_data}
    if not entry:
        return
    needed = ir.DataType(tensor.data_type).itemsize * math.prod(tensor.dims)
    start, length = int(entry.get("offset", 0)), int(entry.get("length", needed))
    inside = (
        entry.get("location") == data.name and data.is_file() and start >= 0 and start + needed <= data.stat().st_size
    )
    if not inside or any(dim < 0 for dim in tensor.dims) or length != needed:
        raise NqEdgeError("NQ-OPERATOR", f"initializer {tensor.name!r} does not fit its place in {DATA_FILE}.")


def _weights_as_inputs(proto: ModelProto) -> ModelProto:
    """A copy for ONNX's checker, which would look for the weights and follow no links of the Hugging Face cache."""
    from onnx.helper import make_tensor_value_info

    copy = type(proto)()
    copy.CopyFrom(proto)
    del copy.graph.initializer[:]
    for tensor in proto.graph.initializer:
        if tensor.external_data:
            copy.graph.input.append(make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            copy.graph.initializer.append(tensor)
    return copy


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
        elif node.op_type in (ATTENTION_OP, HALF_CACHE_OP):
            check_attention_node(node, fail)
        else:
            layers = check_linear_node(node, fail)
            if layers[0].layout != LAYOUT_ROWS_LSB_FIRST and node.op_identifier() in model.functions:
                raise fail("the file carries a portable body, which reads layout 0 only")
            count += len(layers)
    return count
