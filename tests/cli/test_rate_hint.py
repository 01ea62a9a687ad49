# SPDX-License-Identifier: Apache-2.0
"""The line about a rate: for models that bear less than was taken, and for no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.cli.rate_hint import rate_hint
from tests.tiny import llama_config

SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "num_attention_heads": 9, "head_dim": 64}
LARGE = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000, "num_attention_heads": 32, "head_dim": 128}


def model(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(llama_config(**changes)), encoding="utf-8")
    return folder


def test_a_small_model_is_told_what_it_bears(tmp_path: Path) -> None:
    small = model(tmp_path, **SMOLLM2, num_key_value_heads=3)
    line = rate_hint(small, None, 1.0)
    assert line is not None and "the default" in line and "--bpw 1.5 is what it bears" in line
    assert "SmolLM2-135M-Instruct" in line and "2.3 times the dense perplexity at 1, 1.6 times at 1.5" in line
    assert "--bpw 0.55 is low" in str(rate_hint(small, 0.55, 1.0))
    assert rate_hint(small, 1.2, 1.0) is rate_hint(small, 2.0, 1.0) is None


def test_a_large_model_bears_the_default(tmp_path: Path) -> None:
    large = model(tmp_path, **LARGE, num_key_value_heads=32)
    assert rate_hint(large, None, 1.0) is None
    assert "Llama-2-7B" in str(rate_hint(large, 0.55, 1.0))


def test_an_unknown_model_is_like_the_nearest_in_size(tmp_path: Path) -> None:
    between = model(tmp_path, **{**LARGE, "hidden_size": 2560, "num_hidden_layers": 36}, num_key_value_heads=8)
    assert "Qwen3-4B" in str(rate_hint(between, 0.55, 1.0))


@pytest.mark.parametrize("name", ["owner/model", "absent.gguf", "broken"])
def test_what_cannot_be_read_is_left_to_its_reader(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert rate_hint(tmp_path / name, None, 1.0) is None
