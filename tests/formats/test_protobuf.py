# SPDX-License-Identifier: Apache-2.0
"""Records as Protocol Buffers' own library writes them, and bytes that are none."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.formats.protobuf import BYTES, VARINT, WireError, fields, integer, integers, message

_NUMBERS = st.integers(0, (1 << 63) - 1)


def content(data: bytes) -> list[tuple[int, int, Any]]:
    """Number, wire type and content of each record."""
    return [
        (number, wire, bytes(found) if isinstance(found, memoryview) else found)
        for number, wire, found, _ in fields(memoryview(data))
    ]


@given(_NUMBERS, st.text(), st.lists(_NUMBERS, max_size=5))
def test_what_the_library_writes_is_read_and_written_alike(version: int, name: str, dims: list[int]) -> None:
    tensor = onnx.TensorProto(name=name, dims=dims)
    model = onnx.ModelProto(ir_version=version, producer_name=name)
    records = list(fields(memoryview(tensor.SerializeToString())))
    assert [n for number, wire, found, _ in records if number == 1 for n in integers(wire, found)] == dims
    assert content(model.SerializeToString()) == [(1, VARINT, version), (2, BYTES, name.encode())]
    assert integer(1, version) + message(2, name.encode()) == model.SerializeToString()


def test_integers_are_read_packed_and_one_by_one() -> None:
    numbers = [0, 127, 128, 300, (1 << 64) - 1]
    alone = b"".join(integer(7, number) for number in numbers)
    assert [n for _, wire, found, _ in fields(memoryview(alone)) for n in integers(wire, found)] == numbers
    packed = message(7, b"".join(integer(1, number)[1:] for number in numbers))
    ((_, wire, found, end),) = fields(memoryview(packed))
    assert integers(wire, found) == numbers and end == len(packed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05abc", "passes the end"),
        (b"\x0a", "cut off"),
        (b"\x08" + b"\xff" * 11, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "an impossible number"),
        (b"\xba\x80\x80\x80\x70\x00", "an impossible number"),  # 7 to a reader that cuts it to 32 bits
        (b"\x09\x00\x00", "passes the end"),
    ],
)
def test_bytes_that_are_no_records(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        list(fields(memoryview(data)))


def test_a_number_that_is_no_list_of_integers() -> None:
    ((_, wire, found, _),) = fields(memoryview(b"\x0d\x00\x00\x00\x00"))
    with pytest.raises(WireError, match="wire type 5"):
        integers(wire, found)
    with pytest.raises(WireError, match="cut off"):
        integers(BYTES, memoryview(b"\x80"))
