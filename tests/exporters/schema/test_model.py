# SPDX-License-Identifier: Apache-2.0
"""Every rule of the operator's schema is enforced, on graphs in memory and on a stranger's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, check_file, check_model, export_onnx
from nanoquant_edge.exporters.onnx.portable import linear_function
from nanoquant_edge.formats.checkpoint import to_tiles
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import tiny_checkpoint

NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    return tiny_checkpoint(tmp_path_factory.mktemp("schema") / "c", num_hidden_layers=1)


def node_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.name == NAME)


def replace(position: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Model], None]:
    def act(model: ir.Model) -> None:
        value = node_of(model).inputs[position]
        value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=value.name)

    return act


def attribute(name: str, value: object) -> Callable[[ir.Model], None]:
    def act(model: ir.Model) -> None:
        attributes = node_of(model).attributes
        if value is None:
            del attributes[name]
        else:
            attributes[name] = ir.convenience.convert_attribute(name, value)

    return act


def poison(array: np.ndarray) -> np.ndarray:
    array[0] = np.nan
    return array


def last_bit(array: np.ndarray) -> np.ndarray:
    array[-1, -1] |= np.int32(-(2**31))
    return array


def no_initializer(model: ir.Model) -> None:
    node_of(model).inputs[2].const_value = None


def foreign_shape(model: ir.Model) -> None:
    node_of(model).inputs[0].shape = ir.Shape(["batch", "sequence", 41])


def output_type(model: ir.Model) -> None:
    node_of(model).outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


def integer_input(model: ir.Model) -> None:
    node_of(model).inputs[0].type = ir.TensorType(ir.DataType.INT64)


def other_opset(model: ir.Model) -> None:
    model.graph.opset_imports["com.nanoquant"] = 2


def other_operator(model: ir.Model) -> None:
    node_of(model).op_type = "NanoQuantConv"


def overloaded(model: ir.Model) -> None:
    node_of(model).overload = "fast"


def hidden_in_function(model: ir.Model) -> None:
    x = ir.Value(name="x")
    inner = ir.node("NanoQuantLinear", [x], domain="com.nanoquant", name="inner", outputs=[ir.Value(name="y")])
    graph = ir.Graph([x], inner.outputs, nodes=[inner], opset_imports={"com.nanoquant": 1})
    function = ir.Function("other", "Cover", graph=graph, attributes=[])
    model.functions[function.identifier()] = function


RULES: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "omitted input": (lambda model: node_of(model).replace_input_with(6, None), "an input is omitted"),
    "six inputs": (lambda model: node_of(model).resize_inputs(6), "6 inputs"),
    "missing attribute": (attribute("layout", None), "layout"),
    "unknown attribute": (attribute("group", 1), "group"),
    "attribute type": (attribute("rank", 1.5), "rank is not an integer"),
    "rank zero": (attribute("rank", 0), "rank is 0"),
    "huge": (attribute("out_features", 1 << 40), "out_features is"),
    "flag": (attribute("has_bias", 2), "has_bias is 2"),
    "layout": (attribute("layout", 2), "layout 2"),
    "layout against words": (attribute("layout", 1), "v_packed has shape"),
    "rank against words": (attribute("rank", 1000), "v_packed has shape"),
    "in_features": (attribute("in_features", 72), "X's last dimension"),
    "out_features": (attribute("out_features", 71), "Y's type or shape"),
    "flag against shape": (attribute("has_bias", 1), "bias has shape (1,)"),
    "word type": (replace(1, lambda array: array.astype(np.int64)), "v_packed is INT64"),
    "scale types": (replace(3, lambda array: array.astype(np.float32)), "not of one floating type"),
    "scale length": (replace(5, lambda array: array[:-1]), "scale_out has shape"),
    "not finite": (replace(5, poison), "scale_out holds"),
    "tail bits": (replace(1, last_bit), "v_packed has bits set"),
    "unused scale": (replace(4, lambda array: array + 1), "scale_mid is unused"),
    "unused bias": (replace(6, lambda array: array + 1), "bias is unused"),
    "no initializer": (no_initializer, "u_packed is not an initializer"),
    "input shape": (foreign_shape, "X's last dimension is 41"),
    "input type": (integer_input, "X has no floating type"),
    "output type": (output_type, "Y's type or shape"),
    "opset": (other_opset, "imports com.nanoquant 2"),
    "operator": (other_operator, "NanoQuantConv is not an operator"),
    "overload": (overloaded, "overload name"),
    "function": (hidden_in_function, "inside the function Cover"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named(checkpoint, rule: str) -> None:
    model = build_model(read_config(checkpoint.config), checkpoint)
    assert check_model(model) == 7
    act, message = RULES[rule]
    act(model)
    with pytest.raises(NqEdgeError) as caught:
        check_model(model)
    assert caught.value.code == "NQ-OPERATOR" and message in caught.value.message, caught.value.message


def test_the_portable_function_is_allowed(checkpoint) -> None:
    model = build_model(read_config(checkpoint.config), checkpoint, portable=True)
    assert check_model(model) == 7
    assert [function.name for function in model.functions.values()] == [linear_function(18).name]


def in_tiles(model: ir.Model) -> None:
    """Write every node in layout 1."""
    for node in model.graph:
        if node.op_type == "NanoQuantLinear":
            node.attributes["layout"] = ir.AttrInt64("layout", 1)
            for position, columns in ((1, "in_features"), (2, "rank")):
                value = node.inputs[position]
                tiles = to_tiles(value.const_value.numpy(), node.attributes[columns].as_int())
                value.const_value = ir.tensor(tiles, name=value.name)


def test_layout_1_is_checked_like_layout_0(checkpoint) -> None:
    config = read_config(checkpoint.config)
    model = build_model(config, checkpoint)
    in_tiles(model)
    assert check_model(model) == 7
    replace(1, last_bit)(model)
    with pytest.raises(NqEdgeError, match="v_packed has bits set past its last row or column"):
        check_model(model)
    portable = build_model(config, checkpoint, portable=True)
    in_tiles(portable)
    with pytest.raises(NqEdgeError, match="portable body, which reads layout 0 only"):
        check_model(portable)


def test_files_of_strangers(checkpoint, tmp_path: Path) -> None:
    folder = export_onnx(checkpoint, tmp_path / "b").folder
    file = folder / "model.onnx"
    assert check_file(file) == 7

    def edited(act: Callable[[onnx.TensorProto], None]) -> NqEdgeError:
        model = onnx.load(str(file), load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == f"{NAME}.u_packed")
        act(tensor)
        (folder / "edited.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(NqEdgeError) as caught:
            check_file(folder / "edited.onnx")
        return caught.value

    def entry(key: str, value: str) -> Callable[[onnx.TensorProto], None]:
        def act(tensor: onnx.TensorProto) -> None:
            for item in tensor.external_data:
                if item.key == key:
                    item.value = value

        return act

    def huge(tensor: onnx.TensorProto) -> None:
        tensor.dims[0] = 1 << 40

    assert edited(entry("location", "../c/nanoquant.safetensors")).code == "NQ-PATH"
    assert edited(entry("location", "/etc/passwd")).code == "NQ-PATH"
    for act in (entry("offset", str(1 << 50)), entry("offset", "-8"), entry("length", "4"), huge):
        error = edited(act)
        assert error.code == "NQ-OPERATOR" and f"{NAME}.u_packed" in error.message, error.message
    assert "not a valid ONNX model" in edited(entry("offset", "x")).message

    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(NqEdgeError, match="does not fit its place"):
        check_file(file)
    (folder / "noise.onnx").write_bytes(b"\x08\xff not a model")
    for name in ("noise.onnx", "absent.onnx"):
        with pytest.raises(NqEdgeError, match="not a valid ONNX"):
            check_file(folder / name)


def test_an_initializer_that_names_no_file(checkpoint, tmp_path: Path) -> None:
    file = export_onnx(checkpoint, tmp_path / "b").folder / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == f"{NAME}.u_packed")
    next(item for item in tensor.external_data if item.key == "location").key = "elsewhere"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(NqEdgeError, match="does not fit its place") as caught:
        check_file(file)
    assert caught.value.code == "NQ-OPERATOR"
