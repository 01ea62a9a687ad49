# SPDX-License-Identifier: Apache-2.0
"""Where TensorRT's and CUDA's headers are on this machine, if anywhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

__all__ = ["cuda_headers", "tensorrt_headers"]

_ROOT = Path(__file__).parents[2]


def _first(name: str, folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if (folder / name).is_file()), None)


def tensorrt_headers() -> Path | None:
    """The folder of NvInferRuntime.h: TENSORRT_INCLUDE_DIR, the Makefile's copy, a wheel's, or a system's."""
    folders = [Path(os.environ["TENSORRT_INCLUDE_DIR"])] if "TENSORRT_INCLUDE_DIR" in os.environ else []
    inside = Path("kernel_lens", "include", "tensorrt")
    folders.append(_ROOT / "build" / "tensorrt-headers" / inside)
    wheel = importlib.util.find_spec("kernel_lens")
    folders += [Path(place) / "include" / "tensorrt" for place in (wheel and wheel.submodule_search_locations) or []]
    folders += [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include/aarch64-linux-gnu")]
    return _first("NvInferRuntime.h", folders)


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime_api.h: beside nvcc, or in the usual place."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    return _first("cuda_runtime_api.h", [*folders, Path("/usr/local/cuda/include")])
