# SPDX-License-Identifier: Apache-2.0
"""A look into model.onnx, and one edit of it, without the onnx package, which a board need not have.

Weights lie in external files, so the model file itself is small. Numbers of fields: onnx.proto of the ONNX IR
specification.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import NqEdgeError
from .graph import DOMAIN
from .protobuf import BYTES, WireError, fields, integers

__all__ = ["ModelSummary", "external_tensors", "initializers", "strip_functions", "summarize"]

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
    "tensor": {13: "place"},
    "place": {},
}
_GRAPH, _FUNCTION, _INITIALIZER = 7, 25, 5
_FUNCTION_NAME, _FUNCTION_DOMAIN, _NODE_OPERATOR, _NODE_DOMAIN = 1, 10, 4, 7
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_PLACE = 1, 8, 9, 13
_KEY, _VALUE = 1, 2


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


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what is wrong with the bytes into this package's error."""
    try:
        yield
    except WireError as error:
        raise NqEdgeError("NQ-BUNDLE", f"model.onnx is not a valid ONNX file: {error}.") from error


def _walk(kind: str, data: memoryview, depth: int = 0) -> Iterator[tuple[str, dict[int, str]]]:
    """Every function, node and place inside a message: what it is, and its texts by the numbers of their fields."""
    if depth > MAX_DEPTH:
        raise WireError("its graphs are nested without end")
    children = _CHILDREN[kind]
    texts = {}
    for number, wire, content, _ in fields(data):
        if wire != BYTES:
            continue
        child = children.get(number)
        if child is None:
            texts[number] = content  # of a field that comes twice, the last counts
        else:
            yield from _walk(child, content, depth + (child == "graph"))
    if kind in ("function", "node", "place"):
        yield kind, {number: _text(content) for number, content in texts.items()}


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
    with _reading():
        for kind, texts in _walk("model", memoryview(model)):
            if kind == "place" and texts.get(_KEY) == "location":
                summary.external_files.add(texts.get(_VALUE, ""))
            elif kind == "function" and texts.get(_FUNCTION_DOMAIN) == DOMAIN:
                summary.functions.add(texts.get(_FUNCTION_NAME, ""))
            elif kind == "node" and texts.get(_NODE_DOMAIN) == DOMAIN:
                operator = texts.get(_NODE_OPERATOR, "")
                summary.operators[operator] = summary.operators.get(operator, 0) + 1
    return summary


@dataclass
class _Initializer:
    """A tensor of the graph: its dimensions, the bytes that lie in the file, and where else its data lies."""

    dims: list[int] = field(default_factory=list)
    bytes: int = 0
    place: dict[str, str] = field(default_factory=dict)


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
        elif number == _TENSOR_PLACE:
            found.place[_last_text(content, _KEY)] = _last_text(content, _VALUE)
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
            name: (tuple(tensor.dims), _number(tensor.place["length"]) if "length" in tensor.place else tensor.bytes)
            for name, tensor in _initializers(model).items()
        }


def external_tensors(model: bytes) -> dict[str, tuple[str, int, int]]:
    """Initializers of the graph that lie in other files: name -> (file, offset, bytes).

    Args:
        model: content of model.onnx (ModelProto).

    Raises:
        NqEdgeError: NQ-BUNDLE when it is not a protocol buffer of the expected form, or a place is not complete.
    """
    found = {}
    with _reading():
        for name, tensor in _initializers(model).items():
            if place := tensor.place:
                if not {"location", "length"} <= set(place):
                    raise WireError(f"initializer {name!r} does not say where its data lies")
                found[name] = (place["location"], _number(place.get("offset", "0")), _number(place["length"]))
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
