# SPDX-License-Identifier: Apache-2.0
"""A configuration as transformers reads it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from nanoquant_edge.models.dense_model import transformers_config

__all__ = ["their_model"]


def their_model(config: dict[str, Any]) -> Any:
    """The model that transformers makes of a config.json, without weights, its head tied where the file says so."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        theirs = transformers_config(Path(folder))
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(theirs)
    if theirs.tie_word_embeddings:
        model.lm_head.weight = model.get_input_embeddings().weight
    return model
