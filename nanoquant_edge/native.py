# SPDX-License-Identifier: Apache-2.0
"""Where the native libraries are, and what they say about themselves.

The ONNX Runtime custom-operator library is built by CMake into `nanoquant_edge/_native`. The environment variable
`NQ_EDGE_NATIVE_DIR` names another folder, which then is the only one looked at: a library is loaded from where the
user said or from the installed package, never from a model's folder.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from nanoquant_edge.errors import NqEdgeError

__all__ = ["NATIVE_DIR_VARIABLE", "ORT_LIBRARY_NAME", "ort_library_info", "ort_library_path"]

#: environment variable that overrides the package's own folder
NATIVE_DIR_VARIABLE = "NQ_EDGE_NATIVE_DIR"

#: file name of the ONNX Runtime custom-operator library
ORT_LIBRARY_NAME = "libnanoquant_ort.so"

_BUILD_HINT = (
    "Install a built wheel, or build it: cmake -S plugins -B build/native && cmake --build build/native && "
    "cmake --install build/native --prefix nanoquant_edge/_native"
)


def ort_library_path() -> Path:
    """Return the path of the ONNX Runtime custom-operator library.

    Returns:
        The absolute path of an existing file: in the folder that `NQ_EDGE_NATIVE_DIR` names when it is set,
        otherwise in the installed package.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when the file is not there.
    """
    override = os.environ.get(NATIVE_DIR_VARIABLE)
    folder = Path(override) if override else Path(__file__).parent / "_native"
    path = folder.resolve() / ORT_LIBRARY_NAME
    if path.is_file():
        return path
    if override:
        raise NqEdgeError(
            "NQ-NATIVE-MISSING",
            f"{NATIVE_DIR_VARIABLE} is {override}, but {path} does not exist.",
            f"Point {NATIVE_DIR_VARIABLE} at the folder that holds {ORT_LIBRARY_NAME}, or unset it.",
        )
    raise NqEdgeError("NQ-NATIVE-MISSING", f"The native library {path} does not exist.", _BUILD_HINT)


def ort_library_info() -> dict[str, Any]:
    """Ask the ONNX Runtime library what it is; loads it into this process.

    Returns:
        `version` (of the build), `isa` (the kernels this processor gets: scalar, avx2, avx512 or neon; empty when
        `NQ_CPU_ISA` names one that it lacks), `ort_api` (lowest ONNX Runtime API version needed), `operators`, and
        `path`.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when there is no library, or it cannot be loaded, or it is another library.
    """
    path = ort_library_path()
    try:
        function = ctypes.CDLL(str(path)).nq_ort_info
    except (OSError, AttributeError) as error:
        raise NqEdgeError("NQ-NATIVE-MISSING", f"{path} cannot be used: {error}.", _BUILD_HINT) from error
    function.argtypes = []
    function.restype = ctypes.c_char_p
    info: dict[str, Any] = json.loads(function())
    return {**info, "path": str(path)}
