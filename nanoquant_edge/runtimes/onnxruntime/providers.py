# SPDX-License-Identifier: Apache-2.0
"""Where ONNX Runtime computes: on the CPU, or on an NVIDIA GPU through its CUDA provider.

ONNX Runtime falls back to the CPU without a word when its CUDA provider cannot start (a missing cuDNN, an old driver).
Here that is an error, and so is a bundle whose number type the GPU kernels do not take.
"""

from __future__ import annotations

from typing import Any

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...system.extras import install_command
from ...system.native import cuda_library_path
from ..options import CPU, CUDA, PROVIDERS

__all__ = ["check_started", "provider_list"]

_NAMES = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider"}


def provider_list(runtime: Any, bundle: Bundle, provider: str) -> list[Any]:
    """The providers argument of a session, the wanted one first.

    Args:
        runtime: the onnxruntime module.
        bundle: what will run.
        provider: "cpu" or "cuda".

    Raises:
        NqEdgeError: NQ-OPTION for an unknown name; NQ-BACKEND when this onnxruntime has no CUDA provider or the
            bundle's number type does not run there; NQ-NATIVE-MISSING when our CUDA kernels are not built.
    """
    if provider not in PROVIDERS:
        raise NqEdgeError("NQ-OPTION", f"provider must be one of {', '.join(PROVIDERS)}, got {provider!r}.")
    types = {bundle.dtype, bundle.kv.dtype}
    if provider == CPU:
        if "bfloat16" in types:
            raise NqEdgeError(
                "NQ-BACKEND",
                "the bundle computes in bfloat16, for which ONNX Runtime has no CPU kernels.",
                "Run `nq-edge export` again with --dtype float32.",
            )
        return [_NAMES[CPU]]
    if types != {"float16"}:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle computes in {bundle.dtype}; ONNX Runtime runs float16 bundles on a GPU.",
            "Run `nq-edge export` again with --dtype float16, or use the CPU.",
        )
    if _NAMES[CUDA] not in runtime.get_available_providers():
        raise NqEdgeError(
            "NQ-BACKEND",
            f"onnxruntime {runtime.__version__} has no CUDA provider.",
            f"Run pip uninstall onnxruntime, then {install_command('cuda')}; or use the CPU.",
        )
    cuda_library_path()
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA and cuDNN from pip's nvidia packages, where they are installed
    # Memory grows by what is asked for, not by doubling: a cache next to it is large.
    return [(_NAMES[CUDA], {"arena_extend_strategy": "kSameAsRequested"}), _NAMES[CPU]]


def check_started(runtime: Any, session: Any, provider: str) -> None:
    """See that the session runs where it was told to.

    Raises:
        NqEdgeError: NQ-BACKEND when ONNX Runtime fell back to the CPU.
    """
    if _NAMES[provider] not in session.get_providers():
        raise NqEdgeError(
            "NQ-BACKEND",
            f"onnxruntime {runtime.__version__} could not start its CUDA provider and fell back to the CPU.",
            "Check the driver with nvidia-smi, and that CUDA and cuDNN 9 are installed (pip install "
            "'onnxruntime-gpu[cuda,cudnn]'); or use the CPU.",
        )
