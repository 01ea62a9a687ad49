# SPDX-License-Identifier: Apache-2.0
"""A model file of a chain of nodes, written byte by byte: a board that measures need not have the onnx package.

Protocol-buffer wire format (https://protobuf.dev/programming-guides/encoding) with the field numbers of onnx.proto.
"""

from __future__ import annotations

__all__ = ["chain_model"]


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def chain_model(count: int) -> bytes:
    """`x` -> `count` nodes `Neg` -> `y`, float32 of three symbolic dimensions, opset 18."""
    names = [b"x", *(b"v%d" % index for index in range(count - 1)), b"y"]
    nodes = b"".join(
        _bytes(1, _bytes(1, names[index]) + _bytes(2, names[index + 1]) + _bytes(4, b"Neg")) for index in range(count)
    )
    shape = b"".join(_bytes(1, _bytes(2, name)) for name in (b"a", b"b", b"c"))
    kind = _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, shape)))  # ValueInfoProto.type.tensor_type
    values = _bytes(11, _bytes(1, b"x") + kind) + _bytes(12, _bytes(1, b"y") + kind)
    graph = nodes + _bytes(2, b"chain") + values
    return _number(1, 10) + _bytes(8, _number(2, 18)) + _bytes(7, graph)
