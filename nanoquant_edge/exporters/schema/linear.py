# SPDX-License-Identifier: Apache-2.0
"""The check of nodes with compressed layers, NanoQuantLinear and NanoQuantLinearGroup (docs/OPERATOR.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...formats.checkpoint import from_tiles, tiles_shape, to_tiles, words_for
from ...formats.graph import (
    GROUP_ATTRIBUTES,
    GROUP_OP,
    LAYOUT_ROWS_LSB_FIRST,
    LAYOUT_TILES_16X256,
    LINEAR_ATTRIBUTES,
    LINEAR_INPUTS,
    MAX_GROUP,
)

__all__ = ["LayerAttributes", "check_linear_node", "layer_attributes"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = (1 << 31) - 1

Fail = Callable[[str], Exception]


@dataclass(frozen=True)
class LayerAttributes:
    """The attributes of one layer of a node; those that a group has once are the same in each."""

    in_features: int
    rank: int
    out_features: int
    has_scale_mid: int
    has_bias: int
    layout: int


def check_linear_node(node: ir.Node, fail: Fail) -> list[LayerAttributes]:
    """Compare a node with the operator's schema, and its weights with its attributes.

    Args:
        node: of one of the two operators.
        fail: makes the error from the rule that is broken.

    Returns:
        Its layers: one, or two to four of a group.

    Raises:
        Exception: what `fail` makes.
    """
    if node.overload:
        raise fail("it has an overload name")
    layers = layer_attributes(node, fail)
    each = len(LINEAR_INPUTS) - 1
    if len(node.inputs) != 1 + each * len(layers) or len(node.outputs) != len(layers):
        wanted = f"{1 + each * len(layers)} and {len(layers)}"
        raise fail(f"it has {len(node.inputs)} inputs and {len(node.outputs)} outputs, not {wanted}")
    if any(value is None or not value.name for value in node.inputs):
        raise fail("an input is omitted")
    x, *rest = [value for value in node.inputs if value is not None]
    if x.dtype not in _FLOATS or x.shape is None:
        raise fail("X has no floating type or no shape in the file")
    n = layers[0].in_features
    if len(x.shape) < 1 or x.shape[-1] != n:
        raise fail(f"X's last dimension is {x.shape[-1] if len(x.shape) else None}, not in_features {n}")
    weights = [rest[first : first + each] for first in range(0, len(rest), each)]
    arrays = [dict(zip(LINEAR_INPUTS[1:], values, strict=True)) for values in weights]
    kinds = set()
    for index, layer in enumerate(layers):
        y = node.outputs[index]
        if y.dtype != x.dtype or y.shape is None or len(y.shape) != len(x.shape) or y.shape[-1] != layer.out_features:
            raise fail("Y's type or shape contradicts X and out_features")
        kinds |= _check_layer(layer, arrays[index], fail)
    if len(kinds) != 1 or not kinds <= set(_FLOATS):
        raise fail("scales and bias are not of one floating type")
    for index, layer in enumerate(layers):
        _check_values(layer, arrays[index], fail)
    return layers


def _check_layer(layer: LayerAttributes, arrays: dict[str, ir.Value], fail: Fail) -> set[ir.DataType]:
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
            raise fail(f"{part} is not an initializer")
        if tuple(tensor.shape) != expected[part]:
            raise fail(f"{part} has shape {tuple(tensor.shape)}, not {expected[part]}")
        if not part.endswith("packed"):
            kinds.add(tensor.dtype)
        elif tensor.dtype != ir.DataType.INT32:
            raise fail(f"{part} is {tensor.dtype.name}, not INT32")
    return kinds


def _packed_shape(layout: int, rows: int, columns: int) -> tuple[int, int]:
    return tiles_shape(rows, columns) if layout == LAYOUT_TILES_16X256 else (rows, words_for(columns))


def layer_attributes(node: ir.Node, fail: Fail) -> list[LayerAttributes]:
    """The attributes of a node's layers: one of a NanoQuantLinear, two to four of a group, whose attributes are lists.

    Args:
        node: of one of the two operators.
        fail: makes the error from the rule that is broken.

    Raises:
        Exception: what `fail` makes.
    """
    group = node.op_type == GROUP_OP
    wanted, names = GROUP_ATTRIBUTES if group else LINEAR_ATTRIBUTES, set(node.attributes)
    if names != set(wanted):
        odd = sorted(names ^ set(wanted))
        raise fail(f"attributes missing or unknown: {', '.join(odd)}")
    columns: list[list[int]] = []
    count = 1
    for name in wanted:
        attribute = node.attributes[name]
        listed = group and name not in ("in_features", "layout")
        kind = ir.AttributeType.INTS if listed else ir.AttributeType.INT
        if attribute.is_ref() or attribute.type != kind:
            raise fail(f"attribute {name} is not {'a list of integers' if listed else 'an integer'}")
        columns.append([int(number) for number in attribute.as_ints()] if listed else [attribute.as_int()])
        count = len(columns[-1]) if listed and name == "ranks" else count
    if group and not 2 <= count <= MAX_GROUP:
        raise fail(f"a group has 2 to {MAX_GROUP} layers, not {count}")
    for name, numbers in zip(wanted, columns, strict=True):
        if len(numbers) != count and name not in ("in_features", "layout"):
            raise fail(f"attribute {name} has {len(numbers)} entries, not {count}")
    rows = [[numbers[index] if len(numbers) == count else numbers[0] for numbers in columns] for index in range(count)]
    layers = [LayerAttributes(*row) for row in rows]
    for layer in layers:
        for name in ("in_features", "rank", "out_features"):
            if not 0 < getattr(layer, name) <= _LARGEST:
                raise fail(f"attribute {name} is {getattr(layer, name)}")
        for name in ("has_scale_mid", "has_bias"):
            if getattr(layer, name) not in (0, 1):
                raise fail(f"attribute {name} is {getattr(layer, name)}, not 0 or 1")
        if layer.layout not in (LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256):
            raise fail(f"layout {layer.layout} is unknown")
    return layers


def _check_values(layer: LayerAttributes, arrays: dict[str, ir.Value], fail: Fail) -> None:
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
            raise fail(f"{part} has bits set past its last row or column")
    for part, flag, neutral in (("scale_mid", layer.has_scale_mid, 1.0), ("bias", layer.has_bias, 0.0)):
        if not flag and float(read(part)[0]) != neutral:
            raise fail(f"{part} is unused but not {neutral:g}")
    for part in ("scale_in", "scale_mid", "scale_out", "bias"):
        if not np.isfinite(read(part).astype(np.float32)).all():
            raise fail(f"{part} holds a value that is not finite")
