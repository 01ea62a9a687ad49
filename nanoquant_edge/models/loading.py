# SPDX-License-Identifier: Apache-2.0
"""Reading a Hugging Face folder or a GGUF file into a PyTorch model, with its tokenizer files on disk."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import NqEdgeError
from ..files import read_json
from .config import DecoderConfig
from .families import Family, family_of

__all__ = ["SourceModel", "load_model"]

# What a GGUF file says of the model itself; transformers adds a page of its own defaults, which stay out.
_USEFUL = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)

_GGUF_MAGIC = b"GGUF"


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


@contextlib.contextmanager
def load_model(path: str | Path) -> Iterator[SourceModel]:
    """Load a model for compression. Holds the whole model in float32.

    Args:
        path: a Hugging Face folder (config.json, safetensors, tokenizer.json), or a .gguf file.

    Raises:
        NqEdgeError: NQ-MODEL for a missing, truncated or foreign file, NQ-ARCH for an unknown architecture,
            NQ-TOKENIZER when the tokenizer is missing, NQ-MISSING without transformers.
    """
    path = Path(path)
    try:
        import transformers
    except ImportError as error:
        raise NqEdgeError("NQ-MISSING", "transformers is not installed.", "pip install 'nanoquant-edge[compress]'") from error
    transformers.utils.logging.disable_progress_bar()
    if path.is_dir():
        with _from_folder(path) as source:
            yield source
    elif path.is_file():
        with _from_gguf(path) as source:
            yield source
    else:
        raise NqEdgeError("NQ-MODEL", f"{path} does not exist.", "Pass a Hugging Face folder or a .gguf file.")


@contextlib.contextmanager
def _from_folder(folder: Path) -> Iterator[SourceModel]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise NqEdgeError("NQ-MODEL", f"{folder} has no config.json: it is not a Hugging Face model folder.")
    config = read_json(folder / "config.json", "NQ-MODEL")
    DecoderConfig.from_dict(config)  # refuse what is not supported before loading anything large
    if config.get("quantization_config"):
        raise NqEdgeError(
            "NQ-MODEL", f"{folder} is quantized already.", "Compress the original 16- or 32-bit model instead."
        )
    if not (folder / "tokenizer.json").is_file():
        raise NqEdgeError("NQ-TOKENIZER", f"{folder} has no tokenizer.json.")
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not weights:
        raise NqEdgeError(
            "NQ-MODEL", f"{folder} has no safetensors weights.", "Convert the model to safetensors; pickle is not read."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch each raise their own kinds for damaged files
        raise NqEdgeError("NQ-MODEL", f"{folder} cannot be loaded: {_first_line(error)}.") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise NqEdgeError("NQ-MODEL", f"{folder} lacks {len(missing)} tensors, the first is {missing[0]}.")
    yield SourceModel(folder.resolve().name, model.eval(), tokenizer, config, folder, "")


@contextlib.contextmanager
def _from_gguf(path: Path) -> Iterator[SourceModel]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != _GGUF_MAGIC:
            raise NqEdgeError("NQ-MODEL", f"{path} is not a GGUF file.")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise NqEdgeError(
                "NQ-MISSING", f"reading GGUF needs the package {package}.", "pip install 'nanoquant-edge[compress]'"
            )
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    folder, name = str(path.parent), path.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    except Exception as error:  # the gguf reader raises plain ValueError, IndexError and others for damaged files
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {_first_line(error)}.") from error
    # The weights are plain float32 now; without this, transformers takes the model for a quantized one.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    with tempfile.TemporaryDirectory(prefix="nq-edge-") as scratch:
        companions = Path(scratch)
        config = model.config.to_dict()
        config = {key: value for key, value in config.items() if key in _USEFUL or key.endswith("_token_id")}
        config.update(architectures=[type(model).__name__], dtype="float32")
        DecoderConfig.from_dict(config)
        tokenizer.save_pretrained(companions)
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
        (companions / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
        note = "weights dequantised from GGUF"
        yield SourceModel(path.stem, model.eval(), tokenizer, config, companions, note)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
