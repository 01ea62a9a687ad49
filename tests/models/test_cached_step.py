# SPDX-License-Identifier: Apache-2.0
"""Decoding with a cache, under both names that transformers has had for it and without a warning."""

from __future__ import annotations

import types
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from nanoquant_edge.models.cached_step import cached_step  # noqa: E402
from tests.tiny import llama_config  # noqa: E402


def test_step_by_step_gives_the_logits_of_one_pass_and_no_warning() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**llama_config())).eval()
    ids = torch.arange(5, 15)[None]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        whole, _cache = cached_step(model, ids)
        cache, rows = None, []
        for position in range(ids.shape[1]):
            logits, cache = cached_step(model, ids[:, position : position + 1], cache, last=1)
            rows.append(logits)
    assert torch.allclose(torch.cat(rows, 1), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_each_version_gets_the_name_that_it_knows(name: str) -> None:
    seen: list[dict[str, Any]] = []

    class Model:
        def __call__(self, **keywords: Any) -> Any:
            seen.append(keywords)
            return types.SimpleNamespace(logits=torch.ones(1, 1, 4), **{name: "state"})

    model = Model()
    exec(f"def forward(input_ids=None, {name}=None, use_cache=None): pass", scope := {})
    model.forward = scope["forward"]  # type: ignore[attr-defined]
    assert cached_step(model, torch.ones(1, 1, dtype=torch.int64), "before")[1] == "state"
    assert seen[0][name] == "before" and seen[0]["use_cache"] is True
