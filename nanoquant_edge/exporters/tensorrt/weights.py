# SPDX-License-Identifier: Apache-2.0
"""The graph's external weights, mapped by us and lent to TensorRT's parser.

Where the parser maps the file itself (TensorRT before 10.13 offers nothing else), pages that were read stay resident.
A mapping of ours can be emptied while the engine is built: nothing is lost, they come from the file again. The table
of weights is read from the protocol buffer itself (onnx.proto: ModelProto.graph = 7, GraphProto.initializer = 5,
TensorProto.name = 8, external_data = 13; key = 1, value = 2), since a board need not have `onnx`.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...system.files import path_inside

__all__ = ["LentWeights", "external_tensors"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _malformed() -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", "the graph's model file is not valid ONNX.", "Export it again.")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _malformed()


def _records(data: memoryview, number: int) -> Iterator[memoryview]:
    """Payloads of the length-delimited records with this field number."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == _VARINT:
            _, place = _varint(data, place)
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(key & 7)
        if key & 7 == _BYTES:
            size, place = _varint(data, place)
        if size is None or place + size > len(data):
            raise _malformed()
        if key >> 3 == number and key & 7 == _BYTES:
            yield data[place : place + size]
        place += size


def _text(data: memoryview, number: int) -> str:
    return "".join(bytes(record).decode("utf-8", "replace") for record in _records(data, number))


def external_tensors(model: bytes) -> dict[str, tuple[str, int, int]]:
    """Initializers that lie in other files: name -> (file, offset, bytes).

    Raises:
        NqEdgeError: NQ-BUNDLE when the model is not a protocol buffer, or an entry lacks its place.
    """
    found = {}
    for graph in _records(memoryview(model), 7):
        for tensor in _records(graph, 5):
            place = {_text(entry, 1): _text(entry, 2) for entry in _records(tensor, 13)}
            if not place:
                continue
            try:
                found[_text(tensor, 8)] = (place["location"], int(place.get("offset", "0")), int(place["length"]))
            except (KeyError, ValueError) as error:
                raise _malformed() from error
    return found


class LentWeights:
    """The external weights of a model, mapped; keep it until the engine is built.

    Args:
        model: the model file; its weights lie in one file of its folder.

    Raises:
        NqEdgeError: NQ-BUNDLE when they do not lie inside of it, NQ-PATH when it is elsewhere.
    """

    def __init__(self, model: Path) -> None:
        self.content = model.read_bytes()
        self._tensors = external_tensors(self.content)
        names = {entry[0] for entry in self._tensors.values()}
        if len(names) > 1:
            raise _malformed()
        self._mapping: mmap.mmap | None = None
        if names:
            try:
                with path_inside(model.parent, names.pop()).open("rb") as file:
                    # A private mapping that nobody writes to: ctypes gives no address of a read-only one.
                    self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:  # missing or empty
                raise _malformed() from error
            size = len(self._mapping)
            if any(start < 0 or length < 1 or start + length > size for _, start, length in self._tensors.values()):
                raise _malformed()

    def lend(self, parser: Any) -> None:
        """Give every weight to the parser, by address.

        Raises:
            NqEdgeError: NQ-ENGINE when it refuses one.
        """
        if self._mapping is None:
            return
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        for name, (_, start, length) in self._tensors.items():
            if not parser.load_initializer(name, base + start, length):
                raise NqEdgeError("NQ-ENGINE", f"TensorRT's parser does not take the weight {name}.")

    def forget(self) -> None:
        """Give the pages back; they are read from the file again when they are needed."""
        if self._mapping is not None and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED)
