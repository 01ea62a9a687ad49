# SPDX-License-Identifier: Apache-2.0
"""Reading a Hugging Face folder or a GGUF file into a PyTorch model, with its tokenizer files on disk."""

from __future__ import annotations

import contextlib
import functools
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
from .families import FAMILIES, Family, family_of

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

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_GGUF_MAGIC = b"GGUF"
_GGUF_KEYS = ("general.architecture", *(f"{name}.rope." for family in FAMILIES for name in family.model_types))
_INSTALL = "Install them: pip install 'nanoquant-edge[compress]'."


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
        raise NqEdgeError("NQ-MISSING", "transformers is not installed.", _INSTALL) from error
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
    from transformers import AutoTokenizer

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
    # Code in the folder is never run; without the explicit False, transformers would ask on the terminal.
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # transformers and tokenizers each raise their own kinds for damaged files
        raise NqEdgeError(
            "NQ-TOKENIZER", f"the tokenizer of {folder} cannot be loaded: {_first_line(error)}."
        ) from error
    model = _model(folder, folder, use_safetensors=True, **local)
    yield SourceModel(folder.resolve().name, model, tokenizer, config, folder, "")


@contextlib.contextmanager
def _from_gguf(path: Path) -> Iterator[SourceModel]:
    from transformers import AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != _GGUF_MAGIC:
            raise NqEdgeError("NQ-MODEL", f"{path} is not a GGUF file.")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise NqEdgeError("NQ-MISSING", f"reading GGUF needs the package {package}.", _INSTALL)
    _check_gguf(path)
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # the gguf reader raises plain ValueError, IndexError and others for damaged files
        raise NqEdgeError("NQ-TOKENIZER", f"the tokenizer in {path} cannot be read: {_first_line(error)}.") from error
    with _no_bar():
        model = _model(path, path.parent, gguf_file=path.name)
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
        ends = {key: config[key] for key in _ENDS if config.get(key) is not None}
        (companions / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
        note = "weights dequantised from GGUF"
        yield SourceModel(path.stem, model, tokenizer, config, companions, note)


def _model(path: Path, folder: Path, **options: Any) -> Any:
    """The model in float32; a tensor that is missing is an error, not a random start."""
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers, safetensors, gguf and torch each raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {_first_line(error)}.") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise NqEdgeError("NQ-MODEL", f"{path} lacks {len(missing)} tensors, the first is {missing[0]}.")
    return model.eval()


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Keep the GGUF reader's own progress bar off the terminal; the switch of transformers does not reach it."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _check_gguf(path: Path) -> None:
    """Refuse what transformers would read wrongly without a word: other architectures' and scaled rotary positions."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {key: reader.fields[key].contents() for key in reader.fields if key.startswith(_GGUF_KEYS)}
    except Exception as error:  # plain ValueError, IndexError and others for damaged files
        raise NqEdgeError("NQ-MODEL", f"{path} is damaged: {_first_line(error)}.") from error
    architecture = fields.get("general.architecture")
    family_of({"model_type": architecture})
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        raise NqEdgeError(
            "NQ-ARCH",
            f"{path} scales its rotary positions, which is not read from GGUF.",
            "Use the Hugging Face folder.",
        )


def _first_line(error: Exception) -> str:
    """What a library said, without the control characters a damaged file can bring into it."""
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
