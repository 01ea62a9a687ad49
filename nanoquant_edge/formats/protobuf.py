# SPDX-License-Identifier: Apache-2.0
"""Protocol Buffers' wire format (https://protobuf.dev/programming-guides/encoding): records in, records out.

A board reads and changes ONNX files without the `onnx` package, so this is all that it has. What the numbers of the
fields mean is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "WireError", "fields", "integer", "integers", "message"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_LARGEST_NUMBER = (1 << 29) - 1


class WireError(ValueError):
    """The bytes are no sequence of records."""


def fields(data: memoryview) -> Iterator[tuple[int, int, Any, int]]:
    """The records of a message, in order.

    Args:
        data: the message.

    Returns:
        Number of the field; `VARINT`, `BYTES`, `FIXED64` or `FIXED32`; its content, which is an integer for a varint
        and a memoryview otherwise; and the position behind the record.

    Raises:
        WireError: when a record is cut off, or has a type that ONNX files do not have.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        content: Any
        if wire == BYTES:
            size, begin = _varint(data, position)
            position = begin + size
            content = data[begin:position]
        elif wire == VARINT:
            content, position = _varint(data, position)
        elif wire in _SIZES:
            begin, position = position, position + _SIZES[wire]
            content = data[begin:position]
        else:
            raise WireError(f"a record has the wire type {wire}")
        # Other readers cut a key to 32 bits: a number beyond would be another field to them than to us.
        if position > end or not 0 < number <= _LARGEST_NUMBER:
            raise WireError("a record passes the end, or has an impossible number")
        yield number, wire, content, position


def integers(wire: int, content: Any) -> list[int]:
    """The unsigned numbers in one record of a repeated integer field, packed or not.

    Args:
        wire, content: as `fields` tells them.

    Raises:
        WireError: when a packed record is cut off, or the record holds something else.
    """
    if wire == VARINT:
        return [content]
    if wire != BYTES:
        raise WireError(f"a record of integers has the wire type {wire}")
    found, position = [], 0
    while position < len(content):
        value, position = _varint(content, position)
        found.append(value)
    return found


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position behind it."""
    if position < len(data) and (byte := data[position]) < 0x80:  # nearly all of them
        return byte, position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError("a number is cut off, or has more than 64 bits")


def integer(number: int, value: int) -> bytes:
    """A varint record; `value` is not negative."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def message(number: int, content: bytes) -> bytes:
    """A record of bytes: a message, or text in UTF-8."""
    return _encoded(number << 3 | BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
