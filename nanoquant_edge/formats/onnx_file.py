# SPDX-License-Identifier: Apache-2.0
"""A look into model.onnx, and one edit of it, without the onnx package, which a board need not have.

Weights lie in external files, so the model file itself is small. Numbers of fields: onnx.proto of the ONNX IR
specification.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import NqEdgeError
from .graph import DOMAIN
from .protobuf import BYTES, WireError, fields, integers, message

__all__ = [
    "MAX_MODEL_BYTES",
    "ModelSummary",
    "Part",
    "external_tensors",
    "initializers",
    "parts",
    "rename_data",
    "strip_functions",
    "summarize",
]

#: Weights lie outside of model.onnx; what is left is structure, some 100 KB for 30 layers.
MAX_MODEL_BYTES = 64 << 20
#: Nesting of graphs in nodes; real models stay below 5.
MAX_DEPTH = 32

#: Message -> number of a field -> the message that lies there: every way from a model to its nodes and to the places
#: where data lies outside of the file.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "location"},
    "location": {},
}
_GRAPH, _FUNCTION, _INITIALIZER = 7, 25, 5
_FUNCTION_NAME, _FUNCTION_DOMAIN, _NODE_OPERATOR, _NODE_DOMAIN = 1, 10, 4, 7
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 1, 8, 9, 13
_KEY, _VALUE = 1, 2


class Part(NamedTuple):
    """A message inside of a model.

    Attributes:
        path: kinds of the messages from the model to this one: "graph", "training", "function", "node", "attribute",
            "tensor", "sparse", and "location" for each entry that says where a tensor's data lies.
        name: of a function, or an operator's type; the key of a location.
        domain: of a function or a node; the value of a location.
    """

    path: tuple[str, ...]
    name: str = ""
    domain: str = ""


@dataclass
class ModelSummary:
    """What a runtime must know before it hands the file to ONNX Runtime.

    Attributes:
        operators: nodes of this package's domain by operator type, graphs inside nodes and functions included.
        functions: model-local functions of this package's domain.
        external_files: names of the files that hold tensors, wherever in the model these stand.
    """

    operators: dict[str, int] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    external_files: set[str] = field(default_factory=set)

    def add(self, part: Part) -> None:
        """Count one of the model's `parts`."""
        kind = part.path[-1]
        if kind == "location" and part.name == "location":
            self.external_files.add(part.domain)
        elif kind == "function" and part.domain == DOMAIN:
            self.functions.add(part.name)
        elif kind == "node" and part.domain == DOMAIN:
            self.operators[part.name] = self.operators.get(part.name, 0) + 1


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what is wrong with the bytes into this package's error."""
    try:
        yield
    except WireError as error:
        raise NqEdgeError("NQ-BUNDLE", f"model.onnx is not a valid ONNX file: {error}.") from error


def parts(model: bytes) -> Iterator[Part]:
    """Every message that can hold nodes or name a file, whatever it lies in.

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    with _reading():
        yield from _walk(("model",), memoryview(model), 0)


#: Kind of a message -> the numbers of the texts that make its `Part.name` and `Part.domain`.
_TEXTS = {
    "function": (_FUNCTION_NAME, _FUNCTION_DOMAIN),
    "node": (_NODE_OPERATOR, _NODE_DOMAIN),
    "location": (_KEY, _VALUE),
}


def _walk(path: tuple[str, ...], data: memoryview, depth: int) -> Iterator[Part]:
    if depth > MAX_DEPTH:
        raise WireError("its graphs are nested without end")
    kind = path[-1]
    children, texts = _CHILDREN[kind], {}
    for number, wire, content, _ in fields(data):
        if wire != BYTES:
            continue
        child = children.get(number)
        if child is None:
            texts[number] = content  # of a field that comes twice, the last counts
        else:
            yield from _walk((*path, child), content, depth + (child == "graph"))
    name, domain = (_text(texts.get(number, memoryview(b""))) for number in _TEXTS.get(kind, (0, 0)))
    yield Part(path, name, domain)


def _text(content: memoryview) -> str:
    return str(content, "utf-8", "replace")


def _last_text(data: memoryview, wanted: int) -> str:
    """A text of a message, "" where it has none."""
    found = ""
    for number, wire, content, _ in fields(data):
        if number == wanted and wire == BYTES:
            found = _text(content)
    return found


def summarize(model: bytes) -> ModelSummary:
    """Operators, functions and external files of a model.

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    summary = ModelSummary()
    for part in parts(model):
        summary.add(part)
    return summary


