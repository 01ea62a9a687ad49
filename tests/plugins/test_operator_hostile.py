# SPDX-License-Identifier: Apache-2.0
"""Nodes that contradict themselves are refused with a message that says what is wrong; nothing crashes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.plugins import hostile, one_node

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("weights_as_inputs", [False, True], ids=["constant", "fed"])
@pytest.mark.parametrize("name", hostile.CASES)
def test_contradiction_is_refused(name: str, weights_as_inputs: bool, library: str) -> None:
    layer, message = hostile.CASES[name]
    seen = hostile.attempt(layer, library, weights_as_inputs=weights_as_inputs)
    assert seen is not None
    if weights_as_inputs and name == "in_features past the words":
        message = "last dimension of X is 70, but in_features is 97"  # X is looked at first
    assert f"NanoQuantLinear: {message}" in seen or message in seen


@pytest.mark.parametrize(("shape", "message"), [((2, 69), "last dimension of X is 69"), ((), "X is a scalar")])
def test_wrong_x_is_refused(shape: tuple[int, ...], message: str, library: str) -> None:
    layer = one_node.make_layer(70, 40, 50)
    model = one_node.onnx.load_from_string(one_node.make_model(layer))
    for value in [model.graph.input[0], model.graph.output[0]]:
        value.type.tensor_type.ClearField("shape")  # nothing declared, so that only the kernel can object
    session = one_node.make_session(model.SerializeToString(), library)
    with pytest.raises(Exception, match=message):
        session.run(None, {"x": np.ones(shape, np.float32)})


@pytest.mark.parametrize("count", [6, 8])
def test_wrong_number_of_inputs_is_refused(count: int, library: str) -> None:
    model = one_node.onnx.load_from_string(one_node.make_model(one_node.make_layer(70, 40, 50)))
    inputs = model.graph.node[0].input
    if count == 6:
        del inputs[-1]
    else:
        inputs.append("bias")
    with pytest.raises(Exception, match="NanoQuantLinear"):
        session = one_node.make_session(model.SerializeToString(), library)
        session.run(None, {"x": np.ones((1, 1, 70), np.float32)})


def test_an_omitted_input_is_refused(library: str) -> None:
    model = one_node.onnx.load_from_string(one_node.make_model(one_node.make_layer(70, 40, 50)))
    model.graph.node[0].input[4] = ""
    with pytest.raises(Exception, match=r"NanoQuantLinear|scale_mid|missing"):
        session = one_node.make_session(model.SerializeToString(), library)
        session.run(None, {"x": np.ones((1, 1, 70), np.float32)})


def test_an_unknown_instruction_set_is_refused(library: str) -> None:
    code = (
        "import onnxruntime as o\n"
        f"try: o.SessionOptions().register_custom_ops_library({library!r})\n"
        "except Exception as e: print(e)"
    )
    env = {"NQ_CPU_ISA": "avx1024", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "NQ_CPU_ISA names an instruction set that is unknown or that this processor lacks" in done.stdout
