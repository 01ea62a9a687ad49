# SPDX-License-Identifier: Apache-2.0
"""Grouped projections and layout 1: the same weights as single nodes, and every rule of the schema checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, check_file, check_model
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.formats.checkpoint import Checkpoint, from_tiles
from nanoquant_edge.formats.graph import DOMAIN, GROUP_OP, LINEAR_INPUTS
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import random_layer, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "c", num_hidden_layers=1, mid=True, attention_bias=True)


def build(checkpoint: Checkpoint, layout: int = 1, **options: object) -> ir.Model:
    config = read_config(checkpoint.config)
    return build_model(config, checkpoint, dialect="onnx24", dtype="float16", layout=layout, grouped=True, **options)


def layers_of(model: ir.Model) -> dict[str, dict[str, np.ndarray]]:
    """Module path -> the weights its node carries, single nodes and groups alike; and what the node says of them."""
    found = {}
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN:
            for index, output in enumerate(node.outputs):
                values = node.inputs[1 + 6 * index : 7 + 6 * index]
                parts = {name: value.const_value.numpy() for name, value in zip(LINEAR_INPUTS[1:], values, strict=True)}
                found[output.name.removesuffix(".output")] = {**parts, "X": node.inputs[0].name}
    return found


@pytest.mark.parametrize("layout", [0, 1])
def test_groups_carry_the_weights_of_single_nodes(checkpoint: Checkpoint, tmp_path: Path, layout: int) -> None:
    grouped = build(checkpoint, layout)
    assert check_model(grouped) == 7
    kinds = [node.op_type for node in grouped.graph.all_nodes() if node.domain == DOMAIN]
    assert kinds == [GROUP_OP, "NanoQuantLinear", GROUP_OP, "NanoQuantLinear"]
    single = build_model(read_config(checkpoint.config), checkpoint, dialect="onnx24", dtype="float16")
    ours, theirs = layers_of(grouped), layers_of(single)
    assert ours.keys() == theirs.keys()
    for name, parts in theirs.items():
        layer = checkpoint.layer(name)
        sizes = {"v_packed": (layer.rank, layer.in_features), "u_packed": (layer.out_features, layer.rank)}
        for part, expected in parts.items():
            found = ours[name][part]
            if layout == 1 and part in sizes:
                assert not np.array_equal(found, expected)
                found = from_tiles(found, *sizes[part])
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}.{part}")
    write_model(grouped, tmp_path / "model.onnx")
    assert check_file(tmp_path / "model.onnx") == 7


def test_a_group_has_one_scale_type(checkpoint: Checkpoint) -> None:
    class Mixed:
        def __getattr__(self, name: str) -> object:
            return getattr(checkpoint, name)

        def layer(self, name: str) -> object:
            layer = checkpoint.layer(name)
            if not name.endswith("k_proj"):
                return layer
            rng = np.random.default_rng(0)
            return random_layer(rng, layer.out_features, layer.in_features, layer.rank, ml_dtypes.bfloat16, bias=True)

    model = build_model(read_config(checkpoint.config), Mixed(), dialect="onnx24", dtype="float16", grouped=True)
    assert check_model(model) == 7
    kinds = [node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN]
    assert kinds == ["NanoQuantLinear"] * 4 + [GROUP_OP, "NanoQuantLinear"]


def change(name: str, value: object) -> Callable[[ir.Node], None]:
    def act(node: ir.Node) -> None:
        node.attributes[name] = ir.Attr(name, ir.AttributeType.INTS, value)

    return act


def last_bit(node: ir.Node) -> None:
    value = node.inputs[7]
    words = value.const_value.numpy().copy()
    words[-1, -1] |= np.int32(-(2**31))
    value.const_value = ir.tensor(words)


RULES = {
    "too many": (change("ranks", [8] * 5), "2 to 4 layers, not 5"),
    "one": (change("ranks", [8]), "2 to 4 layers, not 1"),
    "uneven": (change("out_features", [64, 32]), "out_features has 2 entries, not 3"),
    "negative": (change("ranks", [-1, 8, 8]), "rank is -1"),
    "flags": (change("has_bias", [1, 1, 2]), "has_bias is 2"),
    "sizes": (change("out_features", [64, 32, 33]), "Y's type or shape"),
    "type": (lambda node: node.attributes.update(ranks=ir.AttrInt64("ranks", 3)), "ranks is not a list of integers"),
    "inputs": (lambda node: node.resize_inputs(18), "18 inputs and 3 outputs, not 19 and 3"),
    "tail": (last_bit, "bits set past"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named(checkpoint: Checkpoint, rule: str) -> None:
    model = build(checkpoint)
    act, message = RULES[rule]
    act(next(node for node in model.graph.all_nodes() if node.op_type == GROUP_OP))
    with pytest.raises(NqEdgeError) as caught:
        check_model(model)
    assert caught.value.code == "NQ-OPERATOR" and message in caught.value.message, caught.value.message


def test_options_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(NqEdgeError, match="layout 7"):
        build(checkpoint, 7)
    with pytest.raises(NqEdgeError, match="portable graph has layout 0"):
        build(checkpoint, 0, portable=True)
