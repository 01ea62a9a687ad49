# SPDX-License-Identifier: Apache-2.0
"""A step at a time in fixed memory: the model's own tokens for every family, whatever else its rows hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from nanoquant_edge.compression.execution.static_step import StaticStep, affordable_rows, written_in_steps
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from tests.compression.support import dense_llama, family_folder
from tests.families import FAMILY_CONFIGS

_LONG, _BEGINS = 40, 15
NO_CHANCE = torch.zeros(3)


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_steps_give_what_a_whole_pass_gives(name: str, tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (3, _LONG), generator=torch.Generator().manual_seed(0))
    with load_model(family_folder(tmp_path / "model", name)) as source:
        model = source.model
        before = model.config._attn_implementation
        with torch.no_grad():
            whole = model(ids).logits.argmax(-1)
            later = model(ids[2:, _BEGINS:]).logits.argmax(-1)[0]
        with written_in_steps(model):
            step = StaticStep(model, 3, _LONG - 1, dtype=torch.float32, temperature=0)
            for place in range(_LONG - 1):
                again = place >= _BEGINS  # the last row begins a second text, and sees nothing of the first one
                ages = torch.tensor([place, place, place - _BEGINS if again else place])
                wanted = [whole[0, place], whole[1, place], later[place - _BEGINS] if again else whole[2, place]]
                assert step(ids[:, place], ages, NO_CHANCE).tolist() == [int(token) for token in wanted]
        assert model.config._attn_implementation == before


class Operators(TorchDispatchMode):
    """Names of the operators that are called, and whether one mixes devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").split(".")[0]
        devices = {part.device.type for part in args if isinstance(part, torch.Tensor)}
        self.names.add(name if len(devices) < 2 else f"{name} of {sorted(devices)}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_a_step_asks_the_host_for_nothing(name: str) -> None:
    """A CUDA graph repeats kernels alone: no value is read back, and none is copied from the host, as `where` does."""
    config = FAMILY_CONFIGS[name]
    entries = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **entries)).float()
    model.eval().to("meta")
    seen = Operators()
    with written_in_steps(model), torch.no_grad(), seen:
        for temperature in (0.0, 0.8):
            StaticStep(model, 3, 64, dtype=torch.float32, temperature=temperature)._step()
    assert {"bmm", "index_copy_", "cumsum"} <= seen.names
    assert not seen.names & {"where", "_local_scalar_dense", "nonzero", "lift_fresh", "index", "item"}
    assert not [operator for operator in seen.names if " of " in operator]


def test_a_text_looks_back_as_far_as_there_are_slots() -> None:
    model = dense_llama()
    ids = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    with written_in_steps(model):
        short, whole = (StaticStep(model, 1, slots, dtype=torch.float32, temperature=0) for slots in (4, 12))
        steps = range(12)
        few, all_ = (
            [int(step(ids[:, t], torch.tensor([t]), torch.zeros(1))) for t in steps] for step in (short, whole)
        )
    assert few[:4] == all_[:4] and few != all_


def test_draws_follow_the_models_chances() -> None:
    model = dense_llama()
    model.lm_head.weight.data.mul_(2)
    rows = 4000
    with torch.no_grad():
        expected = (model(torch.tensor([[1]])).logits[0, -1] / 0.7).softmax(-1)
    with written_in_steps(model):
        step = StaticStep(model, rows, 4, dtype=torch.float32, temperature=0.7)
        chances = torch.rand(rows, generator=torch.Generator().manual_seed(0))
        drawn = step(torch.ones(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), chances)
    found = drawn.bincount(minlength=len(expected)) / rows
    assert float((found - expected).abs().sum()) / 2 < 0.12  # total variation; 0.5 and more for another temperature
    likely = expected > 0.01
    assert torch.all((found - expected).abs()[likely] < 5 * (expected[likely] / rows).sqrt())


def test_rows_are_as_many_as_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = dense_llama()
    assert affordable_rows(model, 2048, torch.float32) == 32
    config = model.config  # a row's cache, its scores and its numbers for the vocabulary
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 100 * 4
    row += 16 * config.num_attention_heads * 100 + 24 * config.vocab_size
    assert affordable_rows(model, 100, torch.float32, free=4 * 7 * row) == 7
    assert affordable_rows(model, 100, torch.float32, free=0) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(temperature: float) -> None:
    model = dense_llama()
    model.model.norm.weight.data[0] = math.nan
    with written_in_steps(model), pytest.raises(NqEdgeError, match="not finite") as caught:
        step = StaticStep(model, 3, 8, dtype=torch.float32, temperature=temperature)
        step(torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), NO_CHANCE)
    assert caught.value.code == "NQ-NUMERIC"
