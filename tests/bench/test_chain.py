# SPDX-License-Identifier: Apache-2.0
"""The model of many small nodes that tells what a node costs."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest

from nanoquant_edge.bench.chain import chain_model


@pytest.mark.parametrize("count", [1, 2, 200])
def test_the_chain_is_a_valid_model(count: int) -> None:
    model = onnx.load_from_string(chain_model(count))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Neg"] * count
    onnxruntime.InferenceSession(chain_model(count), providers=["CPUExecutionProvider"])
