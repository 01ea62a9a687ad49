# SPDX-License-Identifier: Apache-2.0
"""Graphs from strangers: what could read a file or memory, or run without end, is refused wherever it hides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, export_onnx
from nanoquant_edge.formats.graph import DIALECTS, DOMAIN
from nanoquant_edge.formats.graph_check import ALLOWED_OPERATORS, check_graph
from nanoquant_edge.formats.onnx_file import rename_data
from nanoquant_edge.formats.protobuf import message
from nanoquant_edge.models.config_reader import read_config
from tests.families import FAMILY_CONFIGS
from tests.tiny import tiny_checkpoint

#: ONNX Runtime's marker of an address in memory, and names of files elsewhere.
LOCATIONS = ["*/_ORT_MEM_ADDR_/*", "../secret", "/etc/passwd", "sub/data", "sub\\data", "C:data", "..", ""]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("g")
    return (export_onnx(tiny_checkpoint(folder / "c"), folder / "b", portable=True).folder / "model.onnx").read_bytes()


def outside(location: str = "model.onnx.data") -> onnx.TensorProto:
    """A tensor whose data lies in a file, or wherever the location says."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(tensor: onnx.TensorProto, indices: bool = False) -> onnx.SparseTensorProto:
    other = helper.make_tensor("o", onnx.TensorProto.INT64, [1], [0])
    values, places = (other, tensor) if indices else (tensor, other)
    return onnx.SparseTensorProto(values=values, indices=places, dims=[4])


def node(name: str = "Constant", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(name, [], ["y"], domain=domain, **attributes)


def graph(**content: Any) -> onnx.GraphProto:
    return onnx.GraphProto(name="inner", **content)


#: Where a tensor can stand besides the graph's initializers.
PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], object]] = {
    "an attribute": lambda model, w: model.graph.node.append(node(value=w)),
    "an attribute of another operator": lambda model, w: model.graph.node.append(node("Add", value=w)),
    "a list of tensors": lambda model, w: model.graph.node.append(node(values=[w, w])),
    "a sparse attribute": lambda model, w: model.graph.node.append(node(sparse_value=sparse(w))),
    "indices of a sparse attribute": lambda model, w: model.graph.node.append(node(sparse_value=sparse(w, True))),
    "a list of sparse tensors": lambda model, w: model.graph.node.append(node(values=[sparse(w)])),
    "a sparse initializer": lambda model, w: model.graph.sparse_initializer.append(sparse(w)),
    "indices of a sparse initializer": lambda model, w: model.graph.sparse_initializer.append(sparse(w, True)),
    "a graph in a node": lambda model, w: model.graph.node.append(node("If", then_branch=graph(initializer=[w]))),
    "graphs in a node": lambda model, w: model.graph.node.append(node("If", branches=[graph(initializer=[w])])),
    "a function": lambda model, w: model.functions[0].node.append(node(value=w)),
    "a default of a function": lambda model, w: model.functions[0].attribute_proto.append(
        helper.make_attribute("k", w)
    ),
    "a graph in a function": lambda model, w: model.functions[0].node.append(node("Loop", body=graph(initializer=[w]))),
    "training": lambda model, w: model.training_info.add().initialization.initializer.append(w),
    "an algorithm": lambda model, w: model.training_info.add().algorithm.node.append(node(value=w)),
}


def refusal(content: bytes) -> NqEdgeError:
    with pytest.raises(NqEdgeError) as caught:
        check_graph(content)
    assert caught.value.code in ("NQ-OPERATOR", "NQ-PATH", "NQ-BUNDLE")
    return caught.value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["model.onnx.data", *LOCATIONS])
def test_a_tensor_elsewhere_names_no_file(honest: bytes, place: str, location: str) -> None:
    model = onnx.load_from_string(honest)
    PLACES[place](model, outside(location))
    assert refusal(model.SerializeToString()).code == "NQ-OPERATOR"


@pytest.mark.parametrize("location", LOCATIONS)
def test_initializers_lie_in_the_listed_file_of_their_own_folder(honest: bytes, location: str) -> None:
    model = onnx.load_from_string(honest)
    model.graph.initializer.append(outside(location))
    assert refusal(model.SerializeToString()).code == "NQ-PATH"
    # A file of that name, listed by a stranger's manifest, changes nothing.
    with pytest.raises(NqEdgeError, match="no file of its own folder"):
        check_graph(model.SerializeToString(), ["model.onnx.data", location])


