# SPDX-License-Identifier: Apache-2.0
"""A dense model to compress, and the one call of transformers that every kind of input ends in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import NqEdgeError, first_line
from .config import DecoderConfig
from .families import Family, family_of

__all__ = ["SourceModel", "load_dense", "load_tokenizer"]


@dataclass
class SourceModel:
    """A dense model to compress.

    Attributes:
        name: what to call it in reports.
        model: transformers causal language model, float32, on the CPU, in evaluation mode.
        tokenizer: its transformers tokenizer.
        config: config.json content, without any quantization entry.
        companions: folder with tokenizer and generation files, valid while the context of `load_model` is open.
        note: what a reader of its figures must know (a GGUF file holds dequantised weights).
    """

    name: str
    model: Any
    tokenizer: Any
    config: dict[str, Any]
    companions: Path
    note: str

    @property
    def family(self) -> Family:
        """The model's architecture family."""
        return family_of(self.config)

    @property
    def decoder(self) -> DecoderConfig:
        """The model's sizes."""
        return DecoderConfig.from_dict(self.config)


def load_dense(path: Path, folder: Path, **options: Any) -> Any:
    """The model in float32; a tensor that is missing is an error, not a random start.

    Args:
        path: what the user named, for messages.
        folder: where transformers reads.
        options: further arguments of `from_pretrained`.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged, a tensor is missing, or memory does not suffice.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers, safetensors, gguf and torch each raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {first_line(error)}.") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise NqEdgeError("NQ-MODEL", f"{path} lacks {len(missing)} tensors, the first is {missing[0]}.")
    return model.eval()


def load_tokenizer(path: Path, folder: Path, **options: Any) -> Any:
    """The transformers tokenizer of a model.

    Raises:
        NqEdgeError: NQ-TOKENIZER when it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers is native code: its panics are no subclass of Exception
        raise NqEdgeError("NQ-TOKENIZER", f"the tokenizer of {path} cannot be loaded: {first_line(error)}.") from error
