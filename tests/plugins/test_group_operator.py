# SPDX-License-Identifier: Apache-2.0
"""NanoQuantLinearGroup on the CPU: the same numbers as single nodes, any threads, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.plugins import one_node
from tests.plugins.sessions import to_bytes

LISTS = {"rank": "ranks", "out_features": "out_features", "has_scale_mid": "has_scale_mid", "has_bias": "has_bias"}


def group_model(layers: list[one_node.Layer], **changes: Any) -> bytes:
    """A model of one group; `changes` replace attributes, None removes one."""
    inputs, tensors = ["x"], []
    for place, layer in enumerate(layers):
        for name, array in layer.weights.items():
            kind = layer.scale_kind if array.dtype in (np.float32, np.float16, np.uint16) else TensorProto.INT32
            tensors.append(helper.make_tensor(f"{name}.{place}", kind, array.shape, array.tobytes(), raw=True))
            inputs.append(f"{name}.{place}")
    attributes: dict[str, Any] = {"in_features": layers[0].n, "layout": 0}
    attributes |= {ours: [layer.attributes[name] for layer in layers] for name, ours in LISTS.items()}
    attributes = {name: value for name, value in {**attributes, **changes}.items() if value is not None}
    names = [f"y{place}" for place in range(len(layers))]
    node = helper.make_node("NanoQuantLinearGroup", inputs, names, domain="com.nanoquant", **attributes)
    kind = layers[0].kind
    outputs = [helper.make_tensor_value_info(name, kind, ["batch", "length", None]) for name in names]
    x = helper.make_tensor_value_info("x", kind, ["batch", "length", layers[0].n])
    graph = helper.make_graph([node], "group", [x], outputs, tensors)
    return to_bytes(graph, opset=21)


def layers_of(n: int, sizes: list[tuple[int, int]], scale_kind: int = one_node.FLOAT32) -> list[one_node.Layer]:
    return [
        one_node.make_layer(n, rank, m, scale_kind=scale_kind, mid=place % 2 == 0, bias=place % 2 == 1, seed=place)
        for place, (rank, m) in enumerate(sizes)
    ]


SHAPES = {
    "tiny": (33, [(1, 5), (40, 1)]),
    "attention": (576, [(256, 576), (128, 192), (128, 192)]),
    "feed": (96, [(70, 300), (65, 300), (64, 7), (200, 130)]),
}


@pytest.mark.parametrize("scale_kind", [one_node.FLOAT32, one_node.FLOAT16, one_node.BFLOAT16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_single_nodes(shape: str, scale_kind: int, library: str) -> None:
    layers = layers_of(*SHAPES[shape], scale_kind)
    for threads in (1, 3):
        session = one_node.make_session(group_model(layers), library, threads)
        for dims in [(1, 1), (1, 3), (2, 4), (1, 200), (1, 0)]:
            x = one_node.make_x(layers[0], *dims, outliers=True)
            for layer, y in zip(layers, session.run(None, {"x": x}), strict=True):
                single = one_node.make_session(one_node.make_model(layer), library)
                np.testing.assert_array_equal(y, one_node.run(single, layer, x))
                assert layer.relative_error(x, y) <= one_node.LIMITS[one_node.FLOAT32]


def test_runs_of_one_session_at_once(library: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    layers = layers_of(*SHAPES["attention"])
    session = one_node.make_session(group_model(layers), library, 2)
    inputs = [one_node.make_x(layers[0], 1, 1 + seed % 5, seed=seed) for seed in range(40)]
    expected = [session.run(None, {"x": x}) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda x: session.run(None, {"x": x}), inputs), expected, strict=True):
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": None},
        {"ranks": [40]},
        {"ranks": [40, 41]},
        {"ranks": [40, 40, 40]},
        {"ranks": [40, 0]},
        {"ranks": [40, -1]},
        {"ranks": [40, 1 << 62]},
        {"out_features": [50, 1 << 31]},
        {"has_bias": [0, 2]},
        {"has_scale_mid": [1, 1]},
        {"in_features": 71},
        {"in_features": None},
        {"layout": 1},
        {"layout": 2},
    ],
    ids=str,
)
def test_attributes_that_contradict_the_weights_are_refused(changes: dict[str, Any], library: str) -> None:
    layers = layers_of(70, [(40, 50), (40, 50)])
    one_node.make_session(group_model(layers), library)
    with pytest.raises(Exception, match="NanoQuantLinear"):
        one_node.make_session(group_model(layers, **changes), library)


def test_weights_that_are_no_constants_are_refused(library: str) -> None:
    model = onnx.load_from_string(group_model(layers_of(70, [(40, 50), (40, 50)])))
    tensor = model.graph.initializer.pop(0)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    with pytest.raises(Exception, match="not a constant"):
        one_node.make_session(model.SerializeToString(), library)


@pytest.mark.parametrize("shape", [(1, 1, 71), (1, 1, 0)])
def test_a_wrong_width_is_refused(shape: tuple[int, ...], library: str) -> None:
    layers = layers_of(70, [(40, 50), (40, 50)])
    model = onnx.load_from_string(group_model(layers))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    session = one_node.make_session(model.SerializeToString(), library)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="in_features is 70"):
        session.run(None, {"x": np.zeros(shape, np.float32)})
