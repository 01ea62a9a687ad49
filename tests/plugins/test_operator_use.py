# SPDX-License-Identifier: Apache-2.0
"""The operator in sessions: shapes of X, threads, several sessions, shape inference, forced instruction sets."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nanoquant_edge.system.native import ort_library_info
from tests.plugins import one_node


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (3, 0), (0, 5, 2), (2, 3, 2), (385,)], ids=lambda s: "x".join(map(str, s)) or "vector"
)
def test_any_leading_dimensions(shape: tuple[int, ...], library: str) -> None:
    layer = one_node.make_layer(70, 40, 50)
    names = tuple(f"d{i}" for i in range(len(shape)))
    session = one_node.make_session(one_node.make_model(layer, names), library)
    x = one_node.make_x(layer, *shape)
    (y,) = session.run(None, {"x": x})
    assert y.shape == (*shape, 50)
    assert y.dtype == np.float32
    assert layer.relative_error(x, y) <= one_node.LIMITS[one_node.FLOAT32]


def test_a_batch_equals_its_rows(library: str) -> None:
    layer = one_node.make_layer(130, 300, 70)
    session = one_node.make_session(one_node.make_model(layer), library)
    x = one_node.make_x(layer, 2, 150, outliers=True)
    whole = one_node.run(session, layer, x)
    for row in [(0, 0), (0, 149), (1, 77)]:
        alone = one_node.run(session, layer, x[row][None, None])
        np.testing.assert_array_equal(whole[row], alone[0, 0])


def test_threads_do_not_change_the_result(library: str) -> None:
    layer = one_node.make_layer(1024, 700, 900)
    sessions = [one_node.make_session(one_node.make_model(layer), library, n) for n in (1, 2, 3)]
    for dims in [(1, 1), (1, 40), (2, 150)]:
        x = one_node.make_x(layer, *dims)
        results = [one_node.run(session, layer, x) for session in sessions]
        assert layer.relative_error(x, results[0]) <= one_node.LIMITS[one_node.FLOAT32]
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


def test_sessions_at_once_share_nothing(library: str) -> None:
    layers = [one_node.make_layer(300 + 100 * i, 200, 257, seed=i) for i in range(3)]
    sessions = [one_node.make_session(one_node.make_model(layer), library, 2) for layer in layers]
    inputs = [one_node.make_x(layer, 1, 17) for layer in layers]
    wanted = [one_node.run(*both) for both in zip(sessions, layers, inputs, strict=True)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(40):
            y = one_node.run(sessions[index], layers[index], inputs[index])
            if not np.array_equal(y, wanted[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_weights_may_be_fed_at_run_time(library: str) -> None:
    layer = one_node.make_layer(70, 40, 50)
    session = one_node.make_session(one_node.make_model(layer, weights_as_inputs=True), library)
    x = one_node.make_x(layer, 1, 3)
    (y,) = session.run(None, {"x": x, **layer.weights})
    assert layer.relative_error(x, y) <= one_node.LIMITS[one_node.FLOAT32]


def test_options_can_be_used_again_after_a_session_is_gone(library: str) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    for seed in range(3):
        layer = one_node.make_layer(70 + seed, 40, 50, seed=seed)
        session = onnxruntime.InferenceSession(one_node.make_model(layer), options)
        x = one_node.make_x(layer, 1, 3)
        assert layer.relative_error(x, one_node.run(session, layer, x)) <= one_node.LIMITS[one_node.FLOAT32]
        del session


def _chain(kind: int, dims: list[str | int]) -> bytes:
    """Two layers, an activation between them, and no value_info."""
    nodes = []
    tensors = []
    for index, (n, m) in enumerate([(64, 96), (96, 32)]):
        layer = one_node.make_layer(n, 40, m, kind, one_node.FLOAT16, bias=False)
        names = [f"{name}{index}" for name in one_node.INPUTS[1:]]
        values = layer.weights.values()
        tensors += [one_node.constant(name, value, 10) for name, value in zip(names, values, strict=True)]
        out = "y" if index else "a"
        source = "b" if index else "x"
        nodes.append(
            helper.make_node("NanoQuantLinear", [source, *names], [out], domain="com.nanoquant", **layer.attributes)
        )
    nodes.insert(1, helper.make_node("Relu", ["a"], ["b"]))
    inputs = [helper.make_tensor_value_info("x", kind, [*dims, 64])]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in ("a", "y")]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.nanoquant", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("dims", [[2, 3], ["batch", "length"], ["batch", 3]], ids=str)
def test_shapes_are_inferred_through_a_chain(kind: int, dims: list[str | int], library: str) -> None:
    session = one_node.make_session(_chain(kind, dims), library)
    assert [o.shape for o in session.get_outputs()] == [[*dims, 96], [*dims, 32]]
    x = np.ones((2, 3, 64), np.float32 if kind == TensorProto.FLOAT else np.float16)
    a, y = session.run(None, {"x": x})
    assert (a.shape, y.shape) == ((2, 3, 96), (2, 3, 32))
    assert a.dtype == y.dtype == x.dtype


def test_scales_of_two_types_are_refused(library: str) -> None:
    layer = one_node.make_layer(70, 40, 50)
    model = onnx.load_from_string(one_node.make_model(layer))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(helper.make_tensor("bias", TensorProto.FLOAT16, [50], np.zeros(50, np.float16).tobytes(), True))
    with pytest.raises(Exception, match="NanoQuantLinear"):
        one_node.make_session(model.SerializeToString(), library)


def test_the_library_says_what_it_is(library: str) -> None:
    info = ort_library_info()
    assert info["isa"] in ("scalar", "avx2", "avx512", "avx512vbmi", "neon")
    assert info["ort_api"] == 18
    names = ("Linear", "LinearGroup", "Attention", "AttentionHalfCache", "Embedding", "Head")
    assert info["operators"] == [f"com.nanoquant::NanoQuant{name}-1" for name in names]
    assert info["path"] == library
