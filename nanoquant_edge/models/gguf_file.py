# SPDX-License-Identifier: Apache-2.0
"""Reading a GGUF file: its weights are dequantised to float32, its tokenizer becomes a tokenizer.json."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError, first_line
from .config_reader import read_config
from .dense_model import build_model
from .gguf.config import read_gguf_config
from .gguf.content import GgufContent
from .gguf.tensors import GgufTensors
from .gguf.tokenizer import end_tokens, read_gguf_template, read_gguf_tokenizer, token_ids
from .model_tokenizer import ModelTokenizer
from .source import SourceModel

__all__ = ["from_gguf"]


@contextlib.contextmanager
def from_gguf(path: Path, name: str) -> Iterator[SourceModel]:
    """Load a GGUF file.

    Args:
        path: the file.
        name: what to call the model.

    Raises:
        NqEdgeError: NQ-MODEL, NQ-ARCH, NQ-TOKENIZER or NQ-MISSING, see `load_model`.
    """
    content = GgufContent(path)
    config = read_gguf_config(content)
    tokenizer = ModelTokenizer(read_gguf_tokenizer(content), None, read_gguf_template(content))
    ends = end_tokens(content)
    config |= token_ids(content)
    config |= {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}
    tensors = GgufTensors(content, read_config(config))
    model, config, _ = build_model(config, _transformers_config(path, config), tensors, name=str(path))
    with tempfile.TemporaryDirectory(prefix="nq-edge-") as scratch:
        companions = Path(scratch)
        tokenizer.ours.save_pretrained(companions)
        if tokenizer.template is not None:
            (companions / "chat_template.jinja").write_text(tokenizer.template, encoding="utf-8")
        ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
        (companions / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        yield SourceModel(name, model, tokenizer, config, companions, "weights dequantised from GGUF")


def _transformers_config(path: Path, config: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = json.loads(json.dumps({key: value for key, value in config.items() if key != "model_type"}))
    try:
        return AutoConfig.for_model(config["model_type"], **rest)
    except Exception as error:  # transformers and huggingface_hub raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {first_line(error)}.") from error
