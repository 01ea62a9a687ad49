# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file, every count and offset held against the file's size before it is believed.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the `gguf` package trusts counts: an
array that claims 2**62 entries keeps it looping and growing, so a file goes through here first.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from .lfs_pointer import check_is_no_pointer

__all__ = ["GgufHeader", "GgufTensor", "read_gguf_header"]

_MAGIC = b"GGUF"
_MOST_FIELDS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 1 << 18, 4
#: Entries of all arrays together; a vocabulary of 262,144 with its merges, scores and types has 1.3 million.
_MOST_ENTRIES = 8 << 20
_LONGEST_NAME, _LONGEST_STRING = 1 << 12, 16 << 20
_LARGEST = 1 << 62
#: Value type -> struct format of a number ("docs/gguf.md", gguf_metadata_value_type).
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: shape with the fastest dimension last, ggml's number of its type, first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """Scalars and strings by key, array lengths by key, tensors by name, and the file's size in bytes."""

    fields: dict[str, Any]
    arrays: dict[str, int]
    tensors: dict[str, GgufTensor]
    size: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Walk through the header.

    Raises:
        NqEdgeError: NQ-MODEL when it is no GGUF file of version 2 or 3, or contradicts itself or the file's size.
    """
    check_is_no_pointer(path, "NQ-MODEL")
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise NqEdgeError("NQ-MODEL", f"{path} is not a GGUF file.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walk(data).header()
    except OSError as error:
        raise NqEdgeError("NQ-MODEL", f"cannot read {path}: {error.strerror}.") from error
    except _Damaged as error:
        raise NqEdgeError("NQ-MODEL", f"{path} is damaged: {error}.") from error


class _Damaged(Exception):
    """What is wrong."""


class _Walk:
    """A position in the file that never passes its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position, self.entries = data, 4, 0

    def number(self, kind: str) -> Any:
        if self.position + struct.calcsize(f"<{kind}") > len(self.data):
            raise _Damaged("it ends inside its header")
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def text(self, longest: int) -> str:
        length = self.number("Q")
        if length > min(longest, len(self.data) - self.position):
            raise _Damaged(f"a string claims {length} bytes, past its end or out of all reason")
        self.position += length
        return self.data[self.position - length : self.position].decode("utf-8", "surrogateescape")

    def value(self, kind: int, longest: int = _LONGEST_STRING) -> Any:
        if kind == _STRING:
            return self.text(longest)
        if kind not in _NUMBERS:
            raise _Damaged(f"a value has the unknown type {kind}")
        return self.number(_NUMBERS[kind])

    def array(self) -> int:
        kind, count = self.number("I"), self.number("Q")
        self.entries += count
        if self.entries > _MOST_ENTRIES or kind == _ARRAY:
            raise _Damaged(f"an array claims {count} entries of type {kind}")
        for _ in range(count if kind == _STRING else 0):
            self.text(_LONGEST_STRING)
        if kind != _STRING:
            if kind not in _NUMBERS:
                raise _Damaged(f"an array has the unknown type {kind}")
            self.position += count * struct.calcsize(f"<{_NUMBERS[kind]}")
        if self.position > len(self.data):
            raise _Damaged("an array passes the end of the file")
        return int(count)

    def header(self) -> GgufHeader:
        version, tensors, fields = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise _Damaged(f"it has GGUF version {version}; little-endian 2 and 3 are read")
        if fields > _MOST_FIELDS or tensors > _MOST_TENSORS:
            raise _Damaged(f"it claims {fields} fields and {tensors} tensors")
        values: dict[str, Any] = {}
        arrays: dict[str, int] = {}
        for _ in range(fields):
            key, kind = self.text(_LONGEST_NAME), self.number("I")
            if key in values or key in arrays:
                raise _Damaged(f"the field {key!r} comes twice")
            if kind == _ARRAY:
                arrays[key] = self.array()
            else:
                values[key] = self.value(kind)
        found = [self.tensor() for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Damaged(f"its alignment is {alignment!r}")
        base = -(-self.position // alignment) * alignment
        named = {name: GgufTensor(shape, kind, base + offset) for name, shape, kind, offset in found}
        if len(named) != len(found) or any(tensor.start > len(self.data) for tensor in named.values()):
            raise _Damaged("a tensor comes twice or begins past the end of the file")
        return GgufHeader(values, arrays, named, len(self.data))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, count = self.text(_LONGEST_NAME), self.number("I")
        if count > _MOST_DIMENSIONS:
            raise _Damaged(f"the tensor {name!r} has {count} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        product = 1
        for dimension in shape:
            product *= dimension
            if not 0 < product < _LARGEST:
                raise _Damaged(f"the tensor {name!r} has the impossible shape {shape}")
        return name, shape, self.number("I"), self.number("Q")
