# SPDX-License-Identifier: Apache-2.0
"""Models of our operators as bytes, and sessions that know them; needs nothing but onnx and onnxruntime."""

from __future__ import annotations

import onnxruntime
from onnx import GraphProto, helper

__all__ = ["make_session", "to_bytes"]


def to_bytes(graph: GraphProto, opset: int = 18) -> bytes:
    """A model of the graph, serialized."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.nanoquant", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def make_session(model: bytes, library: str, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session that knows the operators of a library."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
