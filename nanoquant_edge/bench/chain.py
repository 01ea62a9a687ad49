# SPDX-License-Identifier: Apache-2.0
"""A model file of a chain of nodes, written byte by byte: a board that measures need not have the onnx package.

Numbers of fields: onnx.proto.
"""

from __future__ import annotations

from itertools import pairwise

from ..formats.protobuf import integer, message

__all__ = ["chain_model"]


def chain_model(count: int) -> bytes:
    """`x` -> `count` nodes `Neg` -> `y`, float32 of three symbolic dimensions, opset 18."""
    names = [b"x", *(b"v%d" % index for index in range(count - 1)), b"y"]
    nodes = b"".join(
        message(1, message(1, before) + message(2, after) + message(4, b"Neg")) for before, after in pairwise(names)
    )
    shape = b"".join(message(1, message(2, name)) for name in (b"a", b"b", b"c"))
    kind = message(2, message(1, integer(1, 1) + message(2, shape)))  # ValueInfoProto.type.tensor_type
    values = message(11, message(1, b"x") + kind) + message(12, message(1, b"y") + kind)
    graph = nodes + message(2, b"chain") + values
    return integer(1, 10) + message(8, integer(2, 18)) + message(7, graph)
