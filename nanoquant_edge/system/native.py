# SPDX-License-Identifier: Apache-2.0
"""Where the native libraries are, and what they say about themselves.

CMake builds up to three libraries into `nanoquant_edge/_native`: the ONNX Runtime custom operator, where nvcc is found
the CUDA kernels, and where TensorRT's headers are found too the TensorRT plugin. The environment variable
`NQ_EDGE_NATIVE_DIR` names another folder, which then is the only one looked at: a library is loaded from where the user
said or from the installed package, never from a model's folder.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from nanoquant_edge.errors import NqEdgeError

__all__ = [
    "CUDA_LIBRARY_NAME",
    "NATIVE_DIR_VARIABLE",
    "ORT_LIBRARY_NAME",
    "TENSORRT_LIBRARY_NAME",
    "cpu_sign_rate",
    "cuda_library_info",
    "cuda_library_path",
    "ort_library_info",
    "ort_library_path",
    "tensorrt_library_info",
    "tensorrt_library_path",
]

#: environment variable that overrides the package's own folder
NATIVE_DIR_VARIABLE = "NQ_EDGE_NATIVE_DIR"

#: file name of the ONNX Runtime custom-operator library
ORT_LIBRARY_NAME = "libnanoquant_ort.so"

#: file name of the CUDA kernels
CUDA_LIBRARY_NAME = "libnanoquant_cuda.so"

#: file name of the TensorRT plugin
TENSORRT_LIBRARY_NAME = "libnanoquant_tensorrt.so"

_BUILD_HINT = (
    "Install a built wheel, or build it: cmake -S plugins -B build/native && cmake --build build/native && "
    "cmake --install build/native --prefix nanoquant_edge/_native"
)
_CUDA_HINT = (
    "Build it where nvcc 12.6 or newer is installed: cmake -S plugins -B build/native -DNQ_CUDA=ON && "
    "cmake --build build/native && cmake --install build/native --prefix nanoquant_edge/_native"
)
_TENSORRT_HINT = (
    "Install a built wheel, or build it where nvcc and TensorRT's headers are installed: cmake -S plugins "
    "-B build/native -DNQ_TENSORRT=ON && cmake --build build/native && cmake --install build/native "
    "--prefix nanoquant_edge/_native"
)


def ort_library_path() -> Path:
    """Return the path of the ONNX Runtime custom-operator library.

    Returns:
        The absolute path of an existing file: in the folder that `NQ_EDGE_NATIVE_DIR` names when it is set,
        otherwise in the installed package.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when the file is not there.
    """
    return _library_path(ORT_LIBRARY_NAME, _BUILD_HINT)


def ort_library_info() -> dict[str, Any]:
    """Ask the ONNX Runtime library what it is; loads it into this process.

    Returns:
        `version` (of the build), `isa` (the kernels this processor gets: scalar, avx2, avx512, avx512vbmi or neon;
        empty when `NQ_CPU_ISA` names one that it lacks), `ort_api` (lowest ONNX Runtime API version needed),
        `operators`, and `path`.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when there is no library, or it cannot be loaded, or it is another library.
    """
    return _library_info(ort_library_path(), "nq_ort_info", _BUILD_HINT)


def cpu_sign_rate() -> float:
    """Sign-adds a second that one core does at most, with the kernels that this processor gets.

    Measured on a matrix in the cache, in some milliseconds; loads the ONNX Runtime library into this process.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when there is no library, or it cannot be loaded, or it is another library.
    """
    path = ort_library_path()
    try:
        function = ctypes.CDLL(str(path)).nq_ort_sign_rate
    except (OSError, AttributeError) as error:
        raise NqEdgeError("NQ-NATIVE-MISSING", f"{path} cannot be used: {error}.", _BUILD_HINT) from error
    function.argtypes = []
    function.restype = ctypes.c_double
    return float(function())


def cuda_library_path() -> Path:
    """Return the path of the CUDA kernels' library; found as `ort_library_path` finds its own.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when the file is not there.
    """
    return _library_path(CUDA_LIBRARY_NAME, _CUDA_HINT)


def cuda_library_info() -> dict[str, Any]:
    """Ask the CUDA library what it is; loads it into this process, which needs no GPU.

    Returns:
        `version` (of the build), `architectures` (compute capabilities it has machine code for, such as ["86", "90"])
        and `path`.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when there is no library, or it cannot be loaded, or it is another library.
    """
    info = _library_info(cuda_library_path(), "nq_cuda_info", _CUDA_HINT)
    return {**info, "architectures": [name for name in str(info["architectures"]).split(",") if name]}


def tensorrt_library_path() -> Path:
    """Return the path of the TensorRT plugin's library; found as `ort_library_path` finds its own.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when the file is not there.
    """
    return _library_path(TENSORRT_LIBRARY_NAME, _TENSORRT_HINT)


def tensorrt_library_info(path: Path | None = None) -> dict[str, Any]:
    """Ask the TensorRT plugin's library what it is; loads it into this process, which needs neither TensorRT nor a GPU.

    Args:
        path: the library; by default the installed one.

    Returns:
        `version` (of the build), `architectures` (compute capabilities it has machine code for), `headers` (the
        TensorRT version it was compiled against), `operators`, `plugin_version`, `plugin_namespace` and `path`.

    Raises:
        NqEdgeError: `NQ-NATIVE-MISSING` when there is no library, or it cannot be loaded, or it is another library.
    """
    info = _library_info(path or tensorrt_library_path(), "nq_tensorrt_info", _TENSORRT_HINT)
    return {**info, "architectures": [name for name in str(info["architectures"]).split(",") if name]}


def _library_path(name: str, hint: str) -> Path:
    override = os.environ.get(NATIVE_DIR_VARIABLE)
    folder = Path(override) if override else Path(__file__).parents[1] / "_native"
    path = folder.resolve() / name
    if path.is_file():
        return path
    if override:
        raise NqEdgeError(
            "NQ-NATIVE-MISSING",
            f"{NATIVE_DIR_VARIABLE} is {override}, but {path} does not exist.",
            f"Point {NATIVE_DIR_VARIABLE} at the folder that holds {name}, or unset it.",
        )
    raise NqEdgeError("NQ-NATIVE-MISSING", f"The native library {path} does not exist.", hint)


def _library_info(path: Path, function_name: str, hint: str) -> dict[str, Any]:
    """The JSON object that a library's `function_name` returns, and its path."""
    info: dict[str, Any] = json.loads(_library_text(path, function_name, hint))
    return {**info, "path": str(path)}


def _library_text(path: Path, function_name: str, hint: str) -> str:
    try:
        function = getattr(ctypes.CDLL(str(path)), function_name)
    except (OSError, AttributeError) as error:
        raise NqEdgeError("NQ-NATIVE-MISSING", f"{path} cannot be used: {error}.", hint) from error
    function.argtypes = []
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode(errors="replace")
