# SPDX-License-Identifier: Apache-2.0
"""Running bundles: backends behind one protocol, tokenizer, chat template, sampling, streaming and generation.

The way of a prompt: `generator` turns it into ids (a chat through `chat_template`) and calls the backend of `target`,
which decides where a path's model runs. `tensorrt.backend`, `onnxruntime.backend` and `cuda.backend` bring the ids to
the GPU or CPU, in pieces, and keep the key/value cache; `sampling` chooses the next token from the logits that come
back, unless the GPU does. Nothing here imports PyTorch, transformers or onnx.
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
