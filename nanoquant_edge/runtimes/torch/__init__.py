# SPDX-License-Identifier: Apache-2.0
"""The PyTorch backend: GPU kernels behind `torch.ops.nanoquant`, and a decoder whose step is one CUDA graph.

The only part of `runtimes` that imports PyTorch; nothing outside this folder imports it unasked.
"""

from __future__ import annotations

from .backend import TorchBackend
from .layers import TiledLayer
from .linear import CudaNanoQuantLinear
from .model import DecoderModel
from .random_model import SHAPES, random_model

__all__ = ["SHAPES", "CudaNanoQuantLinear", "DecoderModel", "TiledLayer", "TorchBackend", "random_model"]
