# SPDX-License-Identifier: Apache-2.0
"""The check of nodes that read quantized tables (docs/OPERATOR.md, "Tables")."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...formats.graph import EMBEDDING_OP, HEAD_OP, TABLE_ATTRIBUTES

__all__ = ["TABLE_OPS", "check_table_node"]

TABLE_OPS = (EMBEDDING_OP, HEAD_OP)
_LARGEST = (1 << 31) - 1
_MOST_GROUPS = 1024


def check_table_node(node: ir.Node, fail: Callable[[str], Exception]) -> None:
    """Compare a node with the operator's schema, and its codes and scales with its attributes.

    Args:
        node: of one of the two operators.
        fail: makes the error from the rule that is broken.

    Raises:
        Exception: what `fail` makes.
    """
    if (
        node.overload
        or len(node.inputs) != 3
        or len(node.outputs) != 1
        or set(node.attributes) != set(TABLE_ATTRIBUTES)
    ):
        raise fail(f"{node.op_type} has 3 inputs, 1 output and the attributes {', '.join(TABLE_ATTRIBUTES)}")
    numbers = []
    for name in TABLE_ATTRIBUTES:
        attribute = node.attributes[name]
        if attribute.is_ref() or attribute.type != ir.AttributeType.INT or not 0 < attribute.as_int() <= _LARGEST:
            raise fail(f"attribute {name} is not an integer from 1 on")
        numbers.append(attribute.as_int())
    columns, bits, group = numbers
    if bits not in (4, 8) or (group < columns and group % 32) or columns * bits % 8:
        raise fail(f"bits {bits}, group_size {group} and columns {columns} do not go together")
    groups = -(-columns // group)
    x, codes, scales = node.inputs
    if x is None or codes is None or scales is None or codes.const_value is None or scales.const_value is None:
        raise fail("codes or scales are not initializers")
    table, factors = codes.const_value, scales.const_value
    rows = table.shape[0] if len(table.shape) == 2 else 0
    if table.dtype != ir.DataType.INT8 or tuple(table.shape) != (rows, columns * bits // 8) or not rows:
        raise fail(f"codes are {table.dtype.name} {tuple(table.shape)}, not INT8 [rows, {columns * bits // 8}]")
    if factors.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise fail(f"scales are {factors.dtype.name}")
    if tuple(factors.shape) != (rows, groups) or groups > _MOST_GROUPS:
        raise fail(f"scales have shape {tuple(factors.shape)}, not {(rows, groups)}")
    wanted = (ir.DataType.INT64, columns) if node.op_type == EMBEDDING_OP else (ir.DataType.FLOAT, rows)
    y = node.outputs[0]
    if x.dtype != wanted[0] or y.dtype != ir.DataType.FLOAT or y.shape is None or y.shape[-1] != wanted[1]:
        raise fail(f"types or shapes contradict {node.op_type}")
