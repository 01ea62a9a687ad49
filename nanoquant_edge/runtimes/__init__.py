# SPDX-License-Identifier: Apache-2.0
"""Running bundles: backends behind one protocol, tokenizer, chat template, sampling, streaming and generation.

Nothing here imports PyTorch, transformers or onnx.
"""

from __future__ import annotations

from ..formats.tokenizer import Tokenizer, load_tokenizer
from .backend import Backend
from .chat_template import ChatTemplate, load_chat_template
from .generator import Generator
from .onnxruntime.backend import OnnxRuntimeBackend
from .options import OpenOptions
from .result import Generation, TextRun
from .sampling import SamplingConfig
from .selection import open_backend, remarks
from .streaming import StopMatcher, TextStream

__all__ = [
    "Backend",
    "ChatTemplate",
    "Generation",
    "Generator",
    "OnnxRuntimeBackend",
    "OpenOptions",
    "SamplingConfig",
    "StopMatcher",
    "TextRun",
    "TextStream",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "open_backend",
    "remarks",
]
