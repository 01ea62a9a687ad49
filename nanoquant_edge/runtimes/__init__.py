# SPDX-License-Identifier: Apache-2.0
"""Running bundles: backends behind one protocol, tokenizer, chat template, sampling, streaming and generation.

The way of a prompt: `generator` turns it into ids (a chat through `chat_template`) and calls the backend that
`selection` opened for the bundle. `tensorrt.backend` and `onnxruntime.backend` bring the ids to the GPU or CPU, in
pieces, and keep the key/value cache; `sampling` chooses the next token from the logits that come back. `torch` decodes
with the CUDA kernels through `cuda.binding`; no verb uses it yet. Only that package imports PyTorch, and nothing here
imports transformers or onnx.
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
from .selection import open_backend, open_slots, remarks
from .slots import SlotMemory, SlotRow, Slots
from .streaming import StopMatcher, TextStream
from .target import Target

__all__ = [
    "Backend",
    "ChatTemplate",
    "Generation",
    "Generator",
    "OnnxRuntimeBackend",
    "OpenOptions",
    "SamplingConfig",
    "SlotMemory",
    "SlotRow",
    "Slots",
    "StopMatcher",
    "Target",
    "TextRun",
    "TextStream",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "open_backend",
    "open_slots",
    "remarks",
]
