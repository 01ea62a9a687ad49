# SPDX-License-Identifier: Apache-2.0
"""What runs a bundle, as manifests spell it, and the two kinds of TensorRT with all their names."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BACKEND_TITLES", "BOARD_BUILD", "ENGINE_BACKENDS", "FLAVOURS", "GENAI", "ONNXRUNTIME", "Flavour"]

#: Backends of bundles with a graph: ONNX Runtime, ONNX Runtime GenAI, and a graph from which a board builds its engine.
ONNXRUNTIME, GENAI, BOARD_BUILD = "onnxruntime", "onnxruntime-genai", "tensorrt-build"


@dataclass(frozen=True)
class Flavour:
    """A kind of TensorRT.

    Attributes:
        name: in an engine's entry of a manifest, and of a device.
        backend: of bundles that hold its engines.
        title: for messages.
        module: Python module that builds and runs its engines.
        extra: of this package, with what it needs.
    """

    name: str
    backend: str
    title: str
    module: str
    extra: str


#: Name -> flavour: TensorRT as on Jetson boards and data-center GPUs, and TensorRT for RTX.
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("standard", "tensorrt", "TensorRT", "tensorrt", "tensorrt"),
        Flavour("rtx", "tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx"),
    )
}
#: Backend of a bundle that holds an engine -> the engine's flavour.
ENGINE_BACKENDS = {flavour.backend: flavour for flavour in FLAVOURS.values()}
#: Backend of a bundle that runs somewhere -> its usual name.
BACKEND_TITLES = {
    ONNXRUNTIME: "ONNX Runtime",
    GENAI: "ONNX Runtime GenAI",
    **{backend: flavour.title for backend, flavour in ENGINE_BACKENDS.items()},
}
