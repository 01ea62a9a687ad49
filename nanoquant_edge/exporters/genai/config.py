# SPDX-License-Identifier: Apache-2.0
"""`genai_config.json`, from which ONNX Runtime GenAI learns the graph's names and sizes.

Fields: onnxruntime-genai, src/config.h and https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

from typing import Any

from ...errors import NqEdgeError
from ...formats.graph import ATTENTION_MASK, INPUT_IDS, LOGITS, MODEL_FILE, PAST, PRESENT
from ...models import DecoderConfig

__all__ = ["CONFIG_FILE", "USUAL_LENGTH", "genai_config"]

CONFIG_FILE = "genai_config.json"
#: Tokens that GenAI makes room for unless it is told otherwise: it allocates the whole cache at once.
USUAL_LENGTH = 2048

#: Our families -> GenAI's model types; the type chooses how the decoder is driven, which is the same for all of these.
_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}


def genai_config(
    config: DecoderConfig, source: dict[str, Any], *, generation: dict[str, Any], max_length: int, library: str
) -> dict[str, Any]:
    """The content of `genai_config.json`.

    Args:
        config: sizes.
        source: the model's config.json.
        generation: its generation_config.json, or an empty object.
        max_length: longest context in tokens.
        library: file name of the custom-operator library in the folder.

    Raises:
        NqEdgeError: NQ-ARCH for a family that GenAI does not drive.
    """
    if config.family not in _TYPES:
        raise NqEdgeError(
            "NQ-ARCH",
            f"ONNX Runtime GenAI has no model type for {config.family}.",
            f"It has {', '.join(_TYPES)}; export with --to onnx.",
        )
    given = generation.get("eos_token_id", source.get("eos_token_id"))
    first = generation.get("bos_token_id", source.get("bos_token_id"))
    stops = given if isinstance(given, list) else [given]
    stops = [number for number in stops if isinstance(number, int)]
    if not stops:
        raise NqEdgeError("NQ-MODEL", "the model names no end-of-text token (eos_token_id), which GenAI needs.")
    pad = generation.get("pad_token_id", source.get("pad_token_id"))
    decoder = {
        "session_options": {"custom_ops_library": library, "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "inputs": {
            "input_ids": INPUT_IDS,
            "attention_mask": ATTENTION_MASK,
            "past_key_names": f"{PAST}%d.key",
            "past_value_names": f"{PAST}%d.value",
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": f"{PRESENT}%d.key",
            "present_value_names": f"{PRESENT}%d.value",
        },
    }
    return {
        "model": {
            "type": _TYPES[config.family],
            "bos_token_id": first if isinstance(first, int) else stops[0],
            "eos_token_id": stops if len(stops) > 1 else stops[0],
            "pad_token_id": pad if isinstance(pad, int) else stops[0],
            "context_length": max_length,
            "vocab_size": config.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "max_length": min(max_length, USUAL_LENGTH),
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
