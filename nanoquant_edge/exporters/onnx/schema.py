# SPDX-License-Identifier: Apache-2.0
"""Our own check of NanoQuantLinear nodes: `onnx.checker` lets any node of an unknown domain pass.

Usable on a stranger's file: sizes are compared with the file before anything is read, and external data must lie in
the model's own folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...checkpoint import from_tiles, tiles_shape, to_tiles, words_for
from ...errors import NqEdgeError
from ...files import path_inside
from .operator import ATTRIBUTES, DOMAIN, INPUTS, LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256, OP_TYPE, VERSION

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["check_file", "check_model"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = (1 << 31) - 1


def _fail(node: ir.Node, problem: str) -> NqEdgeError:
    return NqEdgeError("NQ-OPERATOR", f"node {node.name!r}: {problem}.")


def check_file(path: str | Path) -> int:
    """Check a model file: ONNX's own rules, then ours for every NanoQuantLinear node.

    Args:
        path: model.onnx, its external data beside it.

    Returns:
        Number of NanoQuantLinear nodes.

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
    """Check every NanoQuantLinear node of a model.

    Returns:
        Number of such nodes.

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
        if node.op_type != OP_TYPE:
            raise _fail(node, f"{DOMAIN}::{node.op_type} is not an operator of version {VERSION}")
        if model.opset_imports.get(DOMAIN) != VERSION:
            raise _fail(node, f"the model imports {DOMAIN} {model.opset_imports.get(DOMAIN)}, not {VERSION}")
        _check_node(node)
        if node.attributes["layout"].as_int() != LAYOUT_ROWS_LSB_FIRST and node.op_identifier() in model.functions:
            raise _fail(node, "the file carries a portable body, which reads layout 0 only")
        count += 1
    return count


def _check_node(node: ir.Node) -> None:
    if node.overload:
        raise _fail(node, "it has an overload name")
    if len(node.inputs) != len(INPUTS) or len(node.outputs) != 1:
        raise _fail(node, f"it has {len(node.inputs)} inputs and {len(node.outputs)} outputs, not 7 and 1")
    if any(value is None or not value.name for value in node.inputs):
        raise _fail(node, "an input is omitted")
    numbers = _attributes(node)
    n, r, m = numbers["in_features"], numbers["rank"], numbers["out_features"]
    x, *rest = [value for value in node.inputs if value is not None]
    if x.dtype not in _FLOATS or x.shape is None:
        raise _fail(node, "X has no floating type or no shape in the file")
    if len(x.shape) < 1 or x.shape[-1] != n:
        raise _fail(node, f"X's last dimension is {x.shape[-1] if len(x.shape) else None}, not in_features {n}")
    y = node.outputs[0]
    if y.dtype != x.dtype or y.shape is None or len(y.shape) != len(x.shape) or y.shape[-1] != m:
        raise _fail(node, "Y's type or shape contradicts X and out_features")
    arrays = dict(zip(INPUTS[1:], rest, strict=True))
    expected: dict[str, tuple[int, ...]] = {
        "v_packed": _packed_shape(numbers["layout"], r, n),
        "u_packed": _packed_shape(numbers["layout"], m, r),
        "scale_in": (n,),
        "scale_mid": (r,) if numbers["has_scale_mid"] else (1,),
        "scale_out": (m,),
        "bias": (m,) if numbers["has_bias"] else (1,),
    }
    for part, value in arrays.items():
        tensor = value.const_value
        if tensor is None:
            raise _fail(node, f"{part} is not an initializer")
        if tuple(tensor.shape) != expected[part]:
            raise _fail(node, f"{part} has shape {tuple(tensor.shape)}, not {expected[part]}")
        if part.endswith("packed") and tensor.dtype != ir.DataType.INT32:
            raise _fail(node, f"{part} is {tensor.dtype.name}, not INT32")
    kinds = {value.const_value.dtype for part, value in arrays.items() if value.const_value and "packed" not in part}
    if len(kinds) != 1 or not kinds <= set(_FLOATS):
        raise _fail(node, "scales and bias are not of one floating type")
    _check_values(node, arrays, numbers)


def _packed_shape(layout: int, rows: int, columns: int) -> tuple[int, int]:
    return tiles_shape(rows, columns) if layout == LAYOUT_TILES_16X256 else (rows, words_for(columns))


def _attributes(node: ir.Node) -> dict[str, int]:
    names = set(node.attributes)
    if names != set(ATTRIBUTES):
        odd = sorted(names ^ set(ATTRIBUTES))
        raise _fail(node, f"attributes missing or unknown: {', '.join(odd)}")
    numbers = {}
    for name in ATTRIBUTES:
        attribute = node.attributes[name]
        if attribute.is_ref() or attribute.type != ir.AttributeType.INT:
            raise _fail(node, f"attribute {name} is not an integer")
        numbers[name] = attribute.as_int()
    for name in ("in_features", "rank", "out_features"):
        if not 0 < numbers[name] <= _LARGEST:
            raise _fail(node, f"attribute {name} is {numbers[name]}")
    for name in ("has_scale_mid", "has_bias"):
        if numbers[name] not in (0, 1):
            raise _fail(node, f"attribute {name} is {numbers[name]}, not 0 or 1")
    if numbers["layout"] not in (LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256):
        raise _fail(node, f"layout {numbers['layout']} is unknown")
    return numbers


def _check_values(node: ir.Node, arrays: dict[str, ir.Value], numbers: dict[str, int]) -> None:
    def read(part: str) -> NDArray[np.generic]:
        tensor = arrays[part].const_value
        assert tensor is not None
        return tensor.numpy()

    n, r, m = numbers["in_features"], numbers["rank"], numbers["out_features"]
    for part, rows, columns in (("v_packed", r, n), ("u_packed", m, r)):
        words = np.asarray(read(part), np.int32)
        if numbers["layout"] == LAYOUT_TILES_16X256:
            good = np.array_equal(to_tiles(from_tiles(words, rows, columns), columns), words)
        else:
            used = columns % 32
            good = not used or not (words[:, -1].astype(np.int64) & 0xFFFFFFFF).max() >> used
        if not good:
            raise _fail(node, f"{part} has bits set past its last row or column")
    for part, flag, neutral in (("scale_mid", "has_scale_mid", 1.0), ("bias", "has_bias", 0.0)):
        if not numbers[flag] and float(read(part)[0]) != neutral:
            raise _fail(node, f"{part} is unused but not {neutral:g}")
    for part in ("scale_in", "scale_mid", "scale_out", "bias"):
        if not np.isfinite(read(part).astype(np.float32)).all():
            raise _fail(node, f"{part} holds a value that is not finite")