def test_an_unlisted_file_and_a_key_that_comes_twice(honest: bytes) -> None:
    model = onnx.load_from_string(honest)
    model.graph.initializer.append(outside("other.data"))
    assert refusal(model.SerializeToString()).code == "NQ-BUNDLE"
    check_graph(model.SerializeToString(), ["model.onnx.data", "other.data"])
    tensor = outside("../secret")
    tensor.external_data.add(key="location", value="model.onnx.data")
    model.graph.initializer.append(tensor)
    assert refusal(model.SerializeToString()).code in ("NQ-PATH", "NQ-BUNDLE")


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("Loop", ""),
        ("If", ""),
        ("Scan", ""),
        ("SequenceMap", ""),
        ("StringConcat", ""),
        ("RandomNormal", ""),
        ("ConstantOfShape", ""),
        ("Expand", ""),
        ("EPContext", "com.microsoft"),
        ("BeamSearch", "com.microsoft"),
        ("NanoQuantOther", DOMAIN),
        ("Add", "elsewhere"),
        ("add", ""),
        ("", ""),
    ],
)
def test_operators_that_no_bundle_needs(honest: bytes, name: str, domain: str) -> None:
    model = onnx.load_from_string(honest)
    model.graph.node.append(node(name, domain))
    assert refusal(model.SerializeToString()).code == "NQ-OPERATOR"


def test_functions_that_double_and_functions_in_other_names(honest: bytes) -> None:
    model = onnx.load_from_string(honest)
    model.functions[0].node.append(node("NanoQuantLinear", DOMAIN))
    assert "in a function" in refusal(model.SerializeToString()).message
    for name, domain in (("Other", DOMAIN), ("NanoQuantLinear", ""), ("Add", ""), ("NanoQuantLinear", "elsewhere")):
        model = onnx.load_from_string(honest)
        model.functions[0].name, model.functions[0].domain = name, domain
        assert "function" in refusal(model.SerializeToString()).message
    model = onnx.load_from_string(honest)
    model.functions.append(model.functions[0])
    assert "2 functions" in refusal(model.SerializeToString()).message
    model = onnx.load_from_string(honest)
    model.functions[0].node.extend([node("Identity")] * 600)
    assert refusal(model.SerializeToString()).code == "NQ-OPERATOR"


def test_a_second_graph_is_merged_and_so_is_looked_at(honest: bytes) -> None:
    hidden = onnx.ModelProto(graph=graph(node=[node("Loop")])).SerializeToString()
    assert refusal(honest + hidden).code == "NQ-OPERATOR"


def test_a_number_that_another_reader_cuts_short(honest: bytes) -> None:
    """Field 7 with a bit beyond the 32 that protobuf reads: unknown to one reader, the graph to another."""
    hidden = onnx.GraphProto(node=[node("Loop")]).SerializeToString()
    key = bytes([0x80 | (7 << 3 | 2), 0x80, 0x80, 0x80, 0x10])
    assert refusal(honest + key + message(7, hidden)[1:]).code == "NQ-BUNDLE"


@pytest.mark.parametrize("name", ["llama", *FAMILY_CONFIGS])
def test_every_graph_that_is_exported_passes(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", embedding="int8", **FAMILY_CONFIGS.get(name, {}))
    config = read_config(checkpoint.config)
    for dialect in DIALECTS:
        for options in ({}, {"portable": True}, {"grouped": True}, {"dtype": "bfloat16"}):
            model = build_model(config, checkpoint, dialect=dialect, **options)
            summary = check_graph(ir.to_proto(model).SerializeToString())
            assert summary.operators.get("NanoQuantLinear", 0) > 0


def messages(proto: Any) -> Iterator[Any]:
    """Every message inside of one, by protobuf's own description of it."""
    yield proto
    for field, value in proto.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                yield from messages(inner)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_what_passes_is_harmless_to_protobufs_reader_too(honest: bytes, data: st.DataObject) -> None:
    """Damaged models that are let through hold no operator, file or function that `onnx` finds and we do not."""
    place = data.draw(st.sampled_from([None, *PLACES]))
    content = honest
    if place is not None:
        model = onnx.load_from_string(honest)
        PLACES[place](model, outside("../secret"))
        content = model.SerializeToString()
    edits = st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=4), st.booleans())
    changed = bytearray(content)
    for position, piece, insert in data.draw(st.lists(edits, min_size=1, max_size=4)):
        changed[position : position if insert else position + len(piece)] = piece
    try:
        check_graph(bytes(changed))
        model = onnx.load_from_string(bytes(changed))
    except NqEdgeError:
        return
    except Exception:  # protobuf's DecodeError: no runtime reads it either
        return
    for found in messages(model):
        if isinstance(found, onnx.NodeProto):
            assert found.op_type in ALLOWED_OPERATORS[found.domain]
        elif isinstance(found, onnx.FunctionProto):
            assert (found.domain, found.name) == (DOMAIN, "NanoQuantLinear")
        elif isinstance(found, onnx.TensorProto):
            assert all(item.value == "model.onnx.data" for item in found.external_data if item.key == "location")
        assert not isinstance(found, onnx.SparseTensorProto)


def test_files_are_renamed_and_nothing_else(honest: bytes) -> None:
    renamed = rename_data(honest, {"model.onnx.data": "0123abcd" * 8, "absent": "x"})
    expected = onnx.load_from_string(honest)
    for tensor in expected.graph.initializer:
        for item in tensor.external_data:
            item.value = item.value.replace("model.onnx.data", "0123abcd" * 8)
    assert onnx.load_from_string(renamed) == expected
    assert rename_data(honest, {"absent": "x"}) == honest
