# SPDX-License-Identifier: Apache-2.0
"""The backend that a bundle's manifest asks for."""

from __future__ import annotations

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from .backend import Backend
from .onnxruntime.providers import CPU

__all__ = ["open_backend", "remarks"]


def open_backend(
    bundle: Bundle,
    *,
    threads: int | None = None,
    allow_portable: bool = False,
    max_context: int | None = None,
    extra_outputs: tuple[str, ...] = (),
    spin: bool = True,
    provider: str = CPU,
    trust_bundle_code: bool = False,
) -> Backend:
    """Open a bundle with ONNX Runtime or TensorRT, whichever it was made for.

    Args:
        bundle: an opened bundle.
        threads, allow_portable, spin, provider: for ONNX Runtime, see `OnnxRuntimeBackend`; an engine has no use for
            them.
        max_context: most tokens of a sequence; None takes the bundle's limit.
        extra_outputs: inner values to return beside the logits.
        trust_bundle_code: let machine code inside of an engine run.

    Raises:
        NqEdgeError: NQ-BACKEND for a backend that this program does not know, and whatever opening raises.
    """
    if bundle.backend in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt import TensorRTBackend

        return TensorRTBackend(
            bundle, max_context=max_context, extra_outputs=extra_outputs, trust_bundle_code=trust_bundle_code
        )
    if bundle.backend == "tensorrt-build":
        raise NqEdgeError(
            "NQ-BACKEND",
            f"{bundle.folder} holds a graph from which the board builds its engine, and no engine yet.",
            "Copy the folder to the board, run build.sh there, and use the bundle that it writes.",
        )
    if bundle.backend != "onnxruntime":
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was made for {bundle.backend[:40]!r}, this program runs onnxruntime, tensorrt and "
            "tensorrt-rtx.",
            "Install a newer nanoquant-edge, or export again with this one.",
        )
    from .onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        bundle,
        threads=threads,
        allow_portable=allow_portable,
        max_context=max_context,
        extra_outputs=extra_outputs,
        spin=spin,
        provider=provider,
    )


def remarks(bundle: Bundle) -> tuple[str, ...]:
    """What a user must know of how far a bundle's backend is proved; printed wherever it runs."""
    if bundle.engine is None:
        return ()
    from .tensorrt import UNPROVED

    return (UNPROVED,)
