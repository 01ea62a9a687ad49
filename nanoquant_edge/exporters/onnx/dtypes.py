# SPDX-License-Identifier: Apache-2.0
"""Activation and scale types under their three names: ours, ONNX's and numpy's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["ir_dtype", "numpy_dtype", "onnx_type_of"]

_IR = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_NUMPY = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def ir_dtype(name: str) -> ir.DataType:
    """ONNX type of one of `formats.graph.ACTIVATION_DTYPES`."""
    return _IR[name]


def numpy_dtype(kind: ir.DataType) -> np.dtype[np.generic]:
    """numpy (or ml_dtypes) type of an ONNX type."""
    for name, value in _IR.items():
        if value == kind:
            return _NUMPY[name]
    return np.dtype(kind.numpy())


def onnx_type_of(array: NDArray[np.generic]) -> ir.DataType:
    """ONNX type of an array; bfloat16 is `ml_dtypes.bfloat16`."""
    return ir.DataType.from_numpy(array.dtype)
