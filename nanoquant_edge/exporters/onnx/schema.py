# SPDX-License-Identifier: Apache-2.0
"""Our own check of this package's nodes: `onnx.checker` lets any node of an unknown domain pass.

Usable on a stranger's file: sizes are compared with the file before anything is read, and external data must lie in
the model's own folder.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.checkpoint import from_tiles, tiles_shape, to_tiles, words_for
from ...formats.graph import ATTENTION_OP, DOMAIN, GROUP_OP, LINEAR_OP, OPERATOR_VERSION
from ...system.files import path_inside
from .attention import check_attention_node
from .operator import (
    ATTRIBUTES,
    GROUP_ATTRIBUTES,
    INPUTS,
    LAYOUT_ROWS_LSB_FIRST,
    LAYOUT_TILES_16X256,
    MAX_GROUP,
)
from .table_schema import TABLE_OPS, check_table_node

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["check_file", "check_model"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = (1 << 31) - 1


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
        if node.op_type in TABLE_OPS and model.opset_imports.get(DOMAIN) == OPERATOR_VERSION:
            check_table_node(node)
            continue
        if node.op_type == ATTENTION_OP and model.opset_imports.get(DOMAIN) == OPERATOR_VERSION:
            check_attention_node(node, functools.partial(_fail, node))
            continue
        if node.op_type not in (LINEAR_OP, GROUP_OP):
            raise _fail(node, f"{DOMAIN}::{node.op_type} is not an operator of version {OPERATOR_VERSION}")
        if model.opset_imports.get(DOMAIN) != OPERATOR_VERSION:
            raise _fail(node, f"the model imports {DOMAIN} {model.opset_imports.get(DOMAIN)}, not {OPERATOR_VERSION}")
        layers = _check_node(node)
        if layers[0].layout != LAYOUT_ROWS_LSB_FIRST and node.op_identifier() in model.functions:
            raise _fail(node, "the file carries a portable body, which reads layout 0 only")
        count += len(layers)
    return count


@dataclass(frozen=True)
class _Layer:
    """The attributes of one layer of a node."""

    in_features: int
    rank: int
    out_features: int
    has_scale_mid: int
    has_bias: int
    layout: int


def _check_node(node: ir.Node) -> list[_Layer]:
    if node.overload:
        raise _fail(node, "it has an overload name")
    layers = _attributes(node)
    each = len(INPUTS) - 1
    if len(node.inputs) != 1 + each * len(layers) or len(node.outputs) != len(layers):
        wanted = f"{1 + each * len(layers)} and {len(layers)}"
        raise _fail(node, f"it has {len(node.inputs)} inputs and {len(node.outputs)} outputs, not {wanted}")
    if any(value is None or not value.name for value in node.inputs):
        raise _fail(node, "an input is omitted")
    x, *rest = [value for value in node.inputs if value is not None]
    if x.dtype not in _FLOATS or x.shape is None:
        raise _fail(node, "X has no floating type or no shape in the file")
    n = layers[0].in_features
    if len(x.shape) < 1 or x.shape[-1] != n:
        raise _fail(node, f"X's last dimension is {x.shape[-1] if len(x.shape) else None}, not in_features {n}")
    kinds = set()
    for place, layer in enumerate(layers):
        y = node.outputs[place]
        if y.dtype != x.dtype or y.shape is None or len(y.shape) != len(x.shape) or y.shape[-1] != layer.out_features:
            raise _fail(node, "Y's type or shape contradicts X and out_features")
        arrays = dict(zip(INPUTS[1:], rest[place * each : (place + 1) * each], strict=True))
        kinds |= _check_layer(node, layer, arrays)
    if len(kinds) != 1 or not kinds <= set(_FLOATS):
        raise _fail(node, "scales and bias are not of one floating type")
    for place, layer in enumerate(layers):
        _check_values(node, dict(zip(INPUTS[1:], rest[place * each : (place + 1) * each], strict=True)), layer)
    return layers


def _check_layer(node: ir.Node, layer: _Layer, arrays: dict[str, ir.Value]) -> set[ir.DataType]:
    """Shapes and types of one layer's weights; returns the types of its scales and bias."""
    n, r, m = layer.in_features, layer.rank, layer.out_features
    expected: dict[str, tuple[int, ...]] = {
        "v_packed": _packed_shape(layer.layout, r, n),
        "u_packed": _packed_shape(layer.layout, m, r),
        "scale_in": (n,),
        "scale_mid": (r,) if layer.has_scale_mid else (1,),
        "scale_out": (m,),
        "bias": (m,) if layer.has_bias else (1,),
    }
    kinds = set()
    for part, value in arrays.items():
        tensor = value.const_value
        if tensor is None:
            raise _fail(node, f"{part} is not an initializer")
        if tuple(tensor.shape) != expected[part]:
            raise _fail(node, f"{part} has shape {tuple(tensor.shape)}, not {expected[part]}")
        if not part.endswith("packed"):
            kinds.add(tensor.dtype)
        elif tensor.dtype != ir.DataType.INT32:
            raise _fail(node, f"{part} is {tensor.dtype.name}, not INT32")
    return kinds


