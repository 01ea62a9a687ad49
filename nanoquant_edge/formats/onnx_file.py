# SPDX-License-Identifier: Apache-2.0
"""A look into model.onnx, and one edit of it, without the onnx package, which a board need not have.

Only the protocol-buffer wire format is read (https://protobuf.dev/programming-guides/encoding) with the field numbers
of onnx.proto (ONNX IR specification). Weights lie in external files, so the model file itself is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import NqEdgeError

__all__ = ["ModelSummary", "initializers", "strip_functions", "summarize"]

#: Domain of this package's operators.
DOMAIN = "com.nanoquant"
#: Nesting of graphs in nodes; real models stay below 5.
MAX_DEPTH = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class ModelSummary:
    """What a runtime must know before it hands the file to ONNX Runtime.

    Attributes:
        operators: nodes of this package's domain by operator type, graphs inside nodes and functions included.
        functions: model-local functions of this package's domain.
        external_files: names of the files that hold initializers.
    """

    operators: dict[str, int] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    external_files: set[str] = field(default_factory=set)


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if start >= len(data) or shift > 63:
            raise _malformed()
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def _malformed() -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", "model.onnx is not a valid ONNX file.")


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """(field number, wire type, payload, whole record) of each record; the payload of a varint is empty."""
    place = 0
    while place < len(data):
        start = place
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        begin = place
        if wire == _VARINT:
            _, place = _varint(data, place)
            begin = place
        elif wire == _BYTES:
            size, begin = _varint(data, place)
            place = begin + size
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise _malformed()
        if place > len(data) or number == 0:
            raise _malformed()
        yield number, wire, data[begin:place], data[start:place]


def _text(payload: memoryview) -> str:
    return bytes(payload).decode("utf-8", "replace")


def summarize(model: bytes) -> ModelSummary:
    """Operators, functions and external files of a model.

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    summary = ModelSummary()
    for number, wire, payload, _ in _fields(memoryview(model)):
        if wire != _BYTES:
            continue
        if number == 7:  # ModelProto.graph
            _graph(payload, summary, 0)
        elif number == 25:  # ModelProto.functions
            name, domain = _function(payload)
            if domain == DOMAIN:
                summary.functions.add(name)
            for inner, kind, node, _ in _fields(payload):
                if inner == 7 and kind == _BYTES:  # FunctionProto.node
                    _node(node, summary, 0)
    return summary


def _graph(data: memoryview, summary: ModelSummary, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _malformed()
    for number, wire, payload, _ in _fields(data):
        if wire != _BYTES:
            continue
        if number == 1:  # GraphProto.node
            _node(payload, summary, depth)
        elif number == 5:  # GraphProto.initializer
            _tensor(payload, summary)
        elif number == 15:  # GraphProto.sparse_initializer, whose values and indices are tensors
            for inner, kind, tensor, _ in _fields(payload):
                if inner in (1, 2) and kind == _BYTES:
                    _tensor(tensor, summary)


def _node(data: memoryview, summary: ModelSummary, depth: int) -> None:
    operator = domain = ""
    for number, wire, payload, _ in _fields(data):
        if wire != _BYTES:
            continue
        if number == 4:  # NodeProto.op_type
            operator = _text(payload)
        elif number == 7:  # NodeProto.domain
            domain = _text(payload)
        elif number == 5:  # NodeProto.attribute
            for inner, kind, value, _ in _fields(payload):
                if kind != _BYTES:
                    continue
                if inner in (5, 10):  # AttributeProto.t, tensors
                    _tensor(value, summary)
                elif inner in (6, 11):  # AttributeProto.g, graphs
                    _graph(value, summary, depth + 1)
    if domain == DOMAIN:
        summary.operators[operator] = summary.operators.get(operator, 0) + 1


def _tensor(data: memoryview, summary: ModelSummary) -> None:
    for number, wire, payload, _ in _fields(data):
        if number == 13 and wire == _BYTES:  # TensorProto.external_data
            key = value = ""
            for inner, kind, text, _ in _fields(payload):
                if kind == _BYTES and inner == 1:
                    key = _text(text)
                elif kind == _BYTES and inner == 2:
                    value = _text(text)
            if key == "location":
                summary.external_files.add(value)


def initializers(model: bytes) -> dict[str, tuple[tuple[int, ...], int]]:
    """Dimensions and bytes of the graph's initializers, by name; those inside of nodes are not listed.

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    found = {}
    for number, wire, graph, _ in _fields(memoryview(model)):
        if number == 7 and wire == _BYTES:  # ModelProto.graph
            for inner, kind, tensor, _ in _fields(graph):
                if inner == 5 and kind == _BYTES:  # GraphProto.initializer
                    name, dims, size = _extent(tensor)
                    found[name] = (dims, size)
    return found


def _extent(data: memoryview) -> tuple[str, tuple[int, ...], int]:
    """Name, dimensions and bytes of a tensor, whether its values lie in the file or outside."""
    name, dims, size = "", [], 0
    for number, wire, payload, record in _fields(data):
        if number == 1 and wire == _VARINT:  # TensorProto.dims, one by one
            dims.append(_varint(record, 1)[0])
        elif number == 1 and wire == _BYTES:  # packed
            place = 0
            while place < len(payload):
                dim, place = _varint(payload, place)
                dims.append(dim)
        elif number == 8 and wire == _BYTES:  # TensorProto.name
            name = _text(payload)
        elif number == 9 and wire == _BYTES:  # TensorProto.raw_data
            size = len(payload)
        elif number == 13 and wire == _BYTES:  # TensorProto.external_data
            entry = {inner: _text(text) for inner, kind, text, _ in _fields(payload) if kind == _BYTES}
            if entry.get(1) == "length" and entry.get(2, "").isdigit():
                size = int(entry[2])
    return name, tuple(dims), size


def _function(data: memoryview) -> tuple[str, str]:
    name = domain = ""
    for number, wire, payload, _ in _fields(data):
        if wire == _BYTES and number == 1:  # FunctionProto.name
            name = _text(payload)
        elif wire == _BYTES and number == 10:  # FunctionProto.domain
            domain = _text(payload)
    return name, domain


def strip_functions(model: bytes) -> bytes:
    """The model without the function bodies of this package's operators.

    What is left runs with a registered kernel or not at all: ONNX Runtime cannot fall back to a slow body in silence.
    """
    kept = []
    for number, wire, payload, record in _fields(memoryview(model)):
        if not (number == 25 and wire == _BYTES and _function(payload)[1] == DOMAIN):
            kept.append(bytes(record))
    return b"".join(kept)