@dataclass
class _Initializer:
    """A tensor of the graph: its dimensions, the bytes that lie in the file, and where else its data lies."""

    dims: list[int] = field(default_factory=list)
    bytes: int = 0
    location: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the values, wherever they lie."""
        return _number(self.location["length"]) if "length" in self.location else self.bytes


def _initializers(model: bytes) -> dict[str, _Initializer]:
    """Tensors of the graph by name; those inside of nodes are left out."""
    found = {}
    for graph_number, graph_wire, graph, _ in fields(memoryview(model)):
        if graph_number != _GRAPH or graph_wire != BYTES:
            continue
        for number, wire, tensor, _ in fields(graph):
            if number == _INITIALIZER and wire == BYTES:
                name, initializer = _initializer(tensor)
                found[name] = initializer
    return found


def _initializer(tensor: memoryview) -> tuple[str, _Initializer]:
    name, found = "", _Initializer()
    for number, wire, content, _ in fields(tensor):
        if number == _TENSOR_DIMS:
            found.dims += integers(wire, content)
        elif wire != BYTES:
            continue
        elif number == _TENSOR_NAME:
            name = _text(content)
        elif number == _TENSOR_RAW:
            found.bytes = len(content)
        elif number == _TENSOR_LOCATION:
            found.location[_last_text(content, _KEY)] = _last_text(content, _VALUE)
    return name, found


def initializers(model: bytes) -> dict[str, tuple[tuple[int, ...], int]]:
    """Dimensions and bytes of the graph's initializers, by name; those inside of nodes are not listed.

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    with _reading():
        return {
            name: (
                tuple(tensor.dims),
                _number(tensor.location["length"]) if "length" in tensor.location else tensor.bytes,
            )
            for name, tensor in _initializers(model).items()
        }


def external_tensors(model: bytes) -> dict[str, tuple[str, int, int]]:
    """Initializers of the graph that lie in other files: name -> (file, offset, bytes).

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form, or a location is not complete.
    """
    found = {}
    with _reading():
        for name, tensor in _initializers(model).items():
            if entry := tensor.location:
                if not {"location", "length"} <= set(entry):
                    raise WireError(f"initializer {name!r} does not say where its data lies")
                found[name] = (entry["location"], _number(entry.get("offset", "0")), _number(entry["length"]))
    return found


def _number(text: str) -> int:
    """An offset or a length."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WireError(f"{text[:40]!r} is no offset or length")
    return int(text)


def strip_functions(model: bytes) -> bytes:
    """The model without the function bodies of this package's operators.

    What is left runs with a registered kernel or not at all: ONNX Runtime cannot fall back to a slow body in silence.

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    pieces, start = [], 0
    with _reading():
        for number, wire, content, end in fields(memoryview(model)):
            body = number == _FUNCTION and wire == BYTES and _last_text(content, _FUNCTION_DOMAIN) == DOMAIN
            if not body:
                pieces.append(model[start:end])
            start = end
    return b"".join(pieces)


def rename_data(model: bytes, names: Mapping[str, str]) -> bytes:
    """The model with other names of the files that hold its initializers.

    The Hugging Face cache stores a bundle's files under names of its own; ONNX Runtime follows no link to them.

    Args:
        model: content of model.onnx (ModelProto).
        names: file that the model names -> file that it shall name.

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form.
    """
    with _reading():
        return _renamed(memoryview(model), (_GRAPH, _INITIALIZER, _TENSOR_LOCATION), names)


def _renamed(data: memoryview, path: tuple[int, ...], names: Mapping[str, str]) -> bytes:
    """A message whose locations, which lie below it along a path of field numbers, name other files."""
    if not path:
        key, value = _last_text(data, _KEY), _last_text(data, _VALUE)
        if key != "location" or value not in names:
            return bytes(data)
        return message(_KEY, key.encode()) + message(_VALUE, names[value].encode())
    pieces, start = [], 0
    for number, wire, content, end in fields(data):
        inside = number == path[0] and wire == BYTES
        pieces.append(message(number, _renamed(content, path[1:], names)) if inside else bytes(data[start:end]))
        start = end
    return b"".join(pieces)