def _packed_shape(layout: int, rows: int, columns: int) -> tuple[int, int]:
    return tiles_shape(rows, columns) if layout == LAYOUT_TILES_16X256 else (rows, words_for(columns))


def _attributes(node: ir.Node) -> list[_Layer]:
    """The node's layers: one of a NanoQuantLinear, two to four of a group, whose attributes are lists."""
    group = node.op_type == GROUP_OP
    wanted, names = GROUP_ATTRIBUTES if group else ATTRIBUTES, set(node.attributes)
    if names != set(wanted):
        odd = sorted(names ^ set(wanted))
        raise _fail(node, f"attributes missing or unknown: {', '.join(odd)}")
    columns: list[list[int]] = []
    count = 1
    for name in wanted:
        attribute = node.attributes[name]
        listed = group and name not in ("in_features", "layout")
        kind = ir.AttributeType.INTS if listed else ir.AttributeType.INT
        if attribute.is_ref() or attribute.type != kind:
            raise _fail(node, f"attribute {name} is not {'a list of integers' if listed else 'an integer'}")
        columns.append([int(number) for number in attribute.as_ints()] if listed else [attribute.as_int()])
        count = len(columns[-1]) if listed and name == "ranks" else count
    if group and not 2 <= count <= MAX_GROUP:
        raise _fail(node, f"a group has 2 to {MAX_GROUP} layers, not {count}")
    for name, numbers in zip(wanted, columns, strict=True):
        if len(numbers) != count and name not in ("in_features", "layout"):
            raise _fail(node, f"attribute {name} has {len(numbers)} entries, not {count}")
    rows = [[numbers[place] if len(numbers) == count else numbers[0] for numbers in columns] for place in range(count)]
    layers = [_Layer(*row) for row in rows]
    for layer in layers:
        for name in ("in_features", "rank", "out_features"):
            if not 0 < getattr(layer, name) <= _LARGEST:
                raise _fail(node, f"attribute {name} is {getattr(layer, name)}")
        for name in ("has_scale_mid", "has_bias"):
            if getattr(layer, name) not in (0, 1):
                raise _fail(node, f"attribute {name} is {getattr(layer, name)}, not 0 or 1")
        if layer.layout not in (LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256):
            raise _fail(node, f"layout {layer.layout} is unknown")
    return layers


def _check_values(node: ir.Node, arrays: dict[str, ir.Value], layer: _Layer) -> None:
    def read(part: str) -> NDArray[np.generic]:
        tensor = arrays[part].const_value
        assert tensor is not None
        return tensor.numpy()

    n, r, m = layer.in_features, layer.rank, layer.out_features
    for part, rows, columns in (("v_packed", r, n), ("u_packed", m, r)):
        words = np.asarray(read(part), np.int32)
        if layer.layout == LAYOUT_TILES_16X256:
            good = np.array_equal(to_tiles(from_tiles(words, rows, columns), columns), words)
        else:
            used = columns % 32
            good = not used or not (words[:, -1].astype(np.int64) & 0xFFFFFFFF).max() >> used
        if not good:
            raise _fail(node, f"{part} has bits set past its last row or column")
    for part, flag, neutral in (("scale_mid", layer.has_scale_mid, 1.0), ("bias", layer.has_bias, 0.0)):
        if not flag and float(read(part)[0]) != neutral:
            raise _fail(node, f"{part} is unused but not {neutral:g}")
    for part in ("scale_in", "scale_mid", "scale_out", "bias"):
        if not np.isfinite(read(part).astype(np.float32)).all():
            raise _fail(node, f"{part} holds a value that is not finite")
