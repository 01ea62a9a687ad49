# SPDX-License-Identifier: Apache-2.0
"""Intermediate values of an exported model as further graph outputs, without the `onnx` package.

Protocol Buffers merge concatenated messages: repeated fields are appended (Protocol Buffers encoding guide, "Last One
Wins"). So a variant of model.onnx that also returns some of its values is the file's bytes followed by a ModelProto
that holds nothing but those outputs; its external data stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import NqEdgeError
from .onnx_file import MAX_MODEL_BYTES
from .protobuf import integer, message

__all__ = ["FOLDER_OPTION", "with_extra_outputs"]

#: ONNX Runtime session entry that says where the external data of a model passed as bytes lies: its folder.
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"

# Field numbers of onnx.proto3.
_MODEL_GRAPH, _GRAPH_OUTPUT, _INFO_NAME, _INFO_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT = 7, 12, 1, 2, 1, 1
_ELEMENTS = {"float32": 1, "float16": 10, "bfloat16": 16}


def with_extra_outputs(model_file: str | Path, names: Iterable[str], dtype: str = "float32") -> bytes:
    """A model that also returns some of its intermediate values.

    Args:
        model_file: a bundle's model.onnx.
        names: value names, e.g. from `formats.graph.block_output` and `linear_output`.
        dtype: their type: the bundle's activation type.

    Returns:
        Serialized model. Give it to `InferenceSession` with the session entry `FOLDER_OPTION` set to the bundle's
        folder, where its weights are.

    Raises:
        NqEdgeError: NQ-BUNDLE when the file cannot be read, NQ-OPTION for a value that the model does not have.
    """
    path = Path(model_file)
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise NqEdgeError("NQ-BUNDLE", f"{path} has {path.stat().st_size} bytes; a graph without weights has less.")
        data = path.read_bytes()
    except OSError as error:
        raise NqEdgeError("NQ-BUNDLE", f"cannot read {path}: {error.strerror}.") from error
    if dtype not in _ELEMENTS:
        raise NqEdgeError("NQ-OPTION", f"dtype {dtype!r} is not one of {', '.join(_ELEMENTS)}.")
    kind = message(_INFO_TYPE, message(_TYPE_TENSOR, integer(_TENSOR_ELEMENT, _ELEMENTS[dtype])))
    outputs = b""
    for name in dict.fromkeys(names):
        encoded = name.encode()
        if not encoded or message(1, encoded)[1:] not in data:
            raise NqEdgeError("NQ-OPTION", f"the model has no value {name!r}.", "Check the name in the model file.")
        outputs += message(_GRAPH_OUTPUT, message(_INFO_NAME, encoded) + kind)
    return data + message(_MODEL_GRAPH, outputs)
