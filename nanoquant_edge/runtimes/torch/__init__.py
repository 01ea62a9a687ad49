# SPDX-License-Identifier: Apache-2.0
"""The PyTorch backend: a decoder on the GPU kernels whose step is one CUDA graph.

The only part of `runtimes` that imports PyTorch; nothing outside this folder imports it unasked.
"""

from __future__ import annotations

from .backend import TorchBackend
from .layers import TiledLayer
from .model import DecoderModel

__all__ = ["DecoderModel", "TiledLayer", "TorchBackend"]
