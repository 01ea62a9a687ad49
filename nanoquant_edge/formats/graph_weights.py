# SPDX-License-Identifier: Apache-2.0
"""Where the weights of an exported graph lie, without the onnx package: its tensors, and what its nodes say of layers.

The graph has been looked at by `graph_check`. Numbers of fields: onnx.proto of the ONNX IR specification.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import NqEdgeError
from .graph import DOMAIN, GROUP_OP, LAYOUT_TILES_16X256, LINEAR_OP, linear_output
from .protobuf import BYTES, VARINT, WireError, fields, integers
from .stored_tensor import BYTES as WIDTHS
from .stored_tensor import StoredTensor

__all__ = ["GraphLayer", "GraphWeights", "graph_weights"]

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_INTEGERS = 1, 3, 8
_DIMS, _TYPE, _NAME, _RAW, _LOCATION = 1, 2, 8, 9, 13
#: ONNX's number of a type -> safetensors' name
_TYPES = {1: "F32", 3: "I8", 6: "I32", 10: "F16", 16: "BF16"}
_LARGEST = 1 << 31


@dataclass(frozen=True)
class GraphLayer:
    """What a node says of a compressed layer.

    Attributes:
        in_features, rank, out_features: sizes.
        tiled: its words are in layout 1.
    """

    in_features: int
    rank: int
    out_features: int
    tiled: bool


@dataclass(frozen=True)
class GraphWeights:
    """The weights of a graph.

    Attributes:
        tensors: initializer -> where it lies; those of other types are left out.
        layers: module path -> compressed layer.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    layers: dict[str, GraphLayer] = field(default_factory=dict)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except WireError as error:
        raise NqEdgeError("NQ-BUNDLE", f"model.onnx is not a valid ONNX file: {error}.") from error


def graph_weights(path: Path, data: Callable[[str], Path]) -> GraphWeights:
    """Look through a graph.

    Args:
        path: model.onnx.
        data: name of a file that holds initializers -> where it lies.

    Raises:
        NqEdgeError: NQ-BUNDLE for what is no graph, and for a tensor that its file does not hold.
    """
    model = path.read_bytes()
    found = GraphWeights()
    with _reading():
        for number, wire, graph, end in fields(memoryview(model)):
            if number != _GRAPH or wire != BYTES:
                continue
            base = end - len(graph)
            for inner, kind, content, inner_end in fields(graph):
                if kind != BYTES:
                    continue
                if inner == _INITIALIZER:
                    _tensor(found, content, base + inner_end - len(content), path, data)
                elif inner == _NODE:
                    _node(found, content)
    return found


def _tensor(found: GraphWeights, content: memoryview, base: int, path: Path, data: Callable[[str], Path]) -> None:
    dims: list[int] = []
    name, kind, raw, location = "", 0, (0, 0), {}
    for number, wire, value, end in fields(content):
        if number == _DIMS:
            dims += integers(wire, value)
        elif number == _TYPE and wire == VARINT:
            kind = value
        elif number == _NAME and wire == BYTES:
            name = str(value, "utf-8", "replace")
        elif number == _RAW and wire == BYTES:
            raw = (base + end - len(value), len(value))
        elif number == _LOCATION and wire == BYTES:
            entry = {n: str(text, "utf-8", "replace") for n, w, text, _ in fields(value) if w == BYTES}
            location[entry.get(1, "")] = entry.get(2, "")
    dtype = _TYPES.get(kind)
    if dtype is None or not dims or any(not 0 < size < _LARGEST for size in dims):
        return
    size = math.prod(dims) * WIDTHS[dtype]
    file, (offset, length) = path, raw
    if location:
        file = data(location.get("location", ""))
        offset, length = _number(location, "offset", "0"), _number(location, "length", str(size))
        if offset + length > file.stat().st_size:
            raise NqEdgeError("NQ-BUNDLE", f"{name[:200]} passes the end of {file.name}.")
    if length == size:
        found.tensors[name] = StoredTensor(file, offset, dtype, tuple(dims))
    elif location:
        raise NqEdgeError("NQ-BUNDLE", f"{name[:200]} has {length} bytes, its shape says {size}.")


def _number(location: Mapping[str, str], name: str, otherwise: str) -> int:
    text = location.get(name, otherwise)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WireError(f"{text[:40]!r} is no offset or length")
    return int(text)


def _node(found: GraphWeights, content: memoryview) -> None:
    outputs, texts, attributes = [], {}, {}
    for number, wire, value, _ in fields(content):
        if wire != BYTES:
            continue
        if number == _OUTPUT:
            outputs.append(str(value, "utf-8", "replace"))
        elif number == _ATTRIBUTE:
            name, numbers = _attribute(value)
            attributes[name] = numbers
        elif number in (_OPERATOR, _DOMAIN):
            texts[number] = str(value, "utf-8", "replace")
    if texts.get(_DOMAIN) != DOMAIN or texts.get(_OPERATOR) not in (LINEAR_OP, GROUP_OP):
        return
    ranks = attributes.get("ranks") or attributes.get("rank", [])
    rows, columns = attributes.get("out_features", []), attributes.get("in_features", [])
    layout = attributes.get("layout", [0])
    sizes = [*ranks, *rows, *columns]
    if len(columns) != 1 or not len(outputs) == len(ranks) == len(rows) or any(not 0 < s < _LARGEST for s in sizes):
        raise NqEdgeError("NQ-BUNDLE", f"a node of {', '.join(outputs)[:200]} contradicts itself.")
    for output, rank, count in zip(outputs, ranks, rows, strict=True):
        path = output.removesuffix(linear_output(""))
        found.layers[path] = GraphLayer(columns[0], rank, count, layout == [LAYOUT_TILES_16X256])


def _attribute(content: memoryview) -> tuple[str, list[int]]:
    name, numbers = "", []
    for number, wire, value, _ in fields(content):
        if number == _ATTRIBUTE_NAME and wire == BYTES:
            name = str(value, "utf-8", "replace")
        elif number in (_ATTRIBUTE_INTEGER, _ATTRIBUTE_INTEGERS):
            numbers += integers(wire, value)
    return name, numbers
