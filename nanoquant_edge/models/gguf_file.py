# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file: what transformers would read wrongly or without end is refused before it gets the file."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError, first_line
from ..formats.gguf_header import GgufHeader, read_gguf_header
from ..system.extras import install_command
from ..system.versions import release
from .config_reader import read_config
from .families import family_of
from .model_tokenizer import ModelTokenizer, load_from_folder, load_tokenizer
from .source import SourceModel

__all__ = ["MODEL_TYPES", "config_changes", "from_gguf"]

#: `general.architecture` -> config.json's `model_type`, where they differ.
MODEL_TYPES = {"gemma3": "gemma3_text"}
#: Architectures that transformers reads from GGUF and that are compressed here.
_READ = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")

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
    "hidden_activation",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
)
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: From a GGUF of Gemma-3-270M, 5.17 makes a model of perplexity 562; 5.23 one of 18.8, as it should be.
_LEAST_TRANSFORMERS = "5.23"
_INSTALL = f"Install them: {install_command('compress')}."


@contextlib.contextmanager
def from_gguf(path: Path, name: str) -> Iterator[SourceModel]:
    """Load a GGUF file; its weights are dequantised to float32.

    Args:
        path: the file.
        name: what to call the model.

    Raises:
        NqEdgeError: NQ-MODEL, NQ-ARCH, NQ-TOKENIZER or NQ-MISSING, see `load_model`.
    """
    header = read_gguf_header(path)
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise NqEdgeError("NQ-MISSING", f"reading GGUF needs the package {package}.", _INSTALL)
    _check_transformers()
    _check_model(path, header)
    _check_tensors(path, header)
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    theirs = load_tokenizer(path, path.parent, gguf_file=path.name)
    with _no_bar():
        model = _load_dense(path, path.parent, gguf_file=path.name, **_corrected_config(path, header))
    # The weights are plain float32 now; without this, transformers takes the model for a quantized one.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    with tempfile.TemporaryDirectory(prefix="nq-edge-") as scratch:
        companions = Path(scratch)
        config = model.config.to_dict()
        config = {key: value for key, value in config.items() if key in _USEFUL or key.endswith("_token_id")}
        config.update(architectures=[type(model).__name__], dtype="float32")
        read_config(config)
        theirs.save_pretrained(companions)
        tokenizer = ModelTokenizer(load_from_folder(companions), None, theirs.chat_template)
        ends = {key: config[key] for key in _ENDS if config.get(key) is not None}
        (companions / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
        yield SourceModel(name, model, tokenizer, config, companions, "weights dequantised from GGUF")


def _load_dense(path: Path, folder: Path, **options: Any) -> Any:
    """The model in float32; a tensor that is missing is an error, not a random start.

    Args:
        path: what the user named, for messages.
        folder: where transformers reads.
        options: further arguments of `from_pretrained`.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged, a tensor is missing, or memory does not suffice.
    """
    import torch
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


def _check_transformers() -> None:
    """Refuse a transformers that reads some files wrongly, and without a word."""
    installed = importlib.metadata.version("transformers")
    if release(installed) < release(_LEAST_TRANSFORMERS):
        message = f"reading GGUF needs transformers {_LEAST_TRANSFORMERS} or newer; {installed} is installed."
        raise NqEdgeError("NQ-MISSING", message, _INSTALL)


def config_changes(header: GgufHeader) -> dict[str, Any]:
    """What a file says of its model's configuration, and transformers does not read or takes for a constant."""
    architecture = header.fields["general.architecture"]

    def stated(key: str) -> int:
        value = header.fields.get(f"{architecture}.{key}")
        return value if type(value) is int else 0

    changes: dict[str, Any] = {}
    if architecture in ("qwen2", "qwen3") and stated("attention.key_length"):
        changes["head_dim"] = stated("attention.key_length")
    heads = stated("attention.head_count")
    if architecture == "gemma2" and stated("block_count") == 46 and heads:
        # Gemma-2 27B scales its queries by hidden / heads = 144, the smaller ones by 256; llama.cpp knows it by depth.
        changes["query_pre_attn_scalar"] = stated("embedding_length") // heads
    return changes


def _corrected_config(path: Path, header: GgufHeader) -> dict[str, Any]:
    """The `config` argument of transformers' loader, where its own reading would be wrong."""
    changes = config_changes(header)
    if not changes:
        return {}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # transformers and gguf raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {first_line(error)}.") from error
    wrong = {name: value for name, value in changes.items() if getattr(config, name, value) != value}
    for name, value in wrong.items():
        setattr(config, name, value)
    return {"config": config} if wrong else {}


def _check_model(path: Path, header: GgufHeader) -> None:
    """Refuse other architectures, parts of a model, and positions that transformers would not scale."""
    fields = header.fields
    architecture = fields.get("general.architecture")
    if not isinstance(architecture, str):
        raise NqEdgeError("NQ-MODEL", f"{path} is damaged: it names no architecture.")
    family_of({"model_type": MODEL_TYPES.get(architecture, architecture)})
    if architecture not in _READ:
        raise NqEdgeError(
            "NQ-ARCH", f"architecture {architecture!r} is not read from GGUF.", "Use the Hugging Face folder."
        )
    if fields.get("split.count", 0) not in (0, 1):
        raise NqEdgeError(
            "NQ-MODEL",
            f"{path} is one of {fields['split.count']} parts of a model.",
            "Join the parts with llama.cpp's llama-gguf-split --merge.",
        )
    if any(name.endswith(".nq_v") for name in header.tensors):
        raise NqEdgeError(
            "NQ-MODEL",
            f"{path} holds a NanoQuant model already.",
            "Import it: nq-edge import FILE --base MODEL --output CHECKPOINT.",
        )
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_") for name in header.tensors):
        raise NqEdgeError(
            "NQ-ARCH",
            f"{path} scales its rotary positions, which is not read from GGUF.",
            "Use the Hugging Face folder.",
        )


def _check_tensors(path: Path, header: GgufHeader) -> None:
    """Refuse block types that cannot be dequantised, and data that ends before the file says."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    for name, tensor in header.tensors.items():
        try:
            kind = GGMLQuantizationType(tensor.kind)
        except ValueError:
            kind = None
        if kind not in plain and kind not in _type_traits:
            spelled = kind.name if kind is not None else f"number {tensor.kind}"
            raise NqEdgeError(
                "NQ-MODEL",
                f"{path} stores {name[:200]!r} in the block type {spelled}, which cannot be read.",
                "Use a file in F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K, or the Hugging Face folder.",
            )
        block, size = GGML_QUANT_SIZES[kind]
        count = math.prod(tensor.shape)
        if not tensor.shape or tensor.shape[-1] % block or tensor.start + count // block * size > header.size:
            raise NqEdgeError("NQ-MODEL", f"{path} is damaged: the data of {name[:200]!r} passes the end of the file.")


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
